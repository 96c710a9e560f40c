package caddymodule

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// hygForms are the ways in which a secret could be found in a text.
func hygForms(secret string) map[string]string {
	forms := map[string]string{
		"raw":         secret,
		"hex":         hex.EncodeToString([]byte(secret)),
		"HEX":         strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"query":       url.QueryEscape(secret),
		"path":        url.PathEscape(secret),
		"JSON":        hygJSON(secret),
		"JSON twice":  hygJSON(hygJSON(secret)),
		"Go":          strings.Trim(fmt.Sprintf("%q", secret), `"`),
		"bytes":       strings.Trim(fmt.Sprint([]byte(secret)), "[]"),
		"end":         secret[len(secret)-min(len(secret), 16):],
		"begin":       secret[:min(len(secret), 60)],
		"lower case":  strings.ToLower(secret),
		"upper case":  strings.ToUpper(secret),
		"Quoted JSON": strings.ReplaceAll(hygJSON(secret), "/", `\/`),
	}
	for name, enc := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
		for shift := range 3 { // whatever stands before it
			text := enc.EncodeToString(append(make([]byte, shift), secret...))
			forms[fmt.Sprintf("%s shifted by %d", name, shift)] = text[(shift*8+5)/6 : len(text)-2]
		}
	}
	return forms
}

func hygJSON(s string) string {
	text, _ := json.Marshal(s)
	return string(text[1 : len(text)-1])
}

// hygFind returns where a secret shows in a text, and how.
func hygFind(text []byte, secrets map[string]string) (found []string) {
	for what, secret := range secrets {
		for form, needle := range hygForms(secret) {
			if i := bytes.Index(text, []byte(needle)); i >= 0 {
				found = append(found, fmt.Sprintf("%s (%s): …%.300s…", what, form, text[max(0, i-150):min(len(text), i+len(needle))]))
				break
			}
		}
	}
	return found
}

func TestTheSearchForSecretsFindsThemInEveryForm(t *testing.T) {
	secret := `S3cr"et/+<value>-of-some-length`
	for form, needle := range hygForms(secret) {
		if len(needle) < 12 || len(hygFind([]byte("before "+needle+" after"), map[string]string{"it": secret})) != 1 {
			t.Errorf("%s is not found: %q", form, needle)
		}
	}
	for shift := range 3 {
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + secret + "more"))
		if len(hygFind([]byte(text), map[string]string{"it": secret})) != 1 {
			t.Errorf("base64 shifted by %d is not found", shift)
		}
	}
	if found := hygFind([]byte("nothing here"), map[string]string{"it": secret}); len(found) != 0 {
		t.Error(found)
	}
}

// hygIssuer is a sandbox that remembers which secrets it handed out and, when
// told to, fails with answers that repeat what it was sent.
type hygIssuer struct {
	sb  *sandbox.Sandbox
	url string

	mu      sync.Mutex
	secrets map[string]string
	faults  []hygFault
	calls   int
}

type hygFault struct {
	status int
	header http.Header
	body   string // {echo} is what was sent
}

func newHygIssuer(t *testing.T, cfg sandbox.Config) *hygIssuer {
	h := &hygIssuer{sb: sandbox.New(cfg), secrets: map[string]string{}}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	h.url = srv.URL
	return h
}

func (h *hygIssuer) fault(f hygFault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = append(h.faults, f)
}

func (h *hygIssuer) know(what, secret string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.secrets[what] = secret
}

func (h *hygIssuer) knowPair(what, access, refresh string) {
	h.know("access token "+what, access)
	h.know("refresh token "+what, refresh)
	h.know("signature of access token "+what, access[strings.LastIndex(access, ".")+1:])
	h.know("claims of access token "+what, strings.Split(access, ".")[1])
}

