package refresher

import (
	"time"
)

// Policy is what a session's configuration says about rotating. The zero value
// holds the defaults.
type Policy struct {
	// RefreshPercent and RefreshBefore are how long before expiry the exchange
	// is due: percent of the token's life, or a time. Both 0: the default of
	// rotation.md 2.3, a fifth of the life, at least 75 s, at most 15 min and
	// at most half.
	RefreshPercent float64
	RefreshBefore  time.Duration

	// Lifetime is the access token's life where neither it nor the answer says;
	// 0 is not known.
	Lifetime time.Duration

	// Wait is the longest that a request waits for a token. Default: 10 s.
	Wait time.Duration

	// Drain is the longest that an exchange waits for requests which could not
	// be sent again. Default: 2 s. Never more than a third of the lead.
	Drain time.Duration

	// Swap has the session recognise the access tokens that were issued in it,
	// see [Session.Owns].
	Swap bool

	// NoReauthenticate keeps a lost session lost even if a source could sign in
	// again.
	NoReauthenticate bool
}

func (p Policy) explicit() bool       { return p.RefreshPercent > 0 || p.RefreshBefore > 0 }
func (p Policy) wait() time.Duration  { return orDefault(p.Wait, 10*time.Second) }
func (p Policy) drain() time.Duration { return orDefault(p.Drain, 2*time.Second) }

func orDefault(d, def time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return def
}

// schedule is when what happens to one generation. Without a known life all of
// it is zero but lead and holdOff.
type schedule struct {
	notAfter  Instant       // the access token's end
	refreshAt Instant       // when the exchange is due, jitter included
	life      time.Duration // of the access token, as far as known
	lead      time.Duration // from due (before jitter) to the end
	holdOff   time.Duration // how long an unknown outcome is left alone
}

// known reports whether the access token's end is known.
func (s schedule) known() bool { return !s.notAfter.IsZero() }

// scaled is d for tokens of ordinary lives, and at most a tenth of a short one
// (contract 3b).
func (s schedule) scaled(d time.Duration) time.Duration {
	if s.life > 0 {
		return min(d, s.life/10)
	}
	return d
}

// stretch is how long before the end one attempt is made whatever backoff says.
func (s schedule) stretch(timeout time.Duration) time.Duration {
	return min(2*timeout, s.lead/3)
}

// measure finds how long the access token of a pair that was issued at or after
// sent has left: the earlier of what the answer and the token say, else the
// configured lifetime. offset is the issuer's clock minus ours.
func measure(p Pair, sent Instant, offset, configured time.Duration) (left time.Duration, known bool) {
	if exp := readTimes(p.Access).expires; !exp.IsZero() {
		left = exp.Sub(sent.Wall.Add(offset))
		known = left <= maxLifetime
	}
	if p.ExpiresIn > 0 && (!known || left <= 0 || p.ExpiresIn < left) {
		left, known = p.ExpiresIn, true
	}
	if !known && configured > 0 {
		left, known = configured, true
	}
	return left, known
}

// plan lays out a generation whose access token lives for left from sent on.
// spread in [0,1) is the session's jitter for this generation.
func plan(pol Policy, prof Profile, sent Instant, left time.Duration, known bool, spread float64) schedule {
	if !known {
		s := schedule{lead: minLead}
		s.holdOff = holdOff(prof, s.lead)
		if prof.RefreshLifetime > 0 {
			s.refreshAt = sent.Add(prof.RefreshLifetime / 3)
		}
		return s
	}
	s := schedule{notAfter: sent.Add(left), life: max(left, 0)}
	s.lead = lead(pol, s.life)
	s.holdOff = holdOff(prof, s.lead)

	due := s.life - s.lead - time.Duration(spread*float64(s.lead)/5)
	floor := s.life / 10 // never in a tight loop, whatever was configured
	if keep := prof.RefreshLifetime / 3; keep > 0 && !pol.explicit() {
		due, floor = min(due, keep), min(floor, keep) // the refresh token may end before the access token
	}
	s.refreshAt = sent.Add(max(due, floor))
	return s
}

const (
	minLead = 75 * time.Second
	maxLead = 15 * time.Minute
)

func lead(pol Policy, life time.Duration) time.Duration {
	switch {
	case pol.RefreshBefore > 0:
		return min(pol.RefreshBefore, life)
	case pol.RefreshPercent > 0:
		return min(time.Duration(float64(life)*pol.RefreshPercent/100), life)
	}
	return min(max(life/5, minLead), maxLead, life/2)
}

func holdOff(prof Profile, lead time.Duration) time.Duration {
	if prof.HoldOff > 0 {
		return prof.HoldOff
	}
	return min(max(lead*2/5, 4*time.Second), 30*time.Second)
}
