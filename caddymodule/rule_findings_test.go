package caddymodule

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// Finding 1: OnCancel, called from Provision, never fires. What we start has to
// end by Stop and Cleanup alone.
func TestFinding1StoppingEndsSessionsAndWatchersWithoutOnCancel(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	c := ruleStart(t, ruleConfig{
		App:  ruleSession(issuer, rulePair(t, access, refresh)),
		Site: "route {\ntoken_refresh s\nrespond ok\n}",
	})
	for range 3 { // reloads must not pile anything up
		if err := c.load(ruleConfig{App: ruleSession(issuer, rulePair(t, access, refresh)), Site: "route {\ntoken_refresh s\nrespond again\n}"}); err != nil {
			t.Fatal(err)
		}
	}
	if status, body := c.get("/"); status != 200 || body != "again" {
		t.Fatalf("got %d %q", status, body)
	}
	app, err := activeApp()
	if err != nil {
		t.Fatal(err)
	}
	shared := app.Sessions["s"].shared
	if n, ok := sharedSessions.References(shared.key); !ok || n != 1 {
		t.Errorf("after three reloads the session has %d references, want 1", n)
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, ok := sharedSessions.References(shared.key); ok {
		t.Error("the session is still held after caddy.Stop")
	}
	if err := shared.Refresh(ruleTimeout(t)); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("the session's goroutine lives on: Refresh says %v", err)
	}
	for _, ours := range []string{"refresher.(*actor).run", "caddymodule.(*watchers)"} {
		ruleEventually(t, "no goroutine in "+ours, func() bool { return ruleGoroutines(ours) == 0 })
	}
}

// Finding 2: on a reload the old handlers serve on after their Cleanup.
func TestFinding2ARequestInFlightAcrossAReloadKeepsWorkingAfterCleanup(t *testing.T) {
	for _, tt := range []struct {
		name         string
		keep, refuse bool
		want         int
	}{
		{"the new configuration has the session, the upstream accepts", true, false, 200},
		{"the new configuration has the session, the upstream refuses", true, true, 200},
		{"the new configuration lacks the session, the upstream accepts", false, false, 200},
		{"the new configuration lacks the session, the upstream refuses", false, true, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			arrived, goOn := make(chan struct{}), make(chan struct{})
			sb, issuer := ruleIssuer(t, sandbox.Config{})
			access, refresh := sb.Login()
			first := true
			up := newRuleUpstream(t, nil)
			up.serve = func(w http.ResponseWriter, r *http.Request) {
				if first {
					first = false
					close(arrived)
					<-goOn
					if tt.refuse {
						up.refuse(w, r)
						return
					}
				}
				_, _ = io.WriteString(w, "fine")
			}
			pair := rulePair(t, access, refresh)
			site := "token_refresh s\nreverse_proxy " + up.URL
			c := ruleStart(t, ruleConfig{App: ruleSession(issuer, pair), Site: site})
			answer := make(chan int, 1)
			go func() {
				resp, err := c.client.Get("http://" + c.Addr + "/")
				if err != nil {
					answer <- -1
					return
				}
				defer resp.Body.Close()
				_, _ = io.Copy(io.Discard, resp.Body)
				answer <- resp.StatusCode
			}()
			<-arrived
			next := ruleConfig{Site: "respond other"}
			if tt.keep {
				next = ruleConfig{App: ruleSession(issuer, pair, "wait 9s"), Site: site}
			}
			if err := c.load(next); err != nil {
				t.Fatal(err)
			}
			close(goOn)
			select {
			case got := <-answer:
				ruleEqual(t, "status", got, tt.want)
			case <-time.After(15 * time.Second):
				t.Fatal("the request never ended")
			}
		})
	}
}

