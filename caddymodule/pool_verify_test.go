package caddymodule

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func TestOnlyLoginsWhoseTokenVerifiesAreLearned(t *testing.T) {
	good, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: good.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
	}))
	t.Cleanup(keys.Close)
	_, issuer := ruleIssuer(t, sandbox.Config{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := good
		if r.URL.Query().Get("forged") != "" {
			key = other
		}
		token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"exp": time.Now().Add(time.Hour).Unix(), "sub": r.URL.RawQuery})
		token.Header["kid"] = "1"
		text, _ := token.SignedString(key)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"accessToken": text, "refreshToken": "refresh" + r.URL.RawQuery})
	}))
	t.Cleanup(upstream.Close)
	cfg := poolConfig(issuer, "verify jwks "+keys.URL)
	cfg.Site = "token_refresh portal\nreverse_proxy " + strings.TrimPrefix(upstream.URL, "http://")
	c := ruleStart(t, cfg)
	for query, want := range map[string]int{"": 1, "?forged=1": 1} {
		if status, _, _ := c.do("POST", "/User/Login"+query, nil); status != 200 {
			t.Fatalf("status %d", status)
		}
		app, err := activeApp()
		if err != nil {
			t.Fatal(err)
		}
		pool, _ := app.pool("portal")
		if n := pool.shared.Counts().Sessions; query == "" && n != want || n > want {
			t.Errorf("%q: %d sessions are learned", query, n)
		}
	}
}
