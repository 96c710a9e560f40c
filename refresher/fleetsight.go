package refresher

import (
	"slices"
	"time"
)

// sighted takes in the names that were there at or after an instant. It reports
// whether there is something newer than what is in use.
func (m *machine) sighted(at Instant, names []string, pushes bool) (newer bool) {
	f := &m.fleet
	if f.failures > 0 {
		m.note(Note{Kind: NoteStoreBack})
		f.back, f.shareNext = m.now, Instant{}
	}
	f.failures, f.err, f.next = 0, "", Instant{}
	f.pushes = pushes
	late := at.Boot < f.asked.Boot // an older answer than one that was taken in
	f.asked = later(f.asked, at)
	here := m.rec.position()
	found := m.read(names)
	if !late && at.Boot >= f.sharedAt.Boot {
		if f.newest = found.newest; m.stage != stageIdle { // whoever rotates sweeps
			f.garbage = found.garbage
		}
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
	if d := f.doom; d != nil && (!newer || f.bad != "") && at.Boot >= d.at.Boot && !m.foreignYoung() && m.reached(m.othersBack()) {
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
// our record, too, it says nothing, and little if it ever has.
func (m *machine) sightIntents(found found, late bool) {
	f := &m.fleet
	here := m.rec.position()
	var kept []sighting
	for _, s := range f.intents {
		switch {
		case s.own || late || found.newest.before(here) || slices.Contains(found.intents, s.name):
			kept = append(kept, s)
		case m.marked() && !s.mark: // as likely as not
			s.mark = true
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
		wait = min(wait, max(end.Sub(s.first), min(m.fleet.restoring(), m.sched.lead/2)))
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

// othersBack is when the others, too, have found a store again that was away, and
// have written what they got meanwhile, or what it has lost.
func (m *machine) othersBack() (at Instant) {
	f := &m.fleet
	if !f.back.IsZero() {
		at = f.back.Add(storeTimeout + m.sched.scaled(pollIdle))
	}
	if !f.restored.IsZero() {
		at = later(at, f.restored.Add(f.restoring()))
	}
	return at
}

// restoring is how long the others take to write again what the store has lost.
func (f *fleet) restoring() time.Duration {
	if f.pushes {
		return time.Second
	}
	return 2 * pollIdle
}

// marked reports whether the store has ever lost what was tried of this
// generation.
func (m *machine) marked() bool {
	return slices.ContainsFunc(m.fleet.intents, func(s sighting) bool { return s.mark })
}

// onlyMarks reports whether the store has forgotten what was tried.
func (m *machine) onlyMarks() bool {
	return len(m.fleet.intents) > 0 && !slices.ContainsFunc(m.fleet.intents, func(s sighting) bool { return !s.mark })
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
		// Only marks: the store has forgotten what was tried, the journal may not have.
		if f.others {
			m.rec.Intent, f.others = nil, false
			m.changed()
		}
		return
	}
	if attempts == 0 {
		if in := m.rec.Intent; in != nil && in.Shared && !f.newest.before(m.rec.position()) {
			m.rec.Intent = nil // it never got to the store, so nothing was sent
			m.changed()
		}
		return
	}
	if m.rec.Intent == nil {
		f.others = true
		m.rec.Intent = &intent{At: m.now.Wall, AtBoot: m.now.Boot, BootID: m.env.bootID, Unknown: true, Shared: true}
		m.witnessed = false
		m.next = Instant{}
	}
	in := *m.rec.Intent
	in.Retries = max(in.Retries, attempts-1)
	// That the issuer answered ours says nothing of somebody else's.
	in.Answered = in.Answered && !slices.ContainsFunc(f.intents, func(s sighting) bool { return !s.own && !s.mark })
	m.rec.Intent = &in
	if m.quietAt != quiet {
		m.quietAt = quiet
		if !m.reached(quiet) {
			m.witnessed = false
		}
	}
}
