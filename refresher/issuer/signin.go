package issuer

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// What a person's login, by a browser or with a device code, has in common.

// ErrSignIn is what errors wrap that say that a login came to nothing: it was
// refused, or what came back is not what it should be. It has to begin again.
var ErrSignIn = errors.New("the login came to nothing")

var errNothingGranted = fmt.Errorf("%w: the issuer gave no refresh token; ask for the scope that brings one (often offline_access), and see that the client may refresh", ErrSignIn)

// signInScope is the scope that a login asks for.
func (o *OAuth2) signInScope(asked string) (string, error) {
	if asked == "" {
		asked = o.scope
	}
	for i := range len(asked) { // RFC 6749 section 3.3
		if c := asked[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return "", errors.New("scope: it holds a character that no scope has")
		}
	}
	return strings.Join(strings.Fields(asked), " "), nil
}

// public are the parameters of a login that may stand in a browser's address
// line: of the configured ones only those that are known to be for this.
func (o *OAuth2) public(scope string) url.Values {
	params := url.Values{"client_id": {o.auth.id}}
	if scope != "" {
		params.Set("scope", scope)
	}
	for _, name := range []string{"audience", "resource"} { // RFC 8707 section 2.1
		if values := o.parameters[name]; len(values) > 0 {
			params[name] = slices.Clone(values)
		}
	}
	return params
}

// grant asks the token endpoint for the pair that a login has led to. With an
// error code, it comes along.
func (o *OAuth2) grant(ctx context.Context, m metadata, params url.Values) (a refresher.Answer, code string, err error) {
	for name, values := range o.parameters {
		if name != "grant_type" && name != "scope" {
			params[name] = slices.Clone(values)
		}
	}
	req, err := o.authorised(params, m)
	if err != nil {
		return a, "", err
	}
	out, err := o.call(ctx, m.token, req)
	if err != nil {
		return a, "", fmt.Errorf("nothing was sent: %w", err)
	}
	a, code = o.reader(m.token).judge(out)
	return a, code, nil
}

// granted is the pair of an answer.
func granted(a refresher.Answer) (refresher.Pair, error) {
	switch {
	case a.Class != refresher.ClassOK:
		return refresher.Pair{}, fmt.Errorf("%w: %w", ErrSignIn, a.Err)
	case a.Pair.Refresh.IsZero():
		return refresher.Pair{}, errNothingGranted
	}
	return a.Pair, nil
}

// or says why there is no endpoint.
func (e optionalURL) or(what, option string) error {
	switch {
	case e.err != nil:
		return fmt.Errorf("the issuer's %s cannot be used: %w; %s names another", what, e.err, option)
	case e.url == nil:
		return fmt.Errorf("the issuer names no %s; the option %s can", what, option)
	}
	return nil
}
