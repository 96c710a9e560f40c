package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func adaptPair(access, refresh string) string {
	text, _ := json.Marshal(map[string]string{"accessToken": access, "refreshToken": refresh})
	return string(text)
}

// adaptSessions starts a Caddy with sessions that wait for an import, and "s"
// with a pair.
func adaptSessions(t *testing.T, cfg sandbox.Config, names ...string) (*ruleCaddy, *sandbox.Sandbox) {
	t.Helper()
	sb, issuer := ruleIssuer(t, cfg)
	access, refresh := sb.Login()
	app := ruleSession(issuer, rulePair(t, access, refresh))
	for _, name := range names {
		app += "\nsession " + name + " {\n issuer bearer " + issuer + "/User/RefreshToken\n tokens import\n}"
	}
	return ruleStartOnly(t, ruleConfig{App: app, Site: "token_refresh s\nreverse_proxy " + issuer}), sb
}

// ruleStartOnly is ruleStart where only "s" has a pair to wait for.
func ruleStartOnly(t *testing.T, cfg ruleConfig) *ruleCaddy {
	t.Helper()
	c := ruleNew(t)
	if err := c.load(cfg); err != nil {
		t.Fatal(err)
	}
	ruleEventually(t, "the session's pair", func() bool { return ruleStatus(t, "s").Generation > 0 })
	return c
}

func TestTheAdminAPIListsSessionsInPages(t *testing.T) {
	names := []string{"alpha", "Beta", "gamma.1", "z_9"}
	c, _ := adaptSessions(t, sandbox.Config{}, names...)
	all := append([]string{"s"}, names...)
	slices.Sort(all)
	type page struct {
		Sessions []map[string]any
		Next     string
	}
	get := func(query string) (p page) {
		t.Helper()
		status, body := c.admin("GET", "/token_refresh/sessions"+query, "")
		if status != 200 {
			t.Fatalf("%s: %d %s", query, status, body)
		}
		if err := json.Unmarshal([]byte(body), &p); err != nil || p.Sessions == nil {
			t.Fatalf("%s: %v in %s", query, err, body)
		}
		return p
	}
	for limit := 1; limit <= 6; limit++ {
		var got []string
		after := ""
		for range 10 {
			p := get(fmt.Sprintf("?limit=%d&after=%s", limit, after))
			if len(p.Sessions) > limit {
				t.Errorf("limit %d: %d sessions", limit, len(p.Sessions))
			}
			for _, s := range p.Sessions {
				got = append(got, s["name"].(string))
			}
			if after = p.Next; after == "" {
				break
			}
		}
		if !slices.Equal(got, all) {
			t.Errorf("limit %d: %v, want %v", limit, got, all)
		}
	}
	if p := get(""); len(p.Sessions) != 5 || p.Next != "" {
		t.Errorf("all: %d, next %q", len(p.Sessions), p.Next)
	}
	if status, body := c.admin("GET", "/token_refresh/sessions?pool=portal", ""); status != 404 || !strings.Contains(body, "no pool is configured") {
		t.Errorf("of a pool that is not there: %d %s", status, body)
	}
	if p := get("?after=zzz"); len(p.Sessions) != 0 || p.Next != "" {
		t.Errorf("after the last: %v", p)
	}
	for _, bad := range []string{"0", "-1", "x", "1e3", "99999999999999999999"} {
		if status, body := c.admin("GET", "/token_refresh/sessions?limit="+bad, ""); status != 400 || !strings.Contains(body, "limit") {
			t.Errorf("limit %s: %d %s", bad, status, body)
		}
	}
}

