package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

const testHandle = "CANARY-handle-of-a-program"

// startEndpoint runs a session with a token endpoint before its API.
func startEndpoint(t *testing.T, cfg sandbox.Config, options ...string) (*ruleCaddy, *sandbox.Sandbox, string) {
	t.Helper()
	sb, issuer := ruleIssuer(t, cfg)
	access, refresh := sb.Login()
	t.Setenv("RULE_HANDLE", testHandle)
	log := filepath.Join(t.TempDir(), "log")
	c := ruleStart(t, ruleConfig{
		App: ruleSession(issuer, rulePair(t, access, refresh), "wait 500ms"),
		Site: "token_refresh_endpoint /token s {\nhandle {env.RULE_HANDLE}\nhandle another-handle-1234\n" + strings.Join(options, "\n") +
			"\n}\nreverse_proxy " + issuer + "\nhandle_errors {\nrespond \"{err.message}\" {err.status_code}\n}",
		LogFile: log,
	})
	return c, sb, log
}

func (c *ruleCaddy) form(values url.Values, header ...string) (int, map[string]any, http.Header) {
	c.t.Helper()
	return c.refreshCall("application/x-www-form-urlencoded", values.Encode(), header...)
}

func (c *ruleCaddy) refreshCall(contentType, body string, header ...string) (int, map[string]any, http.Header) {
	c.t.Helper()
	status, text, h := c.do("POST", "/token", strings.NewReader(body), append(header, "Content-Type", contentType)...)
	var answer map[string]any
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		c.t.Errorf("%d %s: %v", status, text, err)
	}
	if h.Get("Cache-Control") != "no-store" {
		c.t.Errorf("Cache-Control is %q", h.Get("Cache-Control"))
	}
	return status, answer, h
}

func TestAProgramThatRefreshesItselfGetsTheCurrentToken(t *testing.T) {
	c, sb, log := startEndpoint(t, sandbox.Config{})
	refresh := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {testHandle}}
	with := func(more url.Values) url.Values {
		all := url.Values{}
		for _, v := range []url.Values{refresh, more} {
			for name, values := range v {
				all[name] = values
			}
		}
		return all
	}
	for generation := uint64(1); generation <= 2; generation++ {
		access, trueRefresh, _ := sb.Current("s1")
		for name, values := range map[string]url.Values{
			"bare": refresh, "with a client": with(url.Values{"client_id": {"x"}, "client_secret": {"y"}, "scope": {"a"}}),
			"another handle": with(url.Values{"refresh_token": {"another-handle-1234"}}),
		} {
			status, answer, _ := c.form(values, "Authorization", "Basic eDp5")
			life, _ := answer["expires_in"].(float64)
			if status != 200 || answer["access_token"] != access || answer["refresh_token"] != values.Get("refresh_token") || answer["token_type"] != "Bearer" || life < 1000 || life > 3600 {
				t.Errorf("%s: %d %v", name, status, answer)
			}
			// The sandbox revokes with each exchange: the program has to come back before.
			if due := time.Until(ruleStatus(t, "s").RefreshAt).Seconds(); life > due+1 {
				t.Errorf("%s: good for %v s, but exchanged in %v s", name, life, due)
			}
		}
		status, answer, _ := c.refreshCall("application/json; charset=utf-8", `{"refreshToken":"`+testHandle+`","other":[1]}`, "Authorization", "Bearer stale", "Version", "2.0")
		if status != 200 || answer["accessToken"] != access || answer["refreshToken"] != testHandle || len(answer) != 2 {
			t.Errorf("as JSON: %d %v", status, answer)
		}
		status, answer, _ = c.refreshCall("application/vnd.company+json", `{"grant_type":"refresh_token","refresh_token":"`+testHandle+`","client_id":"x"}`)
		if status != 200 || answer["access_token"] != access || answer["refresh_token"] != testHandle {
			t.Errorf("as OAuth in JSON: %d %v", status, answer)
		}
		if status, body := c.admin("POST", "/token_refresh/sessions/s/refresh", ""); status != 200 || strings.Contains(body, trueRefresh) {
			t.Errorf("%d %s", status, body)
		}
	}
	if s := sb.Stats(); s.Exchanges != 2 || s.Reuses != 0 {
		t.Errorf("the issuer saw %+v", s)
	}
	text, err := os.ReadFile(log)
	if err != nil || strings.Contains(string(text), "CANARY") {
		t.Errorf("the log holds the handle, or %v", err)
	}
}

