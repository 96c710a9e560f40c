package issuer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

// LoginConfig describes a call that signs in and answers a pair (7G's
// POST /User/Login). URL is required, and either Username and Password or Body.
type LoginConfig struct {
	// URL of the login, under the rules of [BearerConfig.URL].
	URL string

	// InsecureHTTP allows plain http to any host.
	InsecureHTTP bool

	// Username and Password are sent as {"username":…,"password":…}.
	Username, Password refresher.Secret

	// Body is a JSON text sent as it is, in place of the above.
	Body refresher.Secret

	// Header holds further fields; there are no default ones but Content-Type
	// and Accept. The fields of the connection cannot be set.
	Header http.Header `json:"-"`

	// Fields are the names in the answer; an empty list takes
	// [refresher.DefaultFields]'.
	Fields refresher.Fields

	// TLS is [Client.TLS].
	TLS *tls.Config

	// Dial is [Client.Dial], for tests and unusual networks; nil dials TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error) `json:"-"`

	// Timeout bounds connecting and, separately, the call; 0 is [DefaultTimeout].
	Timeout time.Duration
}

// Format implements [fmt.Formatter]: headers can hold keys, too.
func (c LoginConfig) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "issuer.LoginConfig[redacted]")
}

// Login is a source that signs in anew at each Fetch. Make it with [NewLogin];
// it is safe for concurrent use.
type Login struct {
	caller  caller
	url     *url.URL
	request Request
}

// NewLogin checks a configuration; nothing is dialled. Its error names what is
// wrong and repeats no secret.
func NewLogin(cfg LoginConfig) (*Login, error) {
	u, err := endpoint.Parse(cfg.URL, cfg.InsecureHTTP)
	if err != nil {
		return nil, err
	}
	body, err := loginBody(cfg)
	if err != nil {
		return nil, err
	}
	c, err := Options{
		InsecureHTTP: cfg.InsecureHTTP, Header: cfg.Header, Fields: cfg.Fields,
		TLS: cfg.TLS, Dial: cfg.Dial, Profile: refresher.Profile{Timeout: cfg.Timeout},
	}.caller(tokenEndpoint)
	if err != nil {
		return nil, err
	}
	return &Login{caller: c, url: u, request: Request{Header: c.header, Body: body}}, nil
}

func loginBody(cfg LoginConfig) (refresher.Secret, error) {
	named := !cfg.Username.IsZero() || !cfg.Password.IsZero()
	switch {
	case !cfg.Body.IsZero() && named:
		return refresher.Secret{}, errors.New("give either a user name and a password or a body")
	case !cfg.Body.IsZero():
		if !json.Valid([]byte(cfg.Body.Reveal())) {
			return refresher.Secret{}, errors.New("the body is not valid JSON")
		}
		return cfg.Body, nil
	case cfg.Username.IsZero() || cfg.Password.IsZero():
		return refresher.Secret{}, errors.New("a user name and a password are needed, or a body")
	}
	return jsonBody(map[string]string{
		"username": cfg.Username.Reveal(),
		"password": cfg.Password.Reveal(),
	})
}

// String implements [refresher.Source].
func (l *Login) String() string { return "login " + place(l.url) }

// Format implements [fmt.Formatter]: no verb reaches the password.
func (l *Login) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, l.String()) }

// SignsIn implements [refresher.Source]; it is true.
func (l *Login) SignsIn() bool { return true }

var errNoRefreshToken = errors.New("the login's answer holds no refresh token")

// Fetch implements [refresher.Source]. Every error is a [*refresher.RetryError]:
// slow where another try would fail the same way and might lock the account,
// soon where the server may not be up yet.
func (l *Login) Fetch(ctx context.Context) (refresher.Pair, error) {
	o, err := l.caller.call(ctx, l.url, l.request)
	if err != nil {
		return refresher.Pair{}, &refresher.RetryError{Err: fmt.Errorf("login: %w", err)}
	}
	a := l.caller.reader(l.url).answer(o)
	switch {
	case a.Class != refresher.ClassOK:
		return refresher.Pair{}, &refresher.RetryError{
			Err:   fmt.Errorf("login: %w", a.Err),
			After: a.RetryAfter,
			Slow:  slow(a.Class, o),
		}
	case a.Pair.Refresh.IsZero():
		return refresher.Pair{}, &refresher.RetryError{Err: fmt.Errorf("%s: %w", l.url.Host, errNoRefreshToken), Slow: true}
	}
	return a.Pair, nil
}

// slow reports whether a failed login is to be repeated from a minute up only: a
// complete answer says so that is neither a pair nor a passing trouble. A 2xx
// without a pair is one; some servers answer a wrong password with 200.
func slow(c refresher.Class, o Outcome) bool {
	switch c {
	case refresher.ClassNotSent, refresher.ClassRetry, refresher.ClassQuiet:
		return false
	case refresher.ClassUnknown:
		return o.Err == nil
	}
	return true
}

// Interface guards
var (
	_ refresher.Source = (*Login)(nil)
	_ fmt.Formatter    = (*Login)(nil)
)
