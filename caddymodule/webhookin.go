package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/webhook"
)

const inDirective = "token_refresh_webhook"

func init() {
	caddy.RegisterModule(new(WebhookHandler))
	httpcaddyfile.RegisterHandlerDirective(inDirective, func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		handler := new(WebhookHandler)
		return handler, handler.UnmarshalCaddyfile(h.Dispenser)
	})
	httpcaddyfile.RegisterDirectiveOrder(inDirective, httpcaddyfile.Before, "respond") // it answers for itself
}

// WebhookHandler takes FusionAuth's events about a session, or about those of a
// pool: `jwt.refresh` has a session that somebody else refreshed catch up,
// `jwt.refresh-token.revoke`, `user.deactivate` and `user.delete` end it. It
// answers at once and never waits for an exchange: FusionAuth asks it in the
// middle of one.
//
// At least one way is needed by which the sender proves who it is; each that is
// configured must hold.
type WebhookHandler struct {
	// The name of the session, or of the pool. Required.
	Session string `json:"session,omitempty"`

	// The key that verifies the field `X-FusionAuth-Signature-JWT`.
	Signature *VerifiedBy `json:"signature,omitempty"`

	// A field with a shared secret, which may be a placeholder.
	HeaderName  string `json:"header_name,omitempty"`
	HeaderValue string `json:"header_value,omitempty"`

	// Basic authentication.
	BasicAuth *BasicAuth `json:"basic_auth,omitempty"`

	// Events of other tenants or applications are ignored. Default: all count.
	TenantID      string `json:"tenant_id,omitempty"`
	ApplicationID string `json:"application_id,omitempty"`

	// How far an event's time may lie from now; older ones may be replays.
	// Default: 5m.
	Window caddy.Duration `json:"window,omitempty"`

	hear     func(refresher.Heard) bool
	verifier *webhook.Verifier
	jwks     *webhook.JWKS
	seen     *webhook.Seen
	logger   *zap.Logger
}

