package caddymodule

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
)

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
	// `genauth`, `github`, `hydra`, `keycloak`, `okta` or `supabase`, each as it comes out
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
	// (default) or a `new` one. Both are dealt with alike: what is answered last
	// is used, and nothing is asked twice at once. It tells the sandbox what to
	// play, and readers what to expect.
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
	IDToken   string `json:"id_token,omitempty"`
	Scope     string `json:"scope,omitempty"`
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
	return refresher.Fields{
		Access: list(f.Access), Refresh: list(f.Refresh), ExpiresIn: list(f.ExpiresIn),
		ID: list(f.IDToken), Scope: list(f.Scope),
	}
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

// issuerBase is what the modules of all issuers are made of.
type issuerBase struct {
	IssuerOptions

	refresher.Issuer `json:"-"`
	breaker          *breaker
	logger           *zap.Logger
}

// use takes the issuer that the options led to; address is where it is.
func (b *issuerBase) use(ctx caddy.Context, address string, made refresher.Issuer) {
	b.Issuer = made
	b.breaker, b.logger = breakerFor(address, b.Rate), ctx.Logger()
}

// Limiter bounds a session's exchanges, together with those of all others that
// have the issuer.
func (b *issuerBase) Limiter(session string) refresher.Limiter {
	return &issuerLimiter{breaker: b.breaker, session: strings.ToLower(session), logger: b.logger}
}

// warnOfSecret tells of a secret that stands in the configuration itself.
func (b *issuerBase) warnOfSecret(option, value, address string) {
	warnOfSecret(b.logger, "the issuer's "+option, value, address)
}

func warnOfSecret(logger *zap.Logger, what, value, address string) {
	if value != "" && !placeholder.MatchString(value) && !onThisMachine(address) {
		logger.Warn(what+" stands in the configuration itself, which Caddy shows and saves; put {env.…} or {file.…} there",
			zap.String("url", address))
	}
}

// options resolves the placeholders; repl nil leaves them. usual are the
// defaults of the issuer's kind.
func (o *IssuerOptions) options(repl *caddy.Replacer, usual profile) (issuer.Options, error) {
	if err := o.check(); err != nil {
		return issuer.Options{}, err
	}
	known, err := o.profile(usual)
	if err != nil {
		return issuer.Options{}, err
	}
	header, err := resolveHeader(repl, o.Header)
	if err != nil {
		return issuer.Options{}, err
	}
	out := issuer.Options{
		InsecureHTTP: o.InsecureHTTP, Header: header, Fields: o.Fields.fields(),
		Profile: refresher.Profile{
			RevokesPrevious: known.revokes,
			ReuseInterval:   known.reuse,
			RefreshLifetime: known.lifetime,
			HoldOff:         time.Duration(o.HoldOff),
			Timeout:         time.Duration(o.Timeout),
		},
	}
	if repl != nil { // files are not read while a Caddyfile is adapted
		out.TLS, err = o.TLS.config()
	}
	return out, err
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

// resolveAll resolves several options; repl nil leaves them.
func resolveAll(repl *caddy.Replacer, options map[string]*string) error {
	if repl == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(options)) {
		value, err := resolve(repl, name, *options[name])
		if err != nil {
			return err
		}
		*options[name] = value
	}
	return nil
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

// Interface guard
var _ limited = (*issuerBase)(nil)
