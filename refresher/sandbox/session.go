package sandbox

import (
	"fmt"
	"time"
)

// session is one login: a line of pairs, each replacing the one before.
type session struct {
	id      string
	user    string
	current pair
	spent   *refreshToken // what current was exchanged for; nil after a login
	ended   bool
}

// pair is what an exchange hands out.
type pair struct {
	generation      int
	access, refresh string
	expires         time.Time // of access
}

// accessToken and refreshToken are what is remembered of a token.
type accessToken struct {
	session    *session
	generation int
	expires    time.Time
	revoked    bool
}

type refreshToken struct {
	session    *session
	generation int
	expires    time.Time
	spentAt    time.Time // of its first exchange; zero before
}

// issue remembers what to forget once no rule depends on it any more.
type issue struct {
	at         time.Time
	session    *session
	generation int
	access     digest
	refresh    digest // zero where the refresh token was kept
}

// standing is what the issuer thinks of an access token.
type standing uint8

const (
	unknown    standing = iota // never issued, or forgotten
	revoked                    // by itself or with its session
	superseded                 // a later one was issued
	expired
	good
)

// now has no monotonic part: like real issuers, this one follows the wall
// clock, also over a suspended machine.
func now() time.Time { return time.Now().Round(0) }

// openLocked starts a session.
func (s *Sandbox) openLocked(user string) pair {
	s.opened++
	sess := &session{id: fmt.Sprintf("s%d", s.opened), user: user}
	s.sessions[sess.id] = sess
	s.ledger.stats.Logins++
	return s.issueLocked(sess, nil)
}

// issueLocked makes the session's next pair and with that supersedes the one
// before. It takes over the refresh token kept, if there is one.
func (s *Sandbox) issueLocked(sess *session, kept *refreshToken) pair {
	at := now()
	s.forgetLocked(at)

	next := pair{
		generation: sess.current.generation + 1,
		expires:    time.Unix(at.Add(s.cfg.AccessLifetime).Unix(), 0),
	}
	next.access = s.newAccess(sess.user, next.expires)
	record := issue{at: at, session: sess, generation: next.generation, access: digestOf(next.access)}
	s.accesses[record.access] = &accessToken{session: sess, generation: next.generation, expires: next.expires}

	if kept != nil {
		next.refresh = sess.current.refresh
		kept.generation = next.generation
	} else {
		next.refresh = newRefresh()
		record.refresh = digestOf(next.refresh)
		s.refreshes[record.refresh] = &refreshToken{
			session: sess, generation: next.generation, expires: at.Add(s.cfg.RefreshLifetime),
		}
	}
	sess.current = next
	s.issued = append(s.issued, record)
	return next
}

// forgetLocked drops tokens that have been out of use for so long that they
// are refused as unknown just as well.
func (s *Sandbox) forgetLocked(at time.Time) {
	keep := max(s.cfg.RefreshLifetime, s.cfg.AccessLifetime)
	for len(s.issued) > 0 && at.Sub(s.issued[0].at) > keep {
		old := s.issued[0]
		s.issued = s.issued[1:]
		delete(s.accesses, old.access)
		delete(s.refreshes, old.refresh)
		if old.generation == old.session.current.generation {
			delete(s.sessions, old.session.id)
		}
	}
}

// endLocked makes all tokens of a session invalid.
func (s *Sandbox) endLocked(sess *session) bool {
	if sess.ended {
		return false
	}
	sess.ended = true
	delete(s.sessions, sess.id)
	return true
}

// killLocked is endLocked other than by logout.
func (s *Sandbox) killLocked(sess *session) bool {
	if !s.endLocked(sess) {
		return false
	}
	s.ledger.stats.SessionsKilled++
	return true
}

// standingLocked judges an access token. One that was superseded is called
// that even if it has expired since or its session is over.
func (s *Sandbox) standingLocked(token string, at time.Time) (*accessToken, standing) {
	a := s.accesses[digestOf(token)]
	switch {
	case a == nil:
		return nil, unknown
	case a.generation < a.session.current.generation && !s.cfg.KeepPreviousAccess:
		return a, superseded
	case a.session.ended || a.revoked:
		return a, revoked
	case !at.Before(a.expires):
		return a, expired
	}
	return a, good
}

// exchangeLocked is the commit: it either issues the next pair and spends the
// refresh token, or refuses. Either way the entry tells.
//
// Reuse is looked for before anything else. An issuer could refuse the access
// token first and never look; this one takes the reading that costs a careless
// client most.
func (s *Sandbox) exchangeLocked(access, refresh string, entry *Entry) (pair, *Refusal) {
	at := now()
	r := s.refreshes[digestOf(refresh)]
	if r != nil {
		entry.Session, entry.Generation = r.session.id, r.generation
		if !r.spentAt.IsZero() {
			entry.Reuse = true
			s.ledger.stats.Reuses++
			if !s.forgivenLocked(r, at) {
				s.killLocked(r.session)
				return pair{}, &s.cfg.Statuses.BadRefresh
			}
		}
	}
	a, ok := s.mayExchangeLocked(access, r, at)
	if !ok {
		return pair{}, &s.cfg.Statuses.BadAccess
	}
	if r == nil || r.session != a.session || !at.Before(r.expires) {
		return pair{}, &s.cfg.Statuses.BadRefresh
	}
	return s.commitLocked(r, at, entry), nil
}

func (s *Sandbox) commitLocked(r *refreshToken, at time.Time, entry *Entry) pair {
	sess := r.session
	if entry.Reuse {
		s.ledger.stats.Replays++
		if s.cfg.ReuseSame {
			entry.Issued = sess.current.generation
			return sess.current
		}
	}
	var kept *refreshToken
	if s.cfg.KeepRefreshToken {
		kept = r
	} else {
		sess.spent = r
		if r.spentAt.IsZero() {
			r.spentAt = at
		}
	}
	next := s.issueLocked(sess, kept)
	s.ledger.stats.Exchanges++
	entry.CommittedAt, entry.Issued = at, next.generation
	return next
}

// forgivenLocked: a spent refresh token within the reuse interval. Once a
// successor was exchanged, its answer must have arrived: no grace any more.
func (s *Sandbox) forgivenLocked(r *refreshToken, at time.Time) bool {
	return !r.session.ended && r.session.spent == r && at.Sub(r.spentAt) < s.cfg.ReuseInterval
}

// mayExchangeLocked judges the access token of an exchange. With a reuse
// interval, that of the refresh token's own pair will do: a client that repeats
// has no other.
func (s *Sandbox) mayExchangeLocked(access string, r *refreshToken, at time.Time) (*accessToken, bool) {
	a, standing := s.standingLocked(access, at)
	switch standing {
	case good:
		return a, true
	case expired:
		return a, s.cfg.AcceptExpired
	case superseded:
		own := r != nil && a.session == r.session && a.generation == r.generation
		alive := !a.session.ended && !a.revoked && (s.cfg.AcceptExpired || at.Before(a.expires))
		return a, s.cfg.ReuseInterval > 0 && own && alive
	}
	return a, false
}
