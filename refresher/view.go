package refresher

import "time"

// Phase is the state of a session as the admin API shows it (contract 5).
type Phase string

// The phases.
const (
	PhaseEmpty      Phase = "empty"      // no pair yet
	PhaseFresh      Phase = "fresh"      // a live token, nothing to do
	PhaseExchanging Phase = "exchanging" // an exchange is under way
	PhaseBackoff    Phase = "backoff"    // the last exchange failed; the token lives
	PhaseDegraded   Phase = "degraded"   // failing for more than half of the lead
	PhaseUncertain  Phase = "uncertain"  // the last exchange may have been committed
	PhaseHolding    Phase = "holding"    // the journal cannot be had or written
	PhaseExpired    Phase = "expired"    // no live token; exchanges go on
	PhaseLost       Phase = "lost"       // a new login is needed
)

// mode says what a request may expect.
type mode uint8

const (
	modeUnset  mode = iota
	modeReady       // there is a live token
	modeComing      // a token is being fetched right now
	modeLater       // the next attempt is made at view.until
	modeEmpty       // no token, and nothing of ours will bring one
	modeLost        // the same, after there was one
)

// view is what the request path sees of a state. It is comparable: a new one is
// published when it differs from the last.
type view struct {
	mode              mode
	watch             bool // modeReady: an answer that is not 401 is a witness
	epoch, generation uint64
	until             int64 // Instant.Boot of the next attempt in modeLater; of the token's end, if known, in modeReady
	reason            Reason
	wait              time.Duration // the longest that a request waits
}

// publish shows requests what has changed. While the gate is closed they wait
// and nothing is shown; a pair that is not in the journal yet is not shown
// either.
func (m *machine) publish() {
	if m.attempt.gated || m.stage == stageCommitting {
		return
	}
	v := m.view()
	if m.holding() {
		// The pair in use waits for somebody's answer; the one before serves as
		// long as it can, and nobody's access token is shown too early.
		if until := m.telling.until; v.mode == modeReady && !m.profile.RevokesPrevious && !until.IsZero() && !m.reached(until) {
			m.wakeAt(until)
			return
		}
		if v.mode == modeReady {
			v = view{mode: modeComing, wait: m.policy.wait()}
		}
	}
	if v == m.shown {
		return
	}
	m.shown = v
	m.emit(effPublish{view: v, token: NewSecret(m.rec.Access), barred: m.fleet.barred, owned: m.owned()})
}

func (m *machine) view() view {
	v := view{epoch: m.rec.Epoch, generation: m.rec.Generation, reason: m.rec.Lost, wait: m.policy.wait()}
	switch {
	case !m.opened, m.looking && !m.usable(), m.fleet.on && !m.fleet.looked && m.fleet.bad == "" && m.fleet.failures == 0, m.stage != stageIdle && m.usable() && m.expired():
		v.mode = modeComing
	case m.usable() && !m.expired():
		v.mode, v.until = modeReady, int64(m.sched.notAfter.Boot)
		v.watch = m.wantsWitness()
	case m.usable():
		v.mode = modeEmpty
		if at, _, ok := m.nextAttempt(); ok && m.running {
			v.mode, v.until = modeLater, int64(at.Boot)
		}
	case m.mayReturn() && m.signIn.running:
		v.mode = modeComing
	case m.fleet.on && m.fleet.failures > 0 && !m.fleet.opened:
		v.mode, v.until = modeLater, int64(m.fleet.next.Boot)
	case m.mayReturn() && m.running:
		v.mode, v.until = modeLater, int64(m.signIn.next.Boot)
	case m.rec.Lost != "":
		v.mode = modeLost
	default:
		v.mode = modeEmpty
	}
	return v
}

// wantsWitness reports whether an accepted request would prove that the last
// exchange was not committed. One sent before the hold-off's end proves
// nothing: the exchange's request may still have been on its way.
func (m *machine) wantsWitness() bool {
	in := m.rec.Intent
	if in == nil || in.Answered || m.witnessed || m.stage != stageIdle || !m.profile.RevokesPrevious {
		return false
	}
	if !m.reached(m.quietAt) {
		m.wakeAt(m.quietAt)
		return false
	}
	return true
}
