package refresher

import (
	"errors"
	"fmt"
	"time"
)

// simSidecar is one process after the other on one machine.
type simSidecar struct {
	w       *world
	id      int
	life    int // of the process: effects of an earlier one come to nothing
	up      bool
	state   state
	snap    *snapshot
	gates   lineage
	token   string
	waiting []*simRequest
	epoch   uint64 // shown to requests last: neither ever goes back
	shown   uint64

	disk    *record // the journal
	steps   int
	wakeAt  time.Duration
	sending int
	coming  string // the refresh token of the answer that is being read

	stopUntil time.Duration // the process stands still
	cutUntil  time.Duration // it does not reach the store
	skew      time.Duration // its wall clock's error
}

func (s *simSidecar) String() string { return fmt.Sprintf("machine %d", s.id) }

// clock is the machine's.
func (s *simSidecar) clock() Instant {
	now := s.w.now
	now.Wall = now.Wall.Add(s.skew)
	now.Boot += time.Duration(s.id) * time.Hour
	return now
}

// onWorld is the world's time of one of the machine's instants.
func (s *simSidecar) onWorld(at Instant) time.Duration {
	return at.Boot - time.Duration(s.id)*time.Hour
}

func (s *simSidecar) boot() {
	w := s.w
	s.life++
	s.up, s.stopUntil = true, 0
	s.epoch, s.shown = 0, 0
	s.state = state{env: s.environment()}
	s.publish(view{mode: modeComing}, "", false)
	w.note("%s: process %d starts", s, s.life)
	conf := evConfigured{profile: s.profile(), running: true}
	if w.store != nil {
		conf.store = 1
	}
	s.step(conf)
	var rec *record
	if s.disk != nil {
		copied := *s.disk
		rec = &copied
	}
	s.step(evOpened{rec: rec})
	s.callOperator()
}

func (s *simSidecar) profile() Profile {
	p := s.w.issuer.profile()
	if s.w.mut.noHoldOff {
		p.HoldOff = time.Nanosecond
	}
	return p
}

func (s *simSidecar) environment() environment {
	return environment{
		countsSleep: true, bootID: s.String(), owner: uint64(s.id)<<32 | uint64(s.life),
		fresh: []byte("drawn from the fleet's key"), spread: s.spread,
	}
}

// spread is the production's, unless all instances are to begin at once.
func (s *simSidecar) spread(key []byte, epoch, generation, n uint64) float64 {
	if s.w.faults.together && !s.w.calm && n > 1<<20 {
		return 0.5
	}
	return spread(key, epoch, generation, n)
}

func (s *simSidecar) crash(why string) {
	w := s.w
	if !s.up {
		return
	}
	w.note("%s: process %d is killed: %s", s, s.life, why)
	w.troubled()
	s.part()
	s.up = false
	s.life++
	s.sending, s.coming = 0, ""
	s.waiting = nil // their connections died with it
	if w.store != nil && w.chance(w.faults.newMachine) {
		w.note("%s: its journal is gone", s)
		s.disk = nil
	}
	w.after(w.between(10*time.Millisecond, 2*time.Second), s.boot)
}

// part is called when the process ends, stands still or is cut off.
func (s *simSidecar) part() {
	w := s.w
	if s.busy() {
		w.issuer.parted, w.issuer.alone = true, true
	}
	if w.store != nil && w.store.wiped && !w.store.holds(w.issuer.current) {
		w.issuer.forgot = true // the store has, and now one cannot restore it
	}
}

// busy reports whether the process has an exchange on its way, or a pair that
// nobody else has.
func (s *simSidecar) busy() bool {
	return s.sending > 0 || s.coming != "" || s.w.store != nil && s.up && s.state.fleet.stored.before(s.state.rec.position())
}

// stop has the process stand still for a while.
func (s *simSidecar) stop(d time.Duration) {
	w := s.w
	s.stopUntil = max(s.stopUntil, w.now.Boot+d)
	w.note("%s: process %d stands still for %v", s, s.life, d)
	s.part()
	w.troubled()
}

// later runs do unless the process has died by then, and not while it stands
// still.
func (s *simSidecar) later(d time.Duration, do func()) { s.laterIn(s.life, d, do) }

func (s *simSidecar) laterIn(life int, d time.Duration, do func()) {
	s.w.after(d, func() {
		if !s.up || s.life != life {
			return
		}
		if rest := s.stopUntil - s.w.now.Boot; rest > 0 {
			s.laterIn(life, rest, do)
			return
		}
		do()
	})
}

func (s *simSidecar) step(event any) {
	if m := (machine{state: s.state, now: s.clock()}); s.w.mut.blindRetry && m.rec.Intent != nil && m.reached(m.quietAt) {
		s.state.witnessed = true
	}
	var effects []any
	s.state, effects = recalling(s.state, s.clock(), event, func(st *state) { st.completed(s.disk.Spent) })
	if s.w.mut.noHoldOff {
		s.state.sched.holdOff = 1
	}
	for _, eff := range effects {
		s.perform(eff)
	}
	s.state.thin(0)
	// At rest now and then: that takes longer than a step.
	if s.steps++; s.steps%16 == 0 && s.w.mut == (mutation{}) && s.state.whole() {
		s.state.pack().unpack(&s.state, s.state.env)
	}
	s.check()
}

