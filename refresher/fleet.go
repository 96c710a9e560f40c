package refresher

import (
	"errors"
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

	locked bool
	owned  string // the intent of the attempt under way
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

// sighted takes in the names that were there at or after an instant. It reports
// whether there is something newer than what is in use.
func (m *machine) sighted(at Instant, names []string, pushes bool) (newer bool) {
	f := &m.fleet
	if f.failures > 0 {
		m.note(Note{Kind: NoteStoreBack})
	}
	f.failures, f.err, f.next = 0, "", Instant{}
	f.pushes = pushes
	late := at.Boot < f.asked.Boot // an older answer than one that was taken in
	f.asked = later(f.asked, at)
	here := m.rec.position()
	found := m.read(names)
	if !late && at.Boot >= f.sharedAt.Boot {
		f.newest, f.garbage = found.newest, found.garbage
		m.compareMarks(!f.opened)
	}
	m.sightIntents(found, late)
	m.sightClaims(found, late)
	if !found.plan.IsZero() && (f.plan.IsZero() || found.plan.Before(f.plan)) {
		f.plan = found.plan
		m.plan()
	}
	if !m.usable() || m.expired() || m.upstream401 || f.bad != found.newest.name() {
		f.bad = "" // nothing is left that it could harm, or it is gone
	}
	newer = here.before(found.newest)
	if !newer && !late {
		f.without = at
	}
	if newer {
		m.fetchEntry(found.newest.name())
	}
	first := !f.opened
	f.opened = true
	if first && !newer {
		m.firstLook()
	}
	m.reconcile()
	if d := f.doom; d != nil && (!newer || f.bad != "") && at.Boot >= d.at.Boot && !m.foreignYoung() {
		f.doom = nil
		m.loseNow(d.reason, d.detail)
	}
	m.releaseWaiters()
	return newer
}

// compareMarks notices what the store lacks: a pair of ours that is new, or one
// that was there before. It is written again either way, and no more than once a
// where the store keeps losing it.
func (m *machine) compareMarks(first bool) {
	f := &m.fleet
	here := m.rec.position()
	f.stored = here
	if f.newest.before(here) {
		f.stored = f.newest
	}
	if f.newest == here && f.known != here {
		f.stored = position{} // we never saw it arrive there: is it ours?
		m.fetchEntry(here.name())
	}
	if first && f.newest.before(here) && (f.newest.epoch != here.epoch || f.newest.generation+1 < here.generation) {
		f.known = here // it cannot have been ahead of the store by so much
	}
	if f.seen.before(f.newest) {
		f.seen = f.newest
	}
	if !f.newest.before(f.known) && !f.newest.before(f.seen) {
		return
	}
	f.seen, f.regressed = f.newest, true
	m.note(Note{Kind: NoteStoreRegressed, Err: "the store has lost what it held; it is written again from here"})
	if f.newest.before(f.known) {
		f.known = f.newest
	}
	if !f.restored.IsZero() && m.now.Sub(f.restored) < pollIdle {
		f.shareNext = f.restored.Add(pollIdle)
	}
	f.restored = m.now
}

// found is what a list of names says.
type found struct {
	newest  position
	intents []string // of the generation in use, and marks
	claims  []string // of the login after the one in use
	plan    time.Time
	garbage []string
}

// read reads names; those that are not ours, or that nobody with the session's
// key can have made, count for nothing.
func (m *machine) read(names []string) (f found) {
	here := m.rec.position()
	var records []position
	for _, name := range names {
		e, ok := parseName(name)
		if !ok {
			continue
		}
		switch {
		case e.kind == kindRecord, e.kind == kindTomb:
			records = append(records, e.at)
			if f.newest.before(e.at) {
				f.newest = e.at
			}
		case e.at.before(here):
			f.garbage = append(f.garbage, name)
		case e.kind == kindClaim && e.at == m.nextLogin() && e.genuine(m.key()):
			f.claims = append(f.claims, name)
		case e.at != here || !e.genuine(m.key()):
		case e.kind == kindIntent, e.kind == kindQuiet:
			f.intents = append(f.intents, name)
		case e.kind == kindPlan:
			if t, ok := e.when(); ok && (f.plan.IsZero() || t.Before(f.plan)) {
				f.plan = t
			}
		}
	}
	slices.SortFunc(records, func(a, b position) int {
		if a.before(b) {
			return -1
		}
		return 1
	})
	for _, p := range records[:max(0, len(records)-keptRecords)] {
		f.garbage = append(f.garbage, p.name())
	}
	return f
}

// keptRecords is how many of the newest records stay in the store.
const keptRecords = 3

// sightIntents remembers when each intent of this generation was first seen. One
// that has gone was withdrawn, and has sent nothing; but if the store has lost
// our record, too, it says nothing.
func (m *machine) sightIntents(found found, late bool) {
	f := &m.fleet
	here := m.rec.position()
	var kept []sighting
	for _, s := range f.intents {
		if s.own || late || found.newest.before(here) || slices.Contains(found.intents, s.name) {
			kept = append(kept, s)
		}
	}
	for _, name := range found.intents {
		known := slices.ContainsFunc(kept, func(s sighting) bool { return s.name == name })
		if !known && name != f.owned {
			kept = append(kept, sighting{name: name, first: m.now, mark: name[0] == byte(kindQuiet)})
		}
	}
	f.intents = kept
}

// quietFrom is when an attempt's request is dead, or may be repeated all the
// same.
func (m *machine) quietFrom(s sighting) Instant {
	wait := m.sched.holdOff
	if s.mark && m.sched.known() { // most likely nothing was on its way: no reason to lose the session
		end := m.sched.notAfter.Add(-m.sched.stretch(orDefault(m.profile.Timeout, defaultTimeout)))
		all := 2 * pollIdle // in which the others restore what they have
		if m.fleet.pushes {
			all = time.Second
		}
		wait = min(wait, max(end.Sub(s.first), min(all, m.sched.lead/2)))
	}
	if reuse := m.reuse(); reuse > 0 {
		wait = min(wait, reuse/2)
		if s.own {
			wait = 0
		}
	}
	return s.first.Add(wait)
}

// foreignYoung reports whether another instance may be exchanging this very
// generation.
func (m *machine) foreignYoung() bool {
	return slices.ContainsFunc(m.fleet.intents, func(s sighting) bool { return !s.own && !m.reached(m.quietFrom(s)) })
}

// othersTry is foreignYoung without the marks.
func (m *machine) othersTry() bool {
	return slices.ContainsFunc(m.fleet.intents, func(s sighting) bool { return !s.own && !s.mark && !m.reached(m.quietFrom(s)) })
}

func (m *machine) allQuiet() bool {
	return !slices.ContainsFunc(m.fleet.intents, func(s sighting) bool { return !m.reached(m.quietFrom(s)) })
}

// reconcile makes the session's intent what the fleet's are: somebody's attempt
// whose outcome is unknown counts like one's own.
func (m *machine) reconcile() {
	f := &m.fleet
	if m.stage > stageAsking || !m.usable() {
		return
	}
	attempts := 0
	quiet := Instant{}
	for _, s := range f.intents {
		if !s.mark {
			attempts++
			quiet = later(quiet, m.quietFrom(s))
		}
	}
	if attempts == 0 && len(f.intents) > 0 {
		return // only marks: the store has forgotten what was tried, the journal may not have
	}
	if attempts == 0 {
		if in := m.rec.Intent; in != nil && in.Shared && !f.newest.before(m.rec.position()) {
			m.rec.Intent = nil // it never got to the store, so nothing was sent
			m.changed()
		}
		return
	}
	if m.rec.Intent == nil {
		m.rec.Intent = &intent{At: m.now.Wall, AtBoot: m.now.Boot, BootID: m.env.bootID, Unknown: true, Shared: true}
		m.witnessed = false
		m.next = Instant{}
	}
	if n := attempts - 1; n > m.rec.Intent.Retries {
		in := *m.rec.Intent
		in.Retries = n
		m.rec.Intent = &in
	}
	if m.quietAt != quiet {
		m.quietAt = quiet
		if !m.reached(quiet) {
			m.witnessed = false
		}
	}
}

// generationChanged forgets what was known of the generation before.
func (f *fleet) generationChanged() {
	f.intents, f.plan, f.doom, f.owned, f.slow = nil, time.Time{}, nil, "", 0
	f.rest, f.shareNext, f.shareFailures = Instant{}, Instant{}, 0
}

// attemptAsked: the lock was waited for and the names are here (rotation.md 4.4,
// steps 2 to 4).
func (m *machine) attemptAsked(ev evAsked, newer bool) {
	if ev.err != nil {
		m.quit(ev.err)
		return
	}
	m.wanted = m.attempt.cause
	if m.wanted == causeDue {
		m.wanted = ""
	}
	m.stage = stageIdle
	at, _, ok := m.nextAttempt()
	m.stage = stageAsking
	if newer || !ok || !m.reached(at) || !m.allQuiet() || !m.mayBegin() {
		m.fleet.rest = m.now.Add(pollNear) // never in a tight loop
		m.quit(nil)
		return
	}
	m.wanted = ""
	m.attempt.prior = m.rec.Intent
	m.connect()
}

// quit ends an attempt that found itself superfluous, or the store failing.
func (m *machine) quit(err error) {
	m.stage = stageIdle
	m.attempt.gated = false
	if err != nil {
		m.answerWaiting(err)
	}
	m.unlock()
}

// intend writes the attempt's intent; the names are listed again after it.
func (m *machine) intend() {
	m.stage = stagePosting
	m.attempt.posted = m.now
	m.fleet.owned, m.fleet.wrote = m.ownName(kindIntent), m.now
	m.emit(effIntend{name: m.fleet.owned})
}

// sendLimit is how long the intent may take from the moment it was written to
// the moment the exchange is sent: whoever saw it counts the hold-off from then.
func (m *machine) sendLimit() time.Duration { return m.sched.holdOff / 15 }

// intended: the intent is written and the names are here once more (step 6).
func (m *machine) intended(ev evIntended) {
	if ev.name == m.signIn.claim && ev.name != "" {
		m.claimed(ev)
		return
	}
	if m.stage != stagePosting || ev.name != m.fleet.owned {
		m.emit(effErase{names: []string{ev.name}})
		return
	}
	if ev.err != nil {
		m.storeFails(ev.err)
		m.withdraw(ev.err.Error())
		return
	}
	newer := m.sighted(ev.at, ev.names, ev.pushes)
	switch {
	case newer, m.rec.Lost != "", m.fleet.stored != m.rec.position(): // the last: it has forgotten, also what others intend
		m.withdraw("")
	case !m.allQuiet():
		u := m.spread(m.env.owner ^ m.attempt.id)
		m.fleet.rest = m.now.Add(m.sched.scaled(time.Duration((0.2 + 1.8*u) * float64(time.Second))))
		m.withdraw("")
	case m.now.Sub(m.attempt.posted) > m.sendLimit():
		m.fleet.slow++
		m.fleet.rest = m.now.Add(m.sched.scaled(time.Second))
		if m.fleet.slow >= 3 {
			m.storeFails(errors.New("the store is too slow for a safe exchange"))
		}
		m.withdraw("the store is too slow")
	default:
		m.send()
	}
}

// withdraw takes the intent back; nothing was sent.
func (m *machine) withdraw(why string) {
	m.emit(effErase{names: []string{m.fleet.owned}})
	m.fleet.owned = ""
	m.emit(effDrop{conn: m.attempt.conn})
	m.rec.Intent = m.attempt.prior
	m.changed()
	if m.wanted = m.attempt.cause; m.wanted == causeDue {
		m.wanted = ""
	}
	if why != "" {
		m.answerWaiting(errors.New(why))
	}
	m.stage = stageIdle
	m.attempt.gated = false
	m.shown = view{}
	m.unlock()
	m.reconcile()
}

// disown erases the intent of an attempt that certainly committed nothing.
func (m *machine) disown() {
	if m.fleet.owned != "" {
		m.emit(effErase{names: []string{m.fleet.owned}})
		m.fleet.owned, m.fleet.wrote = "", m.now
	}
}

// leaveIntent keeps the intent of an attempt whose outcome is unknown, for all
// to see. Its hold-off counts from the attempt's end.
func (m *machine) leaveIntent() {
	if f := &m.fleet; f.owned != "" {
		f.intents = with(f.intents, sighting{name: f.owned, first: m.now, own: true})
		f.owned = ""
	}
}

func (m *machine) unlock() {
	if m.fleet.locked {
		m.fleet.locked = false
		m.emit(effUnlock{})
	}
}

// mayBegin reports whether an exchange may begin as far as the store goes: the
// pair in use is the newest and is stored.
func (m *machine) mayBegin() bool {
	f := &m.fleet
	switch {
	case !f.on:
		return true
	case !f.opened, f.reading != "", f.bad != "", f.doom != nil, f.held != nil, f.stored != m.rec.position():
		return false
	case f.failures > 0 && !m.reached(f.next):
		m.wakeAt(f.next)
		return false
	case !m.reached(f.rest):
		m.wakeAt(f.rest)
		return false
	}
	for _, s := range f.intents {
		if at := m.quietFrom(s); s.mark && m.usable() && !m.reached(at) {
			m.wakeAt(at)
			return false
		}
	}
	return true
}
