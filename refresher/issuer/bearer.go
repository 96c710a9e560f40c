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
	client  *Client
	url     *url.URL
	prefix  string
	header  http.Header
	field   string
	profile refresher.Profile
	reader  reader
}

// NewBearer checks a configuration; nothing is dialled. Its error names what is
// wrong and repeats no secret.
func NewBearer(cfg BearerConfig) (*Bearer, error) {
	u, err := checkURL(cfg.URL, cfg.InsecureHTTP)
	if err != nil {
		return nil, err
	}
	header, err := checkHeader(cfg.Header, "Authorization")
	if err != nil {
		return nil, err
	}
	if _, ok := header["Version"]; !ok {
		header.Set("Version", "2.0")
	}
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
	profile := cfg.Profile
	profile.NeedsAccess = true
	if profile.Timeout < 0 {
		return nil, errors.New("the timeout is negative")
	}
	if profile.Timeout == 0 {
		profile.Timeout = DefaultTimeout
	}
	field := cfg.RequestField
	if field == "" {
		field = "refreshToken"
	}
	return &Bearer{
		client:  &Client{TLS: cfg.TLS, Timeout: profile.Timeout, InsecureHTTP: cfg.InsecureHTTP, Dial: cfg.Dial},
		url:     u,
		prefix:  prefix,
		header:  header,
		field:   field,
		profile: profile,
		reader:  reader{host: u.Host, dialect: bearerEndpoint, fields: withDefaults(cfg.Fields)},
	}, nil
}

// Profile implements [refresher.Issuer].
func (b *Bearer) Profile() refresher.Profile { return b.profile }

// Prepare implements [refresher.Issuer]; see [Client.Prepare].
func (b *Bearer) Prepare(ctx context.Context) (refresher.Exchange, error) {
	conn, err := b.client.Prepare(ctx, b.url)
	if err != nil {
		return nil, err
	}
	return &bearerExchange{bearer: b, conn: conn}, nil
}

// String names the issuer, without the query of its URL.
func (b *Bearer) String() string { return "bearer " + place(b.url) }

// Format implements [fmt.Formatter]: no verb reaches the header.
func (b *Bearer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, b.String()) }

type bearerExchange struct {
	bearer *Bearer
	conn   *Conn
}

// Send implements [refresher.Exchange]. A pair that cannot be put into a request
// is [refresher.ClassConfig]: it will not heal by itself, and nothing was spent.
func (e *bearerExchange) Send(ctx context.Context, current refresher.Pair) refresher.Answer {
	req, err := e.bearer.request(current)
	if err != nil {
		e.conn.Close()
		return refresher.Answer{Class: refresher.ClassConfig, Err: fmt.Errorf("%s: nothing was sent: %w", e.bearer.url.Host, err)}
	}
	return e.bearer.reader.answer(e.conn.Do(ctx, req))
}

// Close implements [refresher.Exchange].
func (e *bearerExchange) Close() { e.conn.Close() }

func (b *Bearer) request(current refresher.Pair) (Request, error) {
	access, refresh := current.Access.Reveal(), current.Refresh.Reveal()
	switch {
	case access == "":
		return Request{}, errors.New("there is no access token to send")
	case refresh == "":
		return Request{}, errors.New("there is no refresh token to send")
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
	_ refresher.Issuer   = (*Bearer)(nil)
	_ refresher.Exchange = (*bearerExchange)(nil)
	_ fmt.Formatter      = (*Bearer)(nil)
)
