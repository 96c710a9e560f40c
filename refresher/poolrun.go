package refresher

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// run is the pool's own goroutine: it opens the pool, does what is due, and ends
// it.
func (p *Pool) run(cfg PoolConfig) {
	if !p.open(cfg) {
		return
	}
	defer p.end()
	timer := time.NewTimer(0)
	defer timer.Stop()
	tidying := make(chan struct{}, 1)
	var tidied, retired time.Duration
	for {
		next := time.Second
		if cfg := p.config.Load(); cfg != nil {
			next = p.doDue(cfg)
			p.evict(cfg)
			if now := p.now().Boot; now-retired >= lingers/2 {
				retired = now // not at each wake: it looks at all that are live
				p.retire()
			}
			if now := p.now().Boot; now-tidied >= time.Second {
				select {
				case tidying <- struct{}{}:
					tidied = now
					p.work.Go(func() {
						p.tidy(cfg)
						<-tidying
					})
				default:
				}
			}
		}
		timer.Reset(next)
		select {
		case <-timer.C:
		case <-p.wake:
		case <-p.ctx.Done():
			tidying <- struct{}{} // it uses the log
			return
		}
	}
}

// end closes what is live, then the log.
func (p *Pool) end() {
	var all []*Session
	for n := range p.table.parts {
		part := &p.table.parts[n]
		part.Lock()
		for _, s := range part.live {
			all = append(all, s)
		}
		part.Unlock()
	}
	short, cancel := context.WithCancel(context.Background())
	cancel()
	for _, s := range all {
		_ = s.Close(short) // all at once
	}
	for _, s := range all {
		_ = s.Close(context.Background())
	}
	p.keepUses()
	err := errors.Join(p.log.Close(), p.lock.Unlock())
	if cfg := p.config.Load(); err != nil && cfg != nil {
		cfg.Logger.Error("closing the pool's log", zap.String("pool", p.name), zap.Error(err))
	}
}

// keepUses writes when the sessions were used: who is forgotten first goes by it.
func (p *Pool) keepUses() {
	now := p.now()
	for n := range p.table.parts {
		part := &p.table.parts[n]
		part.Lock()
		for i := range part.slots {
			s := &part.slots[i]
			if s.ref == 0 {
				continue
			}
			packed := packedEntry(part.bytes.Get(s.ref))
			if used := s.usedAt(now); used != packed.used() {
				p.log.Enqueue(useRecord(packed.id(), used))
			}
		}
		part.Unlock()
	}
}

const (
	// maxWoken bounds the sessions that the schedule makes live at a time.
	maxWoken = 2048
	// lingers is how long a session stays live that a request made so.
	lingers = time.Second
)

// doDue makes sessions live whose time has come, and says when to come again.
func (p *Pool) doDue(cfg *PoolConfig) (next time.Duration) {
	next = time.Second
	now := p.now()
	for n := range p.table.parts {
		part := &p.table.parts[n]
		for p.woken.Load() < maxWoken {
			m, packed, in, ok := part.nextDue(uint32(n), now)
			next = min(next, max(in, time.Millisecond))
			if !ok {
				break
			}
			if packed.age > cfg.maxAge() {
				_ = p.forgetSoon(m, whyOld) // tidy waits for all
				continue
			}
			_, _ = p.enliven(m, true)
		}
	}
	return next
}

type dueEntry struct{ age time.Duration }

// nextDue takes the next member that is due out of the queue; in is how long
// until there is one.
func (p *poolPart) nextDue(n uint32, now Instant) (m member, e dueEntry, in time.Duration, ok bool) {
	p.Lock()
	defer p.Unlock()
	for {
		at, i, serial, any := p.due.First()
		if !any {
			return m, e, time.Hour, false
		}
		if in := time.Duration(at) - now.Boot; in > 0 {
			return m, e, in, false
		}
		s, packed, there := p.entry(i, serial)
		if there && s.due > int64(now.Boot) && s.due != never {
			p.due.Later(s.due) // also if it is live: it counts on that, see schedule
			continue
		}
		p.due.Pop()
		if !there || p.live[i] != nil || s.due == never {
			continue
		}
		return member{number: i*poolParts + n, serial: serial}, dueEntry{packed.age(now.Wall)}, 0, true
	}
}

// evict forgets what nobody has used for long, and what is too much; it does not
// wait for the disk, which those who sign in do together, while this is one
// goroutine. A session that comes back with a crash is forgotten again.
func (p *Pool) evict(cfg *PoolConfig) {
	now := p.now()
	for range maxEvicted {
		oldest := never
		var at uint32
		for n := range p.table.parts {
			part := &p.table.parts[n]
			part.Lock()
			if used, ok := part.leastUsed(now); ok && used < oldest {
				oldest, at = used, uint32(n)
			}
			part.Unlock()
		}
		over := p.table.count.Load() > cfg.maxSessions()
		idle := now.Boot-time.Duration(oldest) > cfg.idleTimeout()
		if oldest == never || !over && !idle {
			return
		}
		part := &p.table.parts[at]
		part.Lock()
		_, i, serial, ok := part.lru.First()
		part.Unlock()
		if !ok {
			return
		}
		why := whyMany
		if idle {
			why = whyIdle
		}
		_ = p.forgetSoon(member{number: i*poolParts + at, serial: serial}, why)
	}
	p.stir() // the schedule first, then the rest
}

// maxEvicted bounds the sessions that are forgotten at a time.
const maxEvicted = 4096

// leastUsed brings the entry that was not used for longest to the front of the
// queue and says since when.
func (p *poolPart) leastUsed(now Instant) (used int64, ok bool) {
	for {
		at, i, serial, any := p.lru.First()
		if !any {
			return 0, false
		}
		s, _, there := p.entry(i, serial)
		switch {
		case !there:
			p.lru.Pop()
		case s.lastUse() > at:
			p.lru.Later(s.lastUse())
		default:
			return at, true
		}
	}
}

// retire asks sessions that look quiet to become entries again.
func (p *Pool) retire() {
	for n := range p.table.parts {
		part := &p.table.parts[n]
		part.RLock()
		for _, s := range part.live {
			if s.quiet() {
				s.post(evRetire{})
			}
		}
		part.RUnlock()
	}
}

// tidy writes what nobody waits for, and gives back memory and disk that lie
// idle.
func (p *Pool) tidy(cfg *PoolConfig) {
	if err := p.log.Append(); err != nil {
		cfg.Logger.Error("writing the pool's log (retrying)", zap.String("pool", p.name), zap.Error(err))
	}
	for n := range p.table.parts {
		p.table.parts[n].repack()
	}
	if p.wantsCompaction() {
		p.compact(*cfg)
	}
	p.watchRate(cfg)
}

func (p *Pool) wantsCompaction() bool {
	const least = 16 << 20
	if p.now().Boot < p.compactAt {
		return false
	}
	return p.rekeyed.Load() || p.log.Written() > max(least, 2*p.table.size())
}
