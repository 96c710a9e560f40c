package refresher

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

const redacted = "[redacted]"

// Secret holds a token or a password. It cannot print: every way in which the
// standard library or zap turns a value into text yields "[redacted]". The one
// way to the text is [Secret.Reveal], so a search for that word finds every
// place where a secret leaves the type. It is not comparable with ==; use
// [Secret.Equal], which takes constant time.
//
// The zero value is the empty secret.
type Secret struct {
	_ [0]func() // not comparable

	// Behind a pointer: fmt calls no methods on what it reaches through an
	// unexported field, nor for %p, but shows an address at most.
	s *string
}

// NewSecret wraps text.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{s: &text}
}

// Reveal returns the text itself.
func (s Secret) Reveal() string {
	if s.s == nil {
		return ""
	}
	return *s.s
}

// IsZero reports whether the secret is empty.
func (s Secret) IsZero() bool { return s.s == nil }

// Equal compares two secrets in constant time (given their lengths).
func (s Secret) Equal(other Secret) bool {
	same := subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(other.Reveal()))
	return same == 1
}

// Fingerprint identifies the secret in logs and answers without telling it: the
// first four bytes of its SHA-256 in hex, as Caddy's own "hash" log filter has
// it. The empty secret has the empty fingerprint.
func (s Secret) Fingerprint() string {
	if s.IsZero() {
		return ""
	}
	sum := sha256.Sum256([]byte(s.Reveal()))
	return hex.EncodeToString(sum[:4])
}

// String implements [fmt.Stringer].
func (s Secret) String() string { return redacted }

// GoString implements [fmt.GoStringer].
func (s Secret) GoString() string { return redacted }

// Format implements [fmt.Formatter], so that no verb reaches the text.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText implements [encoding.TextMarshaler].
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements [json.Marshaler].
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// LogValue implements [slog.LogValuer].
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalLogObject implements [zapcore.ObjectMarshaler]; it shows the
// fingerprint only.
func (s Secret) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("fingerprint", s.Fingerprint())
	return nil
}

// Interface guards
var (
	_ fmt.Formatter           = Secret{}
	_ slog.LogValuer          = Secret{}
	_ zapcore.ObjectMarshaler = Secret{}
)