func TestTheAdminAPIShowsWhatTheContractSays(t *testing.T) {
	c, sb := adaptSessions(t, sandbox.Config{}, "empty")
	c.admin("POST", "/token_refresh/sessions/s/refresh", "")
	show := func(path string) map[string]any {
		t.Helper()
		status, body, header := c.send("GET", "http://"+c.Admin+path, nil)
		if status != 200 || header.Get("Content-Type") != "application/json" || header.Get("Cache-Control") != "no-store" {
			t.Fatalf("%d %v", status, header)
		}
		if access, refresh, _ := sb.Current("s1"); strings.Contains(body, access) || strings.Contains(body, refresh) {
			t.Error("a token is shown")
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	one := show("/token_refresh/sessions/s")
	for _, field := range []string{"name", "pool", "state", "generation", "epoch", "expires_at", "refresh_at", "fingerprint", "hold_off", "rotations"} {
		if one[field] == nil {
			t.Errorf("%s is missing in %v", field, one)
		}
	}
	ruleEqual(t, "state", one["state"], any("fresh"))
	ruleEqual(t, "generation", one["generation"], any(2.0))
	ruleEqual(t, "rotations", len(one["rotations"].([]any)), 2)
	expires, err := time.Parse(time.RFC3339, one["expires_at"].(string))
	if left := time.Until(expires); err != nil || left < 58*time.Minute || left > 61*time.Minute {
		t.Errorf("expires_at %v, %v", one["expires_at"], err)
	}
	empty := show("/token_refresh/sessions/EMPTY")
	ruleEqual(t, "state", empty["state"], any("empty"))
	ruleEqual(t, "name", empty["name"], any("empty"))
	list := show("/token_refresh/sessions")["sessions"].([]any)
	for _, s := range list {
		if _, ok := s.(map[string]any)["rotations"]; ok {
			t.Error("the list has the rotations")
		}
		for _, field := range []string{"name", "pool", "state", "generation"} {
			if _, ok := s.(map[string]any)[field]; !ok {
				t.Errorf("%s is missing in the list", field)
			}
		}
	}
}

func TestTheAdminAPIImports(t *testing.T) {
	c, sb := adaptSessions(t, sandbox.Config{}, "other")
	put := func(name, body string) (int, string) {
		t.Helper()
		return c.admin("PUT", "/token_refresh/sessions/"+name, body)
	}
	for what, body := range map[string]string{
		"nothing": "", "no JSON": "CANARY", "a list": `["CANARY"]`, "half": `{"accessToken":"CANARY"`, "an unknown spelling": `{"AccessToken":"CANARY","RefreshToken":"CANARY"}`,
		"no access token": `{"refreshToken":"CANARY"}`, "no refresh token": `{"accessToken":"CANARY"}`, "twice": `{"accessToken":"CANARY","accessToken":"b","refreshToken":"c"}`,
		"two values": `{"accessToken":"CANARY","refreshToken":"c"}{}`, "a control character": `{"accessToken":"CANARY\u0001","refreshToken":"c"}`, "a number": `{"accessToken":"CANARY","refreshToken":1}`,
	} {
		if status, answer := put("other", body); status != 400 || strings.Contains(answer, "CANARY") {
			t.Errorf("%s: %d %s", what, status, answer)
		}
	}
	if status, _ := put("other", `{"accessToken":"`+strings.Repeat("x", refresher.MaxAnswer)+`"}`); status != 413 {
		t.Errorf("too large: %d", status)
	}
	if status, answer := put("nobody", adaptPair("a", "b")); status != 404 || !strings.Contains(answer, "there is other and s") {
		t.Errorf("an unknown session: %d %s", status, answer)
	}
	ruleEqual(t, "state", ruleStatus(t, "other").State, refresher.PhaseEmpty)

	access, refresh := sb.Login()
	for _, again := range []bool{false, true} { // the pair in use changes nothing
		if status, answer := put("other", adaptPair(access, refresh)); status != 200 || !strings.Contains(answer, `"generation":1`) {
			t.Errorf("again %v: %d %s", again, status, answer)
		}
	}
	ruleEqual(t, "epoch", ruleStatus(t, "other").Epoch, 1)
	if status, answer := c.admin("POST", "/token_refresh/sessions/other/refresh", ""); status != 200 || !strings.Contains(answer, `"generation":2`) {
		t.Errorf("refresh: %d %s", status, answer)
	}
	status, answer := put("other", adaptPair(access, refresh))
	if status != 409 || !strings.Contains(answer, "already used") || strings.Contains(answer, refresh) {
		t.Errorf("a spent refresh token: %d %s", status, answer)
	}
	ruleEqual(t, "reuses at the issuer", sb.Stats().Reuses, 0)
	// Another spelling, and a new epoch.
	access, refresh = sb.Login()
	if status, answer := put("other", `{"access_token":"`+access+`","refresh_token":"`+refresh+`","expires_in":60}`); status != 200 || !strings.Contains(answer, `"epoch":2`) {
		t.Errorf("a new login: %d %s", status, answer)
	}
}

func TestTheAdminAPIRefreshes(t *testing.T) {
	c, sb := adaptSessions(t, sandbox.Config{}, "empty")
	refresh := func(name string) (int, string) {
		t.Helper()
		return c.admin("POST", "/token_refresh/sessions/"+name+"/refresh", "")
	}
	if status, answer := refresh("s"); status != 200 || !strings.Contains(answer, `"generation":2`) {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := refresh("empty"); status != 409 {
		t.Errorf("without a pair: %d %s", status, answer)
	}
	if status, _ := refresh("nobody"); status != 404 {
		t.Errorf("an unknown session: %d", status)
	}
	sb.Fault(sandbox.Fault{Status: 500, Body: "CANARY"}, 1)
	if status, answer := refresh("s"); status != 502 || strings.Contains(answer, "CANARY") || !strings.Contains(answer, "500") {
		t.Errorf("the issuer fails: %d %s", status, answer)
	}
	if status, answer := refresh("s"); status != 200 || !strings.Contains(answer, `"generation":3`) {
		t.Errorf("after the failure: %d %s", status, answer)
	}
	sb.Kill()
	sb.Fault(sandbox.Fault{Status: 400, Body: `{"error":"invalid_grant"}`}, 1)
	if status, answer := refresh("s"); status < 400 {
		t.Errorf("the session is over: %d %s", status, answer)
	}
	ruleEqual(t, "state", ruleStatus(t, "s").State, refresher.PhaseLost)
	if status, answer := refresh("s"); status != 409 {
		t.Errorf("lost: %d %s", status, answer)
	}
	status, _, header := c.do("GET", "/whoami", nil)
	ruleEqual(t, "status", status, 503)
	ruleEqual(t, "Retry-After", header.Get("Retry-After"), "")
}

// Whoever pastes a token where the name belongs is told the names, and finds it
// in no answer.
func TestANameThatNothingHasIsNotRepeated(t *testing.T) {
	_, issuer := ruleIssuer(t, sandbox.Config{})
	c := ruleStart(t, ruleConfig{App: poolConfig(issuer).App, Site: poolConfig(issuer).Site})
	const token = "CANARYkS5yxOblBFjpZ8UuBf8tBMfTqgSiLQwdvVWv0EIs2PKrQKZ"
	for _, path := range []string{"/" + token, "/" + token + "/refresh", "/portal:" + token, "/" + token + ":x", "?pool=" + token} {
		method := map[bool]string{true: "POST", false: "GET"}[strings.HasSuffix(path, "/refresh")]
		status, body := c.admin(method, "/token_refresh/sessions"+path, "")
		if status != 404 || strings.Contains(body, "CANARY") || !strings.Contains(body, "pool") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, body := c.admin("GET", "/token_refresh/sessions?pool=portal&after="+token, ""); status != 400 || strings.Contains(body, "CANARY") {
		t.Errorf("after: %d %s", status, body)
	}
}

func TestTheAdminAPIRefusesOtherMethods(t *testing.T) {
	c, _ := adaptSessions(t, sandbox.Config{})
	for _, tt := range []struct {
		path, allow string
		bad         []string
	}{
		{"/token_refresh/sessions", "GET", []string{"POST", "PUT", "DELETE", "PATCH"}},
		{"/token_refresh/sessions/s", "GET, PUT, DELETE", []string{"POST", "PATCH"}},
		{"/token_refresh/sessions/s/refresh", "POST", []string{"GET", "PUT", "DELETE"}},
	} {
		for _, method := range tt.bad {
			status, body, header := c.send(method, "http://"+c.Admin+tt.path, strings.NewReader(""))
			if status != http.StatusMethodNotAllowed || header.Get("Allow") != tt.allow {
				t.Errorf("%s %s: %d, Allow %q, %s", method, tt.path, status, header.Get("Allow"), body)
			}
		}
	}
	for _, path := range []string{"/token_refresh/sessions/s/nothing", "/token_refresh/sessions/..%2Fs", "/token_refresh/sessions/%00", "/token_refresh/"} {
		if status, body := c.admin("GET", path, ""); status != 404 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if err := c.load(ruleConfig{Site: "respond ok"}); err != nil {
		t.Fatal(err)
	}
	if status, body := c.admin("GET", "/token_refresh/sessions", ""); status != 200 || !strings.Contains(body, `"sessions":[]`) {
		t.Errorf("no session: %d %s", status, body)
	}
}

func TestTheCommandLineTalksToTheAdminAPI(t *testing.T) {
	c, sb := adaptSessions(t, sandbox.Config{}, "other")
	run := func(stdin string, args ...string) (int, string, string) {
		t.Helper()
		return adaptCaddy(t, c.Dir, stdin, append([]string{"token-refresh"}, append(args, "--address", c.Admin)...)...)
	}
	code, out, errs := run("", "list")
	if code != 0 || !strings.Contains(out, "SESSION") || !strings.Contains(out, "other") || !strings.Contains(out, "fresh") || !strings.Contains(out, "empty") {
		t.Errorf("list: %d\n%s%s", code, out, errs)
	}
	code, out, _ = run("", "list", "--json")
	var list struct {
		Sessions []refresher.Status
		Next     *string
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 || len(list.Sessions) != 2 || list.Next == nil {
		t.Errorf("list --json: %d, %v\n%s", code, err, out)
	}
	code, out, errs = run("", "refresh", "s")
	if code != 0 || !strings.Contains(out, "generation") {
		t.Errorf("refresh: %d\n%s%s", code, out, errs)
	}
	ruleEqual(t, "generation", ruleStatus(t, "s").Generation, 2)
	code, out, _ = run("", "show", "s")
	if code != 0 || !strings.Contains(out, "2 (login 1, from file") {
		t.Errorf("show: %d\n%s", code, out)
	}
	var st refresher.Status
	code, out, _ = run("", "show", "s", "--json")
	if err := json.Unmarshal([]byte(out), &st); err != nil || code != 0 || st.Generation != 2 || st.State != "fresh" {
		t.Errorf("show --json: %d, %v\n%s", code, err, out)
	}

	access, refresh := sb.Login()
	code, out, errs = run(adaptPair(access, refresh), "import", "other")
	if code != 0 || ruleStatus(t, "other").Generation != 1 {
		t.Errorf("import: %d\n%s%s", code, out, errs)
	}
	for _, token := range []string{access, refresh} {
		if strings.Contains(out+errs, token) {
			t.Error("import prints a token")
		}
	}
	access, refresh = sb.Login()
	path := filepath.Join(t.TempDir(), "pair.json")
	ruleWritePair(t, path, access, refresh)
	if code, out, errs = run("", "import", "other", path); code != 0 || ruleStatus(t, "other").Epoch != 2 {
		t.Errorf("import from a file: %d\n%s%s", code, out, errs)
	}
	if code, _, errs = run("", "refresh", "other"); code != 0 {
		t.Errorf("refresh: %d %s", code, errs)
	}
	code, out, errs = run("", "import", "other", path)
	if code == 0 || !strings.Contains(errs, "already used") || strings.Contains(out+errs, refresh) {
		t.Errorf("import of a spent token: %d\n%s%s", code, out, errs)
	}
	for _, args := range [][]string{{"show", "nobody"}, {"refresh", "nobody"}, {"show"}, {"import", "other", path + "x"}, {"frobnicate"}, {"list", "too", "many"}} {
		if code, out, errs := run("", args...); code == 0 {
			t.Errorf("%v: exit code 0\n%s%s", args, out, errs)
		}
	}
	if code, _, errs := run("{", "import", "other"); code == 0 || !strings.Contains(errs, "cannot be used") {
		t.Errorf("import of half a pair: %d %s", code, errs)
	}
	// The address comes from a configuration, too.
	config := filepath.Join(c.Dir, "Caddyfile")
	if err := os.WriteFile(config, []byte("{\nadmin "+c.Admin+"\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := adaptCaddy(t, c.Dir, "", "token-refresh", "list", "--config", config); code != 0 || !strings.Contains(out, "other") {
		t.Errorf("list --config: %d\n%s%s", code, out, errs)
	}
	if code, _, errs := adaptCaddy(t, c.Dir, "", "token-refresh", "list", "--address", ruleFreeAddr(t)); code == 0 || errs == "" {
		t.Errorf("nobody listens: %d %s", code, errs)
	}
}
