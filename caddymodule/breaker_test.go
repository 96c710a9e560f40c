package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/time/rate"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// Each case is a story of words, told to a breaker whose clock is turned:
//
//	ok fail 429 rejected config 401 redirect   an exchange of "a" with this outcome
//	b:fail                                     one of another session
//	unsent                                     one that was begun and then not needed
//	last:fail                                  one before its token's end
//	begin … end:ok                             one that the words between come into
//	+10s                                       time passes
//
// A word that ends in ! is refused.
func TestTheBreaker(t *testing.T) {
	const five = "fail fail b:fail fail fail" // what opens it
	for _, tt := range []struct{ name, story string }{
		{"stays closed while things go well", "ok ok ok ok ok ok ok ok"},
		{"stays closed with four failures", "fail fail b:fail fail ok fail +31s ok"},
		{"opens with five", five + " ok! b:ok!"},
		{"opens with five of any kind", "unsent-failed quiet b:unknown 500 503 ok!"},
		{"does not open for one session alone", "fail fail fail fail fail fail fail fail ok"},
		{"does not open for failures of long ago", "fail fail b:fail fail +31s fail ok"},
		{"does not open where the other session's is of long ago", "b:fail +31s fail fail fail fail fail ok"},
		{"opens for failures spread over its window", "fail +7s fail +7s b:fail +7s fail +7s fail ok!"},
		{"does not open while more than half succeed", "ok ok ok ok ok ok fail fail b:fail fail fail ok"},
		{"opens with half of them", "ok ok ok ok ok " + five + " ok!"},
		{"does not count what says nothing of the issuer", "b:rejected rejected config 401 redirect rejected b:config ok"},
		{"is not kept closed by it either", "rejected rejected rejected config config config " + five + " ok!"},
		{"takes a 429 for an answer", "429 429 b:429 429 429 429 ok"},
		{"does not count what was not needed", "unsent b:unsent unsent unsent unsent unsent ok"},
		{"lets nothing through for 10 s", five + " +9s ok! +2s ok ok"},
		{"lets one try", five + " +11s begin b:ok! ok! end:ok b:ok"},
		{"stays open twice as long after a trial that fails", five + " +11s fail +11s ok! +10s ok ok"},
		{"stays open at most two minutes", five + " +11s fail +21s fail +41s fail +81s fail +121s fail +119s ok! +2s ok ok"},
		{"begins with 10 s again once closed", five + " +11s fail +21s ok " + five + " +9s ok! +2s ok"},
		{"lets another try when the first was not needed", five + " +11s unsent fail ok! +21s ok"},
		{"closes when a trial is refused by a working issuer", five + " +11s rejected ok"},
		{"lets a session through that is about to end", five + " last:fail ok! last:ok ok"},
		{"lets a session through during a trial", five + " +11s begin last:fail b:ok! end:fail ok! +21s ok"},
		{"is not kept open longer by such a session", five + " +9s last:fail +2s ok"},
		{"does not mind failures that began before it opened", "begin " + five + " end:fail +11s ok ok"},
		{"nor successes", "begin " + five + " end:ok ok!"},
		{"begins anew once closed", five + " +11s ok fail fail b:fail fail ok"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(1_700_000_000, 0)
			b := &breaker{host: "api.example.com", now: func() time.Time { return now }}
			var begun ticket
			for i, word := range strings.Fields(tt.story) {
				if d, err := time.ParseDuration(word); err == nil && word[0] == '+' {
					now = now.Add(d)
					continue
				}
				what, refused := strings.CutSuffix(word, "!")
				how, outcome, ok := strings.Cut(what, ":")
				if !ok {
					how, outcome = "a", what
				}
				if how == "end" {
					class, status := breakerOutcome(t, outcome)
					b.done(begun, class, status)
					continue
				}
				ticket, err := b.admit(how, how == "last")
				if (err != nil) != refused {
					t.Fatalf("word %d, %s: %v", i, word, err)
				}
				switch {
				case err != nil:
				case outcome == "begin":
					begun = ticket
				default:
					class, status := breakerOutcome(t, outcome)
					b.done(ticket, class, status)
				}
			}
		})
	}
}

func breakerOutcome(t *testing.T, word string) (refresher.Class, int) {
	t.Helper()
	type outcome struct {
		class  refresher.Class
		status int
	}
	o, ok := map[string]outcome{
		"ok":            {refresher.ClassOK, 200},
		"fail":          {refresher.ClassRetry, 500},
		"500":           {refresher.ClassRetry, 500},
		"503":           {refresher.ClassRetry, 503},
		"429":           {refresher.ClassRetry, 429},
		"quiet":         {refresher.ClassQuiet, 502},
		"unknown":       {refresher.ClassUnknown, 0},
		"unsent-failed": {refresher.ClassNotSent, 0},
		"unsent":        {},
		"rejected":      {refresher.ClassRejected, 400},
		"config":        {refresher.ClassConfig, 403},
		"401":           {refresher.ClassUnauthorized, 401},
		"redirect":      {refresher.ClassRedirect, 302},
	}[word]
	if !ok {
		t.Fatalf("no outcome %q", word)
	}
	return o.class, o.status
}

