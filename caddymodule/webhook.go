package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/webhook"
)

// Webhook is told of each rotation by FusionAuth's event `jwt.refresh`. Events
// wait on disk, sealed, until they are delivered: each at least once, those of
// one session in their order.
type Webhook struct {
	// Where events are sent: https, or http on this machine. What waits for a
	// webhook finds it again by its URL.
	URL string `json:"url,omitempty"`

	// The types of events to send. Default: all there are, which is
	// `jwt.refresh`.
	Events []string `json:"events,omitempty"`

	// Further header fields. Placeholders in the values are resolved when the
	// configuration is provisioned.
	Header http.Header `json:"header,omitempty"`

	// `required`: nobody gets a new pair before this webhook has answered 2xx.
	// Default: `none`.
	Transaction string `json:"transaction,omitempty"`

	// The ids that events name. Default: the access token's claims
	// `applicationId` and `tid`.
	ApplicationID string `json:"application_id,omitempty"`
	TenantID      string `json:"tenant_id,omitempty"`

	// The claim of the access token that is the user's id. Default: `sub`, if
	// that is a UUID.
	UserClaim string `json:"user_claim,omitempty"`

	// Bounds one delivery. Default: 10s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How many sessions' events are sent at a time. Default: 4.
	Parallel int `json:"parallel,omitempty"`

	// Allows plain http to another machine. INSECURE: events hold tokens.
	InsecureHTTP bool `json:"insecure_http,omitempty"`

	// Basic authentication.
	BasicAuth *BasicAuth `json:"basic_auth,omitempty"`

	// How the receiver's certificate is checked, and ours shown.
	TLS *TLSOptions `json:"tls,omitempty"`

	// How bodies are signed, in the field `X-FusionAuth-Signature-JWT`. Default:
	// not at all.
	Signature *Signature `json:"signature,omitempty"`

	hook *webhook.Hook
}

// BasicAuth are a name and a password; both may be placeholders.
type BasicAuth struct {
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
}

// Signature is what a body is signed with: a secret (HS256), or the private key
// in a PEM file (RS256, ES256 and their like, EdDSA).
type Signature struct {
	Secret string `json:"secret,omitempty"`
	Key    string `json:"key,omitempty"`
	KeyID  string `json:"key_id,omitempty"`
}

func (w *Webhook) provision(ctx caddy.Context) error {
	cfg, err := w.config(caddy.NewReplacer())
	if err != nil {
		return err
	}
	if w.hook, err = webhook.NewHook(cfg); err != nil {
		return err
	}
	if w.Signature != nil {
		warnOfSecret(ctx.Logger(), "the webhook's secret", w.Signature.Secret, w.URL)
	}
	if w.BasicAuth != nil {
		warnOfSecret(ctx.Logger(), "the webhook's password", w.BasicAuth.Password, w.URL)
	}
	return nil
}

// config resolves the placeholders; repl nil leaves them, and files unread.
func (w *Webhook) config(repl *caddy.Replacer) (webhook.HookConfig, error) {
	header, err := resolveHeader(repl, w.Header)
	if err != nil {
		return webhook.HookConfig{}, err
	}
	cfg := webhook.HookConfig{
		URL: w.URL, Events: w.Events, Header: header,
		ApplicationID: w.ApplicationID, TenantID: w.TenantID, UserClaim: w.UserClaim,
		Timeout: time.Duration(w.Timeout), Parallel: w.Parallel, InsecureHTTP: w.InsecureHTTP,
	}
	switch w.Transaction {
	case "", "none":
	case "required":
		cfg.Required = true
	default:
		return cfg, fmt.Errorf("transaction: want none or required, not %.40q", w.Transaction)
	}
	if w.BasicAuth != nil {
		name, password := w.BasicAuth.Username, w.BasicAuth.Password
		if err := resolveAll(repl, map[string]*string{"basic_auth": &name, "basic_auth password": &password}); err != nil {
			return cfg, err
		}
		cfg.Username, cfg.Password = name, refresher.NewSecret(password)
	}
	if repl == nil {
		return cfg, nil
	}
	if cfg.Signer, err = w.Signature.signer(repl); err != nil {
		return cfg, err
	}
	cfg.TLS, err = w.TLS.config()
	return cfg, err
}

func (s *Signature) signer(repl *caddy.Replacer) (*webhook.Signer, error) {
	if s == nil {
		return nil, nil
	}
	secret := s.Secret
	if err := resolveAll(repl, map[string]*string{"signature": &secret}); err != nil {
		return nil, err
	}
	switch {
	case (secret != "") == (s.Key != ""):
		return nil, errors.New("signature: want a secret or a key")
	case secret != "":
		return webhook.NewHMACSigner(refresher.NewSecret(secret), s.KeyID)
	}
	text, err := os.ReadFile(s.Key)
	if err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	defer clear(text)
	return webhook.NewKeySigner(text, s.KeyID)
}
