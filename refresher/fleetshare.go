package refresher

import (
	"bytes"
	"errors"
	"slices"
	"time"
)

// fetchEntry has an entry of the store read, one at a time.
func (m *machine) fetchEntry(name string) {
	f := &m.fleet
	if f.reading == "" && f.bad != name {
		f.reading = name
		m.emit(effRead{name: name})
	}
}

// gotEntry: an entry was read.
func (m *machine) gotEntry(ev evRead) {
	f := &m.fleet
	if ev.name != f.reading {
		return
	}
	f.reading = ""
	switch {
	case errors.Is(ev.err, ErrNotStored): // it was superseded in between
		f.heardAt(m.now.Add(pollNear))
	case ev.err != nil && !ev.unusable:
		m.storeFails(ev.err)
	case ev.err != nil, ev.rec.position().name() != ev.name:
		m.unusableEntry(ev)
	case ev.rec.position() == m.rec.position():
		m.compare(ev.rec)
	case !m.rec.position().before(ev.rec.position()):
	case m.stage >= stageSending:
		f.held = ev.rec // the answer on its way decides first
	default:
		asked := m.waiting
		m.waiting = nil // they get what they asked for
		m.stop("another instance has rotated")
		m.waiting = asked
		m.join(ev.rec)
	}
	if m.rec.position().before(f.newest) {
		m.fetchEntry(f.newest.name()) // it came while the other was read
	}
	m.releaseWaiters()
}

// unusableEntry: what the store has cannot be opened. It is never overwritten;
// the pair in use serves to its end.
func (m *machine) unusableEntry(ev evRead) {
	detail := "what the store holds as " + ev.name + " is not what its name says"
	if ev.err != nil {
		detail = ev.err.Error()
	}
	m.fleet.bad = ev.name
	if !m.fleet.looked {
		m.firstLook()
	}
	if m.fleet.said != detail {
		m.fleet.said = detail
		m.note(Note{Kind: NoteStoreFailed, Err: detail})
	}
	if !m.usable() {
		m.rec.Lost, m.rec.Detail = ReasonUndecryptable, detail
		m.shown = view{}
		m.note(Note{Kind: NoteLost, Reason: ReasonUndecryptable, Err: detail})
	}
}

// takeHeld joins a record that came during an exchange, now that it is over.
func (m *machine) takeHeld() {
	if rec := m.fleet.held; rec != nil && m.stage == stageIdle {
		m.fleet.held = nil
		if m.rec.position().before(rec.position()) {
			m.join(rec)
		}
	}
}

// compare looks at the record that stands where ours was to be written: it is
// ours, or another instance was faster. Then its record is the fleet's, even if
// it is of the same pair: only with its key are intents recognised.
func (m *machine) compare(rec *record) {
	f := &m.fleet
	f.stored, f.known = rec.position(), rec.position()
	if !f.looked {
		m.firstLook()
	}
	same := rec.Refresh == m.rec.Refresh
	if same && rec.Access == m.rec.Access && bytes.Equal(rec.HashKey, m.rec.HashKey) || rec.position().ended {
		m.unlock()
		return
	}
	ours := seed{pair: m.rec.pair(), source: m.rec.Source}
	if m.rec.Expires {
		ours.pair.ExpiresIn = m.rec.Left - m.now.Sub(m.received)
	}
	offer := m.rec.Generation == 1 && !same && m.usable() && !m.expired() // a login of its own, and alive
	m.join(rec)
	if offer && m.pending == nil {
		m.pending = &ours // judged by what the other knows
	}
}

// join goes on with what another instance has stored.
func (m *machine) join(rec *record) {
	chained := m.fleet.known != m.rec.position() || rec.Epoch != m.rec.Epoch || rec.Generation != m.rec.Generation+1 || rec.Prev == m.chain()
	if !chained {
		// Not a successor of the pair that we hold: the store was put back to an
		// older state and went on from there, or somebody has written to it.
		m.note(Note{Kind: NoteForked, Err: "the store holds a pair that does not follow from the one in use"})
		if m.usable() && !m.expired() && !m.upstream401 {
			m.fleet.bad = rec.position().name()
			return
		}
	}
	m.compareClocks(rec)
	// What this one has yet to tell goes on; what the other tells, it tells.
	own, others := announcementsAfter(m.rec.Announce), rec.Announce
	m.telling.until = Instant{}
	m.rec, m.sparse = *rec, false
	m.rec.Intent = nil
	m.own()
	m.rec.Announce = own
	for _, a := range others {
		if a.Held {
			m.rec.Announce = with(m.rec.Announce, a) // by each who has to wait
		}
	}
	m.received = m.receivedThere()
	m.byWall = m.env.bootID == "" || m.env.bootID != m.rec.BootID
	m.born = m.now
	m.fleet.stored, m.fleet.known = rec.position(), rec.position()
	m.fleet.bad = ""
	m.renew()
	m.unlock()
	m.changed()
	m.shown = view{}
	switch {
	case m.rec.Lost != "":
		m.note(Note{Kind: NoteLost, Reason: m.rec.Lost, Err: m.rec.Detail, Signs: m.mayReturn()})
		m.answerWaiting(errors.New(m.rec.Detail))
	default:
		m.note(Note{Kind: NoteJoined, Next: m.sched.refreshAt.Wall})
		m.answerWaiting(nil)
	}
	if !m.fleet.looked {
		m.firstLook()
	}
}

