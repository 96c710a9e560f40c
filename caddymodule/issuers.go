package caddymodule

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
)

func init() { caddy.RegisterModule(new(BearerIssuer)) }

// IssuerOptions are the options that all issuers have.
type IssuerOptions struct {
	// Bounds connecting to the issuer and, separately, the exchange. Default:
	// 10s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// Further header fields of the request. Placeholders in the values are
	// resolved when the configuration is provisioned.
	Header http.Header `json:"header,omitempty"`

	// The issuer as it is known by name, which gives the defaults of the options
	// revokes_previous, reuse_interval and refresh_lifetime: `7g`, `auth0`,
	// `cognito`, `connect2id`, `curity`, `dex`, `entra`, `fusionauth`,
	// `genauth`, `hydra`, `keycloak`, `okta` or `supabase`, each as it comes out
	// of the box. Default: by the kind of issuer.
	ProfileName string `json:"profile,omitempty"`

	// Whether the previous access token dies the moment the next pair is
	// issued. Requests then wait for the exchange at the gate. Default: by the
	// profile.
	RevokesPrevious *bool `json:"revokes_previous,omitempty"`

	// How long a spent refresh token is accepted again; -1 is never. Default: by
	// the profile.
	ReuseInterval caddy.Duration `json:"reuse_interval,omitempty"`

	// What a spent refresh token gets within the interval: the `same` successor
	// (default) or a `new` one.
	ReuseAnswer string `json:"reuse_answer,omitempty"`

	// How long a refresh token lives that is not used. A pair is exchanged after
	// a third of it, even if its access token lives on. Default: by the profile.
	RefreshLifetime caddy.Duration `json:"refresh_lifetime,omitempty"`

	// How long a pair is left alone after an exchange whose outcome is unknown.
	// Default: two fifths of the time between the exchange and the token's
	// expiry, at least 4s, at most 30s.
	HoldOff caddy.Duration `json:"hold_off,omitempty"`

	// The most exchanges a second with this issuer, over all sessions. Default:
	// 50.
	Rate float64 `json:"rate,omitempty"`

	// Allows plain http to an issuer that is not this machine. INSECURE: tokens
	// can be read on the network.
	InsecureHTTP bool `json:"insecure_http,omitempty"`

	// How the issuer's certificate is checked, and ours shown.
	TLS *TLSOptions `json:"tls,omitempty"`

	// The JSON names of the answer's members. Default: the spellings of 7G, RFC
	// 6749 and FusionAuth.
	Fields *FieldNames `json:"fields,omitempty"`
}

// TLSOptions say how a connection is secured.
type TLSOptions struct {
	// A file with the PEM certificates to trust in place of the system's.
	CA string `json:"ca,omitempty"`

	// Files with the PEM certificate and key to show to the server.
	ClientCertificate string `json:"client_certificate,omitempty"`
	ClientKey         string `json:"client_key,omitempty"`
}

// FieldNames are the JSON names under which an answer's members are found.
type FieldNames struct {
	Access    string `json:"access,omitempty"`
	Refresh   string `json:"refresh,omitempty"`
	ExpiresIn string `json:"expires_in,omitempty"`
}

func (f *FieldNames) fields() refresher.Fields {
	if f == nil {
		return refresher.Fields{}
	}
	list := func(name string) []string {
		if name == "" {
			return nil
		}
		return []string{name}
	}
	return refresher.Fields{Access: list(f.Access), Refresh: list(f.Refresh), ExpiresIn: list(f.ExpiresIn)}
}

