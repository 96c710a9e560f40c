package webhook

import (
	"context"
	"errors"
	"slices"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// ErrSignature says that a token was not signed by a key of the set.
var ErrSignature = errors.New("the token's signature does not verify")

// VerifyToken reports whether a JWT was signed by a key of the set; what its
// claims say is not looked at. The error is [ErrSignature], or wraps
// [ErrKeysUnavailable].
func (j *JWKS) VerifyToken(ctx context.Context, token refresher.Secret) error {
	unverified, _, err := jwt.NewParser().ParseUnverified(token.Reveal(), jwt.MapClaims{})
	if err != nil {
		return ErrSignature
	}
	keyID, _ := unverified.Header["kid"].(string)
	keys, err := j.find(ctx, keyID)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if !slices.Contains(key.methods, unverified.Method.Alg()) {
			continue
		}
		_, err := jwt.NewParser(jwt.WithoutClaimsValidation(), jwt.WithValidMethods(key.methods)).
			Parse(token.Reveal(), func(*jwt.Token) (any, error) { return key.key, nil })
		if err == nil {
			return nil
		}
	}
	return ErrSignature
}