// receivedThere is when another instance received the pair that is being joined,
// on this one's clock. Its wall clock may be wrong, or ours; but when it was given
// to the store it had the age that it says, and that was not before the store was
// last seen without it, nor later than now.
func (m *machine) receivedThere() Instant {
	at := m.rec.restored(m.now, m.env.bootID)
	if m.env.bootID != "" && m.env.bootID == m.rec.BootID {
		return at
	}
	oldest := m.fleet.without.Add(-m.rec.Age - 2*storeTimeout)
	if !m.fleet.without.IsZero() && at.Boot < oldest.Boot {
		at = oldest
	}
	if newest := m.now.Add(-m.rec.Age); at.Boot > newest.Boot {
		at = newest
	}
	return at
}

// compareClocks warns if the clock of whoever stored a record differs from this
// one's by more than the barrier allows for (rotation.md 4.5): the record says
// when it was given to the store, and that was after the store was last seen
// without it, and is over.
func (m *machine) compareClocks(rec *record) {
	f := &m.fleet
	if rec.Received.IsZero() || !f.spread.IsZero() && m.now.Sub(f.spread) < time.Hour {
		return
	}
	given := rec.Received.Add(rec.Age)
	ahead, behind := given.Sub(m.now.Wall), f.without.Wall.Sub(given)-2*storeTimeout
	switch {
	case ahead > clockSkew:
	case !f.without.IsZero() && behind > clockSkew:
		ahead = -behind
	default:
		return
	}
	f.spread = m.now
	m.note(Note{Kind: NoteClockSpread, Took: ahead})
}

// chain is what the next record says of this one: a record can only follow the
// one that it was made from.
func (m *machine) chain() tokenHash {
	return tokenHash(keyedSum(m.key(), "chain", m.rec.Refresh))
}

// share writes what is in use to the store, until it is there: nothing newer can
// be made before that.
func (m *machine) share() {
	f := &m.fleet
	here := m.rec.position()
	if !f.on || !f.opened || f.sharing || f.reading == here.name() || here.isZero() || !f.stored.before(here) || m.stage == stageCommitting || f.bad != "" {
		return
	}
	if !m.reached(f.shareNext) {
		m.wakeAt(f.shareNext)
		return
	}
	f.sharing, f.wrote = true, m.now
	m.recall()
	rec := m.rec
	rec.Intent, rec.Kept = nil, ""
	rec.Age = m.now.Sub(m.received)
	eff := effShare{at: here, rec: rec}
	if f.regressed {
		// Whoever finds our record there again must not take it for granted that
		// nothing is on its way.
		mark := m.ownName(kindQuiet)
		for _, s := range f.intents {
			if !s.mark || s.name[0] == byte(kindQuiet) { // not what was withdrawn
				eff.before = append(eff.before, s.name)
			}
		}
		if f.owned != "" {
			eff.before = append(eff.before, f.owned)
		}
		if !slices.Contains(eff.before, mark) {
			eff.before = append(eff.before, mark)
			f.intents = with(f.intents, sighting{name: mark, first: m.now, mark: true})
		}
	}
	m.emit(eff)
}

// shared: our record was written, or not.
func (m *machine) shared(ev evShared) {
	f := &m.fleet
	f.sharing = false
	switch {
	case ev.err == nil:
		f.shareFailures, f.shareNext, f.sharedAt = 0, Instant{}, m.now
		f.regressed = f.regressed && ev.at != m.rec.position()
		f.wrote = m.now
		if f.stored.before(ev.at) {
			f.stored, f.known = ev.at, ev.at
		}
		if f.newest.before(ev.at) {
			f.newest = ev.at
		}
		if len(f.garbage) > 0 {
			m.emit(effErase{names: f.garbage})
			f.garbage = nil
		}
		m.unlock()
	case errors.Is(ev.err, ErrStored):
		if ev.at == m.rec.position() {
			m.fetchEntry(ev.at.name())
		}
		f.shareNext = m.now.Add(time.Second)
	default:
		if f.shareFailures == 0 {
			m.note(Note{Kind: NoteStoreFailed, Err: ev.err.Error()})
		}
		f.shareNext = m.now.Add(m.sched.scaled(min(100*time.Millisecond<<min(f.shareFailures, 8), pollIdle)))
		f.shareFailures++
		m.unlock()
	}
}

