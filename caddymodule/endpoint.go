package caddymodule

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func init() { caddy.RegisterModule(new(TokenEndpoint)) }

// TokenEndpoint is a token endpoint for programs that insist on refreshing
// themselves. It answers an OAuth 2.0 refresh (RFC 6749 section 6), as a form or
// as JSON, or a POST of `{"refreshToken"}`, with the session's current access
// token. Nothing is exchanged for it, and the session's refresh token stays here:
// in its place a program has a handle, which it gets back with each answer.
//
// `expires_in` says when to ask again: the access token's end, or the next
// exchange where that revokes it.
type TokenEndpoint struct {
	// The name of the session. Required.
	Session string `json:"session,omitempty"`

	// What programs send as their refresh token; at least 16 characters each.
	// Required. Placeholders are resolved when the configuration is provisioned.
	Handles []string `json:"handles,omitempty"`

	// Who may ask: CIDR ranges or addresses of callers, or `any`. The TCP peer's
	// address counts, never a header. Default: loopback addresses and unix
	// sockets.
	Clients []string `json:"clients,omitempty"`

	// Origins whose web pages may ask, such as `https://app.example.com`.
	// Default: none but the site itself.
	Origins []string `json:"origins,omitempty"`

	session *refresher.Session
	metrics *counts
	logger  *zap.Logger
	handles [][sha256.Size]byte
	clients clientList
	origins map[string]bool
}

const minHandle = 16 // characters

// CaddyModule returns the Caddy module information.
func (*TokenEndpoint) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.token_refresh_endpoint", New: func() caddy.Module { return new(TokenEndpoint) }}
}

// Provision sets up the handler.
func (e *TokenEndpoint) Provision(ctx caddy.Context) error {
	e.logger = ctx.Logger()
	app, err := ctx.App(appName)
	if err != nil {
		return fmt.Errorf("loading the %s app: %w", appName, err)
	}
	cfg, ok := app.(*App).session(e.Session)
	if !ok {
		if _, ok := app.(*App).pool(e.Session); ok {
			return fmt.Errorf("%q is a pool: its own option `exchange` answers the refresh calls of its callers", e.Session)
		}
		return fmt.Errorf("session %q is not defined in the %s app", e.Session, appName)
	}
	e.session, e.metrics = cfg.shared.Session, cfg.shared.metrics
	if e.clients, err = parseClients(e.Clients); err != nil {
		return err
	}
	if e.origins, err = parseOrigins(e.Origins); err != nil {
		return err
	}
	if err := e.provisionHandles(); err != nil {
		return err
	}
	if srv, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		if open := openListeners(srv.Listen); len(open) > 0 {
			e.logger.Warn("a session's access token can be had behind a listener that other machines can reach; `clients` says by whom",
				zap.String("session", e.Session), zap.Strings("listen", open), zap.Strings("clients", e.Clients))
		}
	}
	return nil
}

func (e *TokenEndpoint) provisionHandles() error {
	if len(e.Handles) == 0 {
		return errors.New("handle: missing; it is what programs send as their refresh token: handle {env.NAME}")
	}
	repl := caddy.NewReplacer()
	for i, text := range e.Handles {
		handle, err := resolve(repl, "handle", text)
		if err != nil {
			return err
		}
		if len(handle) < minHandle {
			return fmt.Errorf("handle %d: it has fewer than %d characters and could be guessed: `caddy token-refresh keygen` makes one", i+1, minHandle)
		}
		e.handles = append(e.handles, sha256.Sum256([]byte(handle)))
		if !placeholder.MatchString(text) {
			e.logger.Warn("a handle stands in the configuration itself, which Caddy shows and saves; put {env.…} or {file.…} there",
				zap.String("session", e.Session))
		}
	}
	return nil
}

// knows compares with every handle, in a time that tells nothing.
func (e *TokenEndpoint) knows(handle string) bool {
	sum := sha256.Sum256([]byte(handle))
	found := 0
	for _, known := range e.handles {
		found |= subtle.ConstantTimeCompare(sum[:], known[:])
	}
	return found == 1
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (e *TokenEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	if err := admit(r, e.Session, e.clients, e.origins, e.logger); err != nil {
		e.metrics.refused.Add(1)
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return e.refuse(w, http.StatusMethodNotAllowed, "invalid_request", "want a POST")
	}
	asked, bad := readRefresh(w, r)
	if bad != nil {
		return e.refuse(w, bad.status, bad.code, bad.text)
	}
	if !e.knows(asked.handle) {
		e.metrics.refused.Add(1)
		e.logger.Warn("refused a handle that is not configured", zap.String("session", e.Session), zap.String("remote", r.RemoteAddr))
		return e.refuse(w, http.StatusBadRequest, "invalid_grant", "this refresh token is not one of the session's handles")
	}
	token, err := e.session.Token(r.Context())
	if err != nil {
		return e.unavailable(w, err)
	}
	e.metrics.passed.Add(1)
	return e.answer(w, asked, token)
}

func (e *TokenEndpoint) unavailable(w http.ResponseWriter, err error) error {
	e.metrics.unavailable.Add(1)
	var u *refresher.Unavailable
	if !errors.As(err, &u) {
		return caddyhttp.Error(statusClientClosed, fmt.Errorf("waiting for a token of session %q: %w", e.Session, err))
	}
	retryAfter(w, u)
	return e.refuse(w, http.StatusServiceUnavailable, "temporarily_unavailable", u.Error())
}

func retryAfter(w http.ResponseWriter, u *refresher.Unavailable) {
	if u.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(u.RetryAfter.Seconds()))))
	}
}

// refuse answers as RFC 6749 section 5.2 has it.
func (e *TokenEndpoint) refuse(w http.ResponseWriter, status int, code, text string) error {
	return writeBody(w, status, map[string]string{"error": code, "error_description": text})
}

// answer hands the access token out, in the names in which it was asked for.
func (e *TokenEndpoint) answer(w http.ResponseWriter, asked askedRefresh, token refresher.Token) error {
	if asked.plain {
		return writeBody(w, http.StatusOK, map[string]any{
			"accessToken": token.Access.Reveal(), "refreshToken": asked.handle,
		})
	}
	body := map[string]any{
		"access_token": token.Access.Reveal(), "token_type": "Bearer", "refresh_token": asked.handle,
	}
	if !token.GoodUntil.IsZero() {
		// At least a second: whoever asks at once again would not get another.
		body["expires_in"] = max(1, int64(time.Until(token.GoodUntil).Seconds()))
	}
	return writeBody(w, http.StatusOK, body)
}

func writeBody(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(v)
}

// Interface guards
var (
	_ caddy.Provisioner           = (*TokenEndpoint)(nil)
	_ caddyhttp.MiddlewareHandler = (*TokenEndpoint)(nil)
)
