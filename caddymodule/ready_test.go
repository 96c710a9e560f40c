package caddymodule

import (
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func TestAReadinessProbeIsRedOnlyWhenRequestsWouldFail(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{AccessLifetime: 4 * time.Second})
	access, refresh := sb.Login()
	upstream := strings.TrimPrefix(issuer, "http://")
	c := ruleStart(t, ruleConfig{
		App:  ruleSession(issuer, rulePair(t, access, refresh)),
		Site: "token_refresh_ready /ready s\ntoken_refresh s\nreverse_proxy " + upstream,
	})
	probe := func(want int) bool {
		status, _ := c.get("/ready")
		return status == want
	}
	ruleEventually(t, "it is ready", func() bool { return probe(200) })
	// The issuer refuses all exchanges from now on; the access token lives on.
	sb.SetFault(sandbox.Fault{Status: 503})
	refused := false
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); {
		ready := probe(200)
		status, _ := c.get("/whoami")
		if status != 200 {
			if refused = true; probe(200) {
				t.Errorf("a request was answered %d, and the probe is green", status)
			}
			break
		}
		if !ready && status == 200 && probe(503) {
			if again, _ := c.get("/whoami"); again == 200 {
				t.Error("the probe is red, and requests are served")
			}
		}
		<-time.After(20 * time.Millisecond)
	}
	if !refused {
		t.Error("no request ever failed")
	}
}
