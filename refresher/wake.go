package refresher

import "time"

// reached reports whether an instant is over: on the clock that nobody can set,
// or, where that one stops while the machine sleeps, on either.
func (m *machine) reached(at Instant) bool {
	return m.now.Boot >= at.Boot || !m.env.countsSleep && !m.now.Wall.Before(at.Wall)
}

// wakeAt asks for a tick at the latest at that instant.
func (m *machine) wakeAt(at Instant) {
	if m.wake.IsZero() || at.Boot < m.wake.Boot {
		m.wake = at
	}
}

// arm asks for the next tick. No timer runs for long: timers stand still while
// the machine sleeps, and clocks are set.
func (m *machine) arm() {
	if m.closing && m.settled() {
		return
	}
	often := 10 * time.Second
	if m.usable() && m.sched.lead > 0 {
		often = min(max(m.sched.lead/10, 50*time.Millisecond), often)
	}
	m.wakeAt(m.now.Add(often))
	m.emit(effWake{at: m.wake})
}

// watchClock notices that the wall clock was set. A step that makes the token
// look expired is worth one early exchange at most every ten minutes, whose
// answer then tells the truth; the token itself is trusted to live as long as
// the other clock says.
func (m *machine) watchClock() {
	drift := time.Duration(m.now.Wall.UnixNano()) - m.now.Boot
	moved := drift - m.drift
	if moved.Abs() < 2*time.Second {
		return
	}
	first := m.drift == 0
	m.drift = drift
	if first || !m.opened {
		return
	}
	m.note(Note{Kind: NoteClockStepped, Took: moved})
	m.rereckon()
	if !m.env.countsSleep || moved < 0 || !m.usable() || !m.sched.known() || m.now.Wall.Before(m.sched.refreshAt.Wall) {
		return
	}
	if m.stepped.IsZero() || m.now.Sub(m.stepped) >= 10*time.Minute {
		m.stepped = m.now
		m.wanted = causeClock
	}
}

// rereckon lays the schedule of a pair out anew whose age only the wall clock
// tells, after that clock was set: a machine may start with a wrong one. A token
// that would be over by that is kept until an exchange has told the truth.
func (m *machine) rereckon() {
	if !m.byWall || !m.usable() || m.stage != stageIdle {
		return
	}
	before, received := m.sched, m.received
	m.received = m.rec.restored(m.now, m.env.bootID)
	m.plan()
	if m.expired() && before.known() && !m.reached(before.notAfter) {
		m.sched, m.received = before, received
		m.wanted = causeClock
	}
}

// onOurClock is when a wall clock's time comes; zero for none.
func (m *machine) onOurClock(t time.Time) Instant {
	if t.IsZero() {
		return Instant{}
	}
	return m.now.Add(t.Sub(m.now.Wall))
}
