package webhook

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// keySet is a sender's keys: it signs with one and publishes what it likes.
type keySet struct {
	t       testing.TB
	signers map[string]*Signer
	keys    []any
}

func newKeySet(t testing.TB) *keySet { return &keySet{t: t, signers: map[string]*Signer{}} }

func (s *keySet) add(id, kind string) {
	private, public := keyPEM(s.t, kind)
	signer, err := NewKeySigner(private, id)
	if err != nil {
		s.t.Fatal(err)
	}
	block, _ := pem.Decode(public)
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	s.signers[id] = signer
	s.keys = append(s.keys, jose.JSONWebKey{Key: key, KeyID: id, Use: "sig"})
}

func (s *keySet) text() []byte {
	text, err := json.Marshal(map[string]any{"keys": s.keys})
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

func (s *keySet) request(id string) *http.Request {
	signature, err := s.signers[id].Sign([]byte(aBody))
	if err != nil {
		s.t.Fatal(err)
	}
	return signedRequest(aBody, signature)
}

func TestAKeySetVerifiesByItsKeyIDsAndLeavesOutWhatCannotVerify(t *testing.T) {
	set := newKeySet(t)
	set.add("rsa", "rsa")
	set.add("ec", "p256")
	set.add("okp", "ed25519")
	set.keys = append(set.keys,
		map[string]string{"kty": "oct", "kid": "shared", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"},
		map[string]string{"kty": "new kind", "kid": "x"}, 7)
	keys, err := ParseJWKS(set.text())
	if err != nil {
		t.Fatal(err)
	}
	if len(keys.keys) != 3 {
		t.Errorf("%d keys are used", len(keys.keys))
	}
	v, err := NewVerifier(VerifierConfig{JWKS: keys})
	if err != nil {
		t.Fatal(err)
	}
	for id := range set.signers {
		if _, err := v.Read(set.request(id)); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	shared, err := NewHMACSigner(hmacSecret, "shared") // the secret that the set tells everybody
	if err != nil {
		t.Fatal(err)
	}
	set.signers["shared"] = shared
	if _, err := v.Read(set.request("shared")); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("a secret that is in the set: %v", err)
	}
}

func TestAKeySetIsFetchedWhenItIsNeededAndNotMore(t *testing.T) {
	set := newKeySet(t)
	set.add("one", "p256")
	synctest.Test(t, func(t *testing.T) {
		var fetched atomic.Int32
		var down atomic.Bool
		var mu sync.Mutex
		text := set.text()
		p, stop := servePipes(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fetched.Add(1)
			time.Sleep(time.Second)
			if down.Load() {
				http.Error(w, "down", http.StatusBadGateway)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			_, _ = w.Write(text)
		}))
		defer stop()
		j, err := NewJWKS(JWKSConfig{URL: "http://localhost/.well-known/jwks.json", Dial: p.dial})
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		v, err := NewVerifier(VerifierConfig{JWKS: j})
		if err != nil {
			t.Fatal(err)
		}
		expect := func(step, id string, want error, fetches int32) {
			t.Helper()
			if _, err := v.Read(set.request(id)); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", step, err, want)
			}
			if n := fetched.Swap(0); n != fetches {
				t.Errorf("%s: fetched %d times, want %d", step, n, fetches)
			}
		}

		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := v.Read(set.request("one").WithContext(gone)); !errors.Is(err, ErrKeysUnavailable) {
			t.Errorf("a caller that went away: %v", err)
		}
		fetched.Store(0)

		var wg sync.WaitGroup
		for range 10 {
			r := set.request("one")
			wg.Go(func() {
				if _, err := v.Read(r); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := fetched.Swap(0); n != 1 {
			t.Errorf("ten at once fetched it %d times", n)
		}
		expect("it is known", "one", nil, 0)

		set.add("two", "p256") // signs with it before we have it
		expect("a new key within the pause", "two", ErrUnauthenticated, 0)
		time.Sleep(fetchPause)
		expect("a new key that is not published", "two", ErrUnauthenticated, 1)
		mu.Lock()
		text = set.text()
		mu.Unlock()
		time.Sleep(fetchPause)
		expect("a new key that is", "two", nil, 1)

		down.Store(true)
		time.Sleep(2 * keySetFresh)
		expect("it is old, and cannot be had", "two", nil, 1)
		expect("and is not asked for at once again", "two", nil, 0)
		time.Sleep(keySetUsed)
		expect("it is too old", "two", ErrKeysUnavailable, 1)
		down.Store(false)
		time.Sleep(fetchPause)
		expect("it can be had again", "two", nil, 1)
	})
}

func TestAKeySetThatIsNoneIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"nothing": ``, "no keys": `{}`, "an empty set": `{"keys":[]}`, "secrets alone": `{"keys":[{"kty":"oct","k":"AAAA"}]}`,
		"a list": `[]`, "many keys": `{"keys":[` + manyKeys() + `]}`,
	} {
		if _, err := ParseJWKS([]byte(text)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := NewJWKS(JWKSConfig{URL: "http://keys.example/"}); err == nil {
		t.Error("keys over plain http were taken")
	}
}

func manyKeys() string {
	text := `{}`
	for range maxKeys {
		text += `,{}`
	}
	return text
}

func TestAKeySetOverItsBoundIsNotRead(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, maxKeySet+1))
	}))
	defer srv.Close()
	j, err := NewJWKS(JWKSConfig{URL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, err := j.find(t.Context(), "x"); !errors.Is(err, ErrKeysUnavailable) {
		t.Errorf("got %v", err)
	}
}
