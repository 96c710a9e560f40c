package caddymodule

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer/issuertest"
)

// loginBench is a Caddy with sessions that wait for a person at a real
// authorization server.
type loginBench struct {
	*ruleCaddy
	server  *issuertest.Provider
	log     string
	shown   bytes.Buffer      // all that operators are shown
	secrets map[string]string // what may be in none of it
}

func newLoginBench(t *testing.T) *loginBench {
	t.Helper()
	const secret = "CANARY-client-secret-6f1e"
	b := &loginBench{log: filepath.Join(t.TempDir(), "log"), secrets: map[string]string{"client secret": secret}}
	b.server = issuertest.Start(t, time.Hour, issuertest.Client{
		ID: "native", Secret: secret, Kind: "native", Redirects: []string{"http://127.0.0.1/callback"},
	})
	t.Setenv("RULE_SECRET", secret)
	options := "client_id native\nclient_secret {env.RULE_SECRET}\nscope openid offline_access api"
	app := ""
	for _, name := range []string{"billing", "other"} {
		app += fmt.Sprintf("session %s {\nissuer oauth2 discover %s {\n%s\n}\ntokens import\n}\n", name, b.server.Issuer, options)
	}
	app += "session plain {\nissuer bearer " + b.server.Issuer + "/User/RefreshToken\ntokens import\n}\n" +
		"session broken {\nissuer oauth2 discover " + b.server.Issuer + " {\n" + options + "\nrevoke_url http://127.0.0.1:1/revoke\n}\ntokens import\n}"
	b.ruleCaddy = ruleStart(t, ruleConfig{
		App: app, Site: "token_refresh billing\nreverse_proxy " + b.server.Issuer, LogFile: b.log,
	})
	t.Cleanup(func() { b.check(t) })
	return b
}

// check looks for secrets in all that was shown and logged.
func (b *loginBench) check(t *testing.T) {
	log, err := os.ReadFile(b.log)
	if err != nil {
		t.Error(err)
	}
	for what, text := range map[string][]byte{"shown": b.shown.Bytes(), "logged": log} {
		for _, found := range hygFind(text, b.secrets) {
			t.Errorf("%s: %s", what, found)
		}
		if bytes.Contains(text, []byte("CANARY of the person")) {
			t.Errorf("%s: the issuer's own words", what)
		}
	}
}

// know learns what the sessions have by now.
func (b *loginBench) know() {
	b.t.Helper()
	for _, name := range []string{"billing", "other"} {
		app, err := activeApp()
		if err != nil {
			b.t.Fatal(err)
		}
		cfg, _ := app.session(name)
		if token, err := cfg.shared.Token(b.t.Context()); err == nil {
			b.secrets["access token of "+name] = token.Access.Reveal()
			b.secrets["ID token of "+name] = token.ID.Reveal()
		}
	}
}

func (b *loginBench) post(path string, body any) (int, string) {
	b.t.Helper()
	text, _ := json.Marshal(body)
	status, answer := b.admin("POST", "/token_refresh/sessions"+path, string(text))
	fmt.Fprintln(&b.shown, path, status, answer)
	return status, answer
}

func (b *loginBench) begin(session string) begunLogin {
	b.t.Helper()
	status, text := b.post("/"+session+"/login", askedLogin{RedirectURI: "http://127.0.0.1:9/callback"})
	var begun begunLogin
	if err := json.Unmarshal([]byte(text), &begun); err != nil || status != 200 || begun.ID == "" || begun.AuthorizationURL == "" {
		b.t.Fatalf("beginning a login: %d %s", status, text)
	}
	return begun
}

// browse is the person, who comes back with an answer.
func (b *loginBench) browse(begun begunLogin) loginAnswer {
	b.t.Helper()
	q := b.server.Browse(b.t, begun.AuthorizationURL).Query()
	if code := q.Get("code"); code != "" {
		b.secrets["code "+begun.ID] = code
	}
	return loginAnswer{Code: q.Get("code"), State: q.Get("state"), Issuer: q.Get("iss"), Error: q.Get("error")}
}

