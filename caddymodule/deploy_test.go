package caddymodule

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

var deployDesc = regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)

// deployMetrics are the metrics that the code registers, with their labels.
func deployMetrics(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, c := range collectors {
		ch := make(chan *prometheus.Desc, 10)
		c.Describe(ch)
		close(ch)
		for desc := range ch {
			match := deployDesc.FindStringSubmatch(desc.String())
			if match == nil {
				t.Fatalf("what is %s?", desc)
			}
			all[match[1]] = match[2]
		}
	}
	return all
}

// The names and labels that dashboards rely on.
func TestTheMetricsAreThoseThatWerePromised(t *testing.T) {
	const p = "caddy_token_refresh_"
	want := map[string]string{
		p + "exchanges_total":           "session,outcome",
		p + "exchange_duration_seconds": "session",
		p + "requests_total":            "session,outcome",
		p + "wait_seconds":              "session",
		p + "expiry_timestamp_seconds":  "session",
		p + "sessions":                  "pool,state",
		p + "intents_open":              "",
		p + "store_errors_total":        "session", // beyond the promise
		p + "events_dropped_total":      "",
	}
	got := deployMetrics(t)
	for name, labels := range want {
		if have, ok := got[name]; !ok || have != labels {
			t.Errorf("%s{%s} is %q", name, labels, have)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok && !strings.HasPrefix(name, p+"webhook") {
			t.Errorf("%s is nowhere promised: describe it in docs/operations.md and here", name)
		}
	}
}

var deployName = regexp.MustCompile(`\bcaddy_token_refresh_[a-z_]+`)

// The dashboard and the alerts ask for nothing that does not exist, and
// docs/operations.md describes all that does.
func TestDashboardAndAlertsUseMetricsThatExist(t *testing.T) {
	known := deployMetrics(t)
	for _, path := range []string{"deploy/grafana/token-refresh.json", "deploy/prometheus/alerts.yml", "deploy/prometheus/alerts_test.yml", "docs/operations.md"} {
		text, err := os.ReadFile(filepath.Join("..", path))
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, name := range deployName.FindAllString(string(text), -1) {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if base, ok := strings.CutSuffix(name, suffix); ok && strings.HasSuffix(base, "_seconds") {
					name = base
				}
			}
			names[name] = true
			if _, ok := known[name]; !ok {
				t.Errorf("%s: there is no %s", path, name)
			}
		}
		if len(names) == 0 {
			t.Errorf("%s names no metric", path)
		}
		if path == "docs/operations.md" {
			for name := range known {
				if !names[name] {
					t.Errorf("%s does not describe %s", path, name)
				}
			}
			for _, event := range []string{
				eventRotated, eventExchangeFailed, eventUncertain, eventDegraded, eventLost, eventReauthenticated,
				eventRevoked, eventRefreshExpiring, eventReuseSuspected,
			} {
				if !strings.Contains(string(text), "`"+event+"`") {
					t.Errorf("%s does not describe the event %s", path, event)
				}
			}
		}
	}
}

// Each alert leads to a heading of docs/operations.md that says what to do.
func TestEachAlertIsExplained(t *testing.T) {
	alerts, err := os.ReadFile("../deploy/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(alerts), -1)
	if len(names) < 6 {
		t.Fatalf("%d alerts", len(names))
	}
	for _, name := range names {
		if !strings.Contains(string(docs), "### "+name[1]+"\n") {
			t.Errorf("docs/operations.md has no heading for %s", name[1])
		}
	}
}

func TestTheDashboardIsOne(t *testing.T) {
	text, err := os.ReadFile("../deploy/grafana/token-refresh.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Title, UID string
		Panels     []struct {
			ID      int
			Title   string
			Type    string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil || d.Title == "" || len(d.Panels) < 8 {
		t.Fatal(err, d.Title, len(d.Panels))
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %d %q", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%q lies on %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}

// A pool is one value of a label, whatever it holds.
func TestPoolsAreCountedByTheirStates(t *testing.T) {
	_, issuer := ruleIssuer(t, sandbox.Config{})
	c := ruleStart(t, ruleConfig{Global: "metrics", App: poolConfig(issuer).App, Site: poolConfig(issuer).Site})
	for range 3 {
		if !c.program().login() {
			t.FailNow()
		}
	}
	ruleEventually(t, "three are fresh", func() bool {
		return adaptMetrics(t, c, "portal")[`caddy_token_refresh_sessions{pool="portal",state="fresh"}`] == 3
	})
	_, body := c.admin("GET", "/metrics", "")
	app, err := activeApp()
	if err != nil {
		t.Fatal(err)
	}
	list, _ := app.Pools["portal"].shared.List("", 10)
	if len(list) != 3 || slices.ContainsFunc(list, func(st refresher.Status) bool { return strings.Contains(body, st.Name) }) {
		t.Errorf("%d sessions, or one is a label", len(list))
	}
	ids := slices.Sorted(maps.Keys(adaptMetrics(t, c, "portal")))
	if !slices.Contains(ids, "caddy_token_refresh_intents_open") {
		t.Errorf("%v", ids)
	}
}

// promtool runs Debian's; a laptop without it skips the test, CI does not.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("promtool is missing")
		}
		t.Skip("promtool is missing")
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestThePrometheusRulesDoWhatTheySay(t *testing.T) {
	promtool(t, "check", "rules", "../deploy/prometheus/alerts.yml")
	promtool(t, "test", "rules", "../deploy/prometheus/alerts_test.yml")
}

// Prometheus understands each question of the dashboard.
func TestTheDashboardsQueriesAreValid(t *testing.T) {
	text, err := os.ReadFile("../deploy/grafana/token-refresh.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	var rules []map[string]string
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*", "$session", ".*").Replace(target.Expr)
			rules = append(rules, map[string]string{"record": "r" + strconv.Itoa(len(rules)), "expr": expr})
		}
	}
	file, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}}) // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", adaptFile(t, string(file)))
}
