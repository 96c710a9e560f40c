package caddymodule

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer/issuertest"
)

// Sessions at a real authorization server, whose access tokens live for a few
// seconds, through several generations: callers see nothing but 200, and the
// server one exchange for each generation and no refusal.
func TestSessionsAtARealAuthorizationServerStayFresh(t *testing.T) {
	const life, lasting = 5 * time.Second, 16 * time.Second
	dir := t.TempDir()
	signing := writeClientKey(t, filepath.Join(dir, "client.pem"))
	server := issuertest.Start(t, life,
		issuertest.Client{ID: "rotating", Secret: "CANARY-of-the-client-1"},
		issuertest.Client{ID: "static", Secret: "CANARY-of-the-client-2"},
		issuertest.Client{ID: "signing", AuthMethod: "private_key_jwt", Keys: signing},
		issuertest.Client{ID: "public", AuthMethod: "none"},
	)
	t.Setenv("RULE_SECRET", "CANARY-of-the-client-1")
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("CANARY-of-the-client-2"), 0o600); err != nil {
		t.Fatal(err)
	}
	sessions := []struct{ name, format, issuer string }{
		{"rotating", "opaque", "discover " + server.Issuer + " {\nclient_id rotating\nclient_secret {env.RULE_SECRET}\n}"},
		{"static", "jwt", server.Issuer + "/token {\nclient_id static\nclient_secret {file." + dir + "/secret}\nauth_method client_secret_basic\nprofile genauth\n}"},
		{"signing", "jwt", "discover " + server.Issuer + " {\nclient_id signing\nauth_method private_key_jwt\nprivate_key " + dir + "/client.pem\nkey_id k\n}"},
		{"public", "opaque", server.Issuer + "/token {\nclient_id public\nscope openid offline_access api\n}"},
	}
	var app, site strings.Builder
	for _, s := range sessions {
		fmt.Fprintf(&app, "session %s {\nissuer oauth2 %s\ntokens login %s {\nbody `%s`\n}\n}\n",
			s.name, s.issuer, server.LoginURL(), issuertest.LoginBody(s.name, s.format))
		fmt.Fprintf(&site, "handle_path /%s/* {\ntoken_refresh %s\nreverse_proxy %s\n}\n", s.name, s.name, server.Issuer)
	}
	logs := filepath.Join(dir, "log")
	c := ruleStart(t, ruleConfig{App: app.String(), Site: site.String(), LogFile: logs})

	ctx, cancel := context.WithTimeout(t.Context(), lasting)
	defer cancel()
	var callers sync.WaitGroup
	for _, s := range sessions {
		for _, body := range []string{"", strings.Repeat("x", 3<<10)} {
			callers.Go(func() { callEcho(ctx, t, c, s.name, body) })
		}
	}
	callers.Wait()

	rotations := uint64(0)
	for _, s := range sessions {
		st := ruleStatus(t, s.name)
		if st.Generation < 4 {
			t.Errorf("%s: %+v", s.name, st)
		}
		rotations += st.Generation - 1
	}
	got := server.Stats(t)
	if len(got.Refused) > 0 || got.Unauthorized > 0 || got.Served < 100 {
		t.Errorf("the server counted %+v", got)
	}
	// One more may have been made since the sessions were asked.
	if n := uint64(got.Exchanges); n < rotations || n > rotations+uint64(len(sessions)) {
		t.Errorf("%d exchanges for %d rotations", n, rotations)
	}
	if text, err := os.ReadFile(logs); err != nil || strings.Contains(string(text), "CANARY") || strings.Contains(string(text), "eyJ") {
		t.Errorf("the log holds a secret, or error %v", err)
	}
}

// callEcho calls the API until the time is over; every answer must be 200.
func callEcho(ctx context.Context, t *testing.T, c *ruleCaddy, session, body string) {
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		req, err := http.NewRequest(method, "http://"+c.Addr+"/"+session+"/api/echo", strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		resp, err := c.client.Do(req)
		if err != nil {
			t.Errorf("%s %s: %v", session, method, err)
			return
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := fmt.Sprintf(`{"user":"demo","got":%d}`, len(body)); err != nil || resp.StatusCode != http.StatusOK || string(text) != want {
			t.Errorf("%s %s: %s %q, error %v", session, method, resp.Status, text, err)
			return
		}
	}
}

// writeClientKey makes a private key and returns the public one as a JWK set.
func writeClientKey(t *testing.T, path string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return set
}
