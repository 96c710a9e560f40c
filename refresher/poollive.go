package refresher

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// liveSession returns the session of a member, and makes it live if need be.
func (p *Pool) liveSession(m member) (*Session, error) {
	part, i := p.table.part(m.number)
	part.RLock()
	_, _, ok := part.entry(i, m.serial)
	s := part.live[i]
	part.RUnlock()
	switch {
	case !ok:
		return nil, ErrForgotten
	case s != nil:
		return s, nil
	}
	return p.enliven(m, false)
}

// enliven makes a session of an entry: as after a restart, it begins with the
// record. woken says that the schedule wants it, which counts those.
func (p *Pool) enliven(m member, woken bool) (s *Session, err error) {
	part, i := p.table.part(m.number)
	part.Lock()
	defer part.Unlock()
	_, packed, ok := part.entry(i, m.serial)
	if !ok {
		return nil, ErrForgotten
	}
	if woken {
		defer func() { // under the lock: before the session can leave
			if s != nil && s.pooled.woken.CompareAndSwap(false, true) {
				p.woken.Add(1)
			}
		}()
	}
	if s := part.live[i]; s != nil {
		return s, nil
	}
	if p.ctx.Err() != nil {
		return nil, p.ending()
	}
	e, err := packed.unpack()
	if err != nil {
		return nil, err
	}
	p.bootOf(&e)
	e.rec.HashKey = p.key
	e.rec.Source = "learned"
	s = New(p.sessionName(e.id), Options{Clock: p.clock})
	s.pooled = &pooled{pool: p, member: m, id: e.id}
	s.attached.opened = true
	if part.live == nil {
		part.live = map[uint32]*Session{}
	}
	part.live[i] = s
	if a := p.attachment(); a != nil {
		s.reconfigure(a)
	}
	s.post(evOpened{rec: &e.rec, pooled: true})
	return s, nil
}

// pooled ties a session to the pool that it belongs to.
type pooled struct {
	pool   *Pool
	member member
	id     poolID
	woken  atomic.Bool // by the schedule
}

// keep makes a record durable. It is called by the session's worker.
func (o *pooled) keep(rec record) error {
	p, m := o.pool, o.member
	part, i := p.table.part(m.number)
	part.Lock()
	slot, packed, ok := part.entry(i, m.serial)
	if !ok {
		part.Unlock()
		return ErrForgotten
	}
	e, err := packed.unpack()
	if err != nil {
		part.Unlock()
		return err
	}
	now := p.now()
	e.rec, e.boot, e.used = rec, bootSum(rec.BootID), slot.usedAt(now)
	e.rec.Spent = appendBounded(e.rec.Spent, maxPooledSpent)
	text := e.pack(nil)
	part.replace(slot, text)
	wait := p.log.Enqueue(putRecord(text)) // under the lock: in the order of the changes
	part.Unlock()
	return wait()
}

// observe is told what happens to the session, on its own goroutine.
func (o *pooled) observe(s *Session, n Note) {
	switch n.Kind {
	case NoteRotated:
		s.post(evRetire{})
	case NoteExchangeFailed, NoteUncertain:
		o.leave() // it may go on like that for hours, and others are due
	case NoteLost:
		// Its tokens are nobody's from now on: the caller gets the upstream's
		// own answer to the one it has, and signs in again.
		o.pool.lost.Add(1)
		o.pool.work.Go(func() { _, _ = o.pool.forget(o.member, "lost") })
	}
}

// retired makes an entry of a session again that rests.
func (o *pooled) retired(s *Session, sched schedule) {
	part, i := o.pool.table.part(o.member.number)
	part.Lock()
	if slot, packed, ok := part.entry(i, o.member.serial); ok && part.live[i] == s {
		delete(part.live, i)
		var due int64
		due, slot.notAfter = sched.times()
		part.schedule(i, slot, int64(o.pool.now().Boot), min(due, o.pool.endOf(packed)))
	}
	part.Unlock()
	o.leave()
}

// endOf is when a session's time in the pool is over, on the boot clock.
func (p *Pool) endOf(packed packedEntry) int64 {
	cfg := p.config.Load()
	if cfg == nil {
		return never
	}
	now := p.now()
	return int64(now.Boot + cfg.maxAge() - packed.age(now.Wall) + time.Second)
}

func (o *pooled) leave() {
	if o.woken.CompareAndSwap(true, false) {
		o.pool.woken.Add(-1)
		o.pool.stir()
	}
}

// ending is why there is no session any more to make live.
func (p *Pool) ending() error { return &Unavailable{Session: p.name, RetryAfter: time.Second} }

// Why a session is forgotten that goes on at the issuer.
const (
	whyIdle = "idle_timeout"
	whyMany = "max_sessions"
	whyOld  = "max_age"
)

// forget takes a session out for good; ok is false if it was gone. The error says
// that it may be there again after a restart.
func (p *Pool) forget(m member, why string) (ok bool, err error) {
	gone := p.forgetSoon(m, why)
	if gone == nil {
		return false, nil
	}
	return true, gone.durable()
}

