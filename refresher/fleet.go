package refresher

import (
	"slices"
	"time"
)

// A fleet is several instances that share one session through a [Store]. What
// keeps it safe is rotation.md 4.4: each generation is stored once, under a name
// of its own; before an exchange is sent, an intent with a unique name is
// written and the names are listed again; and nobody tries a generation again
// until every other attempt that he has seen has been quiet for the hold-off, on
// his own clock. The lock only spares work.

// fleet is what a session knows of its store. All of it is zero without one.
type fleet struct {
	on     bool
	store  uint64 // its number in this process
	opened bool   // the store has answered once
	pushes bool   // it tells of changes by itself

	// The list of names.
	asking   bool    // one is on its way
	asked    Instant // when the newest that has arrived was asked for
	again    bool    // another is wanted
	news     bool    // something has changed there
	look     Instant // and this is when to look
	wrote    Instant // when we last wrote to it
	waiters  bool    // requests wait for what it says
	failures int
	failing  Instant // since when
	back     Instant // when it answered again
	next     Instant // after a failure, not before
	err      string  // of the last; empty: it came
	slow     int     // attempts in a row that were withdrawn because it takes too long

	// What is there.
	newest  position // of the records and ends in it
	without Instant  // when the store was last seen without anything newer than ours
	stored  position // the newest of ours that is known to be there
	known   position // the newest of ours that was ever known to be there
	seen    position // the newest of anybody's that was
	intents []sighting
	plan    time.Time // when the exchange was announced for, if it was
	garbage []string
	claims  []sighting // of the next login

	reading string  // the entry that is being read
	bad     string  // one that cannot be opened
	held    *record // a newer one that came during an exchange

	sharing       bool // ours is being written
	shareFailures int
	shareNext     Instant
	sharedAt      Instant // when ours was last written
	restored      Instant // when ours was last found missing
	regressed     bool    // it is missing
	rest          Instant // no attempt before this: one was just withdrawn
	spread        Instant // when it was last told that clocks differ

	locked bool
	owned  string // the intent of the attempt under way
	others bool   // the record's intent stands for attempts of others that were seen in the store
	barred bool   // the barrier is down
	looked bool   // the sources were asked once
	said   string // the last complaint about an entry
	doom   *doom
}

// sighting is an attempt to exchange the generation in use, and when this
// process first saw it.
type sighting struct {
	name  string
	first Instant
	own   bool
	mark  bool // no attempt, but the store has lost what it knew of them
}

// doom is a loss that was found here, and is one unless the store knows better.
type doom struct {
	reason Reason
	detail string
	at     Instant
}

const (
	lockWait  = 3 * time.Second
	pollIdle  = 5 * time.Second
	pollNear  = 50 * time.Millisecond
	pollNews  = 5 * time.Minute // where the store pushes
	clockSkew = 500 * time.Millisecond
)

// changeStore goes over to another store, or to none. What was tried is not
// forgotten: the new one knows nothing of it.
func (m *machine) changeStore(store uint64) {
	m.stop("the configuration has changed")
	m.unlock()
	tried := slices.Clone(m.fleet.intents)
	for i := range tried {
		tried[i].own = true
	}
	m.fleet = fleet{on: store != 0, store: store, intents: tried, owned: m.fleet.owned}
	if !m.signIn.fetching {
		m.signIn.running = false // the answer that it waits for is the old store's
	}
	m.signIn.ask, m.signIn.claim = 0, ""
	m.shown = view{}
}

// ask has the names listed, once more if they are being listed already: what is
// on its way may be old.
func (m *machine) ask() {
	f := &m.fleet
	switch {
	case !f.on || m.closing:
	case f.asking:
		f.again = true
	default:
		f.asking, f.again, f.news = true, false, false
		m.emit(effAsk{})
	}
}

// asked: the names, or why they could not be had. Besides polls, attempts and
// sign-ins ask, each with the lock.
func (m *machine) asked(ev evAsked) {
	f := &m.fleet
	if ev.locked {
		f.locked = true
	}
	if !f.on {
		m.unlock()
		return
	}
	if ev.id == 0 {
		f.asking = false
	}
	newer := false
	if ev.err != nil {
		m.storeFails(ev.err)
	} else {
		newer = m.sighted(ev.at, ev.names, ev.pushes)
	}
	switch {
	case ev.id == 0:
	case ev.id == m.signIn.ask:
		m.signInAsked(ev.err, newer)
	case m.stage == stageAsking && ev.id == m.attempt.id:
		m.attemptAsked(ev, newer)
	default:
		m.unlock()
	}
}

// storeFails: the store could not be asked. Requests that wait for its word go
// on without.
func (m *machine) storeFails(err error) {
	f := &m.fleet
	if f.failures == 0 {
		f.failing = m.now
		m.note(Note{Kind: NoteStoreFailed, Err: err.Error()})
	}
	f.err = err.Error()
	f.next = m.now.Add(m.sched.scaled(min(200*time.Millisecond<<min(f.failures, 8), pollIdle)))
	f.failures++
	m.releaseWaiters()
}

func (m *machine) releaseWaiters() {
	if m.fleet.waiters {
		m.fleet.waiters = false
		m.shown = view{} // whoever waits asks again
	}
}

// generationChanged forgets what was known of the generation before.
func (f *fleet) generationChanged() {
	f.intents, f.plan, f.doom, f.owned, f.others, f.slow = nil, time.Time{}, nil, "", false, 0
	f.rest, f.shareNext, f.shareFailures = Instant{}, Instant{}, 0
}
