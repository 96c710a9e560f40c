package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/net/http/httpguts"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func init() { caddy.RegisterModule(new(Handler)) }

// Handler gives each request the current access token of a session before it
// goes on to the upstream. With a pool the tokens are the callers' own: one that
// belongs to a session of the pool is swapped for the current one, and all other
// requests go on untouched.
//
// While a token is fresh, requests pass at once. During an exchange that revokes
// the previous token they wait; a request whose token was revoked on its way, and
// that the upstream therefore answered with 401, is sent again with the current
// one. Whatever the caller sent in the token's header is replaced.
//
// It adds `token_refresh` to the access log: session, generation, whether the
// request was sent again, and how long it waited.
type Handler struct {
	// The name of the session, or of the pool. Required.
	Session string `json:"session,omitempty"`

	// What happens to requests of a session: `inject` gives each the access
	// token in place of whatever it came with; `swap` replaces only access tokens
	// of this session, of whatever generation, and lets everything else through
	// as it is. Default: `inject`; with a pool it is always `swap`.
	Mode string `json:"mode,omitempty"`

	// The header field that carries the access token. Default: `Authorization`.
	// Caddy does not redact others in its own debug logs.
	Header string `json:"header,omitempty"`

	// What stands before the token in the field. Default: `Bearer` in
	// `Authorization`, nothing elsewhere.
	Scheme *string `json:"scheme,omitempty"`

	// A request that was answered 401 can be sent again while at most this many
	// bytes of its body were read. At most 32 MiB are held by the process.
	// Default: 1 MiB; -1 turns sending again off.
	ReplayLimit int64 `json:"replay_limit,omitempty"`

	// Who may use the session: CIDR ranges or addresses of callers, or `any`.
	// The TCP peer's address counts, never a header. Default: loopback addresses
	// and unix sockets.
	Clients []string `json:"clients,omitempty"`

	// Origins whose web pages may use the session, such as
	// `https://app.example.com`. Default: none but the site itself.
	Origins []string `json:"origins,omitempty"`

	app     *App
	session *refresher.Session // nil: a pool
	pool    *Pool
	metrics *counts
	watch   *watch
	logger  *zap.Logger
	header  string
	carrier carrier
	limit   int64
	logs    bool // the server has access logs
	clients clientList
	origins map[string]bool
}

const (
	defaultReplayLimit = 1 << 20
	maxHeld401         = 64 << 10 // of a 401's body; a longer one is passed on as it comes
	statusClientClosed = 499      // as Caddy's reverse_proxy has it
)

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.token_refresh", New: func() caddy.Module { return new(Handler) }}
}

// Provision sets up the handler.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	app, err := ctx.App(appName)
	if err != nil {
		return fmt.Errorf("loading the %s app: %w", appName, err)
	}
	h.app = app.(*App)
	if cfg, ok := h.app.session(h.Session); ok {
		cfg.swap = cfg.swap || h.Mode == modeSwap // before the app starts
		h.session, h.metrics, h.watch = cfg.shared.Session, cfg.shared.metrics, &cfg.shared.watch
	} else if cfg, ok := h.app.pool(h.Session); ok {
		h.pool, h.metrics, h.watch = cfg, cfg.shared.metrics, &cfg.shared.watch
	} else {
		return fmt.Errorf("session %q is not defined in the %s app", h.Session, appName)
	}

	if err := checkMode(h.Mode); err != nil {
		return err
	}
	if h.clients, err = parseClients(h.Clients); err != nil {
		return err
	}
	if h.origins, err = parseOrigins(h.Origins); err != nil {
		return err
	}
	if err := h.provisionCarrier(); err != nil {
		return err
	}
	h.limit = h.ReplayLimit
	switch {
	case h.limit == 0:
		h.limit = defaultReplayLimit
	case h.limit > maxCaptured:
		return fmt.Errorf("replay_limit: at most %d bytes are held by the process", maxCaptured)
	}
	h.warn(ctx)
	return nil
}

// What a handler does to a session's requests.
const (
	modeInject = "inject"
	modeSwap   = "swap"
)

func checkMode(mode string) error {
	switch mode {
	case "", modeInject, modeSwap:
		return nil
	}
	return fmt.Errorf("mode: want inject or swap, not %.40q", mode)
}

func (h *Handler) provisionCarrier() error {
	h.header = http.CanonicalHeaderKey(h.Header)
	if h.header == "" {
		h.header = "Authorization"
	}
	if !httpguts.ValidHeaderFieldName(h.header) {
		return fmt.Errorf("header: %q is not a header field's name", h.Header)
	}
	switch h.header {
	case "Host", "Content-Length", "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate",
		"Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade": // hop by hop: reverse_proxy removes them
		return fmt.Errorf("header: %s cannot carry a token", h.header)
	}
	scheme := ""
	if h.header == "Authorization" {
		scheme = "Bearer"
	}
	if h.Scheme != nil {
		scheme = *h.Scheme
	}
	if !httpguts.ValidHeaderFieldValue(scheme) {
		return errors.New("header: the scheme holds a character that no header field may have")
	}
	h.carrier = newCarrier(h.header, scheme)
	return nil
}