// forgotten is a session that was taken out.
type forgotten struct {
	packedEntry
	live    *Session     // nil: it was but an entry; else it is ending
	durable func() error // waits until it will not be there after a restart
}

// pair is the last that the session had. One that it is just getting is waited
// for: it is in no record.
func (f *forgotten) pair(e poolEntry) Pair {
	if f.live == nil {
		return e.rec.pair()
	}
	<-f.live.done.happened()
	var known state
	f.live.known.Load().unpack(&known, f.live.environment())
	if !known.rec.hasPair() { // it had not even begun
		return e.rec.pair()
	}
	return known.rec.pair()
}

// forgetSoon is forget that leaves it to the caller to wait until it is durable;
// nil: it was gone.
func (p *Pool) forgetSoon(m member, why string) *forgotten {
	last, live, ok := p.table.remove(m)
	if !ok {
		return nil
	}
	id := last.id()
	p.spend(p.spentBy(last, why != whyIdle && why != whyMany && why != whyOld))
	wait := p.log.Enqueue(deleteRecord(id))
	p.table.unindex(last.sums(), m.number)
	if live != nil {
		p.work.Go(func() {
			_ = live.Close(context.Background()) // an exchange under way is waited for
			live.pooled.leave()
		})
	}
	return &forgotten{packedEntry: last, live: live, durable: func() error {
		err := wait()
		if cfg := p.config.Load(); cfg != nil {
			if err != nil {
				cfg.Logger.Error("a session was forgotten, but may be there again after a restart",
					zap.String("session", p.sessionName(id)), zap.Error(err))
			} else {
				cfg.Logger.Debug("session forgotten", zap.String("session", p.sessionName(id)), zap.String("why", why))
			}
		}
		return err
	}}
}

// ready waits until a live session knows its record.
func (s *Session) ready(ctx context.Context) error {
	for {
		snap := s.cur.Load()
		if snap.epoch > 0 {
			return nil
		}
		select {
		case <-snap.next.happened():
		case <-s.done.happened():
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ended reports whether a session has ended, so that whoever holds it has to
// look for its successor. From the moment on that it takes no event any more that
// is so: the little that is then left to be done is waited for.
func (s *Session) ended() bool {
	s.queue.mu.Lock()
	ended := s.queue.ended
	s.queue.mu.Unlock()
	if ended {
		<-s.done.happened()
	}
	return ended
}

// reconfigure puts another configuration into force; nil is none.
func (s *Session) reconfigure(a *attachment) {
	s.attached.Lock()
	defer s.attached.Unlock()
	s.attached.list = nil
	if a != nil {
		s.attached.list = []*attachment{a}
	}
	s.post(s.configured())
}

// evRetire asks a pool's session to become an entry again if it rests.
type evRetire struct{}

// quiet reports whether it is worth asking.
func (s *Session) quiet() bool {
	snap := s.cur.Load()
	return snap.mode == modeReady && s.waiting.Load() == 0 && !snap.busy()
}

// busy reports whether requests passed whose answer has not begun.
func (s *snapshot) busy() bool { return s.word.Load()&^(gateClosed|gateBarred) != 0 }

// mayRetire reports whether the session was asked to become an entry again, and
// nothing would be lost by it. Then its gate is closed, and its queue: a request
// that found it a moment ago must not pass by a gate that no exchange looks at
// any more, but has to look for the successor.
func (a *actor) mayRetire() bool {
	asked := a.retiring
	a.retiring = false
	if !asked || a.busy > 0 || a.session.waiting.Load() > 0 || slices.ContainsFunc(a.gates, (*snapshot).busy) {
		return false
	}
	m := machine{state: *a.state, now: a.session.clock.Now()}
	if !m.dormant() {
		return false
	}
	a.gates.closeGate()
	if !slices.ContainsFunc(a.gates, (*snapshot).busy) && a.session.queue.end() {
		return true
	}
	a.state.shown = view{} // somebody came: published anew, it is open again
	a.step(evTick{})
	return false
}

// dormant reports whether all that is known of the session stands in its record
// and its schedule, and nothing is to be done soon.
func (m *machine) dormant() bool {
	switch {
	case !m.usable(), !m.whole(), !m.settled(), m.writing, m.saveErr != "":
		return false // it is needed, or its end is being told
	case m.rec.Intent != nil, m.failures > 0, m.wanted != "", m.triggered, len(m.routes) > 0:
		return false // an entry would forget that
	case len(m.rec.Announce) > 0:
		return false
	case m.looking, m.signIn.running, !m.reached(m.quietUntil), m.shown.mode != modeReady:
		return false
	case m.sched.known() && m.reached(m.sched.refreshAt.Add(-soon)):
		return false
	}
	return true
}

// soon is how long before an exchange a session had better stay as it is: those
// who passed shall be known to it.
const soon = 2 * time.Second
