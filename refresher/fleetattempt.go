package refresher

import (
	"errors"
	"time"
)

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
	m.attempt.gated, m.attempt.conn = false, nil
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
	case len(m.rec.Announce) >= maxAnnouncements:
		return false // they are part of the record, which has its bounds
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
		at := m.quietFrom(s)
		if m.upstream401 && m.profile.RevokesPrevious { // another has rotated, and will restore what it has
			at = later(at, s.first.Add(m.sched.holdOff))
			if s.mark && !f.back.IsZero() { // as soon as it finds the store there
				at = later(at, f.back.Add(m.sched.scaled(2*pollIdle)))
			}
		}
		if s.mark && m.usable() && !m.reached(at) {
			m.wakeAt(at)
			return false
		}
	}
	return true
}
