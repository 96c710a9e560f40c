package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer/issuertest"
)

// oddSecret has to be form-encoded before Basic, and encoded in a form.
const oddSecret = `s e:c+r/e%t=&"~`

// assertionClient makes a client with a key of its own, and the key's PEM text.
func assertionClient(t *testing.T, id, alg string, key crypto.Signer) (issuertest.Client, []byte) {
	t.Helper()
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k-" + id, Algorithm: alg, Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return issuertest.Client{ID: id, AuthMethod: PrivateKeyJWT, Keys: keys, SigningAlg: alg}, pemKey(t, key)
}

func pemKey(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func newOAuth2(t *testing.T, cfg OAuth2Config) *OAuth2 {
	t.Helper()
	if cfg.Profile.Timeout == 0 {
		cfg.Profile.Timeout = 10 * time.Second
	}
	o, err := NewOAuth2(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func exchangeOnce(t *testing.T, i refresher.Issuer, p refresher.Pair) refresher.Answer {
	t.Helper()
	ex, err := i.Prepare(context.Background())
	if err != nil {
		t.Fatalf("prepare: %v", err)
	}
	return ex.Send(context.Background(), p)
}

// startProvider starts a server with a client for each way to authenticate, and
// returns the private keys by the client's name.
func startProvider(t *testing.T) (*issuertest.Provider, map[string][]byte) {
	t.Helper()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	clients := []issuertest.Client{
		{ID: "basic:id", Secret: oddSecret, AuthMethod: ClientSecretBasic},
		{ID: "static", Secret: oddSecret, AuthMethod: ClientSecretBasic},
		{ID: "post", Secret: oddSecret, AuthMethod: ClientSecretPost},
		{ID: "public", AuthMethod: NoClientAuth},
	}
	keys := map[string][]byte{}
	for id, key := range map[string]crypto.Signer{"RS256": rsaKey, "PS256": rsaKey, "ES256": ecKey, "EdDSA": edKey} {
		client, text := assertionClient(t, id, id, key)
		clients, keys[id] = append(clients, client), text
	}
	return issuertest.Start(t, time.Hour, clients...), keys
}

func TestExchangesWithARealServer(t *testing.T) {
	server, keys := startProvider(t)
	secret := refresher.NewSecret(oddSecret)
	key := func(id string) *ClientKey {
		k, err := ParseClientKey(keys[id])
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	tests := []struct {
		name   string
		cfg    OAuth2Config
		static bool
	}{
		{name: "client_secret_basic, the default with a secret", cfg: OAuth2Config{ClientID: "basic:id", ClientSecret: secret}},
		{name: "client_secret_post", cfg: OAuth2Config{ClientID: "post", ClientSecret: secret, AuthMethod: ClientSecretPost}},
		{name: "none, the default without", cfg: OAuth2Config{ClientID: "public"}},
		{name: "without rotation", cfg: OAuth2Config{ClientID: "static", ClientSecret: secret}, static: true},
		{name: "private_key_jwt with RS256", cfg: OAuth2Config{ClientID: "RS256", AuthMethod: PrivateKeyJWT, Key: key("RS256"), KeyID: "k-RS256"}},
		{name: "private_key_jwt with PS256", cfg: OAuth2Config{ClientID: "PS256", AuthMethod: PrivateKeyJWT, Key: key("PS256"), SigningAlg: "PS256"}},
		{name: "private_key_jwt with ES256", cfg: OAuth2Config{ClientID: "ES256", AuthMethod: PrivateKeyJWT, Key: key("ES256"), AssertionAudience: "token_endpoint"}},
		{name: "private_key_jwt with EdDSA", cfg: OAuth2Config{ClientID: "EdDSA", AuthMethod: PrivateKeyJWT, Key: key("EdDSA"), AssertionAudience: server.Issuer}},
	}
	for _, tt := range tests {
		for _, format := range []string{"jwt", "opaque"} {
			for _, discover := range []bool{true, false} {
				t.Run(tt.name+", "+format+map[bool]string{true: ", discovered", false: ""}[discover], func(t *testing.T) {
					cfg := tt.cfg
					if discover {
						cfg.Issuer = server.Issuer
					} else {
						cfg.TokenURL, cfg.RevokeURL = server.Issuer+"/token", server.Issuer+"/token/revocation"
					}
					o := newOAuth2(t, cfg)
					first := server.Login(t, cfg.ClientID, format)
					second := wantExchanged(t, o, first, tt.static)
					third := wantExchanged(t, o, second, tt.static)
					wantRevoked(t, server, o, third, format)
				})
			}
		}
	}
	if refused := server.Stats(t).Refused; refused["invalid_client"] != 0 || refused["invalid_request"] != 0 {
		t.Errorf("the server refused %v", refused)
	}
}

func wantExchanged(t *testing.T, o *OAuth2, p refresher.Pair, static bool) refresher.Pair {
	t.Helper()
	a := exchangeOnce(t, o, p)
	wantClass(t, a, refresher.ClassOK)
	next := a.Pair
	if next.Access.Equal(p.Access) || next.Refresh.IsZero() || next.Refresh.Equal(p.Refresh) != static {
		t.Errorf("access %s, refresh %s after %s", next.Access.Fingerprint(), next.Refresh.Fingerprint(), p.Refresh.Fingerprint())
	}
	if next.ExpiresIn != time.Hour || next.ID.IsZero() || next.Scope != "api" {
		t.Errorf("life %v, an ID token: %v, scope %q", next.ExpiresIn, !next.ID.IsZero(), next.Scope)
	}
	return next
}

// wantRevoked revokes the pair, twice, and asks the server what is left of it.
func wantRevoked(t *testing.T, server *issuertest.Provider, o *OAuth2, p refresher.Pair, format string) {
	t.Helper()
	if !server.Active(t, p.Refresh) || format == "opaque" && !server.Active(t, p.Access) {
		t.Fatal("the pair is not good before it is revoked")
	}
	for range 2 {
		if err := o.Revoke(t.Context(), p); err != nil {
			t.Fatalf("revoking: %v", err)
		}
	}
	if server.Active(t, p.Refresh) || server.Active(t, p.Access) {
		t.Error("the pair is good after it was revoked")
	}
	wantClass(t, exchangeOnce(t, o, p), refresher.ClassRejected)
}

func TestARealServersRefusals(t *testing.T) {
	server, _ := startProvider(t)
	basic := OAuth2Config{Issuer: server.Issuer, ClientID: "basic:id", ClientSecret: refresher.NewSecret(oddSecret)}
	t.Run("of a spent token is final, and ends the grant", func(t *testing.T) {
		o := newOAuth2(t, basic)
		first := server.Login(t, basic.ClientID, "opaque")
		next := exchangeOnce(t, o, first)
		wantClass(t, next, refresher.ClassOK)
		wantClass(t, exchangeOnce(t, o, first), refresher.ClassRejected)
		wantClass(t, exchangeOnce(t, o, next.Pair), refresher.ClassRejected)
	})
	t.Run("of a wrong secret is the configuration's, and tried in one way", func(t *testing.T) {
		cfg := basic
		cfg.ClientSecret = refresher.NewSecret("wrong")
		before := server.Stats(t).Refused["invalid_client"]
		p := server.Login(t, basic.ClientID, "opaque")
		wantClass(t, exchangeOnce(t, newOAuth2(t, cfg), p), refresher.ClassConfig)
		if n := server.Stats(t).Refused["invalid_client"] - before; n != 1 {
			t.Errorf("the server refused %d requests", n)
		}
		wantClass(t, exchangeOnce(t, newOAuth2(t, basic), p), refresher.ClassOK)
	})
	t.Run("of a scope that was not granted", func(t *testing.T) {
		cfg := basic
		cfg.Scope = "api email"
		wantClass(t, exchangeOnce(t, newOAuth2(t, cfg), server.Login(t, basic.ClientID, "opaque")), refresher.ClassConfig)
	})
	t.Run("of an unknown issuer", func(t *testing.T) {
		cfg := basic
		cfg.Issuer += "/other"
		if _, err := newOAuth2(t, cfg).Prepare(t.Context()); err == nil {
			t.Error("it was prepared")
		}
	})
	t.Run("of a revocation by another client", func(t *testing.T) {
		cfg := basic
		cfg.ClientSecret = refresher.NewSecret("wrong")
		p := server.Login(t, basic.ClientID, "opaque")
		var later *refresher.RetryError
		if err := newOAuth2(t, cfg).Revoke(t.Context(), p); err == nil || errors.As(err, &later) {
			t.Errorf("revoked with a wrong secret: %v", err)
		}
		if !server.Active(t, p.Refresh) {
			t.Error("the refresh token is revoked")
		}
	})
}
