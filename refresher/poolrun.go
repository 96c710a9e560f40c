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
	compacting := make(chan struct{}, 1)
	for {
		next := time.Second
		if cfg := p.config.Load(); cfg != nil {
			next = p.doDue(cfg)
			p.evict(cfg)
			p.retire()
			if p.wantsCompaction() {
				select {
				case compacting <- struct{}{}:
					p.work.Go(func() {
						p.compact(*cfg)
						<-compacting
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
	err := errors.Join(p.log.Close(), p.lock.Unlock())
	if cfg := p.config.Load(); err != nil && cfg != nil {
		cfg.Logger.Error("closing the pool's log", zap.String("pool", p.name), zap.Error(err))
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
				_, _ = p.forget(m, "max_age")
				continue
			}
			if s, err := p.enliven(m); err == nil && s.pooled.woken.CompareAndSwap(false, true) {
				p.woken.Add(1)
			}
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
		if there && p.live[i] == nil && s.due > int64(now.Boot) && s.due != never {
			p.due.Later(s.due)
			continue
		}
		p.due.Pop()
		if !there || p.live[i] != nil || s.due == never {
			continue
		}
		return member{number: i*poolParts + n, serial: serial}, dueEntry{packed.age(now.Wall)}, 0, true
	}
}

// evict forgets what nobody has used for long, and what is too much.
func (p *Pool) evict(cfg *PoolConfig) {
	now := p.now()
	for {
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
		why := "max_sessions"
		if idle {
			why = "idle_timeout"
		}
		_, _ = p.forget(member{number: i*poolParts + at, serial: serial}, why)
	}
}

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

func (p *Pool) wantsCompaction() bool {
	const least = 16 << 20
	return p.log.Written() > max(least, 2*p.table.size())
}
