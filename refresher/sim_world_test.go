package refresher

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// The simulation runs the production step function against an issuer that
// revokes, rotates and ends the session on reuse, an upstream that takes nothing
// but the current access token, a journal, and callers. All are actors on one
// goroutine; the seed decides every delay, fault and crash.

// world is one run.
type world struct {
	rng     *rand.Rand
	now     Instant
	queue   timeline
	seq     int
	mut     mutation
	faults  faults
	calm    bool // faults are over
	log     []string
	failure string

	issuer  simIssuer
	sidecar simSidecar

	requests, ok, replayed int
}

// mutation takes one rule out.
type mutation struct{ noGate, noReplay, noIntent, noHoldOff bool }

// faults are the probabilities of what goes wrong, per exchange unless said
// otherwise.
type faults struct {
	lostRequest, lingering, refused, gateway, gatewayCommitted, lostAnswer, garbage float64
	noConnection, saveError                                                         float64
	crash                                                                           float64 // per second
	crashAtSend                                                                     float64
	suspend, clockStep                                                              float64 // per second
	slowRequests                                                                    bool
}

type moment struct {
	at  time.Duration
	seq int
	do  func()
}

type timeline []moment

func (t timeline) Len() int { return len(t) }
func (t timeline) Less(i, j int) bool {
	return t[i].at < t[j].at || t[i].at == t[j].at && t[i].seq < t[j].seq
}
func (t timeline) Swap(i, j int) { t[i], t[j] = t[j], t[i] }
func (t *timeline) Push(x any)   { *t = append(*t, x.(moment)) }
func (t *timeline) Pop() any {
	old := *t
	m := old[len(old)-1]
	*t = old[:len(old)-1]
	return m
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.queue, moment{at: w.now.Boot + d, seq: w.seq, do: do})
}

// advance moves both clocks.
func (w *world) advance(to time.Duration) {
	if to > w.now.Boot {
		w.now = w.now.Add(to - w.now.Boot)
	}
}

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%9.3f  ", w.now.Boot.Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	if w.failure == "" {
		w.failure = fmt.Sprintf(format, args...)
		w.note("VIOLATION: %s", w.failure)
	}
}

// chance decides about a fault; there are none once it is calm.
func (w *world) chance(p float64) bool {
	return w.rng.Float64() < p && !w.calm
}

func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)+1))
}

// simIssuer is the strict issuer and, as they share its state, the upstream.
type simIssuer struct {
	w       *world
	life    time.Duration
	family  int
	n       int
	dead    bool
	expires time.Duration
	// undelivered: the newest commit's answer has not reached the journal of
	// the sidecar. A loss is excused by nothing else, or by time running out.
	undelivered bool
	unrecorded  bool // in this family one was sent although the journal could not take the intent
	trouble     bool // a fault befell this generation
	commits     int
	reuses      int
}

func (i *simIssuer) login() Pair {
	i.family++
	i.n, i.dead, i.undelivered, i.unrecorded, i.trouble = 1, false, false, false, false
	i.expires = i.w.now.Boot + i.life
	return i.pair()
}

func (i *simIssuer) pair() Pair {
	return Pair{
		Access:    NewSecret(fmt.Sprintf("a%d.%d", i.family, i.n)),
		Refresh:   NewSecret(fmt.Sprintf("r%d.%d", i.family, i.n)),
		ExpiresIn: i.life,
	}
}

func (i *simIssuer) accepts(access string) bool {
	return !i.dead && i.w.now.Boot < i.expires && access == i.pair().Access.Reveal()
}

// exchange is the issuer's side; status 0 is success.
func (i *simIssuer) exchange(p Pair) (Pair, int) {
	current := i.pair()
	if !p.Refresh.Equal(current.Refresh) {
		var family, n int
		_, _ = fmt.Sscanf(p.Refresh.Reveal(), "r%d.%d", &family, &n)
		if family == i.family && n < i.n {
			i.reuses++
			i.dead = true
			if i.unrecorded {
				return Pair{}, 400 // two faults at once: a broken disk and a crash
			}
			i.w.fail("the spent refresh token of generation %d was presented", n)
		}
		return Pair{}, 400
	}
	if i.dead || !i.accepts(p.Access.Reveal()) {
		return Pair{}, 401
	}
	i.n++
	i.commits++
	i.expires = i.w.now.Boot + i.life
	i.undelivered, i.trouble = true, false
	i.w.note("issuer: commit %d.%d", i.family, i.n)
	return i.pair(), 0
}

