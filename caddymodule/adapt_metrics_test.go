package caddymodule

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// adaptMetrics reads those of our own for which keep says so.
func adaptMetrics(t *testing.T, c *ruleCaddy, session string) map[string]float64 {
	t.Helper()
	_, body := c.admin("GET", "/metrics", "")
	values := map[string]float64{}
	for line := range strings.Lines(body) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "caddy_token_refresh") || strings.Contains(line, "_bucket") {
			continue
		}
		if strings.Contains(line, `session="`) && !strings.Contains(line, `session="`+session+`"`) {
			continue
		}
		name, value, _ := strings.Cut(line, " ")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		values[strings.Replace(name, `session="`+session+`"`, "", 1)] = v
	}
	return values
}

const adaptRequests = "caddy_token_refresh_requests_total"

func adaptOutcomes(m map[string]float64) string {
	var list []string
	for _, outcome := range []string{"passed", "waited", "replayed", "unavailable", "refused"} {
		list = append(list, fmt.Sprint(m[adaptRequests+`{outcome="`+outcome+`",}`]+m[adaptRequests+`{outcome="`+outcome+`"}`]+m[adaptRequests+`{,outcome="`+outcome+`"}`]))
	}
	return strings.Join(list, " ")
}

// Every request is counted under exactly one outcome, and reloads lose nothing.
func TestEachRequestIsCountedOnce(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	up := newRuleUpstream(t, nil, access)
	session := "m" + strconv.FormatInt(time.Now().UnixNano(), 36) // the collectors live as long as the process
	app := strings.Replace(ruleSession(issuer, rulePair(t, access, refresh), "wait 2s"), "session s", "session "+session, 1)
	site := "route {\ntoken_refresh " + session + " {\norigins https://app.example.com\n}\n@panic path /panic\nabort @panic\n@error path /error\nerror @error 500\nreverse_proxy " + up.URL + "\n}"
	c := ruleStart(t, ruleConfig{Global: "metrics", App: app, Site: site})
	sum := func() string { t.Helper(); return adaptOutcomes(adaptMetrics(t, c, session)) }

	ruleEqual(t, "at first", sum(), "0 0 0 0 0")
	c.get("/")
	ruleEqual(t, "after one that was sent again", sum(), "0 0 1 0 0")
	c.get("/")
	c.get("/error")
	ruleEqual(t, "after two that passed", sum(), "2 0 1 0 0")
	c.do("GET", "/", nil, "Origin", "https://evil.example")
	c.do("TRACE", "/", nil)
	ruleEqual(t, "after two that were refused", sum(), "2 0 1 0 2")
	up.mu.Lock()
	up.dead["*"] = true
	up.mu.Unlock()
	c.get("/")
	if got := sum(); got != "2 0 2 0 2" && got != "3 0 1 0 2" && got != "2 1 1 0 2" {
		t.Errorf("after one that was answered 401 for good: %s", got)
	}
	before := sum()
	up.mu.Lock()
	delete(up.dead, "*")
	up.mu.Unlock()

	if err := c.load(ruleConfig{Global: "metrics", App: app + "\n", Site: site + "\n# reloaded"}); err != nil {
		t.Fatal(err)
	}
	ruleEqual(t, "after a reload", sum(), before)

	sb.Fault(sandbox.Fault{Commit: true, DelayBefore: 300 * time.Millisecond}, 1)
	attempts := sb.Stats().Attempts
	refreshed := make(chan int, 1)
	go func() {
		status, _ := c.admin("POST", "/token_refresh/sessions/"+session+"/refresh", "")
		refreshed <- status
	}()
	ruleEventually(t, "the exchange's begin", func() bool { return sb.Stats().Attempts == attempts+1 })
	c.get("/") // waits at the gate
	<-refreshed
	m := adaptMetrics(t, c, session)
	var waits, exchanges float64
	for name, v := range m {
		if strings.HasPrefix(name, "caddy_token_refresh_wait_seconds_count") {
			waits = v
		}
		if strings.HasPrefix(name, "caddy_token_refresh_exchanges_total") && strings.Contains(name, `"ok"`) {
			exchanges = v
		}
	}
	if waits < 1 {
		t.Errorf("wait_seconds counts %v", waits)
	}
	ruleEqual(t, "exchanges", exchanges, float64(sb.Stats().Exchanges))
	var total float64
	for name, v := range m {
		if strings.HasPrefix(name, adaptRequests) {
			total += v
		}
	}
	ruleEqual(t, "all requests", total, 7)

	sb.Kill()
	sb.Fault(sandbox.Fault{Status: 400, Body: `{"error":"invalid_grant"}`}, 1)
	c.admin("POST", "/token_refresh/sessions/"+session+"/refresh", "")
	c.get("/")
	m = adaptMetrics(t, c, session)
	if got := strings.Fields(adaptOutcomes(m)); got[3] != "1" {
		t.Errorf("after one without a token: %v", got)
	}
	if m[`caddy_token_refresh_sessions{pool="",state="lost"}`] != 1 {
		t.Errorf("the lost session is not shown: %v", m)
	}
}

