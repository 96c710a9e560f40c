// Package sandbox is an issuer of rotating token pairs and an API protected by
// them, as one [http.Handler]: something to try clients against that lose their
// session for good on the first mistake. It is no production issuer.
//
// # Issuer
//
//	POST /User/Login         {"username","password"} -> a pair
//	POST /User/RefreshToken  {"refreshToken"}        -> the next pair
//	POST /User/Logout                                -> ends the session
//
// A pair is {"accessToken","refreshToken"}. The exchange takes the current
// access token as "Authorization: Bearer …" beside the refresh token; where the
// documents of the original leave something open, the zero [Config] has the
// harshest reading: the previous access token dies at the commit, a spent
// refresh token that is presented again ends the session.
//
// # API
//
// Every other path needs the current access token, and answers 401 without it:
//
//	GET  /whoami                          user, session, generation, expiry
//	POST /echo                            the body streamed back, with its trailers
//	POST /upload                          its size and SHA-256
//	GET  /download?bytes=1000             so many bytes of [Pattern]
//	GET  /events?interval=1s&count=10     server-sent events (count=0: no end)
//	GET  /slow?delay=1s                   like /whoami, later
//	GET  /late?delay=1s                   likewise, but the token is checked at the end
//	GET  /hints                           103 Early Hints first
//	GET  /websocket                       RFC 6455 echo
//	GET  /always401                       401 for everybody
//	any  anything else                    what arrived: method, path, size, SHA-256
//
// # Control
//
// [Sandbox.Fault] and [Sandbox.SetFault] make issuer calls go wrong on purpose,
// [Sandbox.Stats] and [Sandbox.Ledger] tell what happened; [Sandbox.Control]
// offers the same to callers on this machine, below /sandbox/.
//
// Time is only read with [time.Now] and waited for with timers, and nothing
// runs while no request does, so a Sandbox works inside testing/synctest.
package sandbox

import (
	"crypto/rand"
	"net/http"
	"strings"
	"sync"
)

// Sandbox is the issuer with its API. Make one with [New].
type Sandbox struct {
	cfg Config // defaults filled in; never changes
	key []byte // signs access tokens

	mu        sync.Mutex // guards all below; never held while waiting or writing
	sessions  map[string]*session
	opened    int // sessions ever, names the next one
	accesses  map[digest]*accessToken
	refreshes map[digest]*refreshToken
	issued    []issue // oldest first, to forget what no longer matters
	faults    faults
	ledger    ledger
}

// New returns a Sandbox without sessions, with a signing key of its own.
func New(cfg Config) *Sandbox {
	key := make([]byte, 32)
	rand.Read(key) // never fails
	return &Sandbox{
		cfg:       cfg.withDefaults(),
		key:       key,
		sessions:  make(map[string]*session),
		accesses:  make(map[digest]*accessToken),
		refreshes: make(map[digest]*refreshToken),
		faults:    make(faults),
	}
}

// ServeHTTP answers as issuer, as control endpoint or as API, by the path. Where
// no answer is to be given it panics with [http.ErrAbortHandler], as net/http
// has it.
func (s *Sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch path := r.URL.Path; {
	case path == s.cfg.LoginPath:
		s.serveIssuer(w, r, s.login)
	case path == s.cfg.RefreshPath:
		s.serveIssuer(w, r, s.refresh)
	case path == s.cfg.LogoutPath:
		s.serveIssuer(w, r, s.logout)
	case strings.HasPrefix(path, controlPrefix):
		s.Control(w, r)
	default:
		s.serveAPI(w, r)
	}
}
