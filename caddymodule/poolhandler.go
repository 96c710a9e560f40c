package caddymodule

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// tokens is where a request's access token comes from: a session, or one of a
// pool's.
type tokens interface {
	Enter(ctx context.Context, repeatable bool) (refresher.Pass, error)
	Unauthorized(ctx context.Context, p refresher.Pass, route string) (refresher.Pass, bool, error)
	NoteUnauthorized(ctx context.Context, p refresher.Pass, route string, again bool)
	Accepted(p refresher.Pass)
}

// servePool swaps a token that belongs to one of the pool's sessions for the
// current one, and lets everything else through as it is.
func (h *Handler) servePool(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if err := h.pool.shared.Ready(r.Context()); err != nil {
		return h.unavailable(w, err)
	}
	cleaned := cleanPath(r.URL.Path)
	switch {
	case matchesAny(h.pool.Exchange, r.Method, cleaned):
		return h.exchange(w, r, next)
	case matchesAny(h.pool.Learn, r.Method, cleaned):
		return h.learn(w, r, next, refresher.Pair{})
	}
	ends := matchesAny(h.pool.Forget, r.Method, cleaned)
	found, err := h.find(r)
	if err == nil && ends && !found.known() {
		found, err = h.findRefresh(r)
	}
	switch {
	case errors.Is(err, refresher.ErrOtherCaller):
		return h.otherCaller(r, err)
	case err != nil:
		return err
	case !found.known():
		return next.ServeHTTP(w, r)
	case ends:
		return h.forget(w, r, next, found)
	}
	return h.swap(w, r, next, found)
}

// presented is what of a request belongs to a session of the pool.
type presented struct {
	member  refresher.Member
	carrier carrier // which brings the token to the upstream; none: there is a refresh token only
	cookie  string  // the access token that is in the cookie, if that one is of the session
	ok      bool
}

func (p presented) known() bool { return p.ok }

// find looks for an access token of a session: in the header, then in the
// cookie. Where both hold one of the same session, both are to be swapped.
func (h *Handler) find(r *http.Request) (presented, error) {
	who := h.caller(r)
	access := func(token string) (presented, error) {
		m, kind, known, err := h.pool.shared.Find(token, who)
		if !known || kind != refresher.AccessToken {
			return presented{}, nil
		}
		return presented{member: m, carrier: h.carrier, ok: true}, err
	}
	token, any := h.carrier.token(r.Header)
	found, err := access(token)
	if any && !found.known() || err != nil {
		return found, err
	}
	for _, c := range r.CookiesNamed(h.pool.Cookies.Access) { // some browsers send one of each domain
		switch other, err := access(c.Value); {
		case !other.known():
		case !found.known():
			other.carrier, other.cookie = h.cookieCarrier(), c.Value
			return other, err
		case err == nil && other.member.Same(found.member):
			found.cookie = c.Value
		}
	}
	return found, nil
}

// findRefresh looks for a refresh token of a session, wherever a refresh call may
// have one: some sign out with that alone.
func (h *Handler) findRefresh(r *http.Request) (presented, error) {
	asked, err := h.readExchange(r)
	if err != nil {
		return presented{}, err
	}
	m, kind, known, err := h.pool.shared.Find(asked.refresh, h.caller(r))
	if !known || kind != refresher.RefreshToken {
		return presented{}, nil
	}
	return presented{member: m, ok: true}, err
}

func (h *Handler) cookieCarrier() carrier {
	return carrier{name: "Cookie", folded: "Cookie", cookie: h.pool.Cookies.Access, other: h.pool.Cookies.Refresh}
}

// caller is who presents a token, where the listener can tell: by the client
// certificate, or by the address of another machine.
func (h *Handler) caller(r *http.Request) refresher.Caller {
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		sum := sha256.Sum256(r.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo)
		return h.pool.shared.Caller("key " + string(sum[:]))
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return 0 // a unix socket
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.Unmap().IsLoopback() {
		return 0
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is6() { // a machine changes the rest of its address at will (RFC 8981)
		if network, err := addr.Prefix(64); err == nil {
			addr = network.Addr()
		}
	}
	return h.pool.shared.Caller("address " + addr.String())
}

// otherCaller refuses a token that somebody else has used before.
func (h *Handler) otherCaller(r *http.Request, err error) error {
	h.metrics.refused.Add(1)
	h.logger.Warn("refused a token that is bound to another caller: it may have been stolen",
		zap.String("pool", h.Session), zap.String("remote", r.RemoteAddr))
	return caddyhttp.Error(http.StatusForbidden, fmt.Errorf("pool %q: %w", h.Session, err))
}

// swap sends a request on with the current token of its session. Where the
// session has just ended the request goes on as it came: the upstream's own
// answer tells its caller to sign in again.
func (h *Handler) swap(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, found presented) error {
	if r.Method == http.MethodTrace {
		return caddyhttp.Error(http.StatusMethodNotAllowed, fmt.Errorf("pool %q: TRACE would show the token", h.Session))
	}
	a := newAttempt(h, w, r)
	defer a.close()
	a.from, a.carrier = found.member, found.carrier

	pass, err := found.member.Enter(r.Context(), a.repeatable)
	var unavailable *refresher.Unavailable
	if errors.Is(err, refresher.ErrForgotten) || errors.As(err, &unavailable) && unavailable.Lost != "" {
		return next.ServeHTTP(w, r)
	}
	if err != nil {
		return h.unavailable(w, err)
	}
	if found.cookie != "" && pass.Token() != found.cookie {
		h.renewCookies(w, r, found)
		a.rw.keepHeader() // also if the request is sent again
	}
	if found.cookie != "" && found.carrier.cookie == "" {
		next = h.swappingCookie(a, next)
	}
	return h.run(a, pass, next)
}

// swappingCookie has the cookie hold the token that the header has, at each run.
func (h *Handler) swappingCookie(a *attempt, next caddyhttp.Handler) caddyhttp.Handler {
	cookie := h.cookieCarrier()
	return caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		r.Header["Cookie"] = []string{cookie.swapCookie(r.Header["Cookie"], a.pass.Token())}
		return next.ServeHTTP(w, r)
	})
}

// forget passes a request on that ends the caller's session. One that holds a
// refresh token only goes on as it came.
func (h *Handler) forget(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, found presented) error {
	held := newHeldAnswer(w, func() error {
		if err := found.member.Forget(h.revoked); err != nil && !errors.Is(err, refresher.ErrForgotten) {
			h.logger.Error("a session ended, but may be there again after a restart", zap.String("pool", h.Session), zap.Error(err))
		}
		return nil
	})
	if found.carrier.name == "" {
		return held.serve(r, next)
	}
	return held.serve(r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		return h.swap(w, r, next, found)
	}))
}

// token reads the carrier's token out of a request; ok is false where there is
// none, or more than one.
func (c carrier) token(header http.Header) (token string, ok bool) {
	values := header[c.name]
	if len(values) != 1 {
		return "", false
	}
	if c.scheme == "" {
		return values[0], values[0] != ""
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	token = strings.TrimLeft(token, " ")
	return token, ok && strings.EqualFold(scheme, c.scheme) && token != ""
}

// revoked tells what became of a session's tokens at the issuer.
func (h *Handler) revoked(err error) {
	if err != nil && !errors.Is(err, refresher.ErrNotRevocable) {
		h.logger.Warn("a session ended, but its tokens could not be revoked", zap.String("pool", h.Session), zap.Error(err))
	}
}
