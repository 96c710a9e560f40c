package refresher

import (
	"context"
	"errors"
)

// Revoker is what an [Issuer] may be, too: one that can be told to end a pair
// before its time.
type Revoker interface {
	// Revoke ends the pair at the issuer: the refresh token first, as that one
	// makes others, then the access token where the issuer has a call for it. A
	// pair that the issuer does not know (any more) counts as revoked. An error
	// says what was not revoked and may be a [*RetryError]; it is
	// [ErrNotRevocable] where trying again cannot help, and holds no token. To
	// revoke twice does no harm.
	//
	// The pair must not be exchanged at the same time, and not afterwards.
	Revoke(ctx context.Context, p Pair) error
}

// ErrNotRevocable is what [Revoker.Revoke] wraps where the issuer, as it is
// configured, has no call that would revoke the pair. The pair then stays good
// until it expires.
var ErrNotRevocable = errors.New("the issuer has no call to revoke this pair")
