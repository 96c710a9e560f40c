package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func TestClientKeysAndWhatTheySign(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec := map[string]*ecdsa.PrivateKey{}
	for name, curve := range map[string]elliptic.Curve{"P-224": elliptic.P224(), "P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()} {
		if ec[name], err = ecdsa.GenerateKey(curve, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk := func(key any, id, alg string) []byte {
		text, err := json.Marshal(jose.JSONWebKey{Key: key, KeyID: id, Algorithm: alg})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)})
	sec1, _ := x509.MarshalECPrivateKey(ec["P-256"])
	for _, tt := range []struct {
		name    string
		text    []byte
		alg     string // configured
		id      string // configured
		public  crypto.PublicKey
		wantAlg string
		wantID  any
	}{
		{"RSA", pemKey(t, rsaKey), "", "", &rsaKey.PublicKey, "RS256", nil},
		{"RSA in PKCS #1, with PSS", pkcs1, "PS512", "k", &rsaKey.PublicKey, "PS512", "k"},
		{"P-256", pemKey(t, ec["P-256"]), "", "", &ec["P-256"].PublicKey, "ES256", nil},
		{"P-256 in SEC 1", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}), "", "", &ec["P-256"].PublicKey, "ES256", nil},
		{"P-256 as openssl ecparam writes it", append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 0}}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})...), "", "", &ec["P-256"].PublicKey, "ES256", nil},
		{"P-384", pemKey(t, ec["P-384"]), "", "", &ec["P-384"].PublicKey, "ES384", nil},
		{"P-521 as JWK", jwk(ec["P-521"], "j", ""), "", "", &ec["P-521"].PublicKey, "ES512", "j"},
		{"Ed25519", pemKey(t, edKey), "", "", edKey.Public(), "EdDSA", nil},
		{"Ed25519 as JWK", jwk(edKey, "j", "EdDSA"), "", "", edKey.Public(), "EdDSA", "j"},
		{"RSA as JWK that says how", jwk(rsaKey, "j", "PS256"), "", "", &rsaKey.PublicKey, "PS256", "j"},
		{"RSA as JWK, overruled", jwk(rsaKey, "j", "PS256"), "RS384", "k", &rsaKey.PublicKey, "RS384", "k"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key, err := ParseClientKey(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			assertSilent(t, "the key", key)
			auth := clientAuth{method: PrivateKeyJWT, id: "app", key: key, keyID: tt.id, alg: tt.alg}
			if err := auth.check(); err != nil {
				t.Fatal(err)
			}
			at := metadata{issuer: "https://issuer.example/", token: mustURL(t, "https://issuer.example/token")}
			now := time.Now()
			seen := map[any]bool{}
			for range 2 {
				text, err := auth.assertion(at, now)
				if err != nil {
					t.Fatal(err)
				}
				var claims jwt.MapClaims
				parsed, err := jwt.ParseWithClaims(text, &claims, func(*jwt.Token) (any, error) { return tt.public, nil },
					jwt.WithIssuer("app"), jwt.WithSubject("app"), jwt.WithAudience("https://issuer.example/"), jwt.WithExpirationRequired(), jwt.WithIssuedAt())
				if err != nil {
					t.Fatal(err)
				}
				if parsed.Header["alg"] != tt.wantAlg || parsed.Header["kid"] != tt.wantID {
					t.Errorf("header %v, want %s and %v", parsed.Header, tt.wantAlg, tt.wantID)
				}
				if exp, _ := claims.GetExpirationTime(); exp.Sub(now) > assertionLife {
					t.Errorf("it lives until %v", exp)
				}
				if jti, _ := claims["jti"].(string); len(jti) < 20 || seen[jti] {
					t.Errorf("jti %q", jti)
				}
				seen[claims["jti"]] = true
			}
		})
	}

	short := "-----BEGIN RSA PRIVATE KEY-----\ncanary\n-----END RSA PRIVATE KEY-----\n"
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("canary")})
	for name, tt := range map[string]struct {
		text []byte
		want string
	}{
		"nothing":              {nil, "neither PEM nor"},
		"no key":               {[]byte("canary"), "neither PEM nor"},
		"no Base64":            {[]byte(short), "neither PEM nor"},
		"no DER":               {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("canary")}), "cannot be read"},
		"an encrypted key":     {encrypted, "not encrypted"},
		"a certificate":        {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("canary")}), "no private key"},
		"a public JWK":         {jwk(&rsaKey.PublicKey, "", ""), "no private key"},
		"a symmetric JWK":      {jwk([]byte("canary"), "", ""), "no private key"},
		"a curve too small":    {pemKey(t, ec["P-224"]), "of no kind"},
		"a JWK of another alg": {jwk(rsaKey, "", "ES256"), "cannot sign with"},
	} {
		_, err := ParseClientKey(tt.text)
		check(t, name, err, tt.want)
	}
	key, _ := ParseClientKey(pkcs1)
	auth := clientAuth{method: PrivateKeyJWT, id: "app", key: key, alg: "HS256"}
	check(t, "HS256", auth.check(), "cannot sign with")
}

func TestWhomAnAssertionIsFor(t *testing.T) {
	discovered := metadata{issuer: "https://issuer.example/", token: mustURL(t, "https://issuer.example/token")}
	configured := metadata{token: discovered.token}
	for _, tt := range []struct {
		audience string
		at       metadata
		want     string
	}{
		{"", discovered, "https://issuer.example/"},
		{"", configured, "https://issuer.example/token"},
		{"issuer", discovered, "https://issuer.example/"},
		{"token_endpoint", discovered, "https://issuer.example/token"},
		{"urn:x", discovered, "urn:x"},
		{"urn:x", configured, "urn:x"},
	} {
		if got := (&clientAuth{audience: tt.audience}).audienceAt(tt.at); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.audience, got, tt.want)
		}
	}
}

func TestTheNewIssuersPrintNoSecret(t *testing.T) {
	secret := refresher.NewSecret("canary")
	o := newOAuth2(t, OAuth2Config{TokenURL: "https://issuer.example/?key=canary", ClientID: "app", ClientSecret: secret, Parameters: map[string][]string{"x": {"canary"}}})
	d := newOAuth2(t, OAuth2Config{Issuer: "https://issuer.example", ClientID: "app", ClientSecret: secret})
	f := newFusionAuth(t, "https://issuer.example", func(c *FusionAuthConfig) { c.APIKey, c.TenantID = secret, "canary" })
	for _, v := range []any{
		o, d, f, OAuth2Config{ClientSecret: secret, Parameters: map[string][]string{"x": {"canary"}}}, FusionAuthConfig{APIKey: secret},
		Options{Header: map[string][]string{"X": {"canary"}}},
	} {
		assertSilent(t, fmt.Sprintf("%T", v), v)
	}
	if o.String() != "oauth2 https://issuer.example/" || d.String() != "oauth2 discover https://issuer.example" || f.String() != "fusionauth https://issuer.example" {
		t.Errorf("%s, %s, %s", o, d, f)
	}
}