func TestAnOpenBreakerSaysSoOnce(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	core, logs := observer.New(zapcore.DebugLevel)
	b := &breaker{host: "api.example.com", rate: rate.NewLimiter(rate.Inf, 0), now: func() time.Time { return now }}
	sessions := []*issuerLimiter{{b, "a", zap.New(core)}, {b, "b", zap.New(core)}}
	fail := func(i int) error {
		end, err := sessions[i%2].Begin(context.Background(), false)
		if err == nil {
			end(refresher.ClassUnknown, 0)
		}
		return err
	}
	for i := range breakerFailures {
		if err := fail(i); err != nil {
			t.Fatal(err)
		}
	}
	err := fail(0)
	want := "the issuer api.example.com is failing: next attempt at " + now.Add(breakerPause).Format(time.RFC3339)
	var advice *refresher.RetryError
	if err == nil || err.Error() != want || !errors.As(err, &advice) || advice.After != breakerPause {
		t.Errorf("got %v, want %s", err, want)
	}
	now = now.Add(breakerPause)
	if err := fail(0); err != nil {
		t.Errorf("the trial: %v", err)
	}
	now = now.Add(2 * breakerPause)
	end, err := sessions[1].Begin(context.Background(), false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sessions[0].Begin(context.Background(), false); err == nil || !strings.HasSuffix(err.Error(), "when the one under way has ended") {
		t.Errorf("during the trial: %v", err)
	}
	end(refresher.ClassOK, 200)
	var got []string
	for _, e := range logs.All() {
		got = append(got, fmt.Sprintf("%s %.32s %v", e.Level, e.Message, e.ContextMap()["issuer"]))
	}
	if fmt.Sprint(got) != "[warn the issuer is failing; it is lef api.example.com info the issuer answers again api.example.com]" {
		t.Errorf("the log: %q", got)
	}
}

// A place that was kept for an exchange which then had to wait too long is given
// back.
func TestTheRateIsWaitedFor(t *testing.T) {
	b := &breaker{rate: rate.NewLimiter(0.001, 1), now: time.Now, pause: breakerPause}
	l := &issuerLimiter{b, "a", zap.NewNop()}
	b.rate.Allow()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := l.Begin(ctx, false); err == nil || !strings.Contains(err.Error(), "rate") {
		t.Errorf("beyond the rate: %v", err)
	}
	b.rate.SetLimit(rate.Inf)
	if _, err := l.Begin(ctx, false); err != nil {
		t.Errorf("the trial's place is taken: %v", err)
	}
}

func TestSessionsOfOneIssuerShareItsBreaker(t *testing.T) {
	a := breakerFor("https://Breaker.example:8443/User/RefreshToken", 3)
	if b := breakerFor("https://breaker.example:8443/oauth/token?x=y", 0.5); a != b || a.rate.Limit() != 0.5 || a.rate.Burst() != 1 {
		t.Errorf("the same origin: %p %p, %v, %v", a, b, a.rate.Limit(), a.rate.Burst())
	}
	if b := breakerFor("https://breaker.example/User/RefreshToken", 0); a == b || b.rate.Limit() != 50 || b.rate.Burst() != 50 {
		t.Errorf("another port: %p %p, %v", a, b, b.rate.Limit())
	}
}

// breakersForget closes all breakers, as if the issuers had answered.
func breakersForget() {
	breakers.Lock()
	defer breakers.Unlock()
	for _, b := range breakers.byOrigin {
		b.mu.Lock()
		b.pause, b.ended, b.last, b.other = 0, [len(b.ended)]tally{}, failure{}, failure{}
		b.mu.Unlock()
	}
}

// The breaker is the process's: a reload does not close it. The issuer does not
// hear of what it holds back, and callers get the token that is left.
func TestAFailingIssuerIsLeftAlone(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	var app strings.Builder
	for _, name := range []string{"s", "other"} {
		access, refresh := sb.Login()
		app.WriteString(strings.Replace(ruleSession(issuer, rulePair(t, access, refresh)), "session s", "session "+name, 1) + "\n")
	}
	cfg := ruleConfig{App: app.String(), Site: "token_refresh s\nreverse_proxy " + issuer}
	c := ruleStart(t, cfg)
	sb.SetFault(sandbox.Fault{Status: 500})
	refresh := func(name string) (int, string) {
		return c.admin("POST", "/token_refresh/sessions/"+name+"/refresh", "")
	}
	for i := range breakerFailures {
		if status, body := refresh([]string{"s", "other"}[i%2]); status != 502 || !strings.Contains(body, "500") {
			t.Fatalf("failure %d: %d %s", i+1, status, body)
		}
	}
	sb.ClearFaults()
	attempts := sb.Stats().Attempts
	for i := range 2 {
		for _, name := range []string{"s", "other"} {
			if status, body := refresh(name); status != 502 || !strings.Contains(body, "is failing: next attempt at 2") {
				t.Errorf("%s: %d %s", name, status, body)
			}
			if err := ruleStatus(t, name).LastError; !strings.Contains(err, "is failing: next attempt at 2") {
				t.Errorf("%s shows %q", name, err)
			}
		}
		if status, body := c.get("/whoami"); status != 200 {
			t.Errorf("a caller: %d %s", status, body)
		}
		cfg.Site += fmt.Sprintf("\n# reload %d", i)
		if err := c.load(cfg); err != nil {
			t.Fatal(err)
		}
	}
	ruleEqual(t, "attempts", sb.Stats().Attempts, attempts)
	breakersForget()
	if status, body := refresh("s"); status != 200 {
		t.Errorf("once closed: %d %s", status, body)
	}
}
