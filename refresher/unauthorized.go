package refresher

import (
	"slices"
	"strings"
	"time"
)

// evUnauthorized: the upstream answered 401 to a request that carried the
// access token of a generation.
type evUnauthorized struct {
	epoch, generation uint64
	at                Instant // when the answer came; zero: now
	route             string
	again             bool // the request had been sent again before
	origin            string
	reply             chan<- verdict
}

// verdict is what becomes of a request that was answered 401.
type verdict uint8

const (
	verdictPass  verdict = iota // the caller gets the 401
	verdictAgain                // send it again with the token now in use
	verdictWait                 // an exchange is coming: wait for its outcome
	verdictLag                  // the token is so new that the upstream may not know it yet
)

// unauthorized decides by rotation.md 3.5.
func (m *machine) unauthorized(ev evUnauthorized) {
	v := m.judge(ev)
	if ev.reply != nil {
		m.replies = append(m.replies, effVerdict{to: ev.reply, verdict: v})
	}
}

func (m *machine) judge(ev evUnauthorized) verdict {
	if !m.usable() || ev.epoch != m.rec.Epoch || ev.generation != m.rec.Generation {
		if ev.again {
			return verdictPass
		}
		return verdictAgain
	}
	known := m.isQuarantined(ev.route)
	if m.fleet.on && m.profile.RevokesPrevious && m.stage <= stageAsking && !known {
		if v, decided := m.askStore(ev); decided {
			return v
		}
	}
	if m.rec.Intent != nil && m.stage == stageIdle && m.profile.RevokesPrevious && !known && !m.foreignYoung() {
		if !ev.at.IsZero() && ev.at.Boot < m.attempt.sent.Boot {
			return verdictAgain // it may be why the exchange was made, and says nothing about its outcome
		}
		if m.reuse() > 0 {
			return verdictWait // the next attempt gets the successor
		}
		m.lose(ReasonTwoGenerals, "the upstream no longer accepts the access token: the exchange was committed, its answer lost")
		if m.fleet.on {
			m.fleet.waiters = true
			return verdictWait
		}
		return verdictAgain
	}
	if m.stage != stageIdle && m.profile.RevokesPrevious {
		return verdictWait
	}
	if ev.again {
		m.quarantine(ev.route)
		return verdictPass
	}
	if known {
		return verdictPass
	}
	age := m.now.Sub(m.born)
	if !m.born.IsZero() && age < m.sched.scaled(3*time.Second) {
		return verdictLag
	}
	if m.stage != stageIdle {
		return verdictWait
	}
	m.upstream401 = true
	young := !m.born.IsZero() && age < m.sched.scaled(max(30*time.Second, m.sched.life/20))
	if m.triggered || young || !m.running || m.closing || m.rec.Intent != nil {
		return verdictPass
	}
	m.triggered = true
	m.wanted, m.origin = causeUnauthorized, ev.origin
	return verdictWait
}

// askStore has a fleet's store asked before a 401 is judged: most likely another
// instance has rotated, or is about to.
func (m *machine) askStore(ev evUnauthorized) (verdict, bool) {
	f := &m.fleet
	at := ev.at
	if at.IsZero() {
		at = m.now
	}
	if ev.again { // it was sent again with this very token: is that still the newest?
		if m.now.Sub(f.asked) > time.Second {
			m.ask()
			return verdictPass, true
		}
		return verdictPass, false
	}
	if ev.reply == nil {
		return verdictPass, false
	}
	if f.failures > 0 { // a short trouble is waited out
		f.waiters = m.now.Sub(f.failing) < min(storePatience, m.policy.wait()/2)
		return verdictWait, f.waiters
	}
	if m.onlyMarks() {
		m.upstream401 = true // and the store has forgotten who may have rotated
	}
	if f.asked.Boot < at.Boot || f.reading != "" || f.doom != nil || m.foreignYoung() {
		f.waiters = true
		if f.asked.Boot < at.Boot {
			m.ask()
		}
		return verdictWait, true
	}
	return verdictPass, false
}

// storePatience is how long a request that was refused waits for a store that
// fails.
const storePatience = 3 * time.Second

// accepted: the upstream took the access token after the hold-off of an unknown
// outcome, so the exchange had not been committed.
func (m *machine) accepted(ev evAccepted) {
	if m.rec.Intent == nil || m.stage != stageIdle || !m.reached(m.quietAt) ||
		ev.epoch != m.rec.Epoch || ev.generation != m.rec.Generation {
		return
	}
	m.witnessed = true
}

// quarantined is a route whose 401s are not about the token: the upstream
// refused a newer one there, too. Without this one such route, or one caller,
// could make the session rotate at will.
type quarantined struct {
	route string
	until Instant
}

const (
	quarantineFor = 10 * time.Minute
	maxQuarantine = 256
)

func (m *machine) isQuarantined(route string) bool {
	return slices.ContainsFunc(m.routes, func(q quarantined) bool { return q.route == route && !m.reached(q.until) })
}

func (m *machine) quarantine(route string) {
	kept := slices.DeleteFunc(slices.Clone(m.routes), func(q quarantined) bool { return q.route == route || m.reached(q.until) })
	m.routes = appendBounded(kept, maxQuarantine, quarantined{route: route, until: m.now.Add(quarantineFor)})
	m.note(Note{Kind: NoteQuarantined, Err: route})
}

// Route folds a request into the template by which its 401s are counted: the
// method and the path, with segments that look like identifiers replaced.
func Route(method, path string) string {
	const limit = 128
	path = path[:min(len(path), limit)]
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if strings.ContainsAny(s, "0123456789") || len(s) > 24 {
			segments[i] = "*"
		}
	}
	return method + " " + strings.Join(segments, "/")
}
