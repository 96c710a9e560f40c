package webhook

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

const aBody = `{"event":{"type":"x"}}`

func signedRequest(body, signature string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	if signature != "" {
		r.Header.Set(SignatureHeader, signature)
	}
	return r
}

// sign makes a signature with any method, header and claims.
func sign(t testing.TB, method jwt.SigningMethod, key any, claims jwt.MapClaims, header map[string]any) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	for name, value := range header {
		token.Header[name] = value
	}
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestEachKindOfKeySignsAndVerifies(t *testing.T) {
	for kind, alg := range map[string]string{"rsa": "RS256", "p256": "ES256", "p384": "ES384", "p521": "ES512", "ed25519": "EdDSA"} {
		t.Run(kind, func(t *testing.T) {
			private, public := keyPEM(t, kind)
			signer, err := NewKeySigner(private, "k")
			if err != nil {
				t.Fatal(err)
			}
			signature, err := signer.Sign([]byte(aBody))
			if err != nil {
				t.Fatal(err)
			}
			head, _ := base64.RawURLEncoding.DecodeString(strings.Split(signature, ".")[0])
			if !strings.Contains(string(head), `"`+alg+`"`) || !strings.Contains(string(head), `"kid":"k"`) {
				t.Errorf("the header is %s", head)
			}
			v, err := NewVerifier(VerifierConfig{PublicKey: public})
			if err != nil {
				t.Fatal(err)
			}
			if body, err := v.Read(signedRequest(aBody, signature)); err != nil || string(body) != aBody {
				t.Errorf("got %q, %v", body, err)
			}
			if _, err := v.Read(signedRequest(aBody+" ", signature)); !errors.Is(err, ErrUnauthenticated) {
				t.Errorf("another body: %v", err)
			}
		})
	}
}

// The digest of FusionAuth's own example, from the page Signing Webhooks, is the
// standard base64 of 32 bytes: so is ours.
func TestTheDigestHasTheFormOfTheDocumentation(t *testing.T) {
	raw, err := base64.StdEncoding.DecodeString("KeV+/HGoIQrxuE5YPCRR6AuQOJveldYNNhbVi1i22qk=")
	if err != nil || len(raw) != 32 || len(digest(nil)) != 44 || !strings.HasSuffix(digest(nil), "=") {
		t.Errorf("%v: %s", err, digest(nil))
	}
}

func TestOnlyTheRightSignatureIsTaken(t *testing.T) {
	secret := []byte(hmacSecret.Reveal())
	right := jwt.MapClaims{digestClaim: digest([]byte(aBody))}
	_, public := keyPEM(t, "rsa")
	hmac, err := NewVerifier(VerifierConfig{HMACSecret: hmacSecret})
	if err != nil {
		t.Fatal(err)
	}
	rsa, err := NewVerifier(VerifierConfig{PublicKey: public})
	if err != nil {
		t.Fatal(err)
	}
	good := sign(t, jwt.SigningMethodHS256, secret, right, nil)
	parts := strings.Split(good, ".")
	for name, test := range map[string]struct {
		verifier  *Verifier
		signature string
		ok        bool
	}{
		"HS256":                              {hmac, good, true},
		"HS384":                              {hmac, sign(t, jwt.SigningMethodHS384, secret, right, nil), true},
		"HS512":                              {hmac, sign(t, jwt.SigningMethodHS512, secret, right, nil), true},
		"with a time that holds":             {hmac, sign(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{digestClaim: right[digestClaim], "exp": time.Now().Add(time.Hour).Unix()}, nil), true},
		"with a time that is over":           {hmac, sign(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{digestClaim: right[digestClaim], "exp": time.Now().Add(-time.Hour).Unix()}, nil), false},
		"none":                               {hmac, sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, right, nil), false},
		"none, to a verifier with a key":     {rsa, sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, right, nil), false},
		"HMAC with the public key as secret": {rsa, sign(t, jwt.SigningMethodHS256, public, right, nil), false},
		"another secret":                     {hmac, sign(t, jwt.SigningMethodHS256, append(secret, 'x'), right, nil), false},
		"another claim":                      {hmac, sign(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{"sha256": right[digestClaim]}, nil), false},
		"a claim that is a list":             {hmac, sign(t, jwt.SigningMethodHS256, secret, jwt.MapClaims{digestClaim: []any{right[digestClaim]}}, nil), false},
		"a critical extension":               {hmac, sign(t, jwt.SigningMethodHS256, secret, right, map[string]any{"crit": []string{"x"}}), false},
		"no signature":                       {hmac, parts[0] + "." + parts[1] + ".", false},
		"no field":                           {hmac, "", false},
		"noise":                              {hmac, "a.b.c", false},
		"a very long one":                    {hmac, good + strings.Repeat("A", maxSignature), false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := test.verifier.Read(signedRequest(aBody, test.signature))
			if (err == nil) != test.ok || err != nil && !errors.Is(err, ErrUnauthenticated) {
				t.Errorf("got %v", err)
			}
		})
	}
	twice := signedRequest(aBody, good)
	twice.Header.Add(SignatureHeader, good)
	if _, err := hmac.Read(twice); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("two signatures: %v", err)
	}
}

