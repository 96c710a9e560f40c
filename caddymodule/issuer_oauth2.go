package caddymodule

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
)

func init() { caddy.RegisterModule(new(OAuth2Issuer)) }

// OAuth2Issuer exchanges a pair at an OAuth 2.0 token endpoint (RFC 6749 section
// 6): Auth0, GenAuth, Keycloak, Okta and most others. Placeholders in its options
// other than URLs are resolved when the configuration is provisioned.
type OAuth2Issuer struct {
	// The token endpoint: https, or http on this machine.
	URL string `json:"url,omitempty"`

	// In place of it, the issuer whose metadata name the endpoints (RFC 8414,
	// OpenID Connect Discovery). It is asked with the first exchange, not when
	// the configuration is loaded. The endpoints must be on its host.
	Discover string `json:"discover,omitempty"`

	issuerBase

	// The client, and its secret if it has one.
	ClientID     string `json:"client_id,omitempty"`
	ClientSecret string `json:"client_secret,omitempty"`

	// How the client authenticates itself: `client_secret_basic`,
	// `client_secret_post`, `private_key_jwt` or `none`. Default: the first where
	// there is a secret, else the last. No other one is ever tried.
	AuthMethod string `json:"auth_method,omitempty"`

	// For `private_key_jwt`: the file with the private key, PEM or a JSON Web
	// Key; its `kid` and the algorithm, where the key itself does not say or says
	// otherwise; and whom the assertions are for: `issuer`, `token_endpoint` or a
	// name of its own. Default: the issuer where it is discovered, else the token
	// endpoint.
	PrivateKey        string `json:"private_key,omitempty"`
	KeyID             string `json:"key_id,omitempty"`
	SigningAlg        string `json:"signing_alg,omitempty"`
	AssertionAudience string `json:"assertion_audience,omitempty"`

	// How the request is written: `form` (default) or `json`.
	Body string `json:"body,omitempty"`

	// What is asked for. Default: what was granted before.
	Scope    string `json:"scope,omitempty"`
	Audience string `json:"audience,omitempty"`

	// Further parameters of an exchange.
	Parameters map[string][]string `json:"parameters,omitempty"`

	// The revocation endpoint (RFC 7009). Default: the discovered one.
	RevokeURL string `json:"revoke_url,omitempty"`

	// Where people sign in for `caddy token-refresh login`: the authorization
	// endpoint (RFC 6749), and the one for device codes (RFC 8628). Default: the
	// discovered ones.
	AuthorizationURL string `json:"authorization_url,omitempty"`
	DeviceURL        string `json:"device_url,omitempty"`

	client *issuer.OAuth2
}

// CaddyModule returns the Caddy module information.
func (*OAuth2Issuer) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "token_refresh.issuers.oauth2", New: func() caddy.Module { return new(OAuth2Issuer) }}
}

// Provision sets up the issuer; nothing is dialled.
func (o *OAuth2Issuer) Provision(ctx caddy.Context) error {
	cfg, err := o.config(caddy.NewReplacer())
	if err != nil {
		return fmt.Errorf("issuer oauth2: %w", err)
	}
	made, err := issuer.NewOAuth2(cfg)
	if err != nil {
		return fmt.Errorf("issuer oauth2: %w", err)
	}
	address := cmp.Or(o.URL, o.Discover)
	o.use(ctx, address, made)
	o.client = made
	o.warnOfSecret("client_secret", o.ClientSecret, address)
	return nil
}

// config resolves the placeholders; repl nil leaves them, and the key unread.
func (o *OAuth2Issuer) config(repl *caddy.Replacer) (issuer.OAuth2Config, error) {
	opts, err := o.options(repl, profile{})
	if err != nil {
		return issuer.OAuth2Config{}, err
	}
	cfg := issuer.OAuth2Config{
		TokenURL: o.URL, Issuer: o.Discover, RevokeURL: o.RevokeURL,
		AuthorizationURL: o.AuthorizationURL, DeviceURL: o.DeviceURL,
		ClientID: o.ClientID, AuthMethod: o.AuthMethod,
		KeyID: o.KeyID, SigningAlg: o.SigningAlg, AssertionAudience: o.AssertionAudience,
		Scope: o.Scope, Audience: o.Audience, JSON: o.Body == "json",
		Options: opts,
	}
	if o.Body != "" && o.Body != "form" && o.Body != "json" {
		return cfg, fmt.Errorf("body: want form or json, not %.40q", o.Body)
	}
	if (o.PrivateKey != "") != (o.AuthMethod == issuer.PrivateKeyJWT) {
		return cfg, errors.New("private_key: wanted with auth_method private_key_jwt, and only there")
	}
	secret := o.ClientSecret
	err = resolveAll(repl, map[string]*string{
		"client_id": &cfg.ClientID, "client_secret": &secret, "key_id": &cfg.KeyID,
		"assertion_audience": &cfg.AssertionAudience, "scope": &cfg.Scope, "audience": &cfg.Audience,
	})
	if err != nil {
		return cfg, err
	}
	cfg.ClientSecret = refresher.NewSecret(secret)
	if cfg.Parameters, err = o.parameters(repl); err != nil {
		return cfg, err
	}
	if repl != nil && o.PrivateKey != "" {
		cfg.Key, err = readClientKey(repl, o.PrivateKey)
	}
	return cfg, err
}

