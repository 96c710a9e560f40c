package sandbox

import "time"

// Session describes a live session, without its tokens.
type Session struct {
	ID         string    `json:"id"`
	User       string    `json:"user"`
	Generation int       `json:"generation"` // 1 after the login
	ExpiresAt  time.Time `json:"expires_at"` // of the access token
}

// Login opens a session of the configured user, without a request.
func (s *Sandbox) Login() (access, refresh string) { return s.LoginAs(s.cfg.Username) }

// LoginAs is Login for any user name.
func (s *Sandbox) LoginAs(user string) (access, refresh string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.openLocked(user)
	return p.access, p.refresh
}

// Lookup tells which session an access token belongs to that the API would
// accept now.
func (s *Sandbox) Lookup(access string) (Session, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, standing := s.standingLocked(access, now())
	if standing != good {
		return Session{}, false
	}
	return a.describe(), true
}

func (a *accessToken) describe() Session {
	return Session{ID: a.session.id, User: a.session.user, Generation: a.generation, ExpiresAt: a.expires}
}

// Current returns the newest pair of a live session, whether or not anybody
// was told of it.
func (s *Sandbox) Current(session string) (access, refresh string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sess := s.sessions[session]
	if sess == nil {
		return "", "", false
	}
	return sess.current.access, sess.current.refresh, true
}

// Kill ends all sessions and returns how many there were.
func (s *Sandbox) Kill() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.sessions)
	for _, sess := range s.sessions {
		s.killLocked(sess)
	}
	return n
}

// KillSession ends one session, if it is live.
func (s *Sandbox) KillSession(session string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	sess := s.sessions[session]
	return sess != nil && s.killLocked(sess)
}

// Revoke makes one access token invalid, at the API and for an exchange, as
// issuers do that change their mind. Its session is not ended, but as an
// exchange needs a valid access token, it has no future. Revoke reports whether
// the token was good until now.
func (s *Sandbox) Revoke(access string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, standing := s.standingLocked(access, now())
	if standing != good {
		return false
	}
	a.revoked = true
	return true
}