func TestASharedSecretAndBasicAuthenticationAreBothWantedWhereBothAreConfigured(t *testing.T) {
	const shared = "canary-shared-secret"
	v, err := NewVerifier(VerifierConfig{
		Header: "X-Webhook-Secret", HeaderValue: refresher.NewSecret(shared), Username: "me", Password: refresher.NewSecret("pw"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		header, user, password string
		ok                     bool
	}{
		"both are right":   {shared, "me", "pw", true},
		"a wrong secret":   {shared + "x", "me", "pw", false},
		"no secret":        {"", "me", "pw", false},
		"a wrong password": {shared, "me", "px", false},
		"a wrong name":     {shared, "you", "pw", false},
		"no name":          {shared, "", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := signedRequest(aBody, "")
			if test.header != "" {
				r.Header.Set("x-webhook-secret", test.header)
			}
			if test.user != "" {
				r.SetBasicAuth(test.user, test.password)
			}
			r.Body = io.NopCloser(unreadUnless{test.ok, r.Body, t})
			if _, err := v.Read(r); (err == nil) != test.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

// unreadUnless fails the test where a body is read of somebody who is refused.
type unreadUnless struct {
	ok bool
	io.Reader
	t *testing.T
}

func (u unreadUnless) Read(p []byte) (int, error) {
	if !u.ok {
		u.t.Error("the body was read")
	}
	return u.Reader.Read(p)
}

func TestABodyIsReadUpToItsBound(t *testing.T) {
	v, err := NewVerifier(VerifierConfig{Header: "X", HeaderValue: refresher.NewSecret("0123456789abcdef")})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		size    int
		chunked bool
		want    error
	}{
		"just fits":          {MaxBody, false, nil},
		"too long":           {MaxBody + 1, false, ErrTooLarge},
		"too long, untold":   {MaxBody + 1, true, ErrTooLarge},
		"just fits, chunked": {MaxBody, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := signedRequest(strings.Repeat("x", test.size), "")
			r.Header.Set("X", "0123456789abcdef")
			if test.chunked {
				r.ContentLength = -1
			}
			if _, err := v.Read(r); !errors.Is(err, test.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAVerifierThatProvesNothingIsRefused(t *testing.T) {
	private, public := keyPEM(t, "p256")
	long := refresher.NewSecret("canary-canary-canary-canary-canary")
	for name, cfg := range map[string]VerifierConfig{
		"nothing":                   {},
		"a short secret":            {HMACSecret: refresher.NewSecret("canary")},
		"a short header secret":     {Header: "X", HeaderValue: refresher.NewSecret("canary")},
		"a header without a secret": {Header: "X"},
		"a secret without a header": {HeaderValue: long},
		"a field that is none":      {Header: "a b", HeaderValue: long},
		"a name without a password": {Username: "canary"},
		"a password without a name": {Password: long},
		"a secret and a key":        {HMACSecret: long, PublicKey: public},
		"a private key":             {PublicKey: private},
		"a key that is not PEM":     {PublicKey: []byte("canary")},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewVerifier(cfg); err == nil || strings.Contains(err.Error(), "canary") {
				t.Errorf("got %v", err)
			}
		})
	}
	for name, text := range map[string][]byte{"a public key": public, "noise": []byte("canary")} {
		if _, err := NewKeySigner(text, ""); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("signing with %s: %v", name, err)
		}
	}
	if _, err := NewHMACSigner(refresher.NewSecret("canary"), ""); err == nil {
		t.Error("a short secret signs")
	}
}