func (o *OAuth2Issuer) parameters(repl *caddy.Replacer) (url.Values, error) {
	out := url.Values{}
	for name, values := range o.Parameters {
		out[name] = slices.Clone(values)
		for i := range values {
			if err := resolveAll(repl, map[string]*string{"parameter " + name: &out[name][i]}); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func readClientKey(repl *caddy.Replacer, path string) (*issuer.ClientKey, error) {
	path, err := resolve(repl, "private_key", path)
	if err != nil {
		return nil, err
	}
	text, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("private_key: %w", err)
	}
	key, err := issuer.ParseClientKey(text)
	if err != nil {
		return nil, fmt.Errorf("private_key %s: %w", path, err)
	}
	return key, nil
}

// Revoke implements refresher.Revoker.
func (o *OAuth2Issuer) Revoke(ctx context.Context, p refresher.Pair) error {
	return o.client.Revoke(ctx, p)
}

// signIn implements signsInPeople.
func (o *OAuth2Issuer) signIn() *issuer.OAuth2 { return o.client }

// UnmarshalCaddyfile reads the issuer; the options of all issuers can stand in
// its block, too (see [IssuerOptions]).
//
//	issuer oauth2 <token url>|discover <issuer> {
//		client_id <id>
//		client_secret <secret>
//		auth_method client_secret_basic|client_secret_post|private_key_jwt|none
//		private_key <file>
//		key_id <kid>
//		signing_alg <alg>
//		assertion_audience issuer|token_endpoint|<name>
//		body form|json
//		scope <scope…>
//		audience <audience>
//		parameter <name> <value>
//		revoke_url <url>
//		authorization_url <url>
//		device_url <url>
//	}
func (o *OAuth2Issuer) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the kind
	switch args := d.RemainingArgs(); {
	case len(args) == 1 && args[0] != "discover":
		o.URL = args[0]
	case len(args) == 2 && args[0] == "discover":
		o.Discover = args[1]
	default:
		return d.Err("want the token endpoint's URL, or discover and the issuer's")
	}
	if err := o.unmarshalBlock(d, func(option string) (known bool, err error) { return o.unmarshalOwn(d, option) }); err != nil {
		return err
	}
	cfg, err := o.config(nil)
	if err == nil {
		err = cfg.Check()
	}
	return wrapErr(d, err)
}

func (o *OAuth2Issuer) unmarshalOwn(d *caddyfile.Dispenser, option string) (known bool, err error) {
	to := map[string]*string{
		"client_id": &o.ClientID, "client_secret": &o.ClientSecret, "auth_method": &o.AuthMethod,
		"private_key": &o.PrivateKey, "key_id": &o.KeyID, "signing_alg": &o.SigningAlg, "assertion_audience": &o.AssertionAudience,
		"body": &o.Body, "audience": &o.Audience, "revoke_url": &o.RevokeURL,
		"authorization_url": &o.AuthorizationURL, "device_url": &o.DeviceURL,
	}[option]
	switch {
	case to != nil:
		return true, oneArg(d, to)
	case option == "scope":
		o.Scope = strings.Join(d.RemainingArgs(), " ")
		if o.Scope == "" {
			return true, argErr(d)
		}
		return true, nil
	case option == "parameter":
		var name, value string
		if !d.AllArgs(&name, &value) {
			return true, argErr(d)
		}
		if o.Parameters == nil {
			o.Parameters = map[string][]string{}
		}
		o.Parameters[name] = append(o.Parameters[name], value)
		return true, nil
	}
	return false, nil
}

// Interface guards
var (
	_ caddy.Provisioner     = (*OAuth2Issuer)(nil)
	_ caddyfile.Unmarshaler = (*OAuth2Issuer)(nil)
	_ refresher.Issuer      = (*OAuth2Issuer)(nil)
	_ refresher.Revoker     = (*OAuth2Issuer)(nil)
	_ signsInPeople         = (*OAuth2Issuer)(nil)
)
