package issuer

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// errTokenType is RFC 7009's unsupported_token_type.
var errTokenType = errors.New("the issuer does not revoke tokens of this type")

// Revoke implements [refresher.Revoker] after RFC 7009. With the refresh token
// most servers end the whole grant (section 2.1). The access token comes second,
// for those that do not; that a server has no way to revoke it, as it is a JWT,
// say, is no failure.
func (o *OAuth2) Revoke(ctx context.Context, p refresher.Pair) error {
	if p.Refresh.IsZero() {
		return errNoRefresh
	}
	m, err := o.endpoints(ctx)
	if err != nil {
		return fmt.Errorf("revoking: %w", err)
	}
	if err := m.revoke.or("revocation endpoint", "revoke_url"); err != nil {
		return fmt.Errorf("%s: %w: %w", o.name, refresher.ErrNotRevocable, err)
	}
	err = o.revoke(ctx, m, p.Refresh, "refresh_token")
	if errors.Is(err, errTokenType) {
		return fmt.Errorf("the refresh token was not revoked: %w: %w", refresher.ErrNotRevocable, err)
	}
	if err != nil {
		return fmt.Errorf("the refresh token was not revoked: %w", err)
	}
	if p.Access.IsZero() {
		return nil
	}
	if err := o.revoke(ctx, m, p.Access, "access_token"); err != nil && !errors.Is(err, errTokenType) {
		return fmt.Errorf("the refresh token was revoked, but not the access token: %w", err)
	}
	return nil
}

func (o *OAuth2) revoke(ctx context.Context, m metadata, token refresher.Secret, hint string) error {
	req, err := o.authorised(url.Values{"token": {token.Reveal()}, "token_type_hint": {hint}}, m)
	if err != nil {
		return err
	}
	out, err := o.call(ctx, m.revoke.url, req)
	if err == nil && out.Err == nil && out.BodyErr == nil && oauthError(out.Body) == "unsupported_token_type" {
		return errTokenType
	}
	return o.revoked(m.revoke.url, out, err)
}

// revoked reads the answer to a revocation. What the issuer may do later is a
// [*refresher.RetryError].
func (c caller) revoked(u *url.URL, o Outcome, err error) error {
	if err != nil {
		return &refresher.RetryError{Err: fmt.Errorf("nothing was sent: %w", err)}
	}
	if o.Err == nil && successful(o) {
		return nil
	}
	r := c.reader(u)
	code := ""
	if o.Err == nil && o.BodyErr == nil {
		code = c.dialect.errorCode(o.Body)
	}
	err = r.explain(o, code, nil)
	switch classify(c.dialect, o, code, nil) {
	case refresher.ClassNotSent, refresher.ClassUnknown, refresher.ClassRetry, refresher.ClassQuiet:
		return &refresher.RetryError{Err: err, After: leaveAlone(o)}
	}
	return err
}
