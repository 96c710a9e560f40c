package sandbox

import "time"

// Stats are counters since [New].
type Stats struct {
	Sessions       int `json:"sessions"`        // live now (a gauge)
	Logins         int `json:"logins"`          // sessions opened
	Logouts        int `json:"logouts"`         // sessions ended by their client
	Attempts       int `json:"attempts"`        // requests that reached RefreshPath
	Exchanges      int `json:"exchanges"`       // committed rotations
	Reuses         int `json:"reuses"`          // spent refresh tokens presented
	Replays        int `json:"replays"`         // those of them that were within ReuseInterval and accepted
	SessionsKilled int `json:"sessions_killed"` // sessions ended by a reuse, Kill, KillSession or control
	Served         int `json:"served"`          // 2xx by the API, and websockets opened
	Unauthorized   int `json:"unauthorized"`    // 401s given by the API
	StaleAccess    int `json:"stale_access"`    // those of them for a superseded access token
	ExpiredAccess  int `json:"expired_access"`  // those of them for the newest one, but expired
}

// Entry is one request that reached RefreshPath. It holds no token.
type Entry struct {
	Session     string    `json:"session,omitempty"`    // of the refresh token; empty where that is unknown
	Generation  int       `json:"generation,omitempty"` // of the refresh token
	Issued      int       `json:"issued,omitempty"`     // generation of the pair issued; 0 is none
	At          time.Time `json:"at"`                   // arrival
	CommittedAt time.Time `json:"committed_at,omitzero"`
	Delivered   bool      `json:"delivered"` // the pair was sent in full, without an error on this side
	Reuse       bool      `json:"reuse"`     // the refresh token had been spent
	Fault       bool      `json:"fault"`     // a Fault was in effect
	Status      int       `json:"status"`    // 0: not answered (yet)
}

// maxEntries bounds the ledger.
const maxEntries = 100_000

// ledger keeps the counters, and the last entries as a ring.
type ledger struct {
	stats   Stats
	entries []*Entry
	oldest  int
}

func (l *ledger) add(e *Entry) {
	if len(l.entries) < maxEntries {
		l.entries = append(l.entries, e)
		return
	}
	l.entries[l.oldest] = e
	l.oldest = (l.oldest + 1) % maxEntries
}

// Stats returns the counters.
func (s *Sandbox) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.ledger.stats
	stats.Sessions = len(s.sessions)
	return stats
}

// Ledger returns the last 100,000 requests that reached RefreshPath, in order
// of arrival.
func (s *Sandbox) Ledger() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.ledger
	list := make([]Entry, 0, len(l.entries))
	for i := range l.entries {
		list = append(list, *l.entries[(l.oldest+i)%len(l.entries)])
	}
	return list
}

// settle notes how an exchange was answered.
func (s *Sandbox) settle(e *Entry, status int, delivered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Status, e.Delivered = status, delivered
}
