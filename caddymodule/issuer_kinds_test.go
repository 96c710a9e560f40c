package caddymodule

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// The example in the documentation of an issuer that is only described, adapted
// and run as it stands there, but for the issuer's address.
func TestAnIssuerDescribedInConfigurationAlone(t *testing.T) {
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var app string
	for _, block := range strings.Split(string(text), "```") {
		if strings.HasPrefix(block, "caddyfile\n") && strings.Contains(block, "request_field") {
			app = block
		}
	}
	_, app, ok := strings.Cut(app, "token_refresh {\n")
	if !ok {
		t.Fatal("the example is not there")
	}
	if n := strings.Count(app, "\n"); n > 20 {
		t.Errorf("the example takes %d lines", n)
	}
	app = strings.TrimSuffix(strings.TrimSpace(app), "\n\t}\n}")

	exchanges, wrong := 0, ""
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path != "/v1/session/renew" {
			_, _ = io.WriteString(w, r.Header.Get("Authorization"))
			return
		}
		body, _ := io.ReadAll(r.Body)
		if string(body) != `{"renewal":"renewal-1"}` || r.Header.Get("Authorization") != "Token session-1" || r.Header.Get("X-Api-Key") != "the key" {
			wrong = fmt.Sprintf("%q, %v", body, r.Header)
		}
		exchanges++
		_, _ = io.WriteString(w, `{"session":"session-2","renewal":"renewal-2","ttl":3600}`)
	}))
	defer api.Close()
	t.Setenv("API_KEY", "the key")
	t.Setenv("SESSION", "session-1")
	t.Setenv("RENEWAL", "renewal-1")
	c := ruleStart(t, ruleConfig{
		App:  strings.ReplaceAll(app, "https://api.example.com", api.URL),
		Site: "token_refresh renewed\nreverse_proxy " + api.URL,
	})
	ruleEventually(t, "the session has its pair", func() bool { return ruleStatus(t, "renewed").Generation == 1 })
	if status, body := c.admin("POST", "/token_refresh/sessions/renewed/refresh", ""); status != http.StatusOK {
		t.Fatalf("refresh: %d %s", status, body)
	}
	if _, got := c.get("/"); got != "Bearer session-2" || exchanges != 1 || wrong != "" {
		t.Errorf("the API got %q after %d exchanges; %s", got, exchanges, wrong)
	}
}

func TestTheNewKindsHaveTheirOwnDefaults(t *testing.T) {
	for _, tt := range []struct {
		mod     caddy.Module
		options string
		want    refresher.Profile
	}{
		{new(OAuth2Issuer), `"url":"https://127.0.0.1:1/t","client_id":"a"`, refresher.Profile{Timeout: 10 * time.Second}},
		{new(OAuth2Issuer), `"discover":"https://127.0.0.1:1","client_id":"a","profile":"hydra","timeout":1000000000`,
			refresher.Profile{RevokesPrevious: true, RefreshLifetime: 30 * day, Timeout: time.Second}},
		{new(OAuth2Issuer), `"url":"https://127.0.0.1:1/t","client_id":"a","profile":"auth0","reuse_interval":30000000000,"reuse_answer":"new"`,
			refresher.Profile{ReuseInterval: 30 * time.Second, RefreshLifetime: 15 * day, Timeout: 10 * time.Second}},
		{new(FusionAuthIssuer), `"url":"https://127.0.0.1:1"`, refresher.Profile{SendsAccess: true, RefreshLifetime: 30 * day, Timeout: 10 * time.Second}},
	} {
		if err := provisionIssuer(t, tt.mod, tt.options); err != nil {
			t.Errorf("%s: %v", tt.options, err)
			continue
		}
		if got := tt.mod.(refresher.Issuer).Profile(); got != tt.want {
			t.Errorf("%s: %+v", tt.options, got)
		}
	}
}

func provisionIssuer(t *testing.T, mod caddy.Module, options string) error {
	t.Helper()
	if err := json.Unmarshal([]byte("{"+options+"}"), mod); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	return mod.(caddy.Provisioner).Provision(ctx)
}