// simSidecar is one process after the other.
type simSidecar struct {
	w       *world
	life    int // of the process: effects of an earlier one come to nothing
	up      bool
	state   state
	snap    *snapshot
	token   string
	waiting []*simRequest

	disk    *record // the journal
	wakeAt  time.Duration
	sending int
}

func (s *simSidecar) boot() {
	w := s.w
	s.life++
	s.up = true
	s.state = state{env: simEnvironment()}
	s.publish(view{mode: modeComing}, "")
	w.note("process %d starts", s.life)
	s.step(evConfigured{profile: s.profile(), running: true})
	var rec *record
	if s.disk != nil {
		copied := *s.disk
		rec = &copied
	}
	s.step(evOpened{rec: rec})
	s.callOperator()
}

func (s *simSidecar) profile() Profile {
	p := Profile{RevokesPrevious: true, NeedsAccess: true, Timeout: 2 * time.Second}
	if s.w.mut.noHoldOff {
		p.HoldOff = time.Nanosecond
	}
	return p
}

func simEnvironment() environment {
	return environment{countsSleep: true, bootID: "boot", fresh: []byte("the simulation's key"), spread: spread}
}

func (s *simSidecar) crash(why string) {
	w := s.w
	if !s.up {
		return
	}
	w.note("process %d is killed: %s", s.life, why)
	w.issuer.trouble = true
	s.up = false
	s.life++
	s.sending = 0
	s.waiting = nil // their connections died with it
	w.after(w.between(10*time.Millisecond, 2*time.Second), s.boot)
}

// later runs do unless the process has died by then.
func (s *simSidecar) later(d time.Duration, do func()) {
	life := s.life
	s.w.after(d, func() {
		if s.up && s.life == life {
			do()
		}
	})
}

func (s *simSidecar) step(event any) {
	var effects []any
	s.state, effects = step(s.state, s.w.now, event)
	for _, eff := range effects {
		s.perform(eff)
	}
	s.check()
}

