package refresher

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/slab"
)

// poolTable holds the sessions of a pool: entries in slabs, by number, and an
// index from the sums of tokens to them. It is cut into parts, each with its own
// lock, that are held for moments and never over I/O: an entry of a million is
// changed in place now and then, and a copy of them all for each change is out
// of the question. The lock of an index part may be held while that of an
// entry's part is taken, never the other way round.
type poolTable struct {
	parts   [poolParts]poolPart
	indexes [poolParts]struct {
		sync.RWMutex
		slab.Index
	}
	count atomic.Int64
	next  atomic.Uint32 // spreads new entries over the parts
}

const poolParts = 16

type poolPart struct {
	sync.RWMutex
	slots []slot
	free  []uint32
	bytes slab.Bytes
	live  map[uint32]*Session // those that are more than an entry at present
	due   slab.Queue          // by when something is to be done
	lru   slab.Queue          // by the last use
}

// slot is where an entry is and what changes often.
type slot struct {
	used     int64 // Instant.Boot of the last use; atomic under the read lock
	due      int64 // Instant.Boot of the next exchange
	notAfter int64 // Instant.Boot of the access token's end, if it is known
	ref      slab.Ref
	serial   uint32 // of the session that has the slot
}

// member is a session's place in the table; good as long as its serial is.
type member struct{ number, serial uint32 }

func (t *poolTable) part(number uint32) (*poolPart, uint32) {
	return &t.parts[number%poolParts], number / poolParts
}

// entry returns a member's slot and bytes, or false if it is gone. The part's
// lock is held.
func (p *poolPart) entry(i uint32, serial uint32) (*slot, packedEntry, bool) {
	if int(i) >= len(p.slots) {
		return nil, nil, false
	}
	s := &p.slots[i]
	if s.ref == 0 || s.serial != serial {
		return nil, nil, false
	}
	return s, packedEntry(p.bytes.Get(s.ref)), true
}

// view looks at a member's entry under the read lock.
func (t *poolTable) view(m member, look func(*slot, packedEntry)) bool {
	part, i := t.part(m.number)
	part.RLock()
	defer part.RUnlock()
	s, e, ok := part.entry(i, m.serial)
	if ok {
		look(s, e)
	}
	return ok
}

// add puts a new entry in; its tokens are found once index was called. enqueue,
// unless nil, is called before anybody else can change the entry.
func (t *poolTable) add(packed []byte, s slot, enqueue func()) member {
	number := t.next.Add(1) % poolParts
	part := &t.parts[number]
	part.Lock()
	defer part.Unlock()
	var i uint32
	if n := len(part.free); n > 0 {
		i, part.free = part.free[n-1], part.free[:n-1]
	} else {
		i = uint32(len(part.slots))
		part.slots = append(part.slots, slot{})
	}
	place := &part.slots[i]
	serial := place.serial + 1
	*place = s
	place.serial, place.ref = serial, part.bytes.Put(packed)
	part.queue(i)
	if enqueue != nil {
		enqueue()
	}
	t.count.Add(1)
	return member{number: i*poolParts + number, serial: serial}
}

// queue puts an entry into both queues; the part's lock is held. They also hold
// entries of sessions that are gone, until their turn comes: many of them, and
// both are made anew.
func (p *poolPart) queue(i uint32) {
	if most := 4*len(p.slots) + 256; p.due.Len() > most || p.lru.Len() > most {
		p.due, p.lru = slab.Queue{}, slab.Queue{}
		for i := range p.slots {
			if s := &p.slots[i]; s.ref != 0 {
				p.due.Push(s.due, uint32(i), s.serial)
				p.lru.Push(s.lastUse(), uint32(i), s.serial)
			}
		}
		return
	}
	s := &p.slots[i]
	p.due.Push(s.due, i, s.serial)
	p.lru.Push(s.used, i, s.serial)
}

// replace puts new bytes in the place of an entry's; the part's lock is held.
func (p *poolPart) replace(s *slot, packed []byte) {
	old := s.ref
	s.ref = p.bytes.Put(packed)
	p.bytes.Free(old)
}