// firstLook asks the sources once it is known what the journal and the store
// hold.
func (m *machine) firstLook() {
	m.fleet.looked = true
	m.looking = true
	m.emit(effFetch{lying: true})
}

// heard: something has changed in the store. Where we have just written to it
// ourselves, that is most likely all; one look, a little later, is enough for
// whatever else there is.
func (m *machine) heard() {
	f := &m.fleet
	at := m.now
	if !f.wrote.IsZero() && m.now.Sub(f.wrote) < echo || f.owned != "" {
		at = m.now.Add(2 * echo)
	}
	f.heardAt(at)
}

// heardAt has the store asked then, if not before.
func (f *fleet) heardAt(at Instant) {
	if !f.news || at.Boot < f.look.Boot {
		f.news, f.look = true, at
	}
}

const echo = 100 * time.Millisecond

// poll asks the store when it is time. Where it pushes, that is next to never.
func (m *machine) poll() {
	f := &m.fleet
	if !f.on || f.asking || m.closing || !m.opened {
		return
	}
	at := f.asked.Add(m.pollEvery())
	if f.asked.IsZero() || f.again || f.doom != nil && f.asked.Boot < f.doom.at.Boot {
		at = m.now
	}
	if f.news && f.look.Boot < at.Boot {
		at = f.look
	}
	if f.failures > 0 {
		at = f.next
	}
	if m.reached(at) {
		m.ask()
		return
	}
	m.wakeAt(at)
}

func (m *machine) pollEvery() time.Duration {
	f := &m.fleet
	near := pollNear
	if f.pushes {
		near *= 10
	}
	switch {
	case m.stage != stageIdle:
		return time.Second
	case m.usable() && m.foreignYoung(), f.doom != nil, f.reading != "":
		return near
	case m.usable() && m.sched.known() && m.reached(m.sched.refreshAt) && !m.reached(m.sched.refreshAt.Add(2*m.sched.holdOff)) && m.failures == 0:
		return near
	case m.rec.Intent != nil, m.rec.Lost != "", !m.rec.hasPair(), m.expired():
		return time.Second
	case f.pushes:
		return pollNews
	}
	return pollIdle
}

// shift is how much later than due an instance of a fleet begins: in a different
// order for each generation, and late enough for the barrier of all.
func (m *machine) shift() time.Duration {
	if !m.fleet.on {
		return 0
	}
	unit := m.sched.life / 20
	if m.sched.life == 0 {
		unit = time.Minute
	}
	d := time.Duration(m.spread(m.env.owner) * float64(min(2*time.Second, unit)))
	if m.profile.RevokesPrevious {
		d += m.skew()
	}
	return d
}

// skew is how far the clocks of a fleet may be apart.
func (m *machine) skew() time.Duration {
	if m.sched.life > 0 {
		return min(clockSkew, m.sched.life/20)
	}
	return clockSkew
}

// bar holds back requests that could not be sent again, in every instance, from
// a moment before the exchange is due: whoever makes it revokes the token that
// they would carry (rotation.md 4.5). The others go on; should they be refused,
// they are sent again.
func (m *machine) bar() {
	f := &m.fleet
	down := false
	if f.on && m.profile.RevokesPrevious && m.usable() && !m.expired() && m.failures == 0 && !m.sched.refreshAt.IsZero() && !f.doomed() {
		from := m.sched.refreshAt.Add(-m.skew() - min(m.policy.drain(), m.sched.lead/6, settleAfter))
		if half := m.received.Add(m.sched.refreshAt.Sub(m.received) / 2); from.Boot < half.Boot {
			from = half // a short generation is not for waiting
		}
		until := m.sched.refreshAt.Add(m.policy.wait())
		down = m.reached(from) && !m.reached(until)
		switch {
		case down:
			m.wakeAt(until)
		case !m.reached(from):
			m.wakeAt(from)
		}
	}
	if down == f.barred {
		return
	}
	f.barred = down
	if down {
		m.emit(effBar{})
		return
	}
	m.shown = view{} // a new snapshot has no barrier
}

func (f *fleet) doomed() bool { return f.doom != nil }

// announce plans an exchange that is not due: the others learn of it in time to
// hold back what could not be sent again.
func (m *machine) announce() {
	notice := max(2*time.Second, 2*pollIdle)
	if m.fleet.pushes {
		notice = 2 * time.Second
	}
	notice = min(notice, m.sched.lead/2)
	at := m.now.Add(m.sched.scaled(notice))
	m.fleet.plan = at.Wall
	m.emit(effPlan{name: m.planName(at.Wall)})
	m.plan()
}
