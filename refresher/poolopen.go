package refresher

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/slab"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// A record of the log begins with what it is.
const (
	logPut    = 1 // an entry follows
	logDelete = 2 // a session's id follows
	logKey    = 3 // the key of the keyed values follows
	logSpent  = 5 // half a sum follows, and until when it counts: seconds since 1970 (4)
	logUse    = 4 // a session's id follows, and when it was used: seconds since 1970 (4)
)

func putRecord(packed []byte) []byte { return append([]byte{logPut}, packed...) }

func deleteRecord(id poolID) []byte { return append([]byte{logDelete}, id[:]...) }

func useRecord(id poolID, used uint32) []byte {
	return binary.LittleEndian.AppendUint32(append([]byte{logUse}, id[:]...), used)
}

func keyRecord(key []byte) []byte { return append([]byte{logKey}, key...) }

// open takes the lock and reads the log, and keeps trying until both succeed or
// the pool is closed.
func (p *Pool) open(cfg PoolConfig) bool {
	told := false
	for wait := lockPoll; ; wait = min(2*wait, 5*time.Second) {
		err := p.tryOpen(cfg)
		switch {
		case err == nil:
			p.failed.Store(nil)
			p.opened.happen()
			return true
		case errors.Is(err, journal.ErrLocked):
			wait = lockPoll
			if !told {
				cfg.Logger.Warn("another process holds this pool; waiting for it to end",
					zap.String("pool", p.name), zap.String("state_dir", p.dir))
				told = true
			}
		default:
			cfg.Logger.Error("opening the pool's log (retrying)", zap.String("pool", p.name), zap.Error(err))
		}
		text := err.Error()
		p.failed.Store(&text)
		select {
		case <-p.ctx.Done():
			return false
		case <-time.After(wait):
		}
		if now := p.config.Load(); now != nil {
			cfg = *now // perhaps it has the right key
		}
	}
}

func (p *Pool) tryOpen(cfg PoolConfig) (err error) {
	if p.lock, err = journal.TryLock(p.dir, p.fileName()); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = p.lock.Unlock()
			p.lock = nil
			p.table.clear()
			p.key, p.sums = nil, nil // the next try must find it in the log, or write it there
		}
	}()
	began := time.Now()
	r := replayer{pool: p, logger: cfg.Logger, told: began}
	log, replay, err := journal.OpenLog(p.dir, p.fileName(), cfg.Keys, r.record)
	if err != nil {
		return err
	}
	for _, path := range replay.Damaged {
		cfg.Logger.Error("a part of the pool's log cannot be read; its sessions go back to what was written before, and the file is kept",
			zap.String("pool", p.name), zap.String("file", path))
	}
	if p.key == nil {
		p.setKey(newKey())
		if err := log.Append(keyRecord(p.key)); err != nil {
			return errors.Join(err, log.Close())
		}
	}
	p.attached.Lock()
	p.log = log
	if now := p.config.Load(); now != nil && !now.keysSame(&cfg) { // it came meanwhile
		p.rekey(now.Keys)
	}
	p.attached.Unlock()
	p.settleAll(cfg)
	if n := p.table.count.Load(); n > 0 {
		cfg.Logger.Info("the pool's sessions are restored", zap.String("pool", p.name),
			zap.Int64("sessions", n), zap.Duration("took", time.Since(began)))
	}
	if !replay.Clean || replay.Damaged != nil {
		p.compact(cfg) // what was not acknowledged may be in the page cache alone
	}
	return nil
}

func newKey() []byte {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return key
}

func (p *Pool) setKey(key []byte) {
	p.key = key
	p.sums = newSummer(key)
}

// replayer puts the records of the log into the table.
type replayer struct {
	pool   *Pool
	logger *zap.Logger
	told   time.Time
	count  int
}

func (r *replayer) record(text []byte) error {
	if r.count++; r.count%50_000 == 0 && time.Since(r.told) > time.Second {
		r.told = time.Now()
		r.logger.Info("restoring the pool's sessions", zap.String("pool", r.pool.name), zap.Int("records", r.count))
	}
	t := &r.pool.table
	switch {
	case len(text) == 33 && text[0] == logKey:
		r.pool.setKey(append([]byte(nil), text[1:]...))
		return nil
	case len(text) == 9 && text[0] == logDelete:
		m, _, ok := t.find(poolID(text[1:]).sum())
		if ok {
			last, _, _ := t.remove(m)
			t.unindex(last.sums(), m.number)
		}
		return nil
	case len(text) == 13 && text[0] == logSpent:
		r.pool.spent.add(binary.LittleEndian.Uint32(text[9:]), binary.LittleEndian.Uint64(text[1:]))
		return nil
	case len(text) == 13 && text[0] == logUse:
		if m, _, ok := t.find(poolID(text[1:]).sum()); ok {
			t.view(m, func(_ *slot, packed packedEntry) { packed.setUsed(binary.LittleEndian.Uint32(text[9:])) })
		}
		return nil
	case len(text) > 1+entryGiven && text[0] == logPut:
	default:
		return fmt.Errorf("pool %q: a record of the log is not in a form that this version reads", r.pool.name)
	}
	packed := packedEntry(text[1:])
	m, _, ok := t.find(packed.id().sum())
	if !ok {
		m = t.add(packed, slot{}, nil)
		t.index(packed.sums(), m.number)
		return nil
	}
	part, i := t.part(m.number)
	part.Lock() // metrics count the sessions while they are read
	s := &part.slots[i]
	gone, came := changes(packedEntry(part.bytes.Get(s.ref)), packed)
	part.replace(s, packed)
	part.Unlock()
	t.unindex(gone, m.number)
	t.index(came, m.number)
	return nil
}

