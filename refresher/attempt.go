package refresher

import (
	"errors"
	"time"
)

// begin starts what is due: signing in, or an exchange.
func (m *machine) begin() {
	if m.stage != stageIdle || !m.opened || !m.running || m.closing || !m.mayBegin() {
		return
	}
	if !m.usable() {
		m.beginSignIn()
		return
	}
	at, last, ok := m.nextAttempt()
	if !ok {
		return
	}
	if !m.reached(at) {
		m.wakeAt(at)
		return
	}
	why := m.wanted
	if why == "" {
		why = causeDue
	}
	m.attempt = attempt{id: m.attempt.id + 1, cause: why, origin: m.origin, began: m.now, prior: m.rec.Intent, unsaved: last}
	m.wanted, m.origin = "", ""
	if m.fleet.on {
		m.stage = stageAsking
		m.emit(effAsk{id: m.attempt.id, lock: max(m.sched.scaled(lockWait), time.Millisecond)})
		return
	}
	m.connect()
}

// connect is the first step that costs the issuer anything.
func (m *machine) connect() {
	m.stretched = m.stretched || m.attempt.unsaved
	m.spend()
	m.stage = stagePreparing
	m.emit(effPrepare{attempt: m.attempt.id, last: m.attempt.unsaved})
}

// nextAttempt is when the generation in use may be exchanged; last says that it
// is the one attempt made before the end in spite of backoff.
func (m *machine) nextAttempt() (at Instant, last, ok bool) {
	if m.rec.Intent != nil {
		if at, ok = m.nextUncertain(); ok && m.rec.Intent.Answered {
			if end, is := m.lastStretch(at); is {
				return later(end, m.quietAt), true, true
			}
		}
		return at, false, ok
	}
	if m.wanted == causeOperator {
		if at = m.onOurClock(m.fleet.plan); at.IsZero() {
			at = m.now
		}
		return at, false, true
	}
	switch {
	case m.wanted != "", m.upstream401 && m.failures > 0: // and the one that was asked for failed
		at = m.now
	case !m.sched.refreshAt.IsZero():
		at = m.sched.refreshAt.Add(m.shift())
	case m.failures > 0: // one was asked for, and failed
		at = m.next
	default:
		return at, false, false
	}
	at = later(at, m.afford())
	if m.failures > 0 {
		at = later(at, m.next)
	}
	quiet := m.quiet()
	if m.saveErr != "" { // an attempt whose intent cannot be written is not begun
		end, ok := m.lastStretch(m.sched.notAfter)
		return later(end, quiet), true, ok
	}
	if end, ok := m.lastStretch(at); ok {
		return later(end, quiet), true, true
	}
	return later(at, quiet), false, true
}

// quiet is the end of rec.Quiet. Where the pair could not be exchanged any more
// once its access token has ended, it does not last that long: an early request
// that is still on its way is unlikely, that end is certain.
func (m *machine) quiet() Instant {
	if m.sched.known() && m.profile.NeedsAccess && !m.profile.AcceptsExpired {
		if last := m.sched.notAfter.Add(-m.sched.lead / 2); last.Boot < m.quietUntil.Boot {
			return last
		}
	}
	return m.quietUntil
}

// lastStretch is when the one attempt before the access token's end is due that
// backoff does not put off, if at would be later than that.
func (m *machine) lastStretch(at Instant) (Instant, bool) {
	if !m.sched.known() || m.stretched {
		return Instant{}, false
	}
	end := m.sched.notAfter.Add(-m.sched.stretch(orDefault(m.profile.Timeout, defaultTimeout)))
	return end, at.Boot > end.Boot
}

// reuse is how long a spent refresh token may be sent again: as configured, or
// for ever where the issuer leaves it in use.
func (m *machine) reuse() time.Duration {
	if m.rec.Stays {
		return maxLifetime
	}
	return m.profile.ReuseInterval
}

const defaultTimeout = 10 * time.Second

// maxBlind bounds the attempts after one with an unknown outcome where nothing
// tells whether that one was committed.
const maxBlind = 2

// nextUncertain is when a generation may be tried again whose last attempt may
// have been committed (rotation.md 4.6, contract 3b).
func (m *machine) nextUncertain() (Instant, bool) {
	in := m.rec.Intent
	switch {
	case m.reuse() > 0 && in.youngerThan(m.reuse()*4/5, m.now, m.env.bootID):
		if m.fleet.on {
			return later(m.quietAt, m.next), true
		}
		return m.next, true
	case in.Answered:
		return later(m.quietAt, m.next), true
	case m.profile.RevokesPrevious:
		// The access token is the witness: while the upstream takes it, nothing
		// was committed, however often it was tried.
		return later(m.quietAt, m.next), m.witnessed
	case in.Retries >= maxBlind:
		return Instant{}, false
	case m.sched.known():
		// As late as can be: until then the access token serves.
		return later(later(m.quietAt, m.next), m.sched.notAfter.Add(-m.sched.lead/3)), true
	}
	return later(m.quietAt, m.next), true
}