func (s *simSidecar) perform(effect any) {
	w := s.w
	switch eff := effect.(type) {
	case effWake:
		at := s.onWorld(eff.at)
		s.wakeAt = at
		s.later(max(at-w.now.Boot, time.Millisecond), func() {
			if s.wakeAt == at {
				s.step(evTick{})
			}
		})
	case effPublish:
		s.publish(eff.view, eff.token.Reveal(), eff.barred)
	case effVerdict:
		eff.to <- eff.verdict
	case effNote:
		w.note("%s: %s %d.%d %s %s", s, eff.note.Kind, eff.note.Epoch, eff.note.Generation, eff.note.Reason, eff.note.Err)
		if eff.note.Kind == NoteLost && eff.note.Epoch == s.state.rec.Epoch { // and not over already
			s.lost(eff.note.Reason)
		}
		if eff.note.Kind == NoteForked && !w.store.wiped {
			w.fail("a pair that does not follow from the one in use")
		}
	case effPrepare:
		var err error
		if w.chance(w.faults.noConnection) {
			w.troubled()
			err = errors.New("connection refused")
		}
		s.later(w.between(time.Millisecond, 20*time.Millisecond), func() {
			s.step(evPrepared{attempt: eff.attempt, err: err})
		})
	case effDrain:
		s.drain(eff)
	case effSave:
		s.save(eff)
	case effSend:
		// The process may stand still between its last look and the write.
		if w.chance(w.faults.stopAtSend) {
			s.stop(w.between(50*time.Millisecond, 15*time.Second))
		}
		s.later(0, func() {
			if !eff.by.IsZero() && s.clock().Boot > eff.by.Boot && !w.mut.noSendLimit {
				s.step(evAnswer{Answer{Class: ClassNotSent, Err: errTooLate}})
				return
			}
			s.send(eff.pair)
		})
	case effFetch:
		s.later(0, func() { s.step(evNoSeed{signIn: eff.signIn, err: ErrNoPair}) })
	default:
		if w.store != nil {
			s.performShared(effect)
		}
	}
}

func (s *simSidecar) publish(v view, token string, barred bool) {
	if v.mode == modeReady {
		if v.epoch < s.epoch || v.epoch == s.epoch && v.generation < s.shown {
			s.w.fail("%s shows generation %d.%d after %d.%d", s, v.epoch, v.generation, s.epoch, s.shown)
		}
		s.epoch, s.shown = v.epoch, v.generation
	}
	old := s.snap
	v.wait = 10 * time.Second
	s.snap = newSnapshot(v, NewSecret(token))
	if barred {
		s.snap.bar()
	}
	s.token = token
	s.gates = s.gates.followed(s.snap)
	if old != nil {
		old.next.happen()
	}
	waiting := s.waiting
	s.waiting = nil
	for _, r := range waiting {
		s.later(0, r.enter)
	}
}

func (s *simSidecar) drain(eff effDrain) {
	gates := s.gates
	if s.w.mut.noGate {
		s.later(0, func() { s.step(evDrained{attempt: eff.attempt}) })
		return
	}
	gates.closeGate()
	limit := s.w.now.Boot + eff.limit
	var poll func()
	poll = func() {
		for _, one := range gates {
			select {
			case <-one.drained.happened():
			default:
				if s.w.now.Boot < limit {
					s.later(time.Millisecond, poll)
					return
				}
			}
		}
		s.step(evDrained{attempt: eff.attempt})
	}
	poll()
}

// save is the journal: what is under way when the process dies may or may not
// be on the disk.
func (s *simSidecar) save(eff effSave) {
	w := s.w
	rec := eff.rec
	if w.mut.noIntent {
		rec.Intent = nil
	}
	var err error
	if w.chance(w.faults.saveError) {
		err = errors.New("no space left on device")
		w.troubled()
	}
	life := s.life
	w.after(w.between(0, 5*time.Millisecond), func() {
		alive := s.up && s.life == life
		if err == nil && (alive || s.life == life+1 && w.rng.IntN(2) == 0) {
			s.disk = &rec
		}
		s.laterIn(life, 0, func() { s.step(evSaved{version: eff.version, err: err}) })
	})
}

