package refresher

import (
	"slices"
	"strings"
	"time"
)

// rotated: the next pair is here.
func (m *machine) rotated(a Answer) {
	old := m.rec.pair()
	stays := a.Pair.Refresh.Equal(old.Refresh) // it says so; an answer without one may rotate the next time
	if a.Pair.Refresh.IsZero() {
		a.Pair.Refresh = old.Refresh // RFC 6749 section 6
	}
	if !a.Pair.Refresh.Equal(old.Refresh) {
		m.rec.Spent = appendBounded(m.rec.Spent, maxSpent, m.hash(old.Refresh))
	}
	m.rec.Prev = m.chain()
	m.rec.Quiet = 0
	m.rec.Stays = stays
	if m.profile.ReuseInterval > 0 && m.attempt.prior != nil {
		m.rec.Quiet = m.sched.holdOff
	}
	m.rec.Generation++
	m.rec.Intent, m.rec.Kept = nil, ""
	m.signIn.failures = 0
	if m.telling.required && !m.holding() {
		m.telling.until = m.sched.notAfter
	}
	m.adopt(a.Pair, m.attempt.sent, m.offset)
	m.announceRotation(old)
	m.remember(a)
	m.born = m.now
	m.stage = stageCommitting
	m.attempt.commit = m.now
	m.changedNow()
}

// adopt makes a pair the one in use, as received at sent.
func (m *machine) adopt(p Pair, sent Instant, offset time.Duration) {
	m.rec.Access, m.rec.Refresh = p.Access.Reveal(), p.Refresh.Reveal()
	if !p.ID.IsZero() {
		m.rec.ID = p.ID.Reveal() // an exchange need not answer another (OIDC Core section 12.2)
	}
	if p.RefreshID != "" {
		m.rec.RefreshID = p.RefreshID
	}
	m.rec.Left, m.rec.Expires = measure(p, sent, offset, m.policy.Lifetime)
	if odd := m.rec.Expires && m.rec.Left <= 0 && m.rec.Generation > 1; odd && !m.elder() {
		// Expired when it was issued: the clocks disagree, or the issuer does.
		m.rec.Odd++
		m.rec.Expires = false
	} else {
		m.rec.Odd = 0
	}
	m.rec.Received, m.rec.ReceivedBoot, m.rec.BootID = sent.Wall, sent.Boot, m.env.bootID
	m.received, m.byWall = sent, false
	m.own()
	m.renew()
}

// elder reports whether the pair that an exchange brought may be so old that its
// access token has ended: an issuer that accepts a spent refresh token for a
// while may answer with the pair that the first attempt had been given.
func (m *machine) elder() bool {
	first := m.attempt.prior
	return m.reuse() > 0 && first != nil && m.sched.known() && !first.youngerThan(m.sched.life/2, m.now, m.env.bootID) &&
		(!m.profile.NeedsAccess || m.profile.AcceptsExpired)
}

// renew forgets what was known of the generation before.
func (m *machine) renew() {
	m.failures, m.degraded, m.aging, m.stretched, m.refused = 0, false, false, false, false
	m.lastErr, m.lastClass = "", 0
	m.upstream401, m.triggered, m.witnessed = false, false, false
	m.wanted, m.catchUp = "", Instant{}
	m.quietUntil = m.now.Add(m.rec.Quiet)
	m.fleet.generationChanged()
	m.plan()
}

// lateCommit opens the gate when the journal takes too long.
func (m *machine) lateCommit() {
	if m.stage != stageCommitting {
		return
	}
	at := m.attempt.commit.Add(commitGrace)
	if !m.reached(at) {
		m.wakeAt(at)
		return
	}
	m.note(Note{Kind: NoteJournalLate})
	m.committed()
}

// committed: requests may have the new token.
func (m *machine) committed() {
	m.over(Answer{})
	m.note(Note{Kind: NoteRotated, Class: ClassOK, Took: m.attempt.took(m.attempt.commit), Whole: m.now.Sub(m.attempt.began), Next: m.sched.refreshAt.Wall, Cause: string(m.attempt.cause)})
}

// remember adds the attempt to the history.
func (m *machine) remember(a Answer) {
	r := Rotation{
		At: m.now.Wall.Truncate(time.Millisecond), Epoch: m.rec.Epoch, Generation: m.rec.Generation,
		Outcome: a.Class.String(), Took: m.attempt.took(m.now),
	}
	if a.Err != nil {
		text := a.Err.Error()
		r.Error = strings.ToValidUTF8(text[:min(len(text), maxErrorKept)], "")
	}
	if n := len(m.rec.History); n > 0 && a.Err != nil {
		if last := m.rec.History[n-1]; r.repeats(last) {
			r.Times = max(last.Times, 1) + 1
			m.rec.History = append(slices.Clone(m.rec.History[:n-1]), r)
			return
		}
	}
	m.rec.History = appendBounded(m.rec.History, maxHistory, r)
}

// repeats reports whether an attempt came to the same as the one before it: an
// outage is one entry, so that it leaves what was before to be seen.
func (r Rotation) repeats(last Rotation) bool {
	return r.Epoch == last.Epoch && r.Generation == last.Generation && r.Outcome == last.Outcome
}

// took is how long the exchange itself lasted until now; 0 if it was not sent.
func (a attempt) took(now Instant) time.Duration {
	if a.sent.IsZero() {
		return 0
	}
	return now.Sub(a.sent)
}