// VerifiedBy is one of: a secret (HMAC), a PEM file with a public key or a
// certificate, the URL of a key set.
type VerifiedBy struct {
	Secret string `json:"secret,omitempty"`
	Key    string `json:"key,omitempty"`
	JWKS   string `json:"jwks,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*WebhookHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers." + inDirective, New: func() caddy.Module { return new(WebhookHandler) }}
}

// Provision sets up the handler; nothing is fetched.
func (h *WebhookHandler) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	mod, err := ctx.App(appName)
	if err != nil {
		return fmt.Errorf("loading the %s app: %w", appName, err)
	}
	app := mod.(*App)
	var seen *seenEvents
	if cfg, ok := app.session(h.Session); ok {
		h.hear, seen = cfg.shared.Hear, &cfg.shared.seen
	} else if cfg, ok := app.pool(h.Session); ok {
		h.hear, seen = cfg.shared.Hear, &cfg.shared.seen
	} else {
		return fmt.Errorf("session %q is not defined in the %s app", h.Session, appName)
	}
	if srv, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok && srv.Logs != nil && h.HeaderName != "" && !strings.EqualFold(h.HeaderName, "Authorization") {
		h.logger.Warn("Caddy's access logs show the webhook's secret, as they redact only Authorization, Cookie and the like: delete the field with the log's `format filter`, or use signature or basic_auth",
			zap.String("session", h.Session), zap.String("header", h.HeaderName))
	}
	cfg, err := h.config(caddy.NewReplacer())
	if err != nil {
		return err
	}
	if h.verifier, err = webhook.NewVerifier(cfg); err != nil {
		return err
	}
	h.seen = seen.within(time.Duration(h.Window))
	return nil
}

// seenEvents are those about a session, or about a pool's, whatever handler took
// them, and over reloads.
type seenEvents struct{ byWindow sync.Map }

func (s *seenEvents) within(window time.Duration) *webhook.Seen {
	seen, _ := s.byWindow.LoadOrStore(window, webhook.NewSeen(webhook.SeenConfig{Window: window}))
	return seen.(*webhook.Seen)
}

func (h *WebhookHandler) config(repl *caddy.Replacer) (cfg webhook.VerifierConfig, err error) {
	value := h.HeaderValue
	if err := resolveAll(repl, map[string]*string{"header": &value}); err != nil {
		return cfg, err
	}
	cfg.Header, cfg.HeaderValue = h.HeaderName, refresher.NewSecret(value)
	if b := h.BasicAuth; b != nil {
		name, password := b.Username, b.Password
		if err := resolveAll(repl, map[string]*string{"basic_auth": &name, "basic_auth password": &password}); err != nil {
			return cfg, err
		}
		cfg.Username, cfg.Password = name, refresher.NewSecret(password)
	}
	s := h.Signature
	if s == nil {
		return cfg, nil
	}
	secret := s.Secret
	if err := resolveAll(repl, map[string]*string{"signature": &secret}); err != nil {
		return cfg, err
	}
	cfg.HMACSecret = refresher.NewSecret(secret)
	if s.Key != "" {
		if cfg.PublicKey, err = os.ReadFile(s.Key); err != nil {
			return cfg, fmt.Errorf("signature key: %w", err)
		}
	}
	if s.JWKS != "" {
		if h.jwks, err = webhook.NewJWKS(webhook.JWKSConfig{URL: s.JWKS}); err != nil {
			return cfg, fmt.Errorf("signature jwks: %w", err)
		}
		cfg.JWKS = h.jwks
	}
	return cfg, nil
}

// Cleanup lets go of connections.
func (h *WebhookHandler) Cleanup() error {
	if h.jwks != nil {
		h.jwks.Close()
	}
	return nil
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *WebhookHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return caddyhttp.Error(http.StatusMethodNotAllowed, errors.New("a webhook is a POST"))
	}
	body, err := h.verifier.Read(r)
	if err != nil {
		return h.refuse(r, err)
	}
	event, err := webhook.Parse(body)
	clear(body)
	if err != nil {
		h.logger.Warn("a webhook cannot be read", zap.String("session", h.Session), zap.Error(err))
		return caddyhttp.Error(http.StatusBadRequest, err)
	}
	if !h.take(event) {
		w.Header().Set("Retry-After", "1")
		return caddyhttp.Error(http.StatusServiceUnavailable, fmt.Errorf("%q is not ready", h.Session))
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *WebhookHandler) refuse(r *http.Request, err error) error {
	status := http.StatusBadRequest
	switch {
	case errors.Is(err, webhook.ErrUnauthenticated):
		status = http.StatusUnauthorized
		h.logger.Warn("refused a webhook that does not prove who sent it",
			zap.String("session", h.Session), zap.String("remote", r.RemoteAddr), zap.Error(err))
	case errors.Is(err, webhook.ErrTooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, webhook.ErrKeysUnavailable):
		status = http.StatusServiceUnavailable
		h.logger.Error("a webhook cannot be verified", zap.String("session", h.Session), zap.Error(err))
	}
	return caddyhttp.Error(status, err)
}

// take acts on an event, once; false says that it is to come again.
func (h *WebhookHandler) take(event webhook.Received) bool {
	switch {
	case event.Kind == webhook.KindIgnored:
		return true
	case h.TenantID != "" && !strings.EqualFold(h.TenantID, event.TenantID),
		h.ApplicationID != "" && event.ApplicationID != "" && !strings.EqualFold(h.ApplicationID, event.ApplicationID):
		return true
	}
	if verdict := h.seen.Admit(event); verdict != webhook.VerdictNew {
		h.logger.Debug("a webhook was here before, or is too old", zap.String("session", h.Session),
			zap.String("event", event.ID), zap.String("verdict", string(verdict)))
		return true
	}
	heard, ok := heardOf(event)
	if !ok {
		return true
	}
	h.logger.Debug("heard of the session", zap.String("session", h.Session), zap.String("event", event.ID), zap.String("kind", string(event.Kind)))
	if !h.hear(heard) {
		h.seen.Forget(event.ID)
		return false
	}
	return true
}

// heardOf is what an event says to sessions.
func heardOf(event webhook.Received) (refresher.Heard, bool) {
	switch event.Kind {
	case webhook.KindRefreshed:
		return refresher.Heard{Exchanged: true, Refresh: event.RefreshToken, Access: event.Token}, true
	case webhook.KindRevokedToken:
		return refresher.Heard{Revoked: true, Refresh: event.RefreshToken, RefreshID: event.RefreshTokenID}, true
	case webhook.KindRevokedUser, webhook.KindUserDeactivated, webhook.KindUserDeleted:
		return refresher.Heard{Revoked: true, User: event.UserID}, event.UserID != ""
	case webhook.KindRevokedUserInApp:
		return refresher.Heard{Revoked: true, User: event.UserID, Application: event.ApplicationID}, event.UserID != "" && event.ApplicationID != ""
	case webhook.KindRevokedApplication:
		return refresher.Heard{Revoked: true, Application: event.ApplicationID}, event.ApplicationID != ""
	}
	return refresher.Heard{}, false
}

// UnmarshalCaddyfile reads the directive.
//
//	token_refresh_webhook [<matcher>] <session or pool> {
//		signature hmac <secret>
//		signature key <pem file>
//		signature jwks <url>
//		header <name> <secret>
//		basic_auth <user> <password>
//		tenant_id <uuid>
//		application_id <uuid>
//		window <duration>
//	}
func (h *WebhookHandler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if err := oneArg(d, &h.Session); err != nil {
		return err
	}
	seen := map[string]bool{}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] {
			return d.Errf("%s stands twice", option)
		}
		seen[option] = true
		if err := h.unmarshalOption(d, option); err != nil {
			return err
		}
	}
	if h.Signature == nil && h.HeaderName == "" && h.BasicAuth == nil {
		return d.Errf("%s: say how the sender proves who it is: signature, header or basic_auth", inDirective)
	}
	return nil
}

func (h *WebhookHandler) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "signature":
		args := d.RemainingArgs()
		if len(args) != 2 {
			return argErr(d)
		}
		switch args[0] {
		case "hmac":
			h.Signature = &VerifiedBy{Secret: args[1]}
		case "key":
			h.Signature = &VerifiedBy{Key: args[1]}
		case "jwks":
			h.Signature = &VerifiedBy{JWKS: args[1]}
		default:
			return d.Err("signature: want hmac <secret>, key <pem file> or jwks <url>")
		}
		return nil
	case "header":
		args := d.RemainingArgs()
		if len(args) != 2 {
			return argErr(d)
		}
		h.HeaderName, h.HeaderValue = args[0], args[1]
		return nil
	case "basic_auth":
		return unmarshalBasicAuth(d, &h.BasicAuth)
	case "tenant_id":
		return oneArg(d, &h.TenantID)
	case "application_id":
		return oneArg(d, &h.ApplicationID)
	case "window":
		return duration(d, &h.Window)
	}
	return d.Errf("unrecognized option %q of %s", option, inDirective)
}

// Interface guards
var (
	_ caddy.Provisioner           = (*WebhookHandler)(nil)
	_ caddy.CleanerUpper          = (*WebhookHandler)(nil)
	_ caddyfile.Unmarshaler       = (*WebhookHandler)(nil)
	_ caddyhttp.MiddlewareHandler = (*WebhookHandler)(nil)
)