// No error of a configuration shows a secret, nor what a placeholder stands for.
func TestWhatTheNewKindsRefuse(t *testing.T) {
	t.Setenv("RULE_EMPTY", "")
	t.Setenv("RULE_SECRET", "CANARY-kinds\n")
	key := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(key, []byte("CANARY-kinds"), 0o600); err != nil {
		t.Fatal(err)
	}
	const oauth2, fusion = `"url":"https://127.0.0.1:1/t","client_id":"a"`, `"url":"https://127.0.0.1:1"`
	for _, tt := range []struct {
		mod           caddy.Module
		options, want string
	}{
		{new(OAuth2Issuer), oauth2 + `,"client_secret":"{env.RULE_EMPTY}"`, "client_secret: a placeholder"},
		{new(OAuth2Issuer), oauth2 + `,"parameters":{"x":["CANARY-kinds {env.RULE_NONE}"]}`, "parameter x: a placeholder"},
		{new(OAuth2Issuer), oauth2 + `,"auth_method":"private_key_jwt","private_key":"/nowhere/key"`, "no such file"},
		{new(OAuth2Issuer), oauth2 + `,"auth_method":"private_key_jwt","private_key":"` + key + `"`, "neither PEM nor"},
		{new(OAuth2Issuer), oauth2 + `,"auth_method":"private_key_jwt"`, "private_key: wanted"},
		{new(OAuth2Issuer), oauth2 + `,"discover":"https://127.0.0.1:1"`, "either"},
		{new(OAuth2Issuer), oauth2 + `,"tls":{"ca":"/nowhere/ca"}`, "tls ca"},
		{new(OAuth2Issuer), oauth2 + `,"rate":-1`, "rate"},
		{new(FusionAuthIssuer), fusion + `,"api_key":"{env.RULE_SECRET}"`, "api_key: it cannot"},
		{new(FusionAuthIssuer), fusion + `,"tenant_id":"{env.RULE_EMPTY}"`, "tenant_id: a placeholder"},
		{new(FusionAuthIssuer), `"url":"https://127.0.0.1:1/api/jwt/refresh"`, "without /api"},
	} {
		err := provisionIssuer(t, tt.mod, tt.options)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", tt.options, err)
		}
	}
}

// Both kinds revoke through their module, and a configuration that is merely
// loaded asks nobody.
func TestTheNewKindsRevokeAndLoadInSilence(t *testing.T) {
	var got []string
	var calls atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		got = append(got, r.Method+" "+r.URL.Path)
	}))
	defer srv.Close()
	pair := refresher.Pair{Access: refresher.NewSecret("a"), Refresh: refresher.NewSecret("r")}
	t.Setenv("RULE_SECRET", "s")
	for _, tt := range []struct {
		mod           caddy.Module
		options, want string
	}{
		{new(OAuth2Issuer), `"discover":"` + srv.URL + `","revoke_url":"` + srv.URL + `/r","client_id":"a"`, ""},
		{new(OAuth2Issuer), `"url":"` + srv.URL + `/t","revoke_url":"` + srv.URL + `/r","client_id":"a","client_secret":"{env.RULE_SECRET}"`, "POST /r POST /r"},
		{new(FusionAuthIssuer), `"url":"` + srv.URL + `","api_key":"{env.RULE_SECRET}"`, "DELETE /api/jwt/refresh"},
	} {
		calls.Store(0)
		if err := provisionIssuer(t, tt.mod, tt.options); err != nil {
			t.Fatal(err)
		}
		if n := calls.Load(); n != 0 {
			t.Errorf("%s: %d calls while it was loaded", tt.options, n)
		}
		if tt.want == "" {
			continue
		}
		got = nil
		err := tt.mod.(refresher.Revoker).Revoke(t.Context(), pair)
		if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %v, error %v", tt.options, got, err)
		}
	}
}
