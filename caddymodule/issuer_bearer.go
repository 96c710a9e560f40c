package caddymodule

import (
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
)

func init() { caddy.RegisterModule(new(BearerIssuer)) }

// BearerIssuer exchanges a pair by a POST that carries the current access token
// as `Authorization: Bearer` and the refresh token as JSON,
// `{"refreshToken": "…"}`, and that answers `{"accessToken": "…",
// "refreshToken": "…"}`: 7G's `POST /User/RefreshToken`. It sends
// `Version: 2.0` unless `header` says otherwise.
type BearerIssuer struct {
	// The endpoint: https, or http on this machine.
	URL string `json:"url,omitempty"`

	issuerBase

	// What stands before the access token. Default: `Bearer`; empty: the bare
	// token.
	Scheme *string `json:"scheme,omitempty"`

	// Whether an expired access token can still be exchanged. Default: false;
	// it is not tried.
	AcceptExpired bool `json:"accept_expired,omitempty"`

	// The refresh token's name in the request. Default: `refreshToken`.
	RequestField string `json:"request_field,omitempty"`
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
	b.use(ctx, b.URL, made)
	return nil
}

// config resolves the placeholders; repl nil leaves them.
func (b *BearerIssuer) config(repl *caddy.Replacer) (issuer.BearerConfig, error) {
	o, err := b.options(repl, profiles["7g"])
	if err != nil {
		return issuer.BearerConfig{}, err
	}
	o.Profile.NeedsAccess, o.Profile.AcceptsExpired = true, b.AcceptExpired
	return issuer.BearerConfig{
		URL: b.URL, Scheme: b.Scheme, RequestField: b.RequestField,
		InsecureHTTP: o.InsecureHTTP, Header: o.Header, Fields: o.Fields, TLS: o.TLS, Profile: o.Profile,
	}, nil
}

// UnmarshalCaddyfile reads the issuer; the options of all issuers can stand in
// its block, too (see [IssuerOptions]).
//
//	issuer bearer <url> {
//		scheme <scheme>
//		accept_expired on|off
//		request_field <name>
//	}
func (b *BearerIssuer) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the kind
	if err := oneArg(d, &b.URL); err != nil {
		return err
	}
	err := b.unmarshalBlock(d, func(option string) (known bool, err error) {
		switch option {
		case "scheme":
			b.Scheme = new(string)
			return true, oneArg(d, b.Scheme)
		case "accept_expired":
			return true, onOffValue(d, &b.AcceptExpired)
		case "request_field":
			return true, oneArg(d, &b.RequestField)
		}
		return false, nil
	})
	if err != nil {
		return err
	}
	// What can be checked without secrets is checked here, where file and line
	// are known.
	cfg, err := b.config(nil)
	if err == nil {
		_, err = issuer.NewBearer(cfg)
	}
	return wrapErr(d, err)
}

// Interface guards
var (
	_ caddy.Provisioner     = (*BearerIssuer)(nil)
	_ caddyfile.Unmarshaler = (*BearerIssuer)(nil)
	_ refresher.Issuer      = (*BearerIssuer)(nil)
)
