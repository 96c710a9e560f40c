package issuer

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/oauth2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// CodeLogin is a login by a browser that has begun: an authorization code with
// PKCE (RFC 6749 section 4.1, RFC 7636) that comes back to this machine (RFC 8252
// section 7.3). It does not print its contents.
type CodeLogin struct {
	// URL is where the person's browser goes. It holds the state, which is good
	// for nothing but this login.
	URL string

	issuer   *OAuth2
	at       metadata
	redirect string
	state    string
	verifier refresher.Secret
}

// Format implements [fmt.Formatter].
func (l *CodeLogin) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "issuer.CodeLogin["+l.issuer.name+"]")
}

// CodeAnswer is what the browser brings back.
type CodeAnswer struct {
	Code   refresher.Secret
	State  string
	Issuer string // RFC 9207
	Error  string // in place of a code
}

// BeginCode begins a login whose answer goes to redirect, an http URL on a
// loopback address. An empty scope is the configured one. Endpoints that are not
// known yet are discovered.
func (o *OAuth2) BeginCode(ctx context.Context, redirect, scope string) (*CodeLogin, error) {
	if err := checkRedirect(redirect); err != nil {
		return nil, err
	}
	scope, err := o.signInScope(scope)
	if err != nil {
		return nil, err
	}
	m, err := o.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.authorize.or("authorization endpoint", "authorization_url"); err != nil {
		return nil, err
	}
	l := &CodeLogin{
		issuer: o, at: m, redirect: redirect, state: rand.Text(),
		verifier: refresher.NewSecret(oauth2.GenerateVerifier()),
	}
	params := m.authorize.url.Query() // what it has stays (RFC 6749 section 3.1)
	ours := o.public(scope)
	ours.Set("response_type", "code")
	ours.Set("redirect_uri", redirect)
	ours.Set("state", l.state)
	ours.Set("code_challenge", oauth2.S256ChallengeFromVerifier(l.verifier.Reveal()))
	ours.Set("code_challenge_method", "S256")
	if slices.Contains(strings.Fields(scope), "offline_access") && !params.Has("prompt") {
		ours.Set("prompt", "consent") // or it is ignored (OpenID Connect Core 1.0 section 11)
	}
	maps.Copy(params, ours)
	u := *m.authorize.url
	u.RawQuery = params.Encode()
	l.URL = u.String()
	return l, nil
}

// checkRedirect takes a loopback address only: the code must not travel.
func checkRedirect(text string) error {
	u, err := url.Parse(text)
	if err == nil {
		var addr netip.AddrPort
		if addr, err = netip.ParseAddrPort(strings.Replace(u.Host, "localhost:", "127.0.0.1:", 1)); err == nil && (u.Scheme != "http" || !addr.Addr().IsLoopback() ||
			u.User != nil || u.RawQuery != "" || u.Fragment != "" || !strings.HasPrefix(u.Path, "/")) {
			err = errors.New("it is another")
		}
	}
	if err != nil {
		return errors.New("redirect_uri: want one such as http://127.0.0.1:8765/callback")
	}
	return nil
}

// Finish takes the browser's answer and exchanges its code for a pair. It is to
// be called once. Its error wraps [ErrSignIn] where the answer is to blame.
func (l *CodeLogin) Finish(ctx context.Context, a CodeAnswer) (refresher.Pair, error) {
	if err := l.check(a); err != nil {
		return refresher.Pair{}, fmt.Errorf("%w: %w", ErrSignIn, err)
	}
	got, _, err := l.issuer.grant(ctx, l.at, url.Values{
		"grant_type": {"authorization_code"}, "code": {a.Code.Reveal()},
		"redirect_uri": {l.redirect}, "code_verifier": {l.verifier.Reveal()},
	})
	if err != nil {
		return refresher.Pair{}, err
	}
	return granted(got)
}

// check looks at everything that shows that the answer is to this login, before
// anything is sent: the state (RFC 6749 section 10.12), then who answers (RFC 9207
// section 2.4).
func (l *CodeLogin) check(a CodeAnswer) error {
	switch {
	case subtle.ConstantTimeCompare([]byte(a.State), []byte(l.state)) != 1:
		return errors.New("the answer's state is not the one that was sent: it belongs to another login, or somebody made it up")
	case l.at.issuer != "" && a.Issuer != "" && a.Issuer != l.at.issuer,
		l.at.namesSelf && a.Issuer == "":
		return errors.New("the answer does not come from the issuer that was asked (iss)")
	case a.Error != "":
		if !slices.Contains(registered, a.Error) {
			return errors.New("the issuer answered with an error that is not a registered one")
		}
		return fmt.Errorf("the issuer answered %s", a.Error)
	case a.Code.IsZero():
		return errors.New("the answer holds no code")
	}
	return nil
}
