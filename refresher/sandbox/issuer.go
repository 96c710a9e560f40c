package sandbox

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	jsonType = "application/json"

	// maxBody is far above what a valid issuer call needs.
	maxBody = 8 << 10

	// challenge goes with every 401 (RFC 6750 section 3).
	challenge = `Bearer error="invalid_token"`
)

// reply is an answer of the issuer that has not been sent yet. Between the two
// lies what a client cannot see.
type reply struct {
	status int
	header http.Header
	body   string
	pair   *pair // what body hands out, if anything
}

// issuerCall does what one issuer endpoint is for, commit included.
type issuerCall func(r *http.Request, body []byte, entry *Entry) reply

// serveIssuer runs one issuer call, with the fault that waits for it.
func (s *Sandbox) serveIssuer(w http.ResponseWriter, r *http.Request, call issuerCall) {
	fault, entry := s.arrive(r.URL.Path)
	// Read to its end first: until then net/http does not notice that a caller
	// hangs up, and an exchange may have to outlive its connection.
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	run := func() reply {
		switch {
		case r.Method != http.MethodPost:
			rep := refuse(http.StatusMethodNotAllowed, "only POST is allowed")
			rep.header.Set("Allow", http.MethodPost)
			return rep
		case err != nil:
			return s.cfg.Statuses.BadRequest.reply()
		case len(body) > maxBody:
			return refuse(http.StatusRequestEntityTooLarge, "the body is too long")
		}
		return call(r, body, entry)
	}
	if fault != nil {
		s.serveFault(w, r, fault, entry, run)
		return
	}
	s.deliver(w, r, entry, run())
}

// arrive takes a fault off the queue and opens the ledger's entry (one that is
// in no ledger for calls other than exchanges).
func (s *Sandbox) arrive(path string) (*Fault, *Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fault := s.faults.take(path)
	entry := &Entry{At: now(), Fault: fault != nil}
	if path == s.cfg.RefreshPath {
		s.ledger.stats.Attempts++
		s.ledger.add(entry)
	}
	return fault, entry
}

func (s *Sandbox) refresh(r *http.Request, body []byte, entry *Entry) reply {
	if rep := s.checkHeader(r.Header); rep != nil {
		return *rep
	}
	access, ok := s.presented(r)
	if !ok {
		return s.cfg.Statuses.BadAccess.reply()
	}
	fields, err := parseFields(body, "refreshToken")
	if err != nil {
		return s.cfg.Statuses.BadRequest.reply()
	}
	s.mu.Lock()
	p, refusal := s.exchangeLocked(access, fields["refreshToken"], entry)
	s.mu.Unlock()
	if refusal != nil {
		return refusal.reply()
	}
	return s.grant(p, s.cfg.OmitRefreshToken)
}

func (s *Sandbox) login(r *http.Request, body []byte, _ *Entry) reply {
	if rep := s.checkHeader(r.Header); rep != nil {
		return *rep
	}
	fields, err := parseFields(body, "username", "password")
	if err != nil {
		return s.cfg.Statuses.BadRequest.reply()
	}
	user := subtle.ConstantTimeCompare([]byte(fields["username"]), []byte(s.cfg.Username))
	password := subtle.ConstantTimeCompare([]byte(fields["password"]), []byte(s.cfg.Password))
	if user&password != 1 {
		return s.cfg.Statuses.BadLogin.reply()
	}
	s.mu.Lock()
	p := s.openLocked(s.cfg.Username)
	s.mu.Unlock()
	return s.grant(p, false)
}

