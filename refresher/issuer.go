package refresher

import (
	"context"
	"time"
)

// Issuer exchanges a pair for the next one. Implementations must be safe for
// concurrent use by several sessions.
type Issuer interface {
	// Profile says how the issuer treats what it issued. It never changes.
	Profile() Profile

	// Prepare connects: name resolution, TCP and TLS, no secret sent. Its error
	// means that nothing was sent. The caller calls Send once or Close.
	Prepare(ctx context.Context) (Exchange, error)
}

// Exchange is one attempt on its own fresh connection.
type Exchange interface {
	// Send writes the request once and reads the answer to its end. It never
	// repeats, redirects or reuses. After ctx's deadline it gives up.
	Send(ctx context.Context, current Pair) Answer

	// Close ends the connection; after Send it does nothing.
	Close()
}

// Profile is what is known of an issuer's behaviour; it is configuration, never
// guessed at run time (rotation.md 1.5).
type Profile struct {
	// RevokesPrevious: the previous access token dies the moment the next pair
	// is issued. Requests are then held at the gate during the exchange.
	RevokesPrevious bool

	// NeedsAccess: the exchange must carry the current access token, and an
	// expired one is refused. With AcceptsExpired it may have expired.
	NeedsAccess    bool
	AcceptsExpired bool

	// SendsAccess: the exchange carries the access token, though it need not.
	SendsAccess bool

	// ReuseInterval is how long a spent refresh token is accepted again; 0 is
	// never, and then an attempt whose outcome is unknown is not repeated
	// blindly.
	ReuseInterval time.Duration

	// RefreshLifetime is how long a refresh token lives unused. A pair is
	// exchanged after a third of it even if its access token lives on. 0: not
	// known.
	RefreshLifetime time.Duration

	// HoldOff overrides how long after an unknown outcome the generation is
	// left alone; 0 derives it from the lead (lead/2.5, 4 s to 30 s).
	HoldOff time.Duration

	// Timeout bounds connecting and, separately, the exchange itself.
	Timeout time.Duration
}

// Class says what an answer means for the refresh token that was sent
// (rotation.md 7.1, contract 3b).
type Class uint8

// The classes.
const (
	// ClassOK: a complete answer with a usable pair.
	ClassOK Class = iota + 1
	// ClassNotSent: not one byte of the request left; nothing was spent.
	ClassNotSent
	// ClassRetry: the issuer answered that it did not do it, and may later.
	ClassRetry
	// ClassQuiet: a complete answer that leaves open whether it was done (502,
	// 504, …): tried again, but only after the hold-off.
	ClassQuiet
	// ClassRedirect: a 3xx; never followed, tried again slowly.
	ClassRedirect
	// ClassConfig: refused for a reason that will not heal by itself; nothing
	// was spent.
	ClassConfig
	// ClassUnauthorized: the issuer did not accept the access token that the
	// exchange carried.
	ClassUnauthorized
	// ClassRejected: the refresh token is finished.
	ClassRejected
	// ClassUnknown: sent, but no complete, usable answer. It may be spent.
	ClassUnknown
)

var classNames = [...]string{"", "ok", "not_sent", "retry", "quiet", "redirect", "config", "unauthorized", "rejected", "unknown"}

// String names the class as metrics and logs show it.
func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return "invalid"
}

// Answer is the outcome of [Exchange.Send].
type Answer struct {
	Class  Class
	Pair   Pair // ClassOK; an empty refresh token means: keep the one in use
	Status int  // HTTP status, 0 without a complete head

	// Vague: the issuer refused the request (400) and did not say why. It may be
	// the refresh token.
	Vague bool

	// RetryAfter is how long the issuer asked to be left alone; 0 if it did not.
	RetryAfter time.Duration

	// Offset is the issuer's clock minus ours, from its Date header, and
	// OffsetError how far that can be wrong; OffsetError 0 means not known.
	Offset      time.Duration
	OffsetError time.Duration

	// Err says what went wrong, for people; nil with ClassOK. It holds neither
	// a token nor text of the issuer's beyond an OAuth error code.
	Err error

	// Raw is the body of a 2xx answer that could not be used. The issuer has
	// probably committed, so it is kept (sealed) for an operator.
	Raw Secret
}

// Source is where a session's first pair comes from (contract 4).
type Source interface {
	// String names the source in logs: its kind and place, no secret.
	String() string

	// SignsIn reports whether Fetch makes a new login at the issuer. Such a
	// source is asked only when there is no pair to go on with.
	SignsIn() bool

	// Fetch returns the pair, [ErrNoPair] if there is none yet, or what went
	// wrong. A [*RetryError] says when to ask again.
	Fetch(ctx context.Context) (Pair, error)
}

// RetryError is a failure with advice on when to try again.
type RetryError struct {
	Err   error
	After time.Duration // at least this long; 0: the usual backoff
	Slow  bool          // will not heal by itself (wrong password): from a minute up
}

// Error implements error.
func (e *RetryError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *RetryError) Unwrap() error { return e.Err }