func TestAPersonsLoginStartsASession(t *testing.T) {
	b := newLoginBench(t)
	begun := b.begin("billing")
	answer := b.browse(begun)
	if status, text := b.post("/other/login/"+begun.ID, answer); status != 404 {
		t.Errorf("as another session's: %d %s", status, text)
	}
	status, text := b.post("/billing/login/"+begun.ID, answer)
	var st refresher.Status
	if err := json.Unmarshal([]byte(text), &st); err != nil || status != 200 || st.State != refresher.PhaseFresh || st.Generation != 1 {
		t.Fatalf("%d %s", status, text)
	}
	b.know()
	if status, text := b.get("/api/echo"); status != 200 {
		t.Errorf("the API answers %d %s", status, text)
	}
	if status, text := b.admin("POST", "/token_refresh/sessions/billing/refresh", ""); status != 200 {
		t.Errorf("refresh: %d %s", status, text)
	}
	b.know()
	if status, text := b.post("/billing/login/"+begun.ID, answer); status != 404 {
		t.Errorf("replayed: %d %s", status, text)
	}
	// The same code in another login.
	next := b.begin("billing")
	u, _ := url.Parse(next.AuthorizationURL)
	answer.State = u.Query().Get("state")
	if status, text := b.post("/billing/login/"+next.ID, answer); status != 400 || !strings.Contains(text, "invalid_grant") {
		t.Errorf("a replayed code: %d %s", status, text)
	}
}

