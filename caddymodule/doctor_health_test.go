package caddymodule

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// What a running instance says is judged by whether requests suffer, or soon
// will, and said with what to do.
func TestTheDoctorJudgesTheStatesOfARunningInstance(t *testing.T) {
	later, before := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	for _, tt := range []struct {
		st          refresher.Status
		signsIn     bool
		level, want string
	}{
		{refresher.Status{State: refresher.PhaseFresh}, false, doctorOK, "fresh."},
		{refresher.Status{State: refresher.PhaseExchanging}, false, doctorOK, "exchanging."},
		{refresher.Status{State: refresher.PhaseBackoff, LastOutcome: "not_sent"}, false, doctorWarning, "The issuer cannot be reached"},
		{refresher.Status{State: refresher.PhaseDegraded, LastOutcome: "retry", LastError: "answered 503"}, false, doctorProblem, "Act before it expires. The issuer answers that it cannot do it now: see whether it is down or overloaded. The last error: answered 503."},
		{refresher.Status{State: refresher.PhaseExpired, LastOutcome: "config"}, false, doctorProblem, "requests are answered 503. The issuer refuses the call as it is made"},
		{refresher.Status{State: refresher.PhaseUncertain}, false, doctorWarning, "may be spent"},
		{refresher.Status{State: refresher.PhaseHolding, LastError: "disk full", ExpiresAt: later}, false, doctorWarning, "disk full."},
		{refresher.Status{State: refresher.PhaseHolding, LastError: "disk full", ExpiresAt: before}, false, doctorProblem, "disk full."},
		{refresher.Status{State: refresher.PhaseHolding}, false, doctorProblem, "another process has the session"},
		{refresher.Status{State: refresher.PhaseEmpty}, false, doctorProblem, "Give it a new pair with THUS."},
		{refresher.Status{State: refresher.PhaseEmpty}, true, doctorWarning, "signing in by itself"},
		{refresher.Status{State: refresher.PhaseEmpty, LastError: "answered 401"}, true, doctorProblem, "user name and password in the configuration. The last error: answered 401."},
		{refresher.Status{State: refresher.PhaseLost, Reason: refresher.ReasonRejected}, false, doctorProblem, "Give it a new pair with THUS."},
		{refresher.Status{State: refresher.PhaseLost, Reason: refresher.ReasonRejected}, true, doctorProblem, "It is signing in again by itself"},
	} {
		d := new(doctor)
		d.healthOf(tt.st, tt.signsIn, "THUS")
		if len(d.findings) != 1 || d.findings[0].Level != tt.level || !strings.Contains(d.findings[0].Text, tt.want) {
			t.Errorf("%+v, signs in %v: %+v", tt.st, tt.signsIn, d.findings)
		}
	}
}

// An issuer that fails for long brings a session through all of it.
func TestTheDoctorSeesASessionDegradeAndExpire(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{AccessLifetime: 4 * time.Second, AcceptExpired: true})
	access, refresh := sb.Login()
	c := ruleStart(t, ruleConfig{App: "session s {\nissuer bearer " + issuer + "/User/RefreshToken {\naccept_expired on\n}\ntokens file " + rulePair(t, access, refresh) + "\n}", Site: "token_refresh s"})
	if status, body, _ := c.send(http.MethodPost, issuer+"/sandbox/faults", strings.NewReader(`{"status": 503, "persistent": true}`)); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	text, err := adaptText(c.caddyfile(ruleConfig{App: ruleSession(issuer, "pair.json")}))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := readDoctorConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"failing for long. The access token still lives", "expired. There is no live access token"} {
		ruleEventually(t, want, func() bool {
			d := new(doctor)
			d.health(nil, d.running(ruleTimeout(t), "", text, cfg))
			return doctorReport{Findings: d.findings}.has(doctorProblem, "instance", "s", want)
		})
	}
}