func TestWhatATokenEndpointRefuses(t *testing.T) {
	c, sb, _ := startEndpoint(t, sandbox.Config{})
	const form, plain = "application/x-www-form-urlencoded", "application/json"
	for name, tt := range map[string]struct {
		kind, body string
		status     int
		code       string
	}{
		"a wrong handle":         {form, "grant_type=refresh_token&refresh_token=CANARY-wrong-handle-000", 400, "invalid_grant"},
		"a part of the handle":   {form, "grant_type=refresh_token&refresh_token=" + testHandle[:20], 400, "invalid_grant"},
		"a wrong one as JSON":    {plain, `{"refreshToken":"CANARY-wrong-handle-000"}`, 400, "invalid_grant"},
		"another grant":          {form, "grant_type=password&refresh_token=" + testHandle, 400, "unsupported_grant_type"},
		"no grant":               {form, "refresh_token=" + testHandle, 400, "invalid_request"},
		"no token":               {form, "grant_type=refresh_token", 400, "invalid_request"},
		"two tokens":             {form, "grant_type=refresh_token&refresh_token=a&refresh_token=" + testHandle, 400, "invalid_request"},
		"two grants":             {form, "grant_type=refresh_token&grant_type=refresh_token&refresh_token=" + testHandle, 400, "invalid_request"},
		"half a form":            {form, "grant_type=%zz", 400, "invalid_request"},
		"nothing":                {form, "", 400, "invalid_request"},
		"half JSON":              {plain, `{"refreshToken":"` + testHandle, 400, "invalid_request"},
		"a name twice":           {plain, `{"refreshToken":"a","refreshToken":"` + testHandle + `"}`, 400, "invalid_request"},
		"a list":                 {plain, `["` + testHandle + `"]`, 400, "invalid_request"},
		"a number":               {plain, `{"refreshToken":1}`, 400, "invalid_request"},
		"JSON that says nothing": {plain, `{}`, 400, "invalid_request"},
		"another content type":   {"text/plain", testHandle, 415, "invalid_request"},
		"too much":               {form, strings.Repeat("x", 70<<10), 413, "invalid_request"},
	} {
		status, answer, _ := c.refreshCall(tt.kind, tt.body)
		if status != tt.status || answer["error"] != tt.code || strings.Contains(fmt.Sprint(answer), "CANARY") {
			t.Errorf("%s: %d %v", name, status, answer)
		}
	}
	for _, method := range []string{"GET", "PUT", "TRACE", "DELETE"} {
		status, body, header := c.do(method, "/token", nil)
		if status != 405 || header.Get("Allow") != "POST" || strings.Contains(body, "access_token") {
			t.Errorf("%s: %d %s", method, status, body)
		}
	}
	right := "grant_type=refresh_token&refresh_token=" + testHandle
	for _, header := range [][]string{{"Origin", "https://evil.example"}, {"Sec-Fetch-Site", "cross-site"}, {"Origin", "null"}} {
		if status, body, _ := c.do("POST", "/token", strings.NewReader(right), append(header, "Content-Type", form)...); status != 403 {
			t.Errorf("%v: %d %s", header, status, body)
		}
	}
	sb.Kill()
	sb.Fault(sandbox.Fault{Status: 400, Body: `{"error":"invalid_grant"}`}, 1)
	c.admin("POST", "/token_refresh/sessions/s/refresh", "")
	status, answer, header := c.refreshCall(form, right)
	if status != 503 || answer["error"] != "temporarily_unavailable" || header.Get("Retry-After") != "" {
		t.Errorf("lost: %d %v", status, answer)
	}
}