// send carries an exchange over the network.
func (s *simSidecar) send(p Pair) {
	w := s.w
	i := &w.issuer
	refresh := p.Refresh.Reveal()
	life := s.life
	s.sending++
	if w.now.Boot < s.stopUntil || w.now.Boot < s.cutUntil || w.store != nil && w.now.Boot < w.store.downUntil {
		i.parted = true
		i.alone = i.alone || w.now.Boot < s.stopUntil || w.now.Boot < s.cutUntil
	}
	w.note("%s: send %s", s, refresh)
	if s.state.saved < s.state.attempt.saving && w.store == nil {
		i.unrecorded = true
	}
	if i.flying[refresh] > 0 && !i.forgot && !i.unrecorded && (i.kind == strictIssuer || i.kind == lenientIssuer) {
		w.fail("two exchanges of %s are on their way", refresh)
	}
	answered := false
	answer := func(a Answer) {
		if !answered {
			answered = true
			s.sending--
			s.coming = ""
			s.step(evAnswer{a})
		}
	}
	lostErr := errors.New("connection reset")
	s.later(2*time.Second, func() { answer(Answer{Class: ClassUnknown, Err: errors.New("no answer in time")}) })

	there := w.between(time.Millisecond, 50*time.Millisecond)
	if w.chance(w.faults.lingering) {
		// The request may outlive its sender, but not the hold-off.
		there = w.between(time.Second, 4*time.Second)
		w.troubled()
		w.note("the request lingers for %v", there)
		if w.rng.IntN(2) == 0 {
			s.later(10*time.Millisecond, func() { answer(Answer{Class: ClassUnknown, Err: lostErr}) })
		}
	}
	if w.chance(w.faults.crashAtSend) {
		s.later(w.between(0, 200*time.Millisecond), func() { s.crash("in the middle of an exchange") })
	}
	back := w.between(time.Millisecond, 100*time.Millisecond)
	reply := func(a Answer) {
		s.laterIn(life, back, func() { answer(a) })
	}
	switch {
	case w.chance(w.faults.lostRequest):
		w.note("the request is lost")
		w.troubled()
		s.later(there, func() { answer(Answer{Class: ClassUnknown, Err: lostErr}) })
		return
	case w.chance(w.faults.refused):
		w.troubled()
		w.after(there, func() { reply(Answer{Class: ClassRetry, Status: 503, Err: errors.New("503")}) })
		return
	case w.chance(w.faults.gateway):
		w.troubled()
		w.after(there, func() { reply(Answer{Class: ClassQuiet, Status: 502, Err: errors.New("502")}) })
		return
	}
	lose, gateway, garbage := w.chance(w.faults.lostAnswer), w.chance(w.faults.gatewayCommitted), w.chance(w.faults.garbage)
	i.flying[refresh]++
	w.after(there, func() {
		i.flying[refresh]--
		next, status := i.exchange(p)
		switch {
		case status == 401:
			reply(Answer{Class: ClassUnauthorized, Status: status, Err: errors.New("401")})
		case status != 0:
			reply(Answer{Class: ClassRejected, Status: status, Err: errors.New("400")})
		case lose:
			w.note("the answer is lost")
			reply(Answer{Class: ClassUnknown, Err: lostErr})
		case gateway:
			reply(Answer{Class: ClassQuiet, Status: 504, Err: errors.New("504")})
		case garbage:
			reply(Answer{Class: ClassUnknown, Status: 200, Err: errors.New("not a pair"), Raw: NewSecret("<html>")})
		default:
			if s.up && s.life == life && !answered {
				s.coming = next.Refresh.Reveal()
				if w.chance(w.faults.stopAtCommit) {
					s.stop(w.between(50*time.Millisecond, 15*time.Second))
				}
				if w.faults.downAtCommit > 0 && w.chance(w.faults.downAtCommit) {
					w.after(w.between(0, 2*back), func() { w.store.goDown(w.between(time.Second, 15*time.Second)) })
				}
			}
			reply(Answer{Class: ClassOK, Status: 200, Pair: next})
		}
	})
}

// callOperator has somebody sign in again, unless the fleet comes back by itself.
func (s *simSidecar) callOperator() {
	s.later(3*time.Second, func() {
		if s.state.rec.Lost == "" && s.state.rec.hasPair() {
			return
		}
		if s.w.store != nil && (!s.state.fleet.opened || s.state.fleet.failures > 0 || s.anyUsable()) {
			s.callOperator()
			return
		}
		if w := s.w; w.now.Boot-w.issuer.loggedIn < 5*time.Second {
			s.callOperator() // somebody was faster
			return
		}
		s.step(evSeed{seed{pair: s.w.issuer.login(), source: "operator"}})
	})
}

// anyUsable reports whether another instance has a pair: then this one gets it.
func (s *simSidecar) anyUsable() bool {
	for _, o := range s.w.sidecars {
		m := machine{state: o.state, now: o.clock()}
		if o != s && o.up && m.usable() && !m.expired() {
			return true
		}
	}
	return false
}

// check holds the invariants that must be true after every step.
func (s *simSidecar) check() {
	if s.sending > 1 {
		s.w.fail("two exchanges at once")
	}
	if s.snap.mode == modeReady && s.snap.word.Load()&(gateClosed|gateBarred) == 0 && len(s.waiting) > 0 {
		s.w.fail("%d requests wait although the gate is open", len(s.waiting))
	}
}

func (s *simSidecar) phase() Phase {
	m := machine{state: s.state, now: s.clock()}
	return m.phase()
}