func (s *simSidecar) perform(effect any) {
	w := s.w
	switch eff := effect.(type) {
	case effWake:
		at := eff.at.Boot
		s.wakeAt = at
		s.later(max(at-w.now.Boot, time.Millisecond), func() {
			if s.wakeAt == at {
				s.step(evTick{})
			}
		})
	case effPublish:
		s.publish(eff.view, eff.token.Reveal())
	case effVerdict:
		eff.to <- eff.verdict
	case effNote:
		w.note("note: %s %d.%d %s %s", eff.note.Kind, eff.note.Epoch, eff.note.Generation, eff.note.Reason, eff.note.Err)
		if eff.note.Kind == NoteLost {
			s.lost(eff.note.Reason)
		}
	case effPrepare:
		var err error
		if w.chance(w.faults.noConnection) {
			w.issuer.trouble = true
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
		s.send(eff.pair)
	case effFetch:
		s.later(0, func() { s.step(evNoSeed{signIn: eff.signIn, err: ErrNoPair}) })
	}
}

func (s *simSidecar) publish(v view, token string) {
	old := s.snap
	s.snap = newSnapshot(v, NewSecret(token), s.state.sched.notAfter, 10*time.Second)
	s.token = token
	if old != nil {
		close(old.next)
	}
	waiting := s.waiting
	s.waiting = nil
	for _, r := range waiting {
		s.later(0, r.enter)
	}
}

func (s *simSidecar) drain(eff effDrain) {
	snap := s.snap
	if s.w.mut.noGate {
		s.later(0, func() { s.step(evDrained{attempt: eff.attempt}) })
		return
	}
	snap.closeGate()
	limit := s.w.now.Boot + eff.limit
	var poll func()
	poll = func() {
		select {
		case <-snap.drained.ch:
		default:
			if s.w.now.Boot < limit {
				s.later(time.Millisecond, poll)
				return
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
		w.issuer.trouble = true
	}
	life := s.life
	w.after(w.between(0, 5*time.Millisecond), func() {
		alive := s.up && s.life == life
		if err == nil && (alive || s.life == life+1 && w.rng.IntN(2) == 0) {
			s.disk = &rec
			if strings.HasPrefix(rec.Refresh, fmt.Sprintf("r%d.%d", w.issuer.family, w.issuer.n)) {
				w.issuer.undelivered = false
			}
		}
		if alive {
			s.step(evSaved{version: eff.version, err: err})
		}
	})
}

// send carries an exchange over the network.
func (s *simSidecar) send(p Pair) {
	w := s.w
	s.sending++
	w.note("send %s", p.Refresh.Reveal())
	if s.state.saved < s.state.attempt.saving {
		w.issuer.unrecorded = true
	}
	answered := false
	answer := func(a Answer) {
		if !answered {
			answered = true
			s.sending--
			s.step(evAnswer{a})
		}
	}
	lostErr := errors.New("connection reset")
	s.later(2*time.Second, func() { answer(Answer{Class: ClassUnknown, Err: errors.New("no answer in time")}) })

	there := w.between(time.Millisecond, 50*time.Millisecond)
	if w.chance(w.faults.lingering) {
		// The request may outlive its sender, but not the hold-off.
		there = w.between(time.Second, 4*time.Second)
		w.issuer.trouble = true
		w.note("the request lingers for %v", there)
		if w.rng.IntN(2) == 0 {
			s.later(10*time.Millisecond, func() { answer(Answer{Class: ClassUnknown, Err: lostErr}) })
		}
	}
	if w.chance(w.faults.crashAtSend) {
		s.later(w.between(0, 200*time.Millisecond), func() { s.crash("in the middle of an exchange") })
	}
	back := w.between(time.Millisecond, 100*time.Millisecond)
	reply := func(a Answer) { s.later(back, func() { answer(a) }) }
	trouble := func() { w.issuer.trouble = true }
	switch {
	case w.chance(w.faults.lostRequest):
		w.note("the request is lost")
		trouble()
		s.later(there, func() { answer(Answer{Class: ClassUnknown, Err: lostErr}) })
		return
	case w.chance(w.faults.refused):
		trouble()
		w.after(there, func() { reply(Answer{Class: ClassRetry, Status: 503, Err: errors.New("503")}) })
		return
	case w.chance(w.faults.gateway):
		trouble()
		w.after(there, func() { reply(Answer{Class: ClassQuiet, Status: 502, Err: errors.New("502")}) })
		return
	}
	lose, gateway, garbage := w.chance(w.faults.lostAnswer), w.chance(w.faults.gatewayCommitted), w.chance(w.faults.garbage)
	w.after(there, func() {
		next, status := w.issuer.exchange(p)
		switch {
		case status == 401:
			reply(Answer{Class: ClassUnauthorized, Status: status, Err: errors.New("401")})
		case status != 0:
			reply(Answer{Class: ClassConfig, Status: status, Err: errors.New("400")})
		case lose:
			w.note("the answer is lost")
			reply(Answer{Class: ClassUnknown, Err: lostErr})
		case gateway:
			reply(Answer{Class: ClassQuiet, Status: 504, Err: errors.New("504")})
		case garbage:
			reply(Answer{Class: ClassUnknown, Status: 200, Err: errors.New("not a pair"), Raw: NewSecret("<html>")})
		default:
			reply(Answer{Class: ClassOK, Status: 200, Pair: next})
		}
	})
}

// lost checks that a loss was one that nobody could have prevented, and that it
// is called by its name.
func (s *simSidecar) lost(reason Reason) {
	i := &s.w.issuer
	committed := i.undelivered
	switch {
	case committed && reason != ReasonTwoGenerals && reason != ReasonExpired:
		s.w.fail("a lost answer is reported as %s", reason)
	case !committed && !i.trouble && !i.unrecorded:
		s.w.fail("the session was lost (%s) without a fault", reason)
	case !committed && reason == ReasonRejected && !i.unrecorded:
		s.w.fail("the issuer rejected a token that was good")
	}
	s.callOperator()
}

// callOperator has somebody sign in again.
func (s *simSidecar) callOperator() {
	s.later(3*time.Second, func() {
		if s.state.rec.Lost != "" || !s.state.rec.hasPair() {
			s.step(evSeed{seed{pair: s.w.issuer.login(), source: "operator"}})
		}
	})
}

// check holds the invariants that must be true after every step.
func (s *simSidecar) check() {
	if s.sending > 1 {
		s.w.fail("two exchanges at once")
	}
	if s.snap.mode == modeReady && s.snap.word.Load()&gateClosed == 0 && len(s.waiting) > 0 {
		s.w.fail("%d requests wait although the gate is open", len(s.waiting))
	}
}