func (t *TLSOptions) config() (*tls.Config, error) {
	if t == nil {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("tls ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls ca: %s holds no PEM certificate", t.CA)
		}
	}
	if (t.ClientCertificate == "") != (t.ClientKey == "") {
		return nil, errors.New("tls client_certificate: the certificate and its key belong together")
	}
	if t.ClientCertificate != "" {
		cert, err := tls.LoadX509KeyPair(t.ClientCertificate, t.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("tls client_certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

// BearerIssuer exchanges a pair by a POST that carries the current access token
// as `Authorization: Bearer` and the refresh token as JSON,
// `{"refreshToken": "…"}`, and that answers `{"accessToken": "…",
// "refreshToken": "…"}`: 7G's `POST /User/RefreshToken`. It sends
// `Version: 2.0` unless `header` says otherwise.
type BearerIssuer struct {
	// The endpoint: https, or http on this machine.
	URL string `json:"url,omitempty"`

	IssuerOptions

	// What stands before the access token. Default: `Bearer`; empty: the bare
	// token.
	Scheme *string `json:"scheme,omitempty"`

	// Whether an expired access token can still be exchanged. Default: false;
	// it is not tried.
	AcceptExpired bool `json:"accept_expired,omitempty"`

	refresher.Issuer `json:"-"`
	breaker          *breaker
	logger           *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (*BearerIssuer) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "token_refresh.issuers.bearer", New: func() caddy.Module { return new(BearerIssuer) }}
}

// Provision sets up the issuer; nothing is dialled.
func (b *BearerIssuer) Provision(ctx caddy.Context) error {
	cfg, err := b.config(caddy.NewReplacer())
	if err != nil {
		return fmt.Errorf("issuer bearer: %w", err)
	}
	made, err := issuer.NewBearer(cfg)
	if err != nil {
		return fmt.Errorf("issuer bearer: %w", err)
	}
	b.Issuer = made
	b.breaker, b.logger = breakerFor(b.URL, b.Rate), ctx.Logger()
	return nil
}

// config resolves the placeholders; repl nil leaves them.
func (b *BearerIssuer) config(repl *caddy.Replacer) (issuer.BearerConfig, error) {
	if err := b.check(); err != nil {
		return issuer.BearerConfig{}, err
	}
	known, err := b.profile(profiles["7g"])
	if err != nil {
		return issuer.BearerConfig{}, err
	}
	header, err := resolveHeader(repl, b.Header)
	if err != nil {
		return issuer.BearerConfig{}, err
	}
	cfg := issuer.BearerConfig{
		URL: b.URL, InsecureHTTP: b.InsecureHTTP, Scheme: b.Scheme,
		Header: header, Fields: b.Fields.fields(),
		Profile: refresher.Profile{
			RevokesPrevious: known.revokes,
			NeedsAccess:     true,
			AcceptsExpired:  b.AcceptExpired,
			ReuseInterval:   known.reuse,
			RefreshLifetime: known.lifetime,
			HoldOff:         time.Duration(b.HoldOff),
			Timeout:         time.Duration(b.Timeout),
		},
	}
	if repl != nil { // files are not read while a Caddyfile is adapted
		cfg.TLS, err = b.TLS.config()
	}
	return cfg, err
}

// unmarshalOption reads an option that is not the bearer issuer's own.
func (b *BearerIssuer) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	return b.unmarshalProfile(d, option)
}

// Limiter bounds a session's exchanges, together with those of all others that
// have the issuer.
func (b *BearerIssuer) Limiter(session string) refresher.Limiter {
	return &issuerLimiter{breaker: b.breaker, session: strings.ToLower(session), logger: b.logger}
}

func (o *IssuerOptions) check() error {
	for option, d := range map[string]caddy.Duration{
		"timeout": o.Timeout, "hold_off": o.HoldOff, "reuse_interval": o.ReuseInterval, "refresh_lifetime": o.RefreshLifetime,
	} {
		if d < 0 && !(option == "reuse_interval" && d == never) {
			return fmt.Errorf("%s: must not be negative", option)
		}
	}
	if o.Rate < 0 {
		return errors.New("rate: must not be negative")
	}
	switch o.ReuseAnswer {
	case "", "same", "new":
		return nil
	}
	return fmt.Errorf("reuse_interval: %q is neither same nor new", o.ReuseAnswer)
}

func resolveHeader(repl *caddy.Replacer, header http.Header) (http.Header, error) {
	out := header.Clone()
	if repl == nil {
		return out, nil
	}
	for name, values := range out {
		for i := range values {
			var err error
			if values[i], err = resolve(repl, "header "+name, values[i]); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// Interface guards
var (
	_ caddy.Provisioner = (*BearerIssuer)(nil)
	_ refresher.Issuer  = (*BearerIssuer)(nil)
	_ limited           = (*BearerIssuer)(nil)
)
