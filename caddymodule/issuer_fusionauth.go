package caddymodule

import (
	"context"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
)

func init() { caddy.RegisterModule(new(FusionAuthIssuer)) }

// FusionAuthIssuer exchanges a pair by FusionAuth's own call,
// `POST /api/jwt/refresh` with `{"refreshToken": "…", "token": "…"}`, that
// answers `{"token": "…", "refreshToken": "…"}`.
type FusionAuthIssuer struct {
	// The server, such as `https://auth.example.com`.
	URL string `json:"url,omitempty"`

	issuerBase

	// The application whose tokens these are. A pair of another one is not sent.
	// Default: it is not checked.
	ApplicationID string `json:"application_id,omitempty"`

	// The tenant, where the server has several.
	TenantID string `json:"tenant_id,omitempty"`

	// The API key with which tokens are revoked; it is sent with nothing else.
	// Placeholders are resolved when the configuration is provisioned, here and
	// in the two options above.
	APIKey string `json:"api_key,omitempty"`

	revoker refresher.Revoker
}

// CaddyModule returns the Caddy module information.
func (*FusionAuthIssuer) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "token_refresh.issuers.fusionauth", New: func() caddy.Module { return new(FusionAuthIssuer) }}
}

// Provision sets up the issuer; nothing is dialled.
func (f *FusionAuthIssuer) Provision(ctx caddy.Context) error {
	cfg, err := f.config(caddy.NewReplacer())
	if err != nil {
		return fmt.Errorf("issuer fusionauth: %w", err)
	}
	made, err := issuer.NewFusionAuth(cfg)
	if err != nil {
		return fmt.Errorf("issuer fusionauth: %w", err)
	}
	f.use(ctx, f.URL, made)
	f.revoker = made
	f.warnOfSecret("api_key", f.APIKey, f.URL)
	return nil
}

// config resolves the placeholders; repl nil leaves them.
func (f *FusionAuthIssuer) config(repl *caddy.Replacer) (issuer.FusionAuthConfig, error) {
	o, err := f.options(repl, profiles["fusionauth"])
	if err != nil {
		return issuer.FusionAuthConfig{}, err
	}
	application, tenant, key := f.ApplicationID, f.TenantID, f.APIKey
	err = resolveAll(repl, map[string]*string{"application_id": &application, "tenant_id": &tenant, "api_key": &key})
	return issuer.FusionAuthConfig{
		URL: f.URL, ApplicationID: application, TenantID: tenant, APIKey: refresher.NewSecret(key), Options: o,
	}, err
}

// Revoke implements refresher.Revoker.
func (f *FusionAuthIssuer) Revoke(ctx context.Context, p refresher.Pair) error {
	return f.revoker.Revoke(ctx, p)
}

// UnmarshalCaddyfile reads the issuer; the options of all issuers can stand in
// its block, too (see [IssuerOptions]).
//
//	issuer fusionauth <url> {
//		application_id <id>
//		tenant_id <id>
//		api_key <key>
//	}
func (f *FusionAuthIssuer) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the kind
	if err := oneArg(d, &f.URL); err != nil {
		return err
	}
	own := map[string]*string{"application_id": &f.ApplicationID, "tenant_id": &f.TenantID, "api_key": &f.APIKey}
	err := f.unmarshalBlock(d, func(option string) (known bool, err error) {
		if to := own[option]; to != nil {
			return true, oneArg(d, to)
		}
		return false, nil
	})
	if err != nil {
		return err
	}
	cfg, err := f.config(nil)
	if err == nil {
		_, err = issuer.NewFusionAuth(cfg)
	}
	return wrapErr(d, err)
}

// Interface guards
var (
	_ caddy.Provisioner     = (*FusionAuthIssuer)(nil)
	_ caddyfile.Unmarshaler = (*FusionAuthIssuer)(nil)
	_ refresher.Issuer      = (*FusionAuthIssuer)(nil)
	_ refresher.Revoker     = (*FusionAuthIssuer)(nil)
)
