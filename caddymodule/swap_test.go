package caddymodule

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func TestAHandlerThatSwapsLeavesOtherRequestsAlone(t *testing.T) {
	// A restart may take longer than such a token has left.
	sb, issuer := ruleIssuer(t, sandbox.Config{AccessLifetime: 3 * time.Second, AcceptExpired: true})
	access, refresh := sb.Login()
	known, _ := sb.Lookup(access)
	dead, _ := sb.Login() // of another session, that has ended
	ended, _ := sb.Lookup(dead)
	sb.KillSession(ended.ID)
	cfg := ruleConfig{
		App:  fmt.Sprintf("session s {\nissuer bearer %s/User/RefreshToken {\naccept_expired on\n}\ntokens file %s\n}", issuer, rulePair(t, access, refresh)),
		Site: "token_refresh s {\nmode swap\n}\nreverse_proxy " + strings.TrimPrefix(issuer, "http://"),
	}
	c := ruleStart(t, cfg)
	call := func(header ...string) int {
		status, _, _ := c.do("GET", "/whoami", nil, header...)
		return status
	}
	second := ""
	for until := time.Now().Add(7 * time.Second); time.Now().Before(until); {
		if status := call("Authorization", "Bearer "+access); status != 200 {
			t.Fatalf("status %d with the first token", status)
		}
		if second == "" && ruleStatus(t, "s").Generation == 2 {
			second, _, _ = sb.Current(known.ID)
		}
		if second != "" {
			if status := call("Authorization", "bearer "+second); status != 200 {
				t.Fatalf("status %d with a later token", status)
			}
		}
		for _, header := range [][]string{{}, {"Authorization", "Bearer " + access + "x"}, {"Authorization", "Bearer " + dead}, {"Authorization", "Basic ZGVtbzpkZW1v"}} {
			if status := call(header...); status != 401 {
				t.Fatalf("%q: status %d: it was given a token", header, status)
			}
		}
	}
	if second == "" {
		t.Fatal("nothing was rotated")
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := c.load(cfg); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{access, second} {
		if status := call("Authorization", "Bearer "+token); status != 200 {
			t.Errorf("after a restart: status %d", status)
		}
	}
	if s := sb.Stats(); s.Reuses != 0 {
		t.Errorf("the issuer saw %+v", s)
	}
}