func TestGaugesShowTheStateOfTheMoment(t *testing.T) {
	c, _ := adaptSessions(t, sandbox.Config{}, "empty1", "empty2")
	m := adaptMetrics(t, c, "s")
	for name, want := range map[string]float64{
		`caddy_token_refresh_sessions{pool="",state="fresh"}`: 1,
		`caddy_token_refresh_sessions{pool="",state="empty"}`: 2,
		`caddy_token_refresh_intents_open`:                    0,
	} {
		if got, ok := m[name]; !ok || got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	want := float64(ruleStatus(t, "s").ExpiresAt.Unix())
	for name, got := range m {
		if strings.HasPrefix(name, "caddy_token_refresh_expiry_timestamp_seconds") && (got < want-1 || got > want+1) {
			t.Errorf("%s is %f, want %f", name, got, want)
		}
	}
}

func TestTheAccessLogSaysWhatBecameOfARequest(t *testing.T) {
	log := filepath.Join(t.TempDir(), "access.log")
	c, up, _ := ruleReplay(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "fine") }, func(upstream string) string {
		return "log {\noutput file " + log + " {\nroll_disabled\n}\nformat json\n}\ntoken_refresh s {\norigins https://x.example\n}\nreverse_proxy " + upstream
	})
	_ = up
	c.get("/first")
	c.get("/second")
	c.do("GET", "/third", nil, "Origin", "https://evil.example")
	type entry struct {
		Request struct{ URI string }
		Status  int
		TR      *struct {
			Session    string
			Generation *uint64
			Replayed   *bool
			Waited     *float64
		} `json:"token_refresh"`
	}
	got := map[string]entry{}
	ruleEventually(t, "three lines", func() bool {
		f, err := os.Open(log)
		if err != nil {
			return false
		}
		defer f.Close()
		for in := bufio.NewScanner(f); in.Scan(); {
			var e entry
			if json.Unmarshal(in.Bytes(), &e) == nil {
				got[e.Request.URI] = e
			}
		}
		return len(got) == 3
	})
	first, second := got["/first"].TR, got["/second"].TR
	if first == nil || second == nil || first.Generation == nil || first.Replayed == nil || first.Waited == nil {
		t.Fatalf("the fields are missing: %+v %+v", got["/first"], got["/second"])
	}
	ruleEqual(t, "session", first.Session, "s")
	ruleEqual(t, "generation of the one sent again", *first.Generation, 2)
	ruleEqual(t, "replayed", *first.Replayed, true)
	if *first.Waited <= 0 {
		t.Error("the one sent again waited for no time")
	}
	ruleEqual(t, "generation", *second.Generation, 2)
	ruleEqual(t, "replayed", *second.Replayed, false)
	ruleEqual(t, "waited", *second.Waited, 0)
	if got["/third"].TR != nil {
		t.Error("a refused request has a generation")
	}
}