func TestALoginThatComesToNothingChangesNothing(t *testing.T) {
	b := newLoginBench(t)
	for name, tt := range map[string]struct {
		change func(*loginAnswer)
		want   string
	}{
		"wrong state": {func(a *loginAnswer) { a.State = "x" }, "state"},
		"wrong iss":   {func(a *loginAnswer) { a.Issuer = "https://evil.example" }, "iss"},
		"no iss":      {func(a *loginAnswer) { a.Issuer = "" }, "iss"},
		"no code":     {func(a *loginAnswer) { a.Code = "" }, "no code"},
	} {
		begun := b.begin("billing")
		answer := b.browse(begun)
		right := answer
		tt.change(&answer)
		if status, text := b.post("/billing/login/"+begun.ID, answer); status != 400 || !strings.Contains(text, tt.want) {
			t.Errorf("%s: %d %s", name, status, text)
		}
		if status, text := b.post("/billing/login/"+begun.ID, right); status != 404 {
			t.Errorf("%s, then the right answer: %d %s", name, status, text)
		}
	}
	b.server.SetAgrees(t, false)
	begun := b.begin("billing")
	if status, text := b.post("/billing/login/"+begun.ID, b.browse(begun)); status != 400 || !strings.Contains(text, "access_denied") {
		t.Errorf("denied: %d %s", status, text)
	}
	begun = b.begin("billing")
	b.admin("DELETE", "/token_refresh/sessions/billing/login/"+begun.ID, "")
	if status, text := b.post("/billing/login/"+begun.ID, loginAnswer{}); status != 404 {
		t.Errorf("given up: %d %s", status, text)
	}
	for path, want := range map[string]int{"/plain/login": 400, "/nobody/login": 404, "/billing/login/none": 404} {
		if status, text := b.post(path, askedLogin{}); status != want {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
	if _, text := b.post("/plain/login", askedLogin{}); !strings.Contains(text, "tokens login") || !strings.Contains(text, "import plain") {
		t.Errorf("an issuer without logins: %s", text)
	}
	if status, text := b.post("/billing/login", askedLogin{RedirectURI: "http://192.0.2.1:1/callback"}); status != 502 && status != 400 || !strings.Contains(text, "redirect_uri") {
		t.Errorf("a redirect to another machine: %d %s", status, text)
	}
	if status, text := b.admin("POST", "/token_refresh/sessions/billing/login", "CANARY-no-json"); status != 400 || strings.Contains(text, "CANARY") {
		t.Errorf("no JSON: %d %s", status, text)
	}
	if status, text := b.admin("POST", "/token_refresh/sessions/billing/login", "{}", "Sec-Fetch-Site", "cross-site"); status != 403 {
		t.Errorf("from a web page: %d %s", status, text)
	}
	ruleEqual(t, "state", ruleStatus(t, "billing").State, refresher.PhaseEmpty)
	ruleEqual(t, "exchanges", b.server.Stats(t).Exchanges, 0)
}

func countLogins() int {
	logins.mu.Lock()
	defer logins.mu.Unlock()
	return len(logins.list)
}

func TestLoginsAreBounded(t *testing.T) {
	b := newLoginBench(t)
	first := b.begin("billing")
	for range maxLogins {
		b.begin("other")
	}
	if n := countLogins(); n > maxLogins {
		t.Errorf("%d logins wait", n)
	}
	if status, text := b.post("/billing/login/"+first.ID, loginAnswer{}); status != 404 {
		t.Errorf("the oldest: %d %s", status, text)
	}
	logins.mu.Lock()
	for id, p := range logins.list {
		p.until = time.Now().Add(-time.Second)
		logins.list[id] = p
	}
	logins.expire()
	if n := len(logins.list); n != 0 {
		t.Errorf("%d logins wait for ever", n)
	}
	logins.mu.Unlock()
}

// childCommand runs the real command line; lines of its standard error come as
// they are written.
func (b *loginBench) childCommand(args ...string) (cmd *exec.Cmd, stdout *bytes.Buffer, stderr *bufio.Scanner) {
	b.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	cmd = exec.CommandContext(ruleTimeout(b.t), exe, append(append([]string{"token-refresh"}, args...), "--address", b.Admin)...)
	cmd.Env = append(os.Environ(), "RULE_CADDY_CHILD=1", "XDG_DATA_HOME="+b.Dir+"/child", "XDG_CONFIG_HOME="+b.Dir+"/child", "HOME="+b.Dir)
	stdout = new(bytes.Buffer)
	cmd.Stdout = stdout
	pipe, err := cmd.StderrPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	return cmd, stdout, bufio.NewScanner(io.TeeReader(pipe, &b.shown))
}

// line waits for one that matches.
func (b *loginBench) line(from *bufio.Scanner, what string) string {
	b.t.Helper()
	for re := regexp.MustCompile(what); from.Scan(); {
		if found := re.FindString(from.Text()); found != "" {
			return found
		}
	}
	b.t.Fatalf("no line has %s; shown was %s", what, b.shown.String())
	return ""
}

func (b *loginBench) finish(cmd *exec.Cmd, stdout *bytes.Buffer, stderr *bufio.Scanner) int {
	for stderr.Scan() { // to the end
	}
	_ = cmd.Wait()
	b.shown.Write(stdout.Bytes())
	return cmd.ProcessState.ExitCode()
}

func TestTheCommandLineSignsInByBrowser(t *testing.T) {
	b := newLoginBench(t)
	cmd, stdout, stderr := b.childCommand("login", "billing", "--no-browser")
	address := b.line(stderr, b.server.Issuer+`/auth\S+`)
	// Any page can send a browser to the port: that ends nothing.
	u, _ := url.Parse(address)
	back := u.Query().Get("redirect_uri")
	for _, wrong := range []string{back + "?state=x&code=y", back, strings.Replace(back, "/callback", "/other", 1)} {
		resp, err := b.client.Get(wrong)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("%s: %s", wrong, resp.Status)
		}
	}
	came := b.server.Browse(t, address)
	b.secrets["code"] = came.Query().Get("code")
	resp, err := b.client.Get(came.String())
	if err != nil {
		t.Fatal(err)
	}
	page, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 || !strings.Contains(string(page), "signed in") || resp.Header.Get("Referrer-Policy") != "no-referrer" || bytes.Contains(page, []byte(came.Query().Get("code"))) {
		t.Errorf("the browser is shown %s %s", resp.Status, page)
	}
	if code := b.finish(cmd, stdout, stderr); code != 0 || !strings.Contains(stdout.String(), "fresh") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, b.shown.String())
	}
	b.know()
	ruleEqual(t, "state", ruleStatus(t, "billing").State, refresher.PhaseFresh)

	b.server.SetAgrees(t, false)
	cmd, stdout, stderr = b.childCommand("login", "billing", "--no-browser", "--port", rulePort(ruleFreeAddr(t)))
	resp, err = b.client.Get(b.server.Browse(t, b.line(stderr, b.server.Issuer+`/auth\S+`)).String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	ruleEqual(t, "status of the page", resp.StatusCode, http.StatusBadRequest)
	if code := b.finish(cmd, stdout, stderr); code != 1 || !strings.Contains(b.shown.String(), "access_denied") {
		t.Errorf("denied: exit code %d\n%s", code, b.shown.String())
	}

	cmd, stdout, stderr = b.childCommand("login", "billing", "--no-browser")
	b.line(stderr, b.server.Issuer+`/auth\S+`)
	before := countLogins()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := b.finish(cmd, stdout, stderr); code != 1 || !strings.Contains(b.shown.String(), "interrupted") || countLogins() != before-1 {
		t.Errorf("interrupted: exit code %d, %d of %d logins left\n%s", code, countLogins(), before, b.shown.String())
	}
	cmd, stdout, stderr = b.childCommand("login", "plain")
	if code := b.finish(cmd, stdout, stderr); code != 1 || !strings.Contains(b.shown.String(), "tokens login") {
		t.Errorf("of another kind: exit code %d\n%s", code, b.shown.String())
	}
}