// schedule moves a member's next exchange; the part's lock is held. Where the
// queue has it already, and not too late, it gets no further place there: a
// session becomes an entry again as often as its callers like.
func (p *poolPart) schedule(i uint32, s *slot, now, due int64) {
	const about = int64(10 * time.Millisecond) // the wall clock and the boot clock drift
	if s.due > now && due >= s.due-about && due <= s.due+about {
		return
	}
	before := s.due
	s.due = due
	if before <= now || due < before {
		p.due.Push(due, i, s.serial)
	}
}

// repack moves the entries together where most of their memory lies idle: blocks
// of a size that nobody wants any more.
func (p *poolPart) repack() {
	const little = 1 << 20
	p.Lock()
	defer p.Unlock()
	if p.bytes.Size() <= 2*p.bytes.Used()+little {
		return
	}
	var to slab.Bytes
	for i := range p.slots {
		if s := &p.slots[i]; s.ref != 0 {
			s.ref = to.Put(p.bytes.Get(s.ref))
		}
	}
	p.bytes.Clear()
	p.bytes = to
}

// remove takes a member out and returns a copy of its entry, and what is left to
// be closed.
func (t *poolTable) remove(m member) (last packedEntry, live *Session, ok bool) {
	part, i := t.part(m.number)
	part.Lock()
	defer part.Unlock()
	s, e, ok := part.entry(i, m.serial)
	if !ok {
		return nil, nil, false
	}
	last = slices.Clone(e) // what is freed is overwritten
	live = part.live[i]
	delete(part.live, i)
	part.bytes.Free(s.ref)
	s.ref = 0
	part.free = append(part.free, i)
	t.count.Add(-1)
	return last, live, true
}

// sums are all under which the index knows an entry.
func (p packedEntry) sums() []slab.Sum {
	sums := []slab.Sum{p.id().sum()}
	for i := range p.givenCount() {
		sums = append(sums, p.given(i).sum)
	}
	return sums
}

func (t *poolTable) index(sums []slab.Sum, number uint32) {
	for _, sum := range sums {
		x := &t.indexes[sum[15]%poolParts]
		x.Lock()
		x.Put(sum, number)
		x.Unlock()
	}
}

func (t *poolTable) unindex(sums []slab.Sum, number uint32) {
	for _, sum := range sums {
		x := &t.indexes[sum[15]%poolParts]
		x.Lock()
		x.Delete(sum, number)
		x.Unlock()
	}
}

// find returns the member that a sum belongs to, and its place among the given
// tokens: -1 is the member's id.
func (t *poolTable) find(sum slab.Sum) (m member, token givenToken, ok bool) {
	x := &t.indexes[sum[15]%poolParts]
	x.RLock()
	defer x.RUnlock()
	_, ok = x.Find(sum, func(number uint32) bool {
		part, i := t.part(number)
		part.RLock()
		defer part.RUnlock()
		if int(i) >= len(part.slots) || part.slots[i].ref == 0 {
			return false
		}
		s := &part.slots[i]
		e := packedEntry(part.bytes.Get(s.ref))
		at := e.find(sum)
		switch {
		case at >= 0:
			token = e.given(at)
		case e.id().sum() != sum:
			return false
		}
		m = member{number: number, serial: s.serial}
		return true
	})
	return m, token, ok
}

// use notes that a member is being used.
func (s *slot) use(now int64) { atomic.StoreInt64(&s.used, now) }

// usedAt is the last use in seconds since 1970.
func (s *slot) usedAt(now Instant) uint32 {
	ago := now.Boot - time.Duration(atomic.LoadInt64(&s.used))
	return uint32(now.Wall.Add(-ago).Unix())
}

func (s *slot) lastUse() int64 { return atomic.LoadInt64(&s.used) }

// size is how many bytes the entries take.
func (t *poolTable) size() (n int64) {
	for i := range t.parts {
		t.parts[i].RLock()
		n += t.parts[i].bytes.Used()
		t.parts[i].RUnlock()
	}
	return n
}
