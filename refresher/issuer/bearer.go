package issuer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

// BearerConfig describes an issuer that is asked with the current access token
// in the header and the refresh token in a JSON body (7G's
// POST /User/RefreshToken). Only URL is required.
type BearerConfig struct {
	// URL of the exchange: https, or http to localhost, 127.0.0.0/8 or ::1.
	URL string

	// InsecureHTTP allows plain http to any host. The tokens can then be read
	// on the network.
	InsecureHTTP bool

	// Scheme stands before the access token in the Authorization field; nil is
	// "Bearer", the empty string sends the bare token.
	Scheme *string

	// Header holds further fields, and takes the place of the default
	// "Version: 2.0" where it names that field (without values: none is sent).
	// Authorization and the fields of the connection cannot be set.
	Header http.Header `json:"-"`

	// RequestField is the refresh token's name in the request; "" is
	// "refreshToken".
	RequestField string

	// Fields are the names in the answer; an empty list takes
	// [refresher.DefaultFields]'.
	Fields refresher.Fields

	// TLS is [Client.TLS].
	TLS *tls.Config

	// Dial is [Client.Dial], for tests and unusual networks; nil dials TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error) `json:"-"`

	// Profile is what the session goes by. NeedsAccess is set whatever stands
	// here, Timeout 0 is [DefaultTimeout]; RevokesPrevious is the caller's to set.
	Profile refresher.Profile
}

// Format implements [fmt.Formatter]: headers can hold keys, too.
func (c BearerConfig) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "issuer.BearerConfig[redacted]")
}

// Bearer exchanges pairs as [BearerConfig] says. Make it with [NewBearer]; it is
// safe for concurrent use.
type Bearer struct {
	caller
	url    *url.URL
	prefix string
	field  string
}

// NewBearer checks a configuration; nothing is dialled. Its error names what is
// wrong and repeats no secret.
func NewBearer(cfg BearerConfig) (*Bearer, error) {
	u, err := endpoint.Parse(cfg.URL, cfg.InsecureHTTP)
	if err != nil {
		return nil, err
	}
	c, err := Options{
		InsecureHTTP: cfg.InsecureHTTP, Header: cfg.Header, Fields: cfg.Fields,
		TLS: cfg.TLS, Dial: cfg.Dial, Profile: cfg.Profile,
	}.caller(bearerEndpoint, "Authorization")
	if err != nil {
		return nil, err
	}
	if _, ok := c.header["Version"]; !ok {
		c.header.Set("Version", "2.0")
	}
	c.profile.NeedsAccess = true
	prefix := "Bearer "
	if cfg.Scheme != nil {
		switch {
		case *cfg.Scheme == "":
			prefix = ""
		case !fieldName(*cfg.Scheme):
			return nil, errors.New("the scheme is not one word")
		default:
			prefix = *cfg.Scheme + " "
		}
	}
	field := cfg.RequestField
	if field == "" {
		field = "refreshToken"
	}
	return &Bearer{caller: c, url: u, prefix: prefix, field: field}, nil
}

// Prepare implements [refresher.Issuer]; see [Client.Prepare].
func (b *Bearer) Prepare(ctx context.Context) (refresher.Exchange, error) {
	ex, err := b.prepare(ctx, b.url, b.request)
	if err != nil {
		return nil, err
	}
	return ex, nil
}

// String names the issuer, without the query of its URL.
func (b *Bearer) String() string { return "bearer " + place(b.url) }

// Format implements [fmt.Formatter]: no verb reaches the header.
func (b *Bearer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, b.String()) }

func (b *Bearer) request(current refresher.Pair) (Request, error) {
	access, refresh := current.Access.Reveal(), current.Refresh.Reveal()
	switch {
	case access == "":
		return Request{}, errors.New("there is no access token to send")
	case refresh == "":
		return Request{}, errNoRefresh
	case !fieldSafe(access):
		return Request{}, errHeaderUnsafe
	}
	body, err := jsonBody(map[string]string{b.field: refresh})
	if err != nil {
		return Request{}, err
	}
	return Request{
		Authorization: refresher.NewSecret(b.prefix + access),
		Header:        b.header,
		Body:          body,
	}, nil
}

// Interface guards
var (
	_ refresher.Issuer = (*Bearer)(nil)
	_ fmt.Formatter    = (*Bearer)(nil)
)