// Finding 3: after a failed reload Caddy's admin endpoint is served by the
// routers of the configuration that failed.
func TestFinding3AfterAFailedReloadTheAdminAPIAnswersFromTheGoodConfiguration(t *testing.T) {
	notADirectory := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notADirectory, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	good := ruleConfig{App: ruleSession(issuer, rulePair(t, access, refresh)), Site: "token_refresh s\nreverse_proxy " + issuer}
	c := ruleStart(t, good)

	for _, tt := range []struct{ name, old, new string }{
		{"Provision of our app fails", "tokens file ", "tokens file {env.RULE_NOT_SET}"},
		{"Start of our app fails", "state_dir " + filepath.Join(c.Dir, "state"), "state_dir " + notADirectory},
		{"Provision of another app fails", "token_refresh s\n", "token_refresh s\nfile_server {\nprecompressed nothing\n}\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := strings.Replace(c.caddyfile(good), "session s {", "session other {\n issuer bearer "+issuer+"/x\n tokens import\n}\nsession s {", 1)
			bad = strings.Replace(bad, tt.old, tt.new, 1)
			text, err := adaptText(bad)
			if err == nil {
				err = LoadJSON(text)
			}
			if err == nil {
				t.Fatal("the bad configuration was loaded")
			}
			t.Log(err)
			if status, body := c.admin("GET", "/token_refresh/sessions", ""); status != 200 || !strings.Contains(body, `"name":"s"`) || strings.Contains(body, `"other"`) {
				t.Errorf("list: %d %s", status, body)
			}
			if status, _ := c.admin("GET", "/token_refresh/sessions/other", ""); status != 404 {
				t.Errorf("the failed configuration's session is shown: %d", status)
			}
			before := ruleStatus(t, "s").Generation
			if status, body := c.admin("POST", "/token_refresh/sessions/s/refresh", ""); status != 200 {
				t.Errorf("refresh: %d %s", status, body)
			}
			ruleEqual(t, "generation", ruleStatus(t, "s").Generation, before+1)
			if status, body := c.get("/whoami"); status != 200 {
				t.Errorf("traffic: %d %s", status, body)
			}
		})
	}
}

// Finding 4: Caddy's own error for a guest module without its inline key prints
// the whole object.
func TestFinding4AModuleObjectWithoutItsKeyGivesAnErrorWithoutSecrets(t *testing.T) {
	const canary = "hunter2-canary-4"
	issuerOK := `{"kind":"bearer","url":"https://127.0.0.1:1/x"}`
	tokensOK := `{"from":"import"}`
	for _, tt := range []struct{ name, issuer, tokens, want string }{
		{"issuer without kind", `{"url":"https://127.0.0.1:1/x","header":{"X-Key":["` + canary + `"]}}`, tokensOK, `"kind"`},
		{"issuer with an empty kind", `{"kind":"","secret":"` + canary + `"}`, tokensOK, `"kind"`},
		{"issuer whose kind is a number", `{"kind":5,"secret":"` + canary + `"}`, tokensOK, `"kind"`},
		{"issuer that is a string", `"` + canary + `"`, tokensOK, "not a JSON object"},
		{"issuer of an unknown kind", `{"kind":"nope","secret":"` + canary + `"}`, tokensOK, "nope"},
		{"issuer with an unknown member", `{"kind":"bearer","url":"https://127.0.0.1:1/x","secret":"` + canary + `"}`, tokensOK, "secret"},
		{"issuer with a wrong type", `{"kind":"bearer","url":"https://127.0.0.1:1/x","header":"` + canary + `"}`, tokensOK, "header"},
		{"issuer is null", `null`, tokensOK, "issuer"},
		{"tokens without from", issuerOK, `{"username":"u","password":"` + canary + `"}`, `"from"`},
		{"the second tokens without from", issuerOK, tokensOK + `,{"password":"` + canary + `"}`, `"from"`},
		{"tokens that is a string", issuerOK, `"` + canary + `"`, "not a JSON object"},
		{"tokens with an unknown member", issuerOK, `{"from":"login","passwort":"` + canary + `"}`, "passwort"},
		{"tokens with both password and body", issuerOK, `{"from":"login","url":"https://127.0.0.1:1/x","username":"u","password":"` + canary + `","body":{"a":"` + canary + `"}}`, "either"},
		{"tokens with a bad URL that holds a password", issuerOK, `{"from":"login","url":"https://u:` + canary + `@127.0.0.1:x/","username":"u","password":"p"}`, "url"},
		{"issuer with a bad URL that holds a password", `{"kind":"bearer","url":"https://u:` + canary + `@127.0.0.1:x/"}`, tokensOK, ""},
		{"issuer with user info in its URL", `{"kind":"bearer","url":"https://u:` + canary + `@127.0.0.1:1/"}`, tokensOK, ""},
		{"issuer with a token in a bad header value", `{"kind":"bearer","url":"https://127.0.0.1:1/","header":{"X-Key":["` + canary + `\n"]}}`, tokensOK, ""},
		{"an encryption key that is none", issuerOK, tokensOK + `]}},"encryption_keys":["` + canary + `"],"sessions":{"t":{"issuer":` + issuerOK + `,"tokens":[` + tokensOK, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := ruleNew(t)
			logs := filepath.Join(c.Dir, "log")
			cfg := fmt.Sprintf(`{"admin":{"listen":%q,"config":{"persist":false}},
				"logging":{"logs":{"default":{"level":"DEBUG","writer":{"output":"file","filename":%q,"roll":false}}}},
				"apps":{"token_refresh":{"state_dir":%q,"sessions":{"s":{"issuer":%s,"tokens":[%s]}}}}}`,
				c.Admin, logs, filepath.Join(c.Dir, "state"), tt.issuer, tt.tokens)
			if strings.Contains(cfg, `"sessions":{"t"`) { // keys and sessions once each
				cfg = strings.Replace(cfg, `"sessions":{"s":{"issuer":`+issuerOK+`,"tokens":[`+tokensOK+`]}},`, "", 1)
			}
			err := LoadJSON([]byte(cfg))
			if err == nil {
				t.Fatal("it was loaded")
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error holds the secret: %v", err)
			}
			if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(tt.want)) {
				t.Errorf("the error does not say what is wrong (%s): %v", tt.want, err)
			}
			if text, _ := os.ReadFile(logs); bytes.Contains(text, []byte(canary)) {
				t.Errorf("the log holds the secret:\n%s", text)
			}
		})
	}
}

