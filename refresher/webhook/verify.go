package webhook

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/net/http/httpguts"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

const (
	maxSignature     = 8 << 10
	minVerifySecret  = 16 // bytes; the secret was made by the sender, who may not know RFC 7518
	signatureLeeway  = time.Minute
	maxPublicKeyText = 64 << 10
)

// Errors of [Verifier.Read] and what to answer.
var (
	ErrUnauthenticated = errors.New("the webhook is not authenticated") // 401
	ErrTooLarge        = errors.New("the webhook's body is too large")  // 413
	ErrIncomplete      = errors.New("the webhook's body is incomplete") // 400
	ErrKeysUnavailable = errors.New("the keys to verify with cannot be had")
)

// VerifierConfig says how a sender proves who it is. At least one way is
// configured; each that is must hold. It does not print its contents.
type VerifierConfig struct {
	// HMACSecret verifies [SignatureHeader] by HS256, HS384 or HS512; at least 16
	// bytes.
	HMACSecret refresher.Secret

	// PublicKey verifies [SignatureHeader] by a key in PEM: a PKIX public key or
	// a certificate, of RSA from 2048 bits, P-256, P-384, P-521 or Ed25519.
	PublicKey []byte

	// JWKS verifies [SignatureHeader] by a set of public keys.
	JWKS *JWKS

	// Header is a field whose one value is HeaderValue; at least 16 bytes.
	Header      string
	HeaderValue refresher.Secret

	// Username and Password are wanted as basic authentication.
	Username string
	Password refresher.Secret
}

// Format implements [fmt.Formatter].
func (c VerifierConfig) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "webhook.VerifierConfig[redacted]")
}

// Verifier tells genuine webhooks from others, made by [NewVerifier]. It is safe
// for concurrent use and prints nothing of its keys.
type Verifier struct {
	cfg  VerifierConfig
	keys func(ctx context.Context, keyID string) ([]verifyKey, error) // nil: not by signature
}

// verifyKey is a key and the algorithms that it may be used with.
type verifyKey struct {
	key     any // crypto.PublicKey, or []byte for HMAC
	methods []string
}

// NewVerifier checks a configuration. Nothing is fetched. Its errors repeat no
// secret.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) {
	v := &Verifier{cfg: cfg}
	ways := 0
	if !cfg.HMACSecret.IsZero() {
		if len(cfg.HMACSecret.Reveal()) < minVerifySecret {
			return nil, fmt.Errorf("the signature's secret is shorter than %d bytes", minVerifySecret)
		}
		ways++
		key := verifyKey{key: []byte(cfg.HMACSecret.Reveal()), methods: []string{"HS256", "HS384", "HS512"}}
		v.keys = func(context.Context, string) ([]verifyKey, error) { return []verifyKey{key}, nil }
	}
	if len(cfg.PublicKey) > 0 {
		key, err := publicKey(cfg.PublicKey)
		if err != nil {
			return nil, err
		}
		ways++
		v.keys = func(context.Context, string) ([]verifyKey, error) { return []verifyKey{key}, nil }
	}
	if cfg.JWKS != nil {
		ways++
		v.keys = cfg.JWKS.find
	}
	switch {
	case ways > 1:
		return nil, errors.New("a signature is verified by one of a secret, a public key and a key set")
	case (cfg.Header == "") != cfg.HeaderValue.IsZero():
		return nil, errors.New("a header field and its secret belong together")
	case cfg.Header != "" && (!httpguts.ValidHeaderFieldName(cfg.Header) || len(cfg.HeaderValue.Reveal()) < minVerifySecret):
		return nil, fmt.Errorf("the header field is none, or its secret is shorter than %d bytes", minVerifySecret)
	case (cfg.Username == "") != cfg.Password.IsZero():
		return nil, errors.New("a user name and its password belong together")
	case ways == 0 && cfg.Header == "" && cfg.Username == "":
		return nil, errors.New("nothing says how a webhook proves where it comes from: a signature, a header field or basic authentication")
	}
	return v, nil
}

