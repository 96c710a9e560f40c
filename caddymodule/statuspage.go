package caddymodule

import (
	"bytes"
	"crypto/rand"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

func init() { caddy.RegisterModule(new(StatusPage)) }

const statusName = "token_refresh_status"

// StatusPage shows people how the sessions are doing, live: their state, the time
// that their tokens have left, the last rotations, what is wrong and what to do
// about it. With `Accept: application/json` it answers the same as JSON. No
// token is shown.
//
// It answers at whatever path it stands; what it needs beside (script, style,
// events) it serves at the same path with a query.
type StatusPage struct {
	// Who may see it: CIDR ranges or addresses of callers, or `any`. The TCP
	// peer's address counts, never a header. Default: loopback addresses and
	// unix sockets, and then the page must be opened as `localhost` or by
	// address, so that no web page can get at it under a name of its own.
	Clients []string `json:"clients,omitempty"`

	// Whether sessions can be exchanged and ended from the page. Default: false.
	Actions bool `json:"actions,omitempty"`

	app     *App
	logger  *zap.Logger
	clients clientList
	token   string // has to come with each action
	streams atomic.Int64

	cache struct {
		sync.Mutex
		at   time.Time
		body []byte
	}
}

//go:embed status/page.html status/style.css status/script.js status/live.js status/icon.svg
var statusFiles embed.FS

// CaddyModule returns the Caddy module information.
func (*StatusPage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers." + statusName, New: func() caddy.Module { return new(StatusPage) }}
}

// Provision sets up the handler.
func (s *StatusPage) Provision(ctx caddy.Context) error {
	s.logger, s.token = ctx.Logger(), rand.Text()
	app, err := ctx.App(appName)
	if err != nil {
		return fmt.Errorf("loading the %s app: %w", appName, err)
	}
	s.app = app.(*App)
	if s.clients, err = parseClients(s.Clients); err != nil {
		return err
	}
	if srv, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok && s.Actions && len(s.Clients) > 0 {
		if open := openListeners(srv.Listen); len(open) > 0 {
			s.logger.Warn("sessions can be ended from the status page, and other machines can reach it; `clients` says who may",
				zap.Strings("listen", open), zap.Strings("clients", s.Clients))
		}
	}
	return nil
}

// The parts of the page, by query.
var statusParts = map[string]struct{ file, kind string }{
	"":       {"page.html", "text/html; charset=utf-8"},
	"style":  {"style.css", "text/css; charset=utf-8"},
	"script": {"script.js", "text/javascript; charset=utf-8"},
	"live":   {"live.js", "text/javascript; charset=utf-8"},
	"icon":   {"icon.svg", "image/svg+xml"},
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (s *StatusPage) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	secureHeader(w.Header())
	if err := s.admit(r); err != nil {
		return err
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		return s.act(w, r)
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		return caddyhttp.Error(http.StatusMethodNotAllowed, errors.New("method not allowed"))
	}
	what := r.URL.RawQuery
	part, ok := statusParts[what]
	if !ok {
		part = statusParts[""] // somebody's own query
	}
	switch {
	case what == "events" && r.Method == http.MethodGet:
		return s.follow(w, r)
	case what == "status", part == statusParts[""] && wantsJSON(r):
		return s.writeJSON(w)
	}
	text, err := statusFiles.ReadFile("status/" + part.file)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", part.kind)
	_, err = w.Write(text)
	return err
}

func secureHeader(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept")
}

// admit refuses who may not see the page.
func (s *StatusPage) admit(r *http.Request) error {
	if !s.clients.admits(r.RemoteAddr) {
		s.logger.Warn("refused a caller; the status page's option `clients` would let it in", zap.String("remote", r.RemoteAddr))
		return caddyhttp.Error(http.StatusForbidden, errors.New("this caller may not see the status page"))
	}
	if _, _, err := net.SplitHostPort(r.RemoteAddr); err == nil && s.clients.local && !localHost(r.Host) {
		s.logger.Warn("refused a host name; open the status page as localhost or by address, or set its option `clients`", zap.String("host", r.Host))
		return caddyhttp.Error(http.StatusForbidden, errors.New("open the status page as localhost or by address"))
	}
	if crossSite(r, nil) {
		s.logger.Warn("refused another site's web page", zap.String("origin", r.Header.Get("Origin")))
		return caddyhttp.Error(http.StatusForbidden, errors.New("another site's page may not see the status page"))
	}
	return nil
}

// localHost reports whether a name can be nobody's but this machine's: a foreign
// one could be made to lead here (DNS rebinding), for a page of its own.
func localHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	_, err := netip.ParseAddr(host)
	return err == nil || host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// wantsJSON reports whether JSON is asked for by name; a browser asks for HTML.
func wantsJSON(r *http.Request) bool {
	for _, accept := range r.Header["Accept"] {
		for kind := range strings.SplitSeq(accept, ",") {
			kind, _, _ = strings.Cut(kind, ";")
			switch strings.TrimSpace(strings.ToLower(kind)) {
			case "application/json":
				return true
			case "text/html":
				return false
			}
		}
	}
	return false
}

func (s *StatusPage) writeJSON(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/json")
	_, err := w.Write(append(s.message(s.body()), '\n'))
	return err
}

// message adds the time, which the page reckons with.
func (*StatusPage) message(body []byte) []byte {
	return append(fmt.Appendf(nil, `{"now":%q,`, timeText(time.Now())), body[1:]...)
}

// viewAge is for how long a look at everything serves all who want one.
const viewAge = 250 * time.Millisecond

// viewLeft is for how long the last look still serves. What somebody has just
// been woken for is not in it, so he waits until it is over.
func (s *StatusPage) viewLeft() time.Duration {
	s.cache.Lock()
	defer s.cache.Unlock()
	return viewAge - time.Since(s.cache.at)
}

// body is the overview of this moment.
func (s *StatusPage) body() []byte {
	s.cache.Lock()
	defer s.cache.Unlock()
	if s.cache.body != nil && time.Since(s.cache.at) < viewAge {
		return s.cache.body
	}
	o := s.app.overview()
	if o.Actions = s.Actions; o.Actions {
		o.ActionToken = s.token
	}
	body, err := json.Marshal(o)
	if err != nil {
		s.logger.Error("encoding the status", zap.Error(err))
		return []byte("{}")
	}
	if !bytes.Equal(body, s.cache.body) {
		s.cache.body = body
	}
	s.cache.at = time.Now()
	return s.cache.body
}

// Interface guards
var (
	_ caddy.Provisioner           = (*StatusPage)(nil)
	_ caddyhttp.MiddlewareHandler = (*StatusPage)(nil)
)
