package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// ClientKey is the private key with which a client signs its assertions
// (RFC 7523). It does not print.
type ClientKey struct {
	key crypto.Signer
	id  string // "kid"; "": none
	alg string // as the key says; "": by its kind
}

// ParseClientKey reads a private key: PEM (PKCS #8, PKCS #1 or SEC 1, not
// encrypted) or a JSON Web Key, whose "kid" and "alg" are then the default. It
// is an RSA key of 2048 bits or more, one on P-256, P-384 or P-521, or an
// Ed25519 key. No error repeats any of the text.
func ParseClientKey(text []byte) (*ClientKey, error) {
	var k ClientKey
	var key any
	block, rest := pem.Decode(text)
	for block != nil && !strings.HasSuffix(block.Type, "PRIVATE KEY") && len(rest) > 0 { // "EC PARAMETERS" of openssl ecparam
		if next, after := pem.Decode(rest); next != nil {
			block, rest = next, after
		} else {
			break
		}
	}
	if block != nil {
		var err error
		if key, err = parsePEM(block); err != nil {
			return nil, err
		}
	} else {
		var jwk jose.JSONWebKey
		if jwk.UnmarshalJSON(text) != nil {
			return nil, errors.New("the private key is neither PEM nor a JSON Web Key")
		}
		key, k.id, k.alg = jwk.Key, jwk.KeyID, jwk.Algorithm
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key is no private key for signatures (RSA, EC or Ed25519)")
	}
	k.key = signer
	if _, err := k.method(""); err != nil {
		return nil, err
	}
	return &k, nil
}

func parsePEM(block *pem.Block) (any, error) {
	parse := map[string]func([]byte) (any, error){
		"PRIVATE KEY":     x509.ParsePKCS8PrivateKey,
		"RSA PRIVATE KEY": func(der []byte) (any, error) { return x509.ParsePKCS1PrivateKey(der) },
		"EC PRIVATE KEY":  func(der []byte) (any, error) { return x509.ParseECPrivateKey(der) },
	}[block.Type]
	if parse == nil || block.Headers["DEK-Info"] != "" {
		return nil, errors.New("the PEM text holds no private key that is not encrypted")
	}
	key, err := parse(block.Bytes)
	if err != nil {
		return nil, errors.New("the private key in the PEM text cannot be read")
	}
	return key, nil
}

// method is how the key signs: as alg says, else as the key does, else in the
// way that servers must know (RS256) or that goes with the curve.
func (k *ClientKey) method(alg string) (jwt.SigningMethod, error) {
	var fits []string
	switch key := k.key.(type) {
	case *rsa.PrivateKey:
		if key.N.BitLen() < 2048 {
			return nil, errors.New("the RSA key has less than 2048 bits")
		}
		fits = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	case *ecdsa.PrivateKey:
		fits = map[int][]string{256: {"ES256"}, 384: {"ES384"}, 521: {"ES512"}}[key.Curve.Params().BitSize]
	case ed25519.PrivateKey:
		fits = []string{"EdDSA"}
	}
	if len(fits) == 0 {
		return nil, errors.New("the private key is of no kind that JSON Web Tokens are signed with here")
	}
	if alg == "" {
		alg = k.alg
	}
	if alg == "" {
		alg = fits[0]
	}
	for _, name := range fits {
		if name == alg {
			return jwt.GetSigningMethod(alg), nil
		}
	}
	return nil, fmt.Errorf("the private key cannot sign with %.20q, only with one of %v", alg, fits)
}

// Format implements [fmt.Formatter].
func (k *ClientKey) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "issuer.ClientKey[redacted]")
}
