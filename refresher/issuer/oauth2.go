package issuer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

// OAuth2Config describes a token endpoint after RFC 6749 section 6. TokenURL or
// Issuer is required, and ClientID.
type OAuth2Config struct {
	// TokenURL is the token endpoint, under the rules of [BearerConfig.URL].
	TokenURL string

	// Issuer, in place of TokenURL, is whose metadata name the endpoints
	// (RFC 8414, OpenID Connect Discovery 1.0): asked for with the first
	// exchange, then once an hour. The endpoints must be on the issuer's host.
	Issuer string

	// RevokeURL is the revocation endpoint (RFC 7009); "" is the discovered one,
	// if any.
	RevokeURL string

	// AuthorizationURL and DeviceURL are where a person signs in (RFC 6749
	// section 3.1, RFC 8628 section 3.1); "" is the discovered one, if any.
	AuthorizationURL, DeviceURL string

	ClientID     string
	ClientSecret refresher.Secret

	// AuthMethod is how the client authenticates itself: [ClientSecretBasic],
	// [ClientSecretPost], [PrivateKeyJWT] or [NoClientAuth]. "" is the first where
	// there is a secret, else the last.
	AuthMethod string

	// Key signs the assertions of PrivateKeyJWT. KeyID and SigningAlg take the
	// place of what the key itself says.
	Key               *ClientKey
	KeyID, SigningAlg string

	// AssertionAudience is whom an assertion is for: "issuer", "token_endpoint"
	// or any other text. "" is the issuer where it was discovered, else the token
	// endpoint.
	AssertionAudience string

	// JSON sends the parameters as a JSON object rather than as a form.
	JSON bool

	// Scope and Audience are sent where they are not empty.
	Scope, Audience string

	// Parameters are sent besides, with exchanges only.
	Parameters url.Values `json:"-"`

	Options
}

// Format implements [fmt.Formatter]: headers and parameters can hold keys, too.
func (c OAuth2Config) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "issuer.OAuth2Config[redacted]")
}

// Check reports what is wrong with the configuration as far as that shows
// without the private key.
func (c OAuth2Config) Check() error {
	_, err := c.build()
	return err
}

// OAuth2 exchanges pairs as [OAuth2Config] says. Make it with [NewOAuth2]; it is
// safe for concurrent use.
type OAuth2 struct {
	caller
	name       string
	fixed      metadata   // what is configured
	discovery  *discovery // nil: all of it is
	auth       clientAuth
	json       bool
	parameters url.Values
	scope      string
	doubts     doubts
}

// NewOAuth2 checks a configuration; nothing is dialled. Its error names what is
// wrong and repeats no secret.
func NewOAuth2(cfg OAuth2Config) (*OAuth2, error) {
	o, err := cfg.build()
	if err == nil && o.auth.method == PrivateKeyJWT && o.auth.key == nil {
		err = errors.New("private_key: missing, auth_method private_key_jwt needs one")
	}
	if err != nil {
		return nil, err
	}
	return o, nil
}

func (c OAuth2Config) build() (*OAuth2, error) {
	caller, err := c.caller(tokenEndpoint, "Authorization", "Content-Type")
	if err != nil {
		return nil, err
	}
	o := &OAuth2{caller: caller, json: c.JSON, scope: c.Scope, auth: clientAuth{
		method: c.AuthMethod, id: c.ClientID, secret: c.ClientSecret,
		key: c.Key, keyID: c.KeyID, alg: c.SigningAlg, audience: c.AssertionAudience,
	}}
	if err := o.auth.check(); err != nil {
		return nil, err
	}
	if err := o.locate(c); err != nil {
		return nil, err
	}
	o.parameters, err = c.parameters(o.auth.parameters())
	return o, err
}

// locate reads where the endpoints are.
func (o *OAuth2) locate(c OAuth2Config) error {
	if (c.TokenURL == "") == (c.Issuer == "") {
		return errors.New("want either the token endpoint's URL, or an issuer to discover it")
	}
	for _, e := range []struct {
		option, text string
		to           **url.URL
	}{
		{"revoke_url", c.RevokeURL, &o.fixed.revoke.url},
		{"authorization_url", c.AuthorizationURL, &o.fixed.authorize.url},
		{"device_url", c.DeviceURL, &o.fixed.device.url},
	} {
		if e.text == "" {
			continue
		}
		u, err := endpoint.Parse(e.text, c.InsecureHTTP)
		if err != nil {
			return fmt.Errorf("%s: %w", e.option, err)
		}
		*e.to = u
	}
	if c.TokenURL != "" {
		u, err := endpoint.Parse(c.TokenURL, c.InsecureHTTP)
		if err != nil {
			return err
		}
		if c.AssertionAudience == "issuer" {
			return errors.New("assertion_audience: the issuer is known where it is discovered; here, give its name itself")
		}
		o.fixed.token, o.name = u, "oauth2 "+place(u)
		return nil
	}
	u, err := endpoint.Parse(c.Issuer, c.InsecureHTTP)
	if err != nil {
		return err
	}
	if u.RawQuery != "" || u.ForceQuery {
		return errors.New("an issuer's URL has no query (RFC 8414 section 2)")
	}
	o.discovery, o.name = newDiscovery(o.caller, u), "oauth2 discover "+place(u)
	return nil
}

