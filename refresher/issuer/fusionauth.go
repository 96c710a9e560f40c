package issuer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

// FusionAuthConfig describes a FusionAuth server's own refresh call
// (POST /api/jwt/refresh). Only URL is required.
type FusionAuthConfig struct {
	// URL of the server, without /api; under the rules of [BearerConfig.URL].
	URL string

	// ApplicationID is whose tokens the session has. A pair whose access token
	// says that it is another's is not sent.
	ApplicationID string

	// TenantID is sent as X-FusionAuth-TenantId; a server with several tenants
	// needs it.
	TenantID string

	// APIKey is sent with revocations, and with nothing else.
	APIKey refresher.Secret

	Options
}

// fusionTenant is X-FusionAuth-TenantId as net/http spells it.
const fusionTenant = "X-Fusionauth-Tenantid"

// Format implements [fmt.Formatter]: headers can hold keys, too.
func (c FusionAuthConfig) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "issuer.FusionAuthConfig[redacted]")
}

// FusionAuth exchanges pairs as [FusionAuthConfig] says. Make it with
// [NewFusionAuth]; it is safe for concurrent use.
type FusionAuth struct {
	caller
	base        *url.URL
	refresh     *url.URL
	application string
	key         refresher.Secret
	doubts      doubts
}

// NewFusionAuth checks a configuration; nothing is dialled. Its error names what
// is wrong and repeats no secret.
func NewFusionAuth(cfg FusionAuthConfig) (*FusionAuth, error) {
	base, err := endpoint.Parse(cfg.URL, cfg.InsecureHTTP)
	if err != nil {
		return nil, err
	}
	if base.RawQuery != "" || base.ForceQuery || strings.Contains(base.Path, "/api/") {
		return nil, errors.New("the URL is the server's, such as https://auth.example.com: without /api/… and without a query")
	}
	c, err := cfg.caller(fusionEndpoint, "Authorization", "Content-Type", fusionTenant)
	if err != nil {
		return nil, err
	}
	c.profile.SendsAccess = true
	if cfg.TenantID != "" {
		if !fieldSafe(cfg.TenantID) {
			return nil, errors.New("tenant_id: it cannot stand in a header field")
		}
		c.header.Set(fusionTenant, cfg.TenantID)
	}
	if !fieldSafe(cfg.APIKey.Reveal()) {
		return nil, errors.New("api_key: it cannot stand in a header field")
	}
	root := *base
	if root.Path == "" {
		root.Path = "/" // JoinPath would make a relative path
	}
	return &FusionAuth{
		caller: c, base: base, refresh: root.JoinPath("api/jwt/refresh"),
		application: cfg.ApplicationID, key: cfg.APIKey,
	}, nil
}

// Prepare implements [refresher.Issuer]; see [Client.Prepare].
func (f *FusionAuth) Prepare(ctx context.Context) (refresher.Exchange, error) {
	ex, err := f.prepare(ctx, f.refresh, f.request)
	if err != nil {
		return nil, err
	}
	ex.settle = f.doubts.settle
	return ex, nil
}

// request holds the access token too, which FusionAuth passes on to its webhooks
// as the "original" of the new one.
func (f *FusionAuth) request(p refresher.Pair) (Request, error) {
	if p.Refresh.IsZero() {
		return Request{}, errNoRefresh
	}
	if id := applicationOf(p.Access); f.application != "" && id != "" && !strings.EqualFold(id, f.application) {
		return Request{}, errors.New("the access token belongs to another application than application_id")
	}
	members := map[string]string{"refreshToken": p.Refresh.Reveal()}
	if !p.Access.IsZero() {
		members["token"] = p.Access.Reveal()
	}
	body, err := jsonBody(members)
	return Request{Header: f.header, Body: body}, err
}

// applicationOf reads FusionAuth's "applicationId" out of an access token that
// it does not verify; "" where there is none.
func applicationOf(token refresher.Secret) string {
	text, claims := token.Reveal(), jwt.MapClaims{}
	text = text[:strings.LastIndexByte(text, '.')+1] // without the signature
	if _, _, err := jwt.NewParser().ParseUnverified(text, claims); err != nil && !errors.Is(err, jwt.ErrTokenUnverifiable) {
		return ""
	}
	id, _ := claims["applicationId"].(string)
	return id
}

// Revoke implements [refresher.Revoker]: the refresh token, that is. Access
// tokens of FusionAuth are JWTs, good until they expire.
//
// A refresh token whose name is known is revoked by that, with the API key or
// the access token; one that is not, itself, which takes the API key and puts it
// into the request's URL.
func (f *FusionAuth) Revoke(ctx context.Context, p refresher.Pair) error {
	u, r := *f.refresh, Request{Method: http.MethodDelete, Authorization: f.key, Header: f.header}
	switch {
	case p.RefreshID != "":
		u = *u.JoinPath(url.PathEscape(p.RefreshID))
		if f.key.IsZero() {
			if p.Access.IsZero() || !fieldSafe(p.Access.Reveal()) {
				return fmt.Errorf("%s: %w without an api_key or an access token", f, refresher.ErrNotRevocable)
			}
			r.Authorization = refresher.NewSecret("Bearer " + p.Access.Reveal())
		}
	case p.Refresh.IsZero():
		return errNoRefresh
	case f.key.IsZero():
		return fmt.Errorf("%s: %w without an api_key", f, refresher.ErrNotRevocable)
	default:
		u.RawQuery = url.Values{"token": {p.Refresh.Reveal()}}.Encode()
	}
	o, err := f.call(ctx, &u, r)
	if err == nil && o.Err == nil && o.Status == http.StatusNotFound {
		return nil // unknown is as good as revoked
	}
	if err = f.revoked(&u, o, err); err != nil {
		return fmt.Errorf("the refresh token was not revoked: %w", err)
	}
	return nil
}

// String names the issuer.
func (f *FusionAuth) String() string { return "fusionauth " + place(f.base) }

// Format implements [fmt.Formatter]: no verb reaches the key.
func (f *FusionAuth) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, f.String()) }

// Interface guards
var (
	_ refresher.Issuer  = (*FusionAuth)(nil)
	_ refresher.Revoker = (*FusionAuth)(nil)
	_ fmt.Formatter     = (*FusionAuth)(nil)
)