// warn tells of a configuration that works but lets more out than it seems to.
func (h *Handler) warn(ctx caddy.Context) {
	if h.header != "Authorization" {
		h.logger.Warn("Caddy redacts only Authorization and Cookie in its own debug logs, not this token's header",
			zap.String("session", h.Session), zap.String("header", h.header))
	}
	srv, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	h.logs = !ok || srv.Logs != nil
	if !ok {
		return
	}
	if open := openListeners(srv.Listen); len(open) > 0 {
		h.logger.Warn("a session stands behind a listener that other machines can reach; `clients` says who may use it",
			zap.String("session", h.Session), zap.Strings("listen", open), zap.Strings("clients", h.Clients))
	}
	if srv.Logs != nil && srv.Logs.ShouldLogCredentials {
		h.logger.Warn("log_credentials is on: Caddy's debug logs will show access tokens", zap.String("session", h.Session))
	}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if err := h.admit(r); err != nil {
		h.metrics.refused.Add(1)
		return err
	}
	if h.pool != nil {
		return h.servePool(w, r, next)
	}
	if h.Mode == modeSwap {
		if token, ok := h.carrier.token(r.Header); !ok || !h.session.Owns(token) {
			return next.ServeHTTP(w, r)
		}
	}
	a := newAttempt(h, w, r)
	defer a.close()
	a.from, a.carrier = h.session, h.carrier

	pass, err := h.session.Enter(r.Context(), a.repeatable)
	if err != nil {
		h.watch.traces.unavailable(r.Context(), h.Session, err)
		return h.unavailable(w, err)
	}
	return h.run(a, pass, next)
}

// run sends a request on with a token, and again if need be.
func (h *Handler) run(a *attempt, pass refresher.Pass, next caddyhttp.Handler) error {
	r := a.orig
	a.use(pass)
	if h.logs {
		if fields, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
			fields.Set(zap.Object(appName, a))
		}
	}
	if err := a.send(next); err != nil || !a.rw.holding() {
		h.count(a)
		return err
	}
	return h.unauthorized(a, next)
}

// send is the first run. A 401 that breaks off is one all the same.
func (a *attempt) send(next caddyhttp.Handler) error {
	defer func() {
		if !a.rw.holding() {
			return
		}
		if p := recover(); p == http.ErrAbortHandler { // as reverse_proxy has it
			a.rw.broken = true
		} else if p != nil {
			panic(p)
		}
	}()
	return next.ServeHTTP(&a.rw, &a.out.req)
}

// unauthorized deals with a 401 that is held back.
func (h *Handler) unauthorized(a *attempt, next caddyhttp.Handler) error {
	route := refresher.Route(a.orig.Method, a.path)
	a.asked = true
	ctx := a.context()
	pass, ok, err := a.from.Unauthorized(ctx, a.pass, route)
	var unavailable *refresher.Unavailable
	switch {
	case errors.As(err, &unavailable):
		a.rw.discard()
		return h.unavailable(a.rw.ResponseWriter, err)
	case err != nil || !ok || !a.again():
		pass.Settle()
		h.count(a)
		return a.rw.release()
	}
	a.rw.discard()
	newer := pass.Generation() != a.pass.Generation() || pass.Epoch() != a.pass.Epoch()
	a.use(pass)
	a.replayed = true
	err = next.ServeHTTP(&a.rw, &a.out.req)
	if a.rw.status == http.StatusUnauthorized {
		a.from.NoteUnauthorized(ctx, pass, route, newer)
	}
	h.count(a)
	return err
}

// count adds the request to the metrics, under one outcome.
func (h *Handler) count(a *attempt) {
	h.watch.traces.request(a)
	switch {
	case a.replayed:
		h.metrics.replayed.Add(1)
	case a.waited > 0:
		h.metrics.waited.Add(1)
	default:
		h.metrics.passed.Add(1)
		return
	}
	if a.waited > 0 {
		h.metrics.wait.observe(a.waited)
		if h.pool == nil {
			h.watch.waits.add(a.pass.Epoch(), a.pass.Generation(), a.waited)
		}
	}
}

// unavailable is the answer to a request for which there is no token.
func (h *Handler) unavailable(w http.ResponseWriter, err error) error {
	h.metrics.unavailable.Add(1)
	var u *refresher.Unavailable
	if !errors.As(err, &u) {
		return caddyhttp.Error(statusClientClosed, fmt.Errorf("waiting for a token of session %q: %w", h.Session, err))
	}
	if u.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(u.RetryAfter.Seconds()))))
	}
	return caddyhttp.Error(http.StatusServiceUnavailable, u)
}