func (h *hygIssuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, "/User/") {
		h.sb.ServeHTTP(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	h.mu.Lock()
	h.calls++
	n := h.calls
	var fault *hygFault
	if len(h.faults) > 0 {
		fault, h.faults = &h.faults[0], h.faults[1:]
	}
	h.mu.Unlock()
	if fault != nil {
		echo := strings.Join(r.Header.Values("Authorization"), "") + " " + string(body)
		text, _ := json.Marshal(echo)
		for name, values := range fault.header {
			w.Header()[name] = []string{strings.ReplaceAll(values[0], "{echo}", url.QueryEscape(echo))}
		}
		w.WriteHeader(fault.status)
		_, _ = io.WriteString(w, strings.ReplaceAll(fault.body, "{echo}", string(text[1:len(text)-1])))
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	rec := httptest.NewRecorder()
	h.sb.ServeHTTP(rec, r)
	var pair struct{ AccessToken, RefreshToken string }
	if json.Unmarshal(rec.Body.Bytes(), &pair) == nil && pair.AccessToken != "" {
		h.knowPair(fmt.Sprint(n), pair.AccessToken, pair.RefreshToken)
	}
	for name, values := range rec.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
}

// One session goes through all that can happen to it, with everything logged and
// shown that can be; then no secret may be found anywhere.
func TestNoSecretLeavesTheProcessButToItsIssuerAndUpstream(t *testing.T) {
	const password = `CANARY-pass"word/+<>&%41-9c2f`
	const apiKey = "CANARY-api-key-51d0aa"
	const username = "CANARY-username-77e1"
	h := newHygIssuer(t, sandbox.Config{Username: username, Password: password, AccessLifetime: 3600e9})
	key := adaptKey()
	t.Setenv("HYG_API_KEY", apiKey)
	t.Setenv("HYG_USERNAME", username)
	t.Setenv("HYG_KEY", key)
	passwordFile := adaptFile(t, password+"\n")
	h.know("password", password)
	h.know("API key", apiKey)
	h.know("user name", username)
	h.know("encryption key", key)
	raw, _ := base64.StdEncoding.DecodeString(key)
	h.know("raw encryption key", string(raw))
	h.know("the caller's own token", "CANARY-of-the-caller-c0ffee")
	h.know("the head of any JWT", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9")

	fileAccess, fileRefresh := h.sb.LoginAs("file")
	h.knowPair("of the file", fileAccess, fileRefresh)
	envAccess, envRefresh := h.sb.LoginAs("env")
	h.knowPair("of the environment", envAccess, envRefresh)
	t.Setenv("HYG_ACCESS", envAccess)
	t.Setenv("HYG_REFRESH", envRefresh)
	tokensFile := rulePair(t, fileAccess, fileRefresh)

	up := newRuleUpstream(t, nil)
	c := ruleNew(t)
	autosave := caddy.ConfigAutosavePath
	caddy.ConfigAutosavePath = filepath.Join(c.Dir, "autosave.json")
	t.Cleanup(func() { caddy.ConfigAutosavePath = autosave })

	options := "{\n header X-Issuer-Key {env.HYG_API_KEY}\n}"
	app := fmt.Sprintf(`encryption_key {env.HYG_KEY}
		session s {
			issuer bearer %[1]s/User/RefreshToken %[2]s
			tokens login %[1]s/User/Login {
				username {env.HYG_USERNAME}
				password {file.%[3]s}
				header X-Login-Key {env.HYG_API_KEY}
			}
			reauthenticate off
			wait 500ms
		}
		session body {
			issuer bearer %[1]s/User/RefreshToken %[2]s
			tokens login %[1]s/User/Login {
				body `+"`"+`{"username":"{env.HYG_USERNAME}","password":"{file.%[3]s}"}`+"`"+`
			}
		}
		session file {
			issuer bearer %[1]s/User/RefreshToken %[2]s
			tokens file %[4]s
			wait 500ms
		}
		session env {
			issuer bearer %[1]s/User/RefreshToken %[2]s
			tokens env HYG_ACCESS HYG_REFRESH
		}
		session empty {
			issuer bearer %[1]s/User/RefreshToken %[2]s
			tokens import
		}`, h.url, options, passwordFile, tokensFile)
	site := func(name string) string {
		return fmt.Sprintf("handle /%[1]s/* {\ntoken_refresh %[1]s\nreverse_proxy %[2]s\n}\n", name, up.URL)
	}
	cfg := ruleConfig{
		LogFile: filepath.Join(c.Dir, "debug.log"),
		Global:  "debug\nmetrics",
		App:     app,
		Site: "log {\noutput file " + c.Dir + "/access.log {\nroll_disabled\n}\nformat json\n}\nlog_append token {http.request.header.Authorization}\n" +
			"tracing {\nspan x\n}\n" +
			site("s") + site("body") + site("file") + site("env") + site("empty") +
			"handle /status {\ntoken_refresh_status {\nactions on\n}\n}\n" +
			"handle /denied/* {\ntoken_refresh s {\nclients 192.0.2.1\n}\nrespond no\n}\n" +
			"handle /apikey/* {\ntoken_refresh env {\nheader Authorization Custom\n}\nreverse_proxy " + up.URL + "\n}\n" +
			"handle_errors {\nrespond \"{err.status_code} {err.status_text} {err.message} {err.trace} {http.request.header.Authorization} {http.vars.token} {http.request.uri}\" {err.status_code}\n}",
	}
	text := strings.Replace(c.caddyfile(cfg), "persist_config off\n", "", 1)
	text = strings.Replace(text, "tracing {\nspan x\n}\n", "", 1)
	text = strings.Replace(text, "log_append token {http.request.header.Authorization}\n", "", 1) // Caddy's own placeholder of the caller's header
	text = strings.ReplaceAll(text, "{http.request.header.Authorization} ", "")

	var shown bytes.Buffer // all that callers and operators are shown
	note := func(what string, parts ...any) { fmt.Fprintln(&shown, append([]any{"==", what}, parts...)...) }
	get := func(path string) {
		t.Helper()
		status, body, header := c.do("GET", path, nil, "Authorization", "Bearer CANARY-of-the-caller-c0ffee")
		note("GET "+path, status, header, body)
	}
	admin := func(method, path, body string) (int, string) {
		t.Helper()
		status, answer := c.admin(method, path, body)
		note(method+" "+path, status, answer)
		return status, answer
	}

	adapted, err := adaptText(text)
	if err != nil {
		t.Fatal(err)
	}
	note("adapt", string(adapted))
	watchReset(nil)
	if err := LoadJSON(watchJSON(t, text)); err != nil { // with a handler of events that fails: Caddy then logs their data
		t.Fatal(err)
	}
	streams := []*watchStream{c.followAdmin(""), c.follow("http://"+c.Addr+"/status?events", "")}
	page := func() {
		t.Helper()
		get("/status")
		code, body, header := c.do("GET", "/status?status", nil)
		note("status", code, header, body)
	}
	for _, name := range []string{"s", "body", "file", "env"} {
		ruleEventually(t, "a pair of "+name, func() bool { return ruleStatus(t, name).Generation > 0 })
	}

	for _, path := range []string{"/s/x", "/body/x", "/file/x", "/env/x", "/apikey/x", "/empty/x", "/denied/x"} {
		get(path)
	}
	c.do("TRACE", "/s/", nil)
	admin("POST", "/token_refresh/sessions/s/refresh", "")
	admin("POST", "/token_refresh/sessions/file/refresh", "")

	// Sent again after a 401 of the upstream.
	up.mu.Lock()
	up.dead[envAccess] = true
	up.mu.Unlock()
	get("/env/x?again")
	if seen := up.requests(); seen[len(seen)-1].Token == envAccess {
		t.Error("the request was not sent again")
	}

	// Every kind of failure, repeating what was sent.
	for _, f := range []hygFault{
		{status: 400, body: `{"error":"{echo}","error_description":"{echo}","message":"{echo}"}`},
		{status: 403, body: `{echo}`},
		{status: 404, body: `<html>{echo}</html>`},
		{status: 415, body: `{"result":false,"message":"{echo}"}`},
		{status: 429, body: `{echo}`, header: http.Header{"Retry-After": {"{echo}"}}},
		{status: 500, body: `{echo}`, header: http.Header{"X-Debug": {"{echo}"}, "Www-Authenticate": {"{echo}"}}},
		{status: 503, body: `{"error":"{echo}"}`, header: http.Header{"Retry-After": {"0"}}},
		{status: 307, header: http.Header{"Location": {"http://127.0.0.1:1/?{echo}"}}},
		{status: 302, header: http.Header{"Location": {"//{echo}/{echo}"}}},
		{status: 401, body: `{"error":"invalid_token","error_description":"{echo}"}`},
	} {
		h.fault(f)
		status, _ := admin("POST", "/token_refresh/sessions/s/refresh", "")
		if status == 200 {
			t.Errorf("a %d led to a rotation", f.status)
		}
		get("/s/x")
		admin("GET", "/token_refresh/sessions/s", "")
		page()
	}
	// Unusable answers with a 2xx: the outcome is unknown.
	for name, f := range map[string]hygFault{
		"file": {status: 200, body: `<html>{echo}`},
		"env":  {status: 200, body: `{"accessToken":"{echo}","refreshToken":7}`},
		"body": {status: 502, body: `{"accessToken":"{echo}"}`},
	} {
		h.fault(f)
		admin("POST", "/token_refresh/sessions/"+name+"/refresh", "")
		get("/" + name + "/x")
		admin("GET", "/token_refresh/sessions/"+name, "")
		page()
	}
	breakersForget() // that was more than it puts up with
	// Lost.
	h.fault(hygFault{status: 400, body: `{"error":"invalid_grant","error_description":"{echo}"}`})
	admin("POST", "/token_refresh/sessions/s/refresh", "")
	ruleEqual(t, "state", ruleStatus(t, "s").State, refresher.PhaseLost)
	get("/s/x")
	admin("POST", "/token_refresh/sessions/s/refresh", "")
	page()
	own := []string{"Origin", "http://" + c.Addr, "Content-Type", "application/json", "Token-Refresh-Action", pageOverview(t, c).ActionToken}
	for _, action := range []string{`{"action":"refresh","session":"s"}`, `{"action":"refresh","session":"` + fileRefresh + `"}`, fileRefresh} {
		code, answer, header := c.do("POST", "/status", strings.NewReader(action), own...)
		note("action", code, header, answer)
	}

	// Imports, wrong and right, and a failing login.
	access, refresh := h.sb.LoginAs("import")
	h.knowPair("imported", access, refresh)
	for _, body := range []string{access, `{"accessToken":"` + access, `{"accessToken":"` + access + `","accessToken":"` + refresh + `"}`, `{"accessToken":"` + access + `"}`, `{"access":"` + access + `","refresh":"` + refresh + `"}`,
		adaptPair(access+"\n", refresh), adaptPair(access, refresh), adaptPair(access, refresh), adaptPair(fileAccess, fileRefresh)} {
		admin("PUT", "/token_refresh/sessions/empty", body)
		admin("PUT", "/token_refresh/sessions/file", body)
		admin("PUT", "/token_refresh/sessions/nobody", body)
	}
	ruleEqual(t, "generation of the imported", ruleStatus(t, "empty").Generation, 1)
	get("/empty/x")
	code, out, errs := adaptCaddy(t, t.TempDir(), adaptPair(access, refresh), "token-refresh", "import", "empty", "--address", c.Admin)
	note("import", code, out, errs)
	code, out, errs = adaptCaddy(t, t.TempDir(), adaptPair(access, refresh+" ")+"x", "token-refresh", "import", "empty", "--address", c.Admin)
	note("wrong import", code, out, errs)
	for _, verb := range [][]string{{"list"}, {"list", "--json"}, {"show", "s"}, {"show", "s", "--json"}, {"refresh", "empty"}} {
		code, out, errs := adaptCaddy(t, t.TempDir(), "", append(append([]string{"token-refresh"}, verb...), "--address", c.Admin)...)
		note(strings.Join(verb, " "), code, out, errs)
	}

	// A file that changes for the worse and for the better.
	if err := os.WriteFile(tokensFile, []byte(`{"accessToken":"`+access+`","refreshToken":`), 0o600); err != nil {
		t.Fatal(err)
	}
	ruleEventually(t, "the log tells of the broken file", func() bool {
		log, _ := os.ReadFile(cfg.LogFile)
		return bytes.Contains(log, []byte("cannot be used"))
	})

	ruleWritePair(t, tokensFile, fileAccess, fileRefresh)

	// A failed reload, then a good one with a login that fails.
	t.Setenv("HYG_BAD_KEY", "CANARY-bad-key-0011223344")
	h.know("a bad key", "CANARY-bad-key-0011223344")
	for _, change := range [][2]string{
		{"encryption_key {env.HYG_KEY}", "encryption_key {env.HYG_BAD_KEY}"},
		{"{env.HYG_USERNAME}", "{env.HYG_BAD_KEY}{env.HYG_NOT_SET}"},
		{"tokens import", "tokens file " + passwordFile},
		{h.url + "/User/RefreshToken", "http://{env.HYG_BAD_KEY}@127.0.0.1/"},
	} {
		bad, err := adaptText(strings.Replace(text, change[0], change[1], 1))
		if err == nil {
			status, answer := c.admin("POST", "/load", string(bad), "Content-Type", "application/json")
			note("load", status, answer)
			if status == 200 {
				t.Errorf("%s was loaded", change[1])
			}
		} else {
			note("adapt", err)
		}
	}
	h.fault(hygFault{status: 401, body: "{echo}"})
	h.fault(hygFault{status: 500, body: "{echo}"})
	again := strings.Replace(text, "session empty {", "session again {\nissuer bearer "+h.url+"/User/RefreshToken\ntokens login "+h.url+"/User/Login {\nusername {env.HYG_USERNAME}\npassword {env.HYG_BAD_KEY}\n}\n}\nsession empty {", 1)
	loaded, answer := c.admin("POST", "/load", string(watchJSON(t, again)), "Content-Type", "application/json")
	if loaded != 200 {
		t.Fatalf("%d %s", loaded, answer)
	}
	ruleEventually(t, "the failed login", func() bool { return ruleStatus(t, "again").LastError != "" })

	for _, path := range []string{"/config/", "/token_refresh/sessions", "/token_refresh/sessions/s", "/token_refresh/sessions/body", "/token_refresh/sessions/file", "/token_refresh/sessions/env",
		"/token_refresh/sessions/empty", "/token_refresh/sessions/again", "/metrics", "/debug/vars", "/debug/pprof/goroutine?debug=2", "/debug/pprof/cmdline", "/reverse_proxy/upstreams"} {
		admin("GET", path, "")
	}
	page()
	streams = append(streams, c.followAdmin("an-1")) // all that is known
	ruleEventually(t, "events", func() bool { return len(streams[2].fields("data")) > 10 })
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	for i, s := range streams {
		if <-s.ended; len(s.fields("data")) == 0 {
			t.Errorf("stream %d is empty", i)
		}
		note("stream", s.text())
	}
	if names := watchNames(); len(names) < 10 {
		t.Errorf("events: %v", names)
	}
	watchSeen.Lock()
	for _, e := range watchSeen.events {
		note("event", e.Name(), e.Data)
	}
	watchSeen.Unlock()

	for _, found := range hygFind(shown.Bytes(), h.secrets) {
		t.Errorf("shown: %s", found)
	}
	files, size := 0, 0
	err = filepath.WalkDir(c.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		files, size = files+1, size+len(content)
		for _, found := range hygFind(content, h.secrets) {
			t.Errorf("%s: %s", filepath.Base(path), found)
		}
		if found := hygFind([]byte(path), h.secrets); len(found) > 0 {
			t.Errorf("the name of a file: %s", found)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"debug.log", "access.log", "autosave.json", "state"} {
		if _, err := os.Stat(filepath.Join(c.Dir, name)); err != nil {
			t.Error(err)
		}
	}
	log, _ := os.ReadFile(cfg.LogFile)
	for _, must := range []string{`"level":"debug"`, "upstream roundtrip", "session lost", "rotated", "outcome of an exchange is unknown", "signing in failed"} {
		if !bytes.Contains(log, []byte(must)) {
			t.Errorf("the log is not what the test is about: it lacks %s", must)
		}
	}
	t.Logf("%d secrets, %d files of %d KiB, %d KiB shown", len(h.secrets), files, size>>10, shown.Len()>>10)
}
