package issuer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// Options say how an issuer is spoken to, whatever its kind.
type Options struct {
	// InsecureHTTP allows plain http to any host. The tokens can then be read
	// on the network.
	InsecureHTTP bool

	// Header holds further fields. Those of the connection, and those in which
	// the issuer's kind puts something itself, cannot be set.
	Header http.Header `json:"-"`

	// Fields are the names in the answer; an empty list takes
	// [refresher.DefaultFields]'.
	Fields refresher.Fields

	// TLS is [Client.TLS].
	TLS *tls.Config

	// Dial is [Client.Dial], for tests and unusual networks; nil dials TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error) `json:"-"`

	// Profile is what the session goes by. Timeout 0 is [DefaultTimeout];
	// RevokesPrevious is the caller's to set.
	Profile refresher.Profile
}

// Format implements [fmt.Formatter]: headers can hold keys, too.
func (o Options) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, "issuer.Options[redacted]") }

// caller is what all issuers and the login are made of: how a call is made, and
// how its answer is read.
type caller struct {
	client  *Client
	header  http.Header
	fields  refresher.Fields
	dialect dialect
	profile refresher.Profile
}

// caller checks the options; reserved are the header fields that are not the
// configuration's.
func (o Options) caller(d dialect, reserved ...string) (caller, error) {
	header, err := checkHeader(o.Header, reserved...)
	if err != nil {
		return caller{}, err
	}
	profile := o.Profile
	if profile.Timeout < 0 {
		return caller{}, errors.New("the timeout is negative")
	}
	if profile.Timeout == 0 {
		profile.Timeout = DefaultTimeout
	}
	return caller{
		client:  &Client{TLS: o.TLS, Timeout: profile.Timeout, InsecureHTTP: o.InsecureHTTP, Dial: o.Dial},
		header:  header,
		fields:  withDefaults(o.Fields),
		dialect: d,
		profile: profile,
	}, nil
}

// Profile implements [refresher.Issuer].
func (c caller) Profile() refresher.Profile { return c.profile }

// reader reads the answers of one of the issuer's endpoints.
func (c caller) reader(u *url.URL) reader {
	return reader{host: u.Host, dialect: c.dialect, fields: c.fields}
}

// prepare connects for an exchange whose request write makes.
func (c caller) prepare(ctx context.Context, u *url.URL, write func(refresher.Pair) (Request, error)) (*exchange, error) {
	conn, err := c.client.Prepare(ctx, u)
	if err != nil {
		return nil, err
	}
	return &exchange{conn: conn, reader: c.reader(u), write: write}, nil
}

// call makes a call that is no exchange. Its error is that of the connection:
// nothing was sent.
func (c caller) call(ctx context.Context, u *url.URL, r Request) (Outcome, error) {
	conn, err := c.client.Prepare(ctx, u)
	if err != nil {
		return Outcome{}, err
	}
	return conn.Do(ctx, r), nil
}

var errNoRefresh = errors.New("there is no refresh token to send")

// exchange is one attempt at any issuer.
type exchange struct {
	conn   *Conn
	reader reader
	write  func(refresher.Pair) (Request, error)
	settle func(a refresher.Answer, code string, sent refresher.Pair) refresher.Answer // nil: the answer stands
}

// Send implements [refresher.Exchange]. A pair that cannot be put into a request
// is [refresher.ClassConfig]: it will not heal by itself, and nothing was spent.
func (e *exchange) Send(ctx context.Context, current refresher.Pair) refresher.Answer {
	req, err := e.write(current)
	if err != nil {
		e.conn.Close()
		return refresher.Answer{Class: refresher.ClassConfig, Err: fmt.Errorf("%s: nothing was sent: %w", e.reader.host, err)}
	}
	a, code := e.reader.judge(e.conn.Do(ctx, req))
	if e.settle != nil {
		a = e.settle(a, code, current)
	}
	return a
}

// Close implements [refresher.Exchange].
func (e *exchange) Close() { e.conn.Close() }

// Interface guard
var _ refresher.Exchange = (*exchange)(nil)
