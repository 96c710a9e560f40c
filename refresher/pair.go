package refresher

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of what an issuer or a source may hand over.
const (
	MaxAnswer       = 64 << 10 // bytes of an issuer's answer, of a tokens file, of an import
	MaxAccessToken  = 16 << 10
	MaxRefreshToken = 8 << 10
	MaxIDToken      = 16 << 10
	maxScope        = 4 << 10
	maxHandle       = 256
)

// ErrNoPair is what a [Source] returns that has no pair yet: a file that does
// not exist, a variable that is not set. It is no failure.
var ErrNoPair = errors.New("no token pair yet")

// Pair is an access token and its refresh token, as issued together.
type Pair struct {
	Access  Secret
	Refresh Secret // empty: the issuer named none, the one in use is kept

	// ExpiresIn is the access token's life as the issuer told it ("expires_in",
	// RFC 6749 section 5.1), counted from the request; 0 where it said nothing
	// usable.
	ExpiresIn time.Duration

	// ID is the ID token (OpenID Connect Core 1.0 section 12.2); empty where
	// there is none, or none that can be used: nothing depends on it.
	ID Secret

	// Scope is what the access token is good for, as the issuer told it; empty:
	// the same as before (RFC 6749 section 5.1).
	Scope string

	// RefreshID names the refresh token without being one (FusionAuth's
	// "refreshTokenId"); empty where the issuer has no such name.
	RefreshID string
}

// Fields are the JSON names under which a pair is looked for, each list in
// order of preference.
type Fields struct {
	Access    []string
	Refresh   []string
	ExpiresIn []string
	ID        []string
	Scope     []string
	RefreshID []string
}

// DefaultFields reads the three spellings in use: accessToken/refreshToken
// (7G), access_token/refresh_token (RFC 6749) and token/refreshToken
// (FusionAuth).
func DefaultFields() Fields {
	return Fields{
		Access:    []string{"accessToken", "access_token", "token"},
		Refresh:   []string{"refreshToken", "refresh_token"},
		ExpiresIn: []string{"expires_in", "expiresIn"},
		ID:        []string{"id_token", "idToken"},
		Scope:     []string{"scope"},
		RefreshID: []string{"refreshTokenId"},
	}
}

// ParsePair reads a pair from a JSON object. It is strict where a mistake would
// cost a session: names are exact, duplicate names, trailing data, invalid
// UTF-8, more than [MaxAnswer] bytes or a depth above 8 are errors, tokens are
// strings of characters that a header can carry. Other members are ignored.
// A missing access token is an error; a missing (or null) refresh token is not.
// An ID token, scope or refresh token's name of another form counts as none: a
// pair is not lost for what it can do without. No error repeats any of the text.
func ParsePair(body []byte, f Fields) (Pair, error) {
	obj, err := parseObject(body)
	if err != nil {
		return Pair{}, err
	}
	access, err := obj.token(f.Access, MaxAccessToken, headerSafe)
	if err != nil {
		return Pair{}, err
	}
	if access == "" {
		return Pair{}, fmt.Errorf("no access token under any of %q", f.Access)
	}
	refresh, err := obj.token(f.Refresh, MaxRefreshToken, visible)
	if err != nil {
		return Pair{}, err
	}
	return Pair{
		Access:    NewSecret(access),
		Refresh:   NewSecret(refresh),
		ExpiresIn: obj.seconds(f.ExpiresIn),
		ID:        NewSecret(obj.optional(f.ID, MaxIDToken, headerSafe)),
		Scope:     obj.optional(f.Scope, maxScope, visible),
		RefreshID: obj.optional(f.RefreshID, maxHandle, headerSafe),
	}, nil
}

// ParseExchange reads what a program sends that refreshes for itself, as JSON: a
// refresh token and, where the issuer wants it there, the access token. What is
// missing, or unusable, is empty.
func ParseExchange(body []byte, f Fields) (access, refresh string) {
	obj, err := parseObject(body)
	if err != nil {
		return "", ""
	}
	return obj.optional(f.Access, MaxAccessToken, headerSafe), obj.optional(f.Refresh, MaxRefreshToken, visible)
}

// optional is token without its errors.
func (o object) optional(names []string, limit int, allowed func(byte) bool) string {
	text, err := o.token(names, limit, allowed)
	if err != nil {
		return ""
	}
	return text
}

// headerSafe reports whether a token can stand in a header field as one value.
// RFC 6750's b64token is narrower, but issuers do use more of RFC 6749's VSCHAR
// ("1|abc"), and to refuse a committed answer is to lose the session.
func headerSafe(c byte) bool { return c > ' ' && c < 0x7f && c != ',' && c != '"' }

// visible is RFC 6749 appendix A's VSCHAR.
func visible(c byte) bool { return c >= ' ' && c < 0x7f }