// Finding 5: a second run of the handlers behind us skips route groups that were
// satisfied by the first, and answers 200 with nothing.
func TestFinding5AReplayBeforeHandleBlocksGivesTheUpstreamsAnswer(t *testing.T) {
	for name, site := range map[string]string{
		"handle blocks in a route": `route {
			token_refresh s
			handle /a/* {
				reverse_proxy %[1]s
			}
			handle {
				respond "the other block" 404
			}
		}`,
		"a handle block around": `handle /a/* {
			token_refresh s
			reverse_proxy %[1]s
		}
		handle {
			respond "the other block" 404
		}`,
		"handle blocks within a handle block": `handle {
			route {
				token_refresh s
				handle_path /a/* {
					reverse_proxy %[1]s
				}
				handle {
					respond "the other block" 404
				}
			}
		}`,
		"a rewrite group": `route {
			token_refresh s
			rewrite /a/* /a/rewritten
			rewrite /a/rewritten /a/twice
			reverse_proxy %[1]s
		}`,
		"named groups by handle_errors": `token_refresh s
			reverse_proxy %[1]s
			handle_errors {
				respond "{err.status_code} {err.message}" 599
			}`,
	} {
		t.Run(name, func(t *testing.T) {
			c, up, _ := ruleReplay(t, nil, func(upstream string) string { return strings.ReplaceAll(site, "%[1]s", upstream) })
			status, body := c.get("/a/b")
			if status != 200 || body != "fine" {
				t.Errorf("got %d %q, want 200 \"fine\"", status, body)
			}
			got := up.requests()
			if len(got) != 2 || got[0].Status != 401 || got[1].Status != 200 || got[0].Path != got[1].Path {
				t.Errorf("the upstream saw %v", got)
			}
		})
	}
}

// The guard of finding 5: the key is not exported. Should this fail after an
// upgrade of Caddy, nothing would be sent again any more.
func TestFinding5CaddyStillKeepsRouteGroupsUnderTheKeyThatWeRestore(t *testing.T) {
	w := httptest.NewRecorder()
	r := caddyhttp.PrepareRequest(httptest.NewRequest("GET", "/", nil), caddy.NewReplacer(), w, &caddyhttp.Server{})
	if _, ok := r.Context().Value(caddy.CtxKey("route_group")).(map[string]struct{}); !ok {
		t.Fatalf("the request's context has %T under route_group", r.Context().Value(caddy.CtxKey("route_group")))
	}
	a := newAttempt(&Handler{limit: defaultReplayLimit}, w, r)
	if !a.rw.replay {
		t.Error("a plain GET could not be sent again")
	}
	if a := newAttempt(&Handler{limit: defaultReplayLimit}, w, httptest.NewRequest("GET", "/", nil)); a.rw.replay {
		t.Error("without route groups, a request would be sent again")
	}
}

// Finding 6: reverse_proxy removes every header that Connection names.
func TestFinding6AConnectionHeaderDoesNotStripTheToken(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	rec := newRuleRecorder(t)
	c := ruleStart(t, ruleConfig{App: ruleSession(issuer, rulePair(t, access, refresh)), Site: "token_refresh s\nreverse_proxy " + rec.Addr})
	for _, list := range []string{
		"Authorization", "authorization", "AUTHORIZATION", "close, authorization", "authorization, close",
		"keep-alive,Authorization,close", " Authorization ", "Authorization,Authorization", "close\r\nConnection: Authorization",
		"Authorization\r\nConnection: X-Other", "X-Other, \tauthorization\t",
	} {
		t.Run(list, func(t *testing.T) {
			answer := ruleRaw(t, c.Addr, "GET / HTTP/1.1\r\nHost: x\r\nConnection: "+list+"\r\nX-Other: 1\r\n\r\n")
			if !strings.HasPrefix(answer, "HTTP/1.1 200") {
				t.Errorf("answer: %q", answer)
			}
			ruleOneHeader(t, rec.take(), "Authorization: Bearer "+access, "Authorization")
		})
	}
}

