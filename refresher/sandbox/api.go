package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"strconv"
	"time"
)

// serveAPI checks the token with nothing but the header read, so that a refused
// upload is refused at once. Only /late has its own idea.
func (s *Sandbox) serveAPI(w http.ResponseWriter, r *http.Request) {
	w = &countingWriter{ResponseWriter: w, sandbox: s}
	if r.URL.Path == "/late" {
		s.serveLate(w, r)
		return
	}
	caller, ok := s.authorize(w, r)
	if !ok {
		return
	}
	switch r.URL.Path {
	case "/whoami":
		whoami(w, caller)
	case "/slow":
		if delay, ok := duration(w, r, "delay"); ok && wait(r.Context(), delay) {
			whoami(w, caller)
		}
	case "/upload":
		received(w, r, func(size int64, sum string) any {
			return struct {
				Bytes  int64  `json:"bytes"`
				SHA256 string `json:"sha256"`
			}{size, sum}
		})
	case "/echo":
		echo(w, r)
	case "/download":
		download(w, r)
	case "/events":
		events(w, r, caller)
	case "/hints":
		w.Header().Set("Link", "</style.css>; rel=preload; as=style")
		w.WriteHeader(http.StatusEarlyHints)
		whoami(w, caller)
	case "/websocket":
		s.serveWebSocket(w, r)
	case "/always401":
		s.unauthorized(w, good)
	default:
		received(w, r, func(size int64, sum string) any {
			return struct {
				Method     string `json:"method"`
				Path       string `json:"path"`
				Session    string `json:"session"`
				Generation int    `json:"generation"`
				Bytes      int64  `json:"bytes"`
				SHA256     string `json:"sha256"`
			}{r.Method, r.URL.Path, caller.ID, caller.Generation, size, sum}
		})
	}
}

// serveLate is an API that looks at the token when it has done the work.
func (s *Sandbox) serveLate(w http.ResponseWriter, r *http.Request) {
	delay, ok := duration(w, r, "delay")
	if !ok || !wait(r.Context(), delay) {
		return
	}
	if caller, ok := s.authorize(w, r); ok {
		whoami(w, caller)
	}
}

// authorize answers 401 itself.
func (s *Sandbox) authorize(w http.ResponseWriter, r *http.Request) (Session, bool) {
	token, ok := s.presented(r)
	if !ok {
		s.unauthorized(w, unknown)
		return Session{}, false
	}
	s.mu.Lock()
	a, standing := s.standingLocked(token, now())
	s.mu.Unlock()
	if standing != good {
		s.unauthorized(w, standing)
		return Session{}, false
	}
	return a.describe(), true
}

// unauthorized counts before it answers: whoever has the answer finds it
// counted.
func (s *Sandbox) unauthorized(w http.ResponseWriter, why standing) {
	s.mu.Lock()
	s.ledger.stats.Unauthorized++
	switch why {
	case superseded:
		s.ledger.stats.StaleAccess++
	case expired:
		s.ledger.stats.ExpiredAccess++
	}
	s.mu.Unlock()
	rep := s.cfg.Statuses.Unauthorized.reply()
	if c, ok := w.(*countingWriter); ok {
		w = c.ResponseWriter // a refusal is none served, even with status 200
	}
	rep.writeHeader(w)
	io.WriteString(w, rep.body)
}

func whoami(w http.ResponseWriter, caller Session) {
	writeJSON(w, http.StatusOK, marshal(struct {
		User       string    `json:"user"`
		Session    string    `json:"session"`
		Generation int       `json:"generation"`
		Now        time.Time `json:"now"`
		ExpiresAt  time.Time `json:"expires_at"`
	}{caller.User, caller.ID, caller.Generation, now().UTC().Truncate(time.Second), caller.ExpiresAt.UTC()}))
}

// received reads the body to its end and answers what came.
func received(w http.ResponseWriter, r *http.Request, answer func(size int64, sum string) any) {
	hash := sha256.New()
	size, err := io.Copy(hash, r.Body)
	if err != nil {
		writeJSON(w, http.StatusBadRequest, failure("the body did not arrive in full"))
		return
	}
	writeJSON(w, http.StatusOK, marshal(answer(size, hex.EncodeToString(hash.Sum(nil)))))
}

// duration reads a query parameter; 1 s if it is missing.
func duration(w http.ResponseWriter, r *http.Request, name string) (time.Duration, bool) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return time.Second, true
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		writeJSON(w, http.StatusBadRequest, failure(name+" is no duration"))
		return 0, false
	}
	return d, true
}

// number reads a query parameter that is at least 0.
func number(w http.ResponseWriter, r *http.Request, name string, missing int64) (int64, bool) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return missing, true
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		writeJSON(w, http.StatusBadRequest, failure(name+" is no number"))
		return 0, false
	}
	return n, true
}

func writeJSON(w http.ResponseWriter, status int, body string) {
	jsonReply(status, body).writeHeader(w)
	io.WriteString(w, body)
}

// countingWriter counts what the API served, before it is sent.
type countingWriter struct {
	http.ResponseWriter
	sandbox *Sandbox
	done    bool
}

// Unwrap lets http.ResponseController through.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *countingWriter) WriteHeader(status int) {
	if !w.done && status >= 200 {
		w.done = true
		if status <= 299 {
			w.sandbox.served()
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (s *Sandbox) served() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ledger.stats.Served++
}
