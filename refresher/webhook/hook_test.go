package webhook

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

var hmacSecret = refresher.NewSecret("0123456789abcdef0123456789abcdef")

func TestAReceiverGetsTheDocumentsEventSignedAndAuthenticated(t *testing.T) {
	box := new(inbox)
	srv := serve(t, box)
	signer, err := NewHMACSigner(hmacSecret, "key-1")
	if err != nil {
		t.Fatal(err)
	}
	hook := testHook(t, HookConfig{
		URL: srv.URL + "/hooks?k=v", Signer: signer, Username: "me", Password: refresher.NewSecret("secret"),
		Header: http.Header{"x-team": {"audit"}},
	})
	o := openTest(t, Config{Dir: t.TempDir()}, hook)
	announce(t, o, seedEvent(t), nil)
	got := box.wait(t, 1)[0]

	_, want := seedExample(t)
	if event := decode(t, got.body); !reflect.DeepEqual(event, want) {
		t.Errorf("got the event %v", event)
	}
	for name, value := range map[string]string{"Content-Type": "application/json", "X-Team": "audit", "User-Agent": "caddy-token-refresh"} {
		if got.header.Get(name) != value {
			t.Errorf("%s is %q, want %q", name, got.header.Get(name), value)
		}
	}
	verifier, err := NewVerifier(VerifierConfig{HMACSecret: hmacSecret, Username: "me", Password: refresher.NewSecret("secret")})
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(got.body)))
	req.Header = got.header
	if _, err := verifier.Read(req); err != nil {
		t.Errorf("our own verifier does not take it: %v", err)
	}
	parsed, err := Parse(got.body)
	if err != nil || parsed.Kind != KindRefreshed || parsed.ID != want["id"] || parsed.Token.Reveal() != want["token"] {
		t.Errorf("our own parser reads %v, %v", parsed, err)
	}
}

func TestARedirectIsNotFollowed(t *testing.T) {
	other := new(inbox)
	elsewhere := serve(t, other)
	srv := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	}))
	var answer *refusal
	err := testHook(t, HookConfig{URL: srv.URL}).post(t.Context(), []byte(`{}`))
	if !errors.As(err, &answer) || answer.status != http.StatusTemporaryRedirect {
		t.Errorf("got %v", err)
	}
	if all, _ := other.seen(); len(all) > 0 {
		t.Error("the body went elsewhere")
	}
}

func TestAReceiverIsAskedForItsCertificateAndShownOurs(t *testing.T) {
	srv := httptest.NewUnstartedServer(new(inbox))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	t.Cleanup(srv.Close)
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	ours := &tls.Config{RootCAs: roots, Certificates: srv.TLS.Certificates}
	for name, test := range map[string]struct {
		cfg *tls.Config
		ok  bool
	}{
		"with both":                  {ours, true},
		"without our certificate":    {&tls.Config{RootCAs: roots}, false},
		"without trusting their own": {&tls.Config{Certificates: srv.TLS.Certificates}, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := testHook(t, HookConfig{URL: srv.URL, TLS: test.cfg})
			defer h.rest()
			if err := h.post(t.Context(), []byte(`{"event":{}}`)); (err == nil) != test.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestErrorsOfTheWireRepeatNeitherUrlNorAnswer(t *testing.T) {
	srv := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		_, _ = conn.Write([]byte("canary-echo of what was sent\r\n\r\n"))
		_ = conn.Close()
	}))
	err := testHook(t, HookConfig{URL: srv.URL + "/?k=canary-query"}).post(t.Context(), []byte(`{}`))
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("got %v", err)
	}
}

func TestADeliveryEndsAtItsTimeout(t *testing.T) {
	release := make(chan struct{})
	srv := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer close(release)
	begun := time.Now()
	err := testHook(t, HookConfig{URL: srv.URL, Timeout: 50 * time.Millisecond}).post(context.Background(), []byte(`{}`))
	if err == nil || time.Since(begun) > 5*time.Second {
		t.Errorf("got %v after %v", err, time.Since(begun))
	}
}

// A pair may wait for this answer.
func TestAnAnswerCountsBeforeItsBodyHasEnded(t *testing.T) {
	release := make(chan struct{})
	srv := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-release
	}))
	defer close(release)
	begun := time.Now()
	err := testHook(t, HookConfig{URL: srv.URL, Timeout: time.Minute}).post(context.Background(), []byte(`{}`))
	if err != nil || time.Since(begun) > 30*time.Second {
		t.Errorf("got %v after %v", err, time.Since(begun))
	}
}

func TestAHookThatCannotBeIsRefused(t *testing.T) {
	for name, cfg := range map[string]HookConfig{
		"without a URL":                      {},
		"plain http to another machine":      {URL: "http://canary.example/"},
		"a password in the URL":              {URL: "https://me:canary@a.example/"},
		"a URL that is not http":             {URL: "ftp://a.example/"},
		"a fragment":                         {URL: "https://a.example/#canary"},
		"a URL without a host":               {URL: "https:///canary"},
		"an unknown event":                   {URL: "https://a.example/", Events: []string{"user.create"}},
		"a field that is ours":               {URL: "https://a.example/", Header: http.Header{"x-fusionauth-signature-jwt": {"canary"}}},
		"a field with a line break":          {URL: "https://a.example/", Header: http.Header{"X": {"canary\r\nY: z"}}},
		"a field that is none":               {URL: "https://a.example/", Header: http.Header{"a b": {"canary"}}},
		"basic and Authorization":            {URL: "https://a.example/", Username: "u", Header: http.Header{"Authorization": {"canary"}}},
		"an application id that is no UUID":  {URL: "https://a.example/", ApplicationID: "canary"},
		"a tenant id in braces":              {URL: "https://a.example/", TenantID: "{10000000-0000-0002-0000-000000000001}"},
		"a negative timeout":                 {URL: "https://a.example/", Timeout: -1},
		"one field in two spellings":         {URL: "https://a.example/", Header: http.Header{"x-a": {"canary"}, "X-A": {"canary"}}},
		"a port that is missing after colon": {URL: "https://a.example:/"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewHook(cfg)
			if err == nil {
				t.Fatal("it was taken")
			}
			if strings.Contains(err.Error(), "canary") && !strings.Contains(name, "another machine") {
				t.Errorf("the error repeats what may be secret: %v", err)
			}
		})
	}
}

func TestOnlyLoopbackIsDialledInPlainHTTPAndMetadataNever(t *testing.T) {
	for text, want := range map[string]error{
		"https://169.254.169.254/": endpoint.ErrForbidden, "http://192.0.2.1/": endpoint.ErrNotLoopback,
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := newClient(u, nil, false, nil).Get(text)
		if err == nil {
			_ = resp.Body.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestRetryAfterIsReadInSecondsAndAsADate(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "30": 30 * time.Second, "-1": 0, "soon": 0, "Sun, 22 Nov 2026 10:01:00 GMT": time.Minute,
		"Sun, 22 Nov 2026 09:00:00 GMT": 0, "99999999999999999999": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {text}}, now); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

// keyPEM makes a private key, and its public one, in PEM.
func keyPEM(t testing.TB, kind string) (private, public []byte) {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "p256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "p521":
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	default:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})
}