// changes are the tokens that stand in one form of an entry alone.
func changes(before, after packedEntry) (gone, came []slab.Sum) {
	for i := range before.givenCount() {
		if sum := before.given(i).sum; after.find(sum) < 0 {
			gone = append(gone, sum)
		}
	}
	for i := range after.givenCount() {
		if sum := after.given(i).sum; before.find(sum) < 0 {
			came = append(came, sum)
		}
	}
	return gone, came
}

// settleAll plans all that was read.
func (p *Pool) settleAll(cfg PoolConfig) {
	now := p.now()
	profile := cfg.Issuer.Profile()
	var parts sync.WaitGroup
	for n := range p.table.parts {
		parts.Go(func() { p.settlePart(&p.table.parts[n], now, cfg.Policy, profile) })
	}
	parts.Wait()
}

func (p *Pool) settlePart(part *poolPart, now Instant, policy Policy, profile Profile) {
	part.Lock()
	defer part.Unlock()
	part.due, part.lru = slab.Queue{}, slab.Queue{}
	for i := range part.slots {
		s := &part.slots[i]
		if s.ref == 0 {
			continue
		}
		packed := packedEntry(part.bytes.Get(s.ref))
		e := packed.times()
		p.settle(s, &e, now, policy, profile)
		s.due = min(s.due, p.endOf(packed))
		if packed.unsettled() {
			s.due = int64(now.Boot) // a session finds out
		}
		s.used = int64(now.Boot - now.Wall.Sub(time.Unix(int64(packed.used()), 0)))
		part.queue(uint32(i))
	}
}

// settle plans an entry.
func (p *Pool) settle(s *slot, e *poolEntry, now Instant, policy Policy, profile Profile) {
	p.bootOf(e)
	received := e.rec.restored(now, p.clock.BootID())
	plan := plan(policy, profile, received, e.rec.Left, e.rec.Expires, poolSpread(e.id, e.rec.Epoch, e.rec.Generation, 0))
	s.due, s.notAfter = plan.times()
}

// never is a time that does not come.
const never = int64(1<<63 - 1)

func (s *schedule) times() (due, notAfter int64) {
	due = never
	if !s.refreshAt.IsZero() {
		due = int64(s.refreshAt.Boot)
	}
	return due, int64(s.notAfter.Boot)
}

// bootOf tells an entry's record whether it was written in this boot.
func (p *Pool) bootOf(e *poolEntry) {
	e.rec.BootID = "another"
	if id := p.clock.BootID(); bootSum(id) == e.boot {
		e.rec.BootID = id
	}
}

// all yields the records of a new base.
func (p *Pool) all() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if !yield(keyRecord(p.key)) {
			return
		}
		now := p.now()
		for token, until := range p.spent.all(now.Wall) {
			if !yield(spentRecord(token, until)) {
				return
			}
		}
		for n := range p.table.parts {
			part := &p.table.parts[n]
			for i := 0; ; i++ {
				record, more := part.baseRecord(i, now)
				if !more {
					break
				}
				if record != nil && !yield(record) {
					return
				}
			}
		}
	}
}

// baseRecord is an entry as a base holds it, nil for none; more is false behind
// the last. No lock is held while it is written.
func (p *poolPart) baseRecord(i int, now Instant) (record []byte, more bool) {
	p.RLock()
	defer p.RUnlock()
	if i >= len(p.slots) {
		return nil, false
	}
	s := &p.slots[i]
	if s.ref == 0 {
		return nil, true
	}
	record = putRecord(p.bytes.Get(s.ref))
	packedEntry(record[1:]).setUsed(s.usedAt(now))
	return record, true
}

// compactAgain is how long after one that failed the log is compacted again.
const compactAgain = 30 * time.Second

// compact replaces the log by what is in force.
func (p *Pool) compact(cfg PoolConfig) {
	began := time.Now()
	rekeyed := p.rekeyed.Swap(false)
	if err := p.log.Compact(p.all()); err != nil {
		p.rekeyed.CompareAndSwap(false, rekeyed)
		p.compactAt = p.now().Boot + compactAgain
		cfg.Logger.Error("compacting the pool's log (retrying)", zap.String("pool", p.name), zap.Error(err))
		return
	}
	cfg.Logger.Debug("the pool's log is compacted", zap.String("pool", p.name), zap.Duration("took", time.Since(began)))
}

// clear empties the table after a failed start.
func (t *poolTable) clear() {
	for n := range t.parts {
		t.parts[n].Lock()
		t.parts[n].slots, t.parts[n].free, t.parts[n].bytes = nil, nil, slab.Bytes{}
		t.parts[n].due, t.parts[n].lru = slab.Queue{}, slab.Queue{}
		t.parts[n].Unlock()
		t.indexes[n].Lock()
		t.indexes[n].Index = slab.Index{}
		t.indexes[n].Unlock()
	}
	t.count.Store(0)
}

// poolSpread is a session's jitter: what is spread is of no interest to anybody,
// so it need not be keyed.
func poolSpread(id poolID, epoch, generation, n uint64) float64 {
	x := binaryID(id) + epoch*0x9e3779b97f4a7c15 + generation*0xbf58476d1ce4e5b9 + n*0x94d049bb133111eb
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	x ^= x >> 31
	return float64(x>>11) / (1 << 53)
}