// prepared: the connection to the issuer stands, or not.
func (m *machine) prepared(ev evPrepared) {
	if m.stage != stagePreparing || ev.attempt != m.attempt.id {
		if ev.err == nil {
			m.emit(effDrop{conn: ev.conn})
		}
		return
	}
	if ev.err != nil {
		a := Answer{Class: ClassNotSent, Err: ev.err}
		if advice := (*RetryError)(nil); errors.As(ev.err, &advice) {
			a.RetryAfter = advice.After
		}
		m.remember(a) // on the disk with what changes next
		m.failed(a)
		return
	}
	m.attempt.conn = ev.conn
	if !m.profile.RevokesPrevious {
		m.record()
		return
	}
	m.attempt.gated = true
	m.stage = stageDraining
	m.emit(effDrain{attempt: m.attempt.id, limit: min(m.policy.drain(), m.sched.lead/3)})
}

func (m *machine) drained(ev evDrained) {
	if m.stage == stageDraining && ev.attempt == m.attempt.id {
		m.record()
	}
}

// record writes the intent. It comes after the drain, so that a crash while
// draining is known to have sent nothing.
func (m *machine) record() {
	in := intent{At: m.now.Wall, AtBoot: m.now.Boot, BootID: m.env.bootID, Shared: m.fleet.on}
	if m.attempt.prior != nil {
		in.Retries = m.attempt.prior.Retries + 1
		if m.reuse() > 0 {
			in.At, in.AtBoot, in.BootID = m.attempt.prior.At, m.attempt.prior.AtBoot, m.attempt.prior.BootID // the interval counts from the first
		}
	}
	m.rec.Intent, m.fleet.others = &in, false
	m.stage = stageRecording
	m.changedNow()
}

// recorded: a write of the journal ended while the intent is waited for.
func (m *machine) recorded() {
	switch {
	case m.saved >= m.attempt.saving, m.saveErr != "" && m.attempt.unsaved:
		if m.fleet.on {
			m.intend()
			return
		}
		m.send()
	case m.saveErr != "":
		m.emit(effDrop{conn: m.attempt.conn})
		m.notCommitted(Answer{Class: ClassNotSent, Err: errors.New("the journal cannot be written: " + m.saveErr)})
	}
}

// send is the point of no return.
func (m *machine) send() {
	m.stage = stageSending
	m.attempt.sent = m.now
	eff := effSend{conn: m.attempt.conn, pair: m.rec.pair()}
	if m.fleet.on {
		eff.by = m.attempt.posted.Add(m.sendLimit())
		m.fleet.slow = 0
	}
	m.emit(eff)
}

// answered: the issuer's answer, or that there is none.
func (m *machine) answered(a Answer) {
	if m.stage != stageSending {
		return
	}
	if a.OffsetError > 0 {
		m.offset = 0
		if slack := a.OffsetError + time.Second/2; a.Offset.Abs() > slack {
			m.offset = a.Offset + a.OffsetError // the later of what it may be
		}
	}
	if a.Err == nil && a.Class != ClassOK {
		a.Err = errors.New("the issuer's answer: " + a.Class.String())
	}
	prior := m.attempt.prior
	switch a.Class {
	case ClassOK:
		m.rotated(a)
	case ClassNotSent, ClassRetry, ClassRedirect:
		m.notCommitted(a)
	case ClassRejected:
		m.rejected(a)
	case ClassUnauthorized:
		if m.upstream401 || prior != nil || m.refused {
			m.rejected(a)
			return
		}
		m.refused = true
		m.notCommitted(a)
	case ClassConfig:
		if m.refusedForGood(a) {
			m.rejected(a)
			return
		}
		m.notCommitted(a)
	default: // ClassUnknown, ClassQuiet
		m.unknown(a)
	}
}