func TestTheCommandLineSignsInWithADeviceCodeAndRevokes(t *testing.T) {
	b := newLoginBench(t)
	cmd, stdout, stderr := b.childCommand("login", "billing", "--device", "--json")
	b.line(stderr, `and enter the code`)
	b.server.EnterDeviceCode(t, b.line(stderr, `[A-Z]{4}-[A-Z]{4}`))
	if code := b.finish(cmd, stdout, stderr); code != 0 || !strings.Contains(stdout.String(), `"state":"fresh"`) {
		t.Fatalf("exit code %d\n%s\n%s", code, stdout, b.shown.String())
	}
	b.know()
	access := refresher.NewSecret(b.secrets["access token of billing"])
	if !b.server.Active(t, access) {
		t.Fatal("the access token is not good")
	}

	// token is the one verb that shows it.
	code, out, errs := adaptCaddy(t, b.Dir, "", "token-refresh", "token", "billing", "--address", b.Admin)
	if code != 0 || out != access.Reveal()+"\n" || strings.Contains(errs, access.Reveal()) {
		t.Errorf("token: %d\n%s", code, errs)
	}
	code, out, errs = adaptCaddy(t, b.Dir, "", "token-refresh", "revoke", "billing", "--address", b.Admin)
	if code != 0 || !strings.Contains(out, "revoked at the issuer") {
		t.Errorf("revoke: %d\n%s%s", code, out, errs)
	}
	if b.server.Active(t, access) {
		t.Error("the access token is good after it was revoked")
	}
	ruleEqual(t, "reason", ruleStatus(t, "billing").Reason, refresher.ReasonLoggedOut)
	var ended endedSession
	if b.adminJSON("DELETE", "/billing", "", &ended, 200); ended.RevokedAtIssuer || ended.Revocation != pairNone {
		t.Errorf("again: %+v", ended)
	}

	// One that could be revoked and was not, is told of.
	pair := b.server.Login(t, "native", "opaque")
	b.secrets["refresh token of broken"] = pair.Refresh.Reveal()
	b.adminJSON("PUT", "/broken", adaptPair(pair.Access.Reveal(), pair.Refresh.Reveal()), nil, 200)
	code, out, errs = adaptCaddy(t, b.Dir, "", "token-refresh", "revoke", "broken", "--json", "--address", b.Admin)
	b.shown.WriteString(out + errs)
	if err := json.Unmarshal([]byte(out), &ended); err != nil || code != 1 || ended.RevokedAtIssuer || ended.Revocation != pairNotRevoked || !strings.Contains(errs, "could not be revoked") {
		t.Errorf("a revocation that fails: %d\n%s%s", code, out, errs)
	}
	pair = b.server.Login(t, "native", "opaque")
	b.adminJSON("PUT", "/plain", adaptPair(pair.Access.Reveal(), pair.Refresh.Reveal()), nil, 200)
	if b.adminJSON("DELETE", "/plain", "", &ended, 200); ended.RevokedAtIssuer || ended.Revocation != pairNotRevocable || ended.Note == "" {
		t.Errorf("an issuer that cannot: %+v", ended)
	}
}