func TestATokenEndpointWithoutATokenSaysWhenToComeBack(t *testing.T) {
	_, issuer := ruleIssuer(t, sandbox.Config{})
	c := ruleStart(t, ruleConfig{
		App:  "session s {\nissuer bearer " + issuer + "/User/RefreshToken\ntokens import\n}",
		Site: "token_refresh_endpoint s {\nhandle 0123456789abcdef\n}",
	})
	status, answer, header := c.refreshCall("application/json", `{"refreshToken":"0123456789abcdef"}`)
	if status != 503 || answer["error"] != "temporarily_unavailable" || header.Get("Retry-After") == "" {
		t.Errorf("%d %v, Retry-After %q", status, answer, header.Get("Retry-After"))
	}
}

func TestATokenEndpointAdmitsWhomItShall(t *testing.T) {
	startEndpoint(t, sandbox.Config{})
	app, err := activeApp()
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := app.session("s")
	ask := func(clients, origins []string, remote string, header ...string) (int, error) {
		e := &TokenEndpoint{Session: "s", Handles: []string{testHandle}, session: cfg.shared.Session, metrics: cfg.shared.metrics, logger: app.logger}
		if e.clients, err = parseClients(clients); err != nil {
			t.Fatal(err)
		}
		if e.origins, err = parseOrigins(origins); err != nil {
			t.Fatal(err)
		}
		if err := e.provisionHandles(); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("POST", "http://api.example/token", strings.NewReader(`{"refreshToken":"`+testHandle+`"}`))
		r.RemoteAddr = remote
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		err := e.ServeHTTP(w, r, nil)
		return w.Code, err
	}
	for _, tt := range []struct {
		clients, origins []string
		remote           string
		header           []string
		ok               bool
	}{
		{remote: "127.0.0.1:1", ok: true},
		{remote: "@", ok: true},
		{remote: "192.0.2.1:1"},
		{remote: "192.0.2.1:1", header: []string{"X-Forwarded-For", "127.0.0.1"}},
		{clients: []string{"192.0.2.0/24"}, remote: "192.0.2.1:1", ok: true},
		{remote: "127.0.0.1:1", header: []string{"Origin", "https://app.example.com"}},
		{remote: "127.0.0.1:1", origins: []string{"https://app.example.com"}, header: []string{"Origin", "https://app.example.com"}, ok: true},
	} {
		status, err := ask(tt.clients, tt.origins, tt.remote, tt.header...)
		handled, _ := err.(caddyhttp.HandlerError)
		if tt.ok && (err != nil || status != 200) || !tt.ok && handled.StatusCode != http.StatusForbidden {
			t.Errorf("%+v: %d, %v", tt, status, err)
		}
	}
}

func TestHandlesThatCannotBe(t *testing.T) {
	_, issuer := ruleIssuer(t, sandbox.Config{})
	t.Setenv("RULE_SHORT", "CANARY-too-shor")
	c := ruleNew(t)
	for handle, want := range map[string]string{
		"{env.RULE_SHORT}": "fewer than 16", "{env.RULE_NOT_SET}": "placeholder", "short": "fewer than 16",
	} {
		err := c.load(ruleConfig{
			App:  "session s {\nissuer bearer " + issuer + "/User/RefreshToken\ntokens import\n}",
			Site: "token_refresh_endpoint s {\nhandle " + handle + "\n}",
		})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", handle, err)
		}
	}
}

func TestAHandleInTheConfigurationIsWarnedOfBySession(t *testing.T) {
	_, _, log := startEndpoint(t, sandbox.Config{})
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "a handle stands in the configuration itself") {
			count++
			if !strings.Contains(line, `"session":"s"`) || strings.Contains(line, "another-handle") {
				t.Errorf("the warning is %s", line)
			}
		}
	}
	ruleEqual(t, "warnings", count, 1) // the other handle is a placeholder
}
