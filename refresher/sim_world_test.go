package refresher

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"time"
)

// The simulation runs the production step function, in one process or in a fleet
// of up to five that share a store, against an issuer that rotates, an upstream,
// journals and callers. All are actors on one goroutine; the seed decides every
// delay, fault and crash.

// world is one run.
type world struct {
	rng   *rand.Rand
	later *rand.Rand // for choices added since: seeds that failed once stay what they were

	variants *rand.Rand // the same, for issuers
	now      Instant
	queue    timeline
	seq      int
	mut      mutation
	faults   faults
	calm     bool // faults are over
	log      []string
	failure  string

	issuer   simIssuer
	sidecars []*simSidecar
	store    *simStore // nil: one process that shares with nobody

	requests, ok, replayed, losses int
}

// mutation takes one rule out.
type mutation struct {
	noGate, noReplay, noIntent, noHoldOff bool

	// In a fleet, the rules of rotation.md 4.4 and what they rest on.
	noFleetIntent bool // no intent is written to the store
	noRelist      bool // the names are not listed again after the intent
	noSendLimit   bool // the exchange is sent however late
	overwrite     bool // one record, overwritten
	blindRetry    bool // the access token is no witness
	staleReads    bool // lists come from a replica
}

// inFleets reports whether only several instances show that the rule is missing.
func (m mutation) inFleets() bool {
	return m.noFleetIntent || m.noRelist || m.noSendLimit || m.overwrite || m.blindRetry || m.staleReads
}

// faults are the probabilities of what goes wrong, per exchange unless said
// otherwise.
type faults struct {
	lostRequest, lingering, refused, gateway, gatewayCommitted, lostAnswer, garbage float64
	noConnection, saveError                                                         float64
	crash                                                                           float64 // per second
	crashAtSend                                                                     float64
	suspend, clockStep                                                              float64 // per second
	slowRequests                                                                    bool

	// Of a fleet.
	storeError, replyLost, lateWrite float64 // per call
	cut, storeDown, wipe             float64 // per second: one instance is cut off, all are; all is forgotten
	pause                            float64 // per second: a process stands still
	stopAtSend, stopAtCommit         float64 // per exchange: just before it is sent, just after it was committed
	downAtCommit                     float64 // the same for the store
	staleLease                       float64 // per lock: two hold it
	together                         bool    // all begin in the same instant
	crashAtStore                     float64 // per call
	newMachine                       float64 // per crash: the journal is gone
	skew                             time.Duration
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

// swarm chooses which faults this run has: few of them at a time find more than
// all at once.
func (w *world) swarm() {
	pick := func(p float64) float64 {
		if w.rng.IntN(3) == 0 {
			return p * w.rng.Float64()
		}
		return 0
	}
	w.faults.slowRequests = w.rng.IntN(2) == 0
	if w.rng.IntN(5) == 0 {
		return // nothing goes wrong
	}
	w.faults.lostRequest = pick(0.5)
	w.faults.lingering = pick(0.5)
	w.faults.refused = pick(0.6)
	w.faults.gateway = pick(0.4)
	w.faults.gatewayCommitted = pick(0.2)
	w.faults.lostAnswer = pick(0.3)
	w.faults.garbage = pick(0.2)
	w.faults.noConnection = pick(0.6)
	w.faults.saveError = pick(0.4)
	w.faults.crash = pick(0.1)
	w.faults.crashAtSend = pick(0.4)
	w.faults.suspend = pick(0.05)
	w.faults.clockStep = pick(0.05)
	if w.store == nil {
		return
	}
	w.faults.clockStep = 0 // one machine's clock is another simulation's matter
	w.faults.storeError = pick(0.1)
	w.faults.replyLost = pick(0.1)
	w.faults.lateWrite = pick(0.1)
	if w.mut.overwrite {
		w.faults.lateWrite = 0.3 // which the rule is for
	}
	w.faults.cut = pick(0.05)
	w.faults.storeDown = pick(0.03)
	w.faults.wipe = pick(0.02)
	w.faults.pause = pick(0.05)
	w.faults.stopAtSend = pick(0.3)
	w.faults.stopAtCommit = pick(0.3)
	w.faults.staleLease = pick(1)
	w.faults.together = w.rng.IntN(3) == 0
	w.faults.crashAtStore = pick(0.03)
	w.faults.newMachine = pick(0.5)
	if w.later.IntN(6) == 0 {
		w.faults.downAtCommit = w.later.Float64() / 2
	}
	if w.rng.IntN(3) == 0 {
		w.faults.skew = w.between(0, 20*time.Second)
	}
}

// everySecond crashes processes, stops them, suspends machines, sets clocks, and
// takes the store away.
func (w *world) everySecond() {
	f := &w.faults
	for _, s := range w.sidecars {
		if w.chance(f.crash) {
			s.crash("at random")
		}
		if w.chance(f.cut) {
			s.cutUntil = w.now.Boot + w.between(100*time.Millisecond, 20*time.Second)
			w.troubled()
			s.part()
			w.after(s.cutUntil-w.now.Boot, s.hear)
			w.note("%s is cut off from the store until %.3f", s, s.cutUntil.Seconds())
		}
		if w.chance(f.pause) {
			s.stop(w.between(50*time.Millisecond, 15*time.Second))
		}
	}
	if w.chance(f.suspend) {
		d := w.between(time.Second, 90*time.Second)
		w.note("all machines sleep")
		for _, s := range w.sidecars {
			s.stop(d)
		}
	}
	if w.chance(f.clockStep) {
		d := w.between(-time.Hour, time.Hour)
		w.note("the clock is set by %v", d)
		w.now.Wall = w.now.Wall.Add(d)
	}
	if w.chance(f.storeDown) {
		w.store.goDown(w.between(100*time.Millisecond, 10*time.Second))
	}
	if w.chance(f.wipe) {
		w.store.wipe()
	}
}

// underWay reports whether a fault that lasts has begun before.
func (w *world) underWay() bool {
	for _, s := range w.sidecars {
		if w.now.Boot < s.cutUntil || w.now.Boot < s.stopUntil {
			return true
		}
	}
	return w.store != nil && w.now.Boot < w.store.downUntil
}

// troubled marks the generation in use as one that a fault befell.
func (w *world) troubled() { w.issuer.trouble = true }

func (w *world) run(until time.Duration) {
	for len(w.queue) > 0 && w.failure == "" && w.queue[0].at <= until {
		m := heap.Pop(&w.queue).(moment)
		w.advance(m.at)
		m.do()
	}
	w.advance(until)
}