// attempt is one request on its way through the handler: what goes to the
// upstream, and what is needed to send it again. It is one allocation.
type attempt struct {
	h       *Handler
	from    tokens
	carrier carrier
	orig    *http.Request
	out     *outgoing // what the upstream gets
	first   outgoing
	path    string
	rw      responder
	pass    refresher.Pass

	repeatable bool // surely: no body, or a small one of known size
	asked      bool // what to do about its 401
	replayed   bool
	waited     time.Duration

	announced []string // trailers of the caller's that go on
	body      *capture // nil: no body
	groups    map[string]struct{}
	before    map[string]struct{} // groups as they were, if there were any
}

// outgoing is the request of one run. A later run has its own: the transport
// may still be reading this one.
type outgoing struct {
	req   http.Request
	url   url.URL
	value [1]string // of the carrier's field
}

func newAttempt(h *Handler, w http.ResponseWriter, r *http.Request) *attempt {
	a := &attempt{h: h, orig: r, path: r.URL.Path}
	a.out = &a.first
	a.rw.init(w, a)
	for name := range r.Trailer { // nobody has read of the body yet
		if !h.carrier.folds(name) {
			a.announced = append(a.announced, name)
		}
	}

	// caddyhttp remembers in this map which route groups were satisfied; a
	// second run would skip their routes. Without it (the key is not exported)
	// nothing is sent again.
	a.groups, _ = r.Context().Value(caddy.CtxKey("route_group")).(map[string]struct{})
	if len(a.groups) > 0 {
		a.before = maps.Clone(a.groups)
	}
	hasBody := r.Body != nil && r.ContentLength != 0 // not NoBody: Caddy wraps bodies to count them
	if a.rw.replay = h.limit > 0 && a.groups != nil && mayRepeat(r); a.rw.replay {
		if hasBody {
			a.body = newCapture(r.Body, h.limit, r.ContentLength)
		}
		a.repeatable = !hasBody || a.body.reserved(r.ContentLength)
	}
	return a
}

// mayRepeat reports whether a request's kind allows to send it again. A 401 says
// that it was not applied (RFC 9110 section 15.5.2), so its method does not
// matter, save where the connection itself is handed over.
func mayRepeat(r *http.Request) bool {
	if r.Method == http.MethodConnect {
		return false
	}
	upgrade := r.Header["Upgrade"]
	return len(upgrade) == 0 || len(upgrade) == 1 && isWebSocket(upgrade[0])
}

// use makes the request that goes to the upstream, with a token.
func (a *attempt) use(pass refresher.Pass) {
	a.pass = pass
	a.waited += pass.Waited
	out, r := a.out, a.orig
	a.h.watch.traces.waited(r.Context(), a.h.Session, &a.pass)
	out.req = *r
	out.url = *r.URL
	out.req.URL = &out.url
	out.req.Header = a.carrier.clone(r.Header, &out.value, pass)
	if a.body != nil {
		out.req.Body = a.body.reader()
	}
	if r.Trailer != nil {
		out.req.Trailer = make(http.Header, len(a.announced))
		for _, name := range a.announced {
			out.req.Trailer[name] = nil
		}
		out.req.Body = &trailers{ReadCloser: out.req.Body, from: r.Trailer, to: out.req.Trailer, names: a.announced}
	}
}

// again makes ready for the second run; false if it cannot be.
func (a *attempt) again() bool {
	if a.body != nil && !a.body.rewind() {
		return false
	}
	a.pass.Settle()
	clear(a.groups)
	maps.Copy(a.groups, a.before)
	a.rw.replay = false
	a.out = new(outgoing)
	return true
}

// close lets go of what the request holds, however it ended.
func (a *attempt) close() {
	if a.body != nil {
		a.body.close()
	}
	a.pass.Settle()
}

// context is the request's, with what a webhook is to be told of it.
func (a *attempt) context() context.Context {
	if len(a.h.app.Webhooks) == 0 {
		return a.orig.Context()
	}
	return refresher.WithOrigin(a.orig.Context(), func() []byte { return a.h.app.origin(a.orig) })
}

// answered is called once, when the upstream's answer begins.
func (a *attempt) answered(status int) {
	a.pass.Settle()
	if status >= 200 && status < 300 || status == http.StatusSwitchingProtocols {
		a.from.Accepted(a.pass)
	}
	if status == http.StatusUnauthorized && !a.asked {
		// It could not be sent again: those that come after shall fare better.
		a.from.NoteUnauthorized(a.context(), a.pass, refresher.Route(a.orig.Method, a.path), false)
	}
}

// repeats reports whether a 401 that has just come may lead to a second run.
func (a *attempt) repeats() bool {
	return a.rw.replay && (a.body == nil || a.body.whole()) && a.orig.Context().Err() == nil
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (a *attempt) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("session", a.h.Session)
	enc.AddUint64("generation", a.pass.Generation())
	enc.AddBool("replayed", a.replayed)
	enc.AddFloat64("waited", a.waited.Seconds())
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
	_ zapcore.ObjectMarshaler     = (*attempt)(nil)
)