// Format implements [fmt.Formatter].
func (*Verifier) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "webhook.Verifier[redacted]") }

// Read returns the body of a request that is genuine, at most [MaxBody] bytes.
// What needs no body is checked before one is read. The error wraps
// [ErrUnauthenticated] (whatever was wrong: a caller learns no more),
// [ErrTooLarge], [ErrIncomplete], or [ErrKeysUnavailable] (503: the sender may be
// genuine).
func (v *Verifier) Read(r *http.Request) ([]byte, error) {
	if !v.header(r.Header) || !v.basic(r) {
		return nil, ErrUnauthenticated
	}
	var signature string
	if v.keys != nil {
		values := r.Header.Values(SignatureHeader)
		if len(values) != 1 || len(values[0]) > maxSignature {
			return nil, ErrUnauthenticated
		}
		signature = values[0]
	}
	if r.ContentLength > MaxBody {
		return nil, ErrTooLarge
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
	if len(body) > MaxBody {
		return nil, ErrTooLarge
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	if v.keys != nil {
		if err := v.signed(r.Context(), signature, body); err != nil {
			return nil, err
		}
	}
	return body, nil
}

func (v *Verifier) header(h http.Header) bool {
	if v.cfg.Header == "" {
		return true
	}
	values := h.Values(v.cfg.Header)
	return len(values) == 1 && same(values[0], v.cfg.HeaderValue.Reveal())
}

func (v *Verifier) basic(r *http.Request) bool {
	if v.cfg.Username == "" {
		return true
	}
	user, password, ok := r.BasicAuth()
	sameUser := same(user, v.cfg.Username)
	samePassword := same(password, v.cfg.Password.Reveal())
	return ok && sameUser && samePassword && len(r.Header.Values("Authorization")) == 1
}

// same compares in constant time, whatever the lengths.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// signed checks a signature: that a key of ours made it, by an algorithm that
// belongs to the key, and that it is for this body. FusionAuth's tell no time;
// where one does, it counts.
func (v *Verifier) signed(ctx context.Context, signature string, body []byte) error {
	parser := jwt.NewParser(jwt.WithLeeway(signatureLeeway))
	unverified, _, err := parser.ParseUnverified(signature, jwt.MapClaims{})
	if err != nil {
		return ErrUnauthenticated
	}
	if _, critical := unverified.Header["crit"]; critical {
		return ErrUnauthenticated // RFC 7515 section 4.1.11: an extension that is not known here
	}
	keyID, _ := unverified.Header["kid"].(string)
	keys, err := v.keys(ctx, keyID)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if !slices.Contains(key.methods, unverified.Method.Alg()) {
			continue
		}
		claims := jwt.MapClaims{}
		token, err := jwt.NewParser(jwt.WithLeeway(signatureLeeway), jwt.WithValidMethods(key.methods)).
			ParseWithClaims(signature, claims, func(*jwt.Token) (any, error) { return key.key, nil })
		if err != nil || !token.Valid {
			continue
		}
		if told, ok := claims[digestClaim].(string); ok && same(told, digest(body)) {
			return nil
		}
	}
	return ErrUnauthenticated
}

func publicKey(text []byte) (verifyKey, error) {
	block, _ := pem.Decode(text[:min(len(text), maxPublicKeyText)])
	if block == nil {
		return verifyKey{}, errors.New("the public key is not PEM")
	}
	var key crypto.PublicKey
	var err error
	switch block.Type {
	case "CERTIFICATE":
		var cert *x509.Certificate
		if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
			key = cert.PublicKey
		}
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	}
	if err != nil {
		return verifyKey{}, errors.New("the public key cannot be read: want a PKIX public key or a certificate in PEM")
	}
	methods := methodsFor(key)
	if len(methods) == 0 {
		return verifyKey{}, errors.New("the public key: want RSA of at least 2048 bits, P-256, P-384, P-521 or Ed25519")
	}
	return verifyKey{key: key, methods: methods}, nil
}