// refusedForGood reports whether a refusal that does not say so is most likely
// about the refresh token: it was sent before and may be spent; or it is refused
// for the second time by an issuer that has taken such requests, and asks for
// nothing else. Once nothing is left to be kept and a source can sign in, it need
// not be likely.
func (m *machine) refusedForGood(a Answer) bool {
	again := m.failures > 0 && m.lastClass == ClassConfig
	switch {
	case a.Vague && m.attempt.prior != nil:
		return true
	case a.Vague && again && m.rec.Generation > 1:
		return !m.profile.NeedsAccess // the access token may be what it minds
	}
	return again && m.expired() && m.mayReturn() && !m.policy.NoReauthenticate
}

// notCommitted: this attempt changed nothing at the issuer.
func (m *machine) notCommitted(a Answer) {
	m.disown()
	m.rec.Intent = m.attempt.prior
	m.remember(a)
	m.changed()
	m.failed(a)
}

// failed ends an attempt after which the refresh token may be sent again.
func (m *machine) failed(a Answer) {
	if m.failures == 0 {
		m.failing = m.now
	}
	m.failures++
	m.lastErr, m.lastClass = a.Err.Error(), a.Class
	if a.Class == ClassNotSent { // the issuer never saw it
		m.budget.used = max(0, m.budget.used-1)
	}
	m.next = m.now.Add(m.backoff(a))
	m.over(a)
	m.note(Note{Kind: NoteExchangeFailed, Class: a.Class, Status: a.Status, Err: m.lastErr, Took: m.attempt.took(m.now), Next: m.next.Wall})
}

// over closes an attempt, whatever became of it.
func (m *machine) over(a Answer) {
	m.stage = stageIdle
	m.attempt.gated, m.attempt.conn = false, nil
	if a.Err != nil {
		m.unlock() // otherwise when the next pair is in the store
	}
	m.shown = view{} // publish anew: that opens the gate
	m.answerWaiting(a.Err)
}

// backoff is how long the next attempt waits (rotation.md 7.2, contract 3b).
func (m *machine) backoff(a Answer) time.Duration {
	n := min(m.failures-1, 16)
	doubled := func(base, limit time.Duration) time.Duration {
		return m.sched.scaled(min(base<<n, limit))
	}
	var d time.Duration
	switch a.Class {
	case ClassRedirect:
		d = doubled(2*time.Second, time.Minute)
	case ClassConfig:
		d = doubled(time.Minute, 15*time.Minute)
	case ClassUnauthorized:
		d = m.sched.holdOff
	default:
		full := doubled(time.Second, min(30*time.Second, max(m.sched.lead/6, time.Second)))
		u := m.spread(uint64(m.failures))
		d = time.Duration((0.2 + 0.8*u) * float64(full))
		if m.failures > 1 {
			d = max(d, m.sched.scaled(2*time.Second))
		}
	}
	return max(d, a.RetryAfter)
}

// unknown: the refresh token may be spent.
func (m *machine) unknown(a Answer) {
	in := *m.rec.Intent
	in.Unknown = true
	in.Answered = a.Class == ClassQuiet
	m.rec.Intent = &in
	if !a.Raw.IsZero() {
		m.rec.Kept = keepRaw(a.Raw)
	}
	m.remember(a)
	m.changed()
	m.failures++
	if m.failures == 1 {
		m.failing = m.now
	}
	m.lastErr, m.lastClass = a.Err.Error(), a.Class
	m.leaveIntent()
	m.over(a)
	m.becomeUncertain(m.lastErr)
	m.next = later(m.next, m.now.Add(a.RetryAfter))
	if m.fleet.on {
		m.reconcile()
	}
}

// becomeUncertain starts the hold-off of rec.Intent.
func (m *machine) becomeUncertain(why string) {
	m.witnessed = false
	m.quietAt = m.now.Add(m.sched.holdOff)
	m.next = m.now.Add(m.sched.scaled(500 * time.Millisecond << min(m.rec.Intent.Retries, 3)))
	m.note(Note{Kind: NoteUncertain, Err: why, Class: m.lastClass, Took: m.attempt.took(m.now), Next: m.quietAt.Wall})
}

// rejected: the issuer says that the refresh token is finished. If an earlier
// attempt of ours may have been committed, it was that one.
func (m *machine) rejected(a Answer) {
	reason := ReasonRejected
	if m.attempt.prior != nil {
		reason = ReasonTwoGenerals
	}
	m.disown()
	m.rec.Intent = m.attempt.prior
	m.remember(a)
	m.lastErr, m.lastClass = a.Err.Error(), a.Class
	m.note(Note{Kind: NoteExchangeFailed, Class: a.Class, Status: a.Status, Err: m.lastErr, Took: m.attempt.took(m.now)})
	m.over(a)
	m.lose(reason, m.lastErr)
}