// parameters are those of each exchange but for the refresh token.
func (c OAuth2Config) parameters(reserved []string) (url.Values, error) {
	params := url.Values{"grant_type": {"refresh_token"}}
	for name, value := range map[string]string{"scope": c.Scope, "audience": c.Audience} {
		if value != "" {
			params.Set(name, value)
		}
	}
	for name, values := range c.Parameters {
		_, ours := params[name]
		switch {
		case name == "":
			return nil, errors.New("parameter: the name is missing")
		case ours || name == "refresh_token" || slices.Contains(reserved, name):
			return nil, fmt.Errorf("parameter %.40q: it is set already, or by another option", name)
		case c.JSON && len(values) > 1:
			return nil, fmt.Errorf("parameter %.40q: a JSON body has each name once", name)
		}
		params[name] = slices.Clone(values)
	}
	return params, nil
}

// Prepare implements [refresher.Issuer]; see [Client.Prepare]. Endpoints that
// are not known yet are discovered first; that they cannot be means that nothing
// was sent.
func (o *OAuth2) Prepare(ctx context.Context) (refresher.Exchange, error) {
	m, err := o.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	ex, err := o.prepare(ctx, m.token, func(p refresher.Pair) (Request, error) { return o.request(p, m) })
	if err != nil {
		return nil, err
	}
	ex.settle = o.settle
	return ex, nil
}

func (o *OAuth2) endpoints(ctx context.Context) (metadata, error) {
	if o.discovery == nil {
		return o.fixed, nil
	}
	m, err := o.discovery.endpoints(ctx)
	if o.fixed.revoke.url != nil {
		m.revoke = o.fixed.revoke
	}
	if o.fixed.authorize.url != nil {
		m.authorize = o.fixed.authorize
	}
	if o.fixed.device.url != nil {
		m.device = o.fixed.device
	}
	return m, err
}

// request is the exchange itself. Its token_type is not looked at in the answer:
// without a proof of possession nothing but a bearer token can be issued, some
// servers leave it out, and to refuse a committed answer is to lose the session.
func (o *OAuth2) request(p refresher.Pair, m metadata) (Request, error) {
	if p.Refresh.IsZero() {
		return Request{}, errNoRefresh
	}
	params := url.Values{}
	for name, values := range o.parameters {
		params[name] = values
	}
	params.Set("refresh_token", p.Refresh.Reveal())
	return o.authorised(params, m)
}

// authorised is a request of the client's with these parameters.
func (o *OAuth2) authorised(params url.Values, m metadata) (Request, error) {
	authorization, err := o.auth.sign(params, m)
	if err != nil {
		return Request{}, err
	}
	r := Request{Authorization: authorization, Header: o.header.Clone()}
	if !o.json {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Body = refresher.NewSecret(params.Encode())
		return r, nil
	}
	members := map[string]string{}
	for name := range params {
		members[name] = params.Get(name)
	}
	r.Body, err = jsonBody(members)
	return r, err
}

func (o *OAuth2) settle(a refresher.Answer, code string, sent refresher.Pair) refresher.Answer {
	if o.discovery != nil && (a.Class == refresher.ClassRedirect || a.Status == http.StatusNotFound || a.Status == http.StatusGone) {
		o.discovery.doubt() // it has moved, perhaps
	}
	return o.doubts.settle(a, code, sent)
}

// String names the issuer, without the query of its URL.
func (o *OAuth2) String() string { return o.name }

// Format implements [fmt.Formatter]: no verb reaches the secret.
func (o *OAuth2) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, o.name) }

// Interface guards
var (
	_ refresher.Issuer  = (*OAuth2)(nil)
	_ refresher.Revoker = (*OAuth2)(nil)
	_ fmt.Formatter     = (*OAuth2)(nil)
)
