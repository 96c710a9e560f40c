package webhook

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

const (
	// SignatureHeader is the field that carries the signature: a JWT with the
	// claim request_body_sha256, the base64 of the SHA-256 of the raw body.
	SignatureHeader = "X-FusionAuth-Signature-JWT"

	digestClaim = "request_body_sha256"

	minHMACSecret = 32 // bytes: RFC 7518 section 3.2 wants as many as the hash has
	minRSABits    = 2048
)

// Signer signs bodies as FusionAuth does. It prints nothing of its key.
type Signer struct {
	method jwt.SigningMethod
	keyID  string
	key    func() any // fmt follows pointers, but not functions
}

// NewHMACSigner signs with HS256. The secret has at least 32 bytes; keyID goes
// into the header as "kid" unless it is empty.
func NewHMACSigner(secret refresher.Secret, keyID string) (*Signer, error) {
	if len(secret.Reveal()) < minHMACSecret {
		return nil, fmt.Errorf("the signature's secret is shorter than %d bytes", minHMACSecret)
	}
	return &Signer{method: jwt.SigningMethodHS256, keyID: keyID, key: func() any { return []byte(secret.Reveal()) }}, nil
}

// NewKeySigner signs with the private key in a PEM text (PKCS #8, PKCS #1 or
// SEC 1): RS256 for RSA of at least 2048 bits, ES256, ES384 or ES512 by the
// curve, EdDSA for Ed25519.
func NewKeySigner(text []byte, keyID string) (*Signer, error) {
	key, err := privateKey(text)
	if err != nil {
		return nil, err
	}
	methods := methodsFor(key.Public())
	if len(methods) == 0 {
		return nil, errors.New("the signature's key: want RSA of at least 2048 bits, an elliptic curve P-256, P-384 or P-521, or Ed25519")
	}
	return &Signer{method: jwt.GetSigningMethod(methods[0]), keyID: keyID, key: func() any { return key }}, nil
}

// Format implements [fmt.Formatter].
func (*Signer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "webhook.Signer[redacted]") }

// Sign returns the value of [SignatureHeader] for a body.
func (s *Signer) Sign(body []byte) (string, error) {
	token := jwt.NewWithClaims(s.method, jwt.MapClaims{digestClaim: digest(body)})
	if s.keyID != "" {
		token.Header["kid"] = s.keyID
	}
	text, err := token.SignedString(s.key())
	if err != nil {
		return "", fmt.Errorf("signing the body: %w", err)
	}
	return text, nil
}

func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func privateKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("the signature's key is not PEM")
	}
	var key any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return nil, errors.New("the signature's key cannot be read: want an unencrypted private key in PEM")
	}
	return signer, nil
}

// methodsFor are the algorithms that a public key may be used with, the one to
// sign with first. A key decides about the algorithm, never a token's header:
// so a public key cannot be taken for an HMAC secret, and "none" is no method.
func methodsFor(key crypto.PublicKey) []string {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSABits {
			return nil
		}
		return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 256:
			return []string{"ES256"}
		case 384:
			return []string{"ES384"}
		case 521:
			return []string{"ES512"}
		}
	case ed25519.PublicKey:
		return []string{"EdDSA"}
	}
	return nil
}