// Finding 7: nothing of ours needs the admin endpoint from a browser, as Caddy
// refuses what a browser sends there.
func TestFinding7TheAdminAPIIsNotForBrowsers(t *testing.T) {
	c := ruleStart(t, ruleConfig{App: "session s {\n issuer bearer https://127.0.0.1:1/x\n tokens import\n}", Site: "respond ok"})
	for _, header := range [][]string{
		{"Sec-Fetch-Mode", "navigate"},
		{"Sec-Fetch-Mode", "cors", "Origin", "https://evil.example"},
		{"Origin", "https://evil.example"},
	} {
		for _, call := range [][2]string{{"GET", "/token_refresh/sessions"}, {"PUT", "/token_refresh/sessions/s"}, {"POST", "/token_refresh/sessions/s/refresh"}} {
			status, body := c.admin(call[0], call[1], "", header...)
			if status != 403 || strings.Contains(body, "sessions") {
				t.Errorf("%v %v: %d %s", call, header, status, body)
			}
		}
	}
	if status, _ := c.admin("GET", "/token_refresh/sessions", ""); status != 200 {
		t.Errorf("a program's request: %d", status)
	}
}

// Finding 10: {$VAR} lands in clear text wherever Caddy shows its configuration;
// {env.VAR} and {file.PATH} do not. TestNoSecretLeavesTheProcess… looks at all
// else that happens.
func TestFinding10SecretsGivenByPlaceholderAreShownNowhere(t *testing.T) {
	const canary = "CANARY-finding-10-ab"
	secrets := map[string]string{"secret": canary, "key": adaptKey()}
	t.Setenv("RULE_SECRET", canary)
	t.Setenv("RULE_KEY", secrets["key"])
	file := adaptFile(t, canary+"\n")
	sb, issuer := ruleIssuer(t, sandbox.Config{Password: canary})
	c := ruleNew(t)
	autosave := caddy.ConfigAutosavePath
	caddy.ConfigAutosavePath = filepath.Join(c.Dir, "autosave.json")
	t.Cleanup(func() { caddy.ConfigAutosavePath = autosave })
	log := filepath.Join(c.Dir, "log")
	text := c.caddyfile(ruleConfig{LogFile: log, Site: "token_refresh s\nreverse_proxy " + issuer, App: fmt.Sprintf(`encryption_key {env.RULE_KEY}
		session s {
			issuer bearer %s/User/RefreshToken {
				header X-Key {env.RULE_SECRET}
			}
			tokens login %s/User/Login {
				username demo
				password {file.%s}
				header X-Key {env.RULE_SECRET}
			}
		}`, issuer, issuer, file)})
	adapted, err := adaptText(strings.Replace(text, "persist_config off\n", "", 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := LoadJSON(adapted); err != nil {
		t.Fatal(err)
	}
	if status, body := c.get("/whoami"); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	ruleEqual(t, "logins with the password from the file", sb.Stats().Logins, 1)
	_, config := c.admin("GET", "/config/", "")
	saved, err := os.ReadFile(caddy.ConfigAutosavePath)
	if err != nil {
		t.Fatal(err)
	}
	logged, _ := os.ReadFile(log)
	for what, text := range map[string]string{"adapt": string(adapted), "/config/": config, "autosave": string(saved), "the log": string(logged)} {
		for _, found := range hygFind([]byte(text), secrets) {
			t.Errorf("%s: %s", what, found)
		}
		if what != "the log" && (!strings.Contains(text, "{env.RULE_SECRET}") || !strings.Contains(text, "{file."+file+"}")) {
			t.Errorf("%s does not show the placeholders", what)
		}
	}
	// Errors about what a placeholder stands for name the placeholder's place.
	for _, change := range [][2]string{
		{"encryption_key {env.RULE_KEY}", "encryption_key {env.RULE_SECRET}"},
		{"state_dir ", "state_dir {env.RULE_SECRET}{env.RULE_NOT_SET}"},
	} {
		bad, err := adaptText(strings.Replace(text, change[0], change[1], 1))
		if err == nil {
			err = LoadJSON(bad)
		}
		if err == nil || len(hygFind([]byte(err.Error()), secrets)) > 0 {
			t.Errorf("%s: %v", change[1], err)
		}
	}
}