// logout needs no body; what there is is not looked at.
func (s *Sandbox) logout(r *http.Request, _ []byte, _ *Entry) reply {
	if !s.cfg.LaxHeaders && !hasVersion(r.Header) {
		return s.cfg.Statuses.BadRequest.reply()
	}
	access, ok := s.presented(r)
	if !ok {
		return s.cfg.Statuses.BadAccess.reply()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a, standing := s.standingLocked(access, now())
	if standing != good {
		return s.cfg.Statuses.BadAccess.reply()
	}
	if s.endLocked(a.session) {
		s.ledger.stats.Logouts++
	}
	return jsonReply(http.StatusOK, outcome(true, "logged out"))
}

// presented returns the token of the one Authorization header.
func (s *Sandbox) presented(r *http.Request) (string, bool) {
	values := r.Header["Authorization"]
	if len(values) != 1 {
		return "", false
	}
	token, bearer := strings.CutPrefix(values[0], "Bearer ")
	return token, token != "" && (bearer || s.cfg.BareToken)
}

// checkHeader returns the refusal of a call that lacks a required header.
func (s *Sandbox) checkHeader(h http.Header) *reply {
	var rep reply
	switch {
	case s.cfg.LaxHeaders:
		return nil
	case !isJSON(h):
		rep = refuse(http.StatusUnsupportedMediaType, "the content type must be application/json")
	case !hasVersion(h):
		rep = s.cfg.Statuses.BadRequest.reply()
	default:
		return nil
	}
	return &rep
}

func hasVersion(h http.Header) bool {
	values := h["Version"]
	return len(values) == 1 && values[0] == "2.0"
}

// isJSON also takes a charset, as many clients add one.
func isJSON(h http.Header) bool {
	values := h["Content-Type"]
	if len(values) != 1 {
		return false
	}
	kind, params, err := mime.ParseMediaType(values[0])
	return err == nil && kind == jsonType && (len(params) == 0 || strings.EqualFold(params["charset"], "utf-8"))
}

// grant is the answer that hands out a pair.
func (s *Sandbox) grant(p pair, omitRefresh bool) reply {
	answer := struct {
		Access    string `json:"accessToken"`
		Refresh   string `json:"refreshToken,omitempty"`
		ExpiresIn *int64 `json:"expires_in,omitempty"`
	}{Access: p.access, Refresh: p.refresh}
	if omitRefresh {
		answer.Refresh, p.refresh = "", ""
	}
	if s.cfg.ExpiresIn {
		left := max(0, int64(p.expires.Sub(now())/time.Second))
		answer.ExpiresIn = &left
	}
	rep := jsonReply(http.StatusOK, marshal(answer))
	rep.pair = &p
	return rep
}

// deliver sends a reply and notes whether that worked.
func (s *Sandbox) deliver(w http.ResponseWriter, r *http.Request, entry *Entry, rep reply) {
	// Noted before the last byte leaves: whoever has the answer finds it in the
	// ledger.
	s.settle(entry, rep.status, rep.hasPair() && r.Context().Err() == nil)
	rep.writeHeader(w)
	_, err := io.WriteString(w, rep.body)
	if err = errors.Join(err, flush(w)); err != nil {
		s.settle(entry, rep.status, false)
	}
}

// flush sends what is buffered, where the writer can.
func flush(w http.ResponseWriter) error {
	err := http.NewResponseController(w).Flush()
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

func (rep reply) hasPair() bool {
	return rep.pair != nil && strings.Contains(rep.body, rep.pair.access) && strings.Contains(rep.body, rep.pair.refresh)
}

// writeHeader announces the whole body.
func (rep reply) writeHeader(w http.ResponseWriter) {
	for name, values := range rep.header {
		w.Header()[name] = values
	}
	w.Header().Set("Cache-Control", "no-store")
	if rep.status != http.StatusNoContent && rep.status != http.StatusNotModified {
		w.Header().Set("Content-Length", strconv.Itoa(len(rep.body)))
	}
	w.WriteHeader(rep.status)
}

func (f Refusal) reply() reply {
	header := http.Header{"Content-Type": {f.ContentType}}
	if f.Status == http.StatusUnauthorized {
		header.Set("WWW-Authenticate", challenge)
	}
	return reply{status: f.Status, header: header, body: f.Body}
}

func refuse(status int, message string) reply { return jsonReply(status, failure(message)) }

func jsonReply(status int, body string) reply {
	return reply{status: status, header: http.Header{"Content-Type": {jsonType}}, body: body}
}

func failure(message string) string { return outcome(false, message) }

// outcome is the form of all answers that are not a pair.
func outcome(result bool, message string) string {
	return marshal(struct {
		Result      bool   `json:"result"`
		Message     string `json:"message"`
		RecordCount int    `json:"recordCount"`
		Data        any    `json:"data"`
	}{Result: result, Message: message})
}

// marshal is for our own structs, which always marshal.
func marshal(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic("sandbox: " + err.Error())
	}
	return string(text)
}
