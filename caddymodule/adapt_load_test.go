package caddymodule

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// adaptCaddy runs `caddy` with arguments in a process of its own.
func adaptCaddy(t *testing.T, dir, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ruleTimeout(t), exe, args...)
	cmd.Env = append(os.Environ(), "RULE_CADDY_CHILD=1", "XDG_DATA_HOME="+dir+"/child", "XDG_CONFIG_HOME="+dir+"/child", "HOME="+dir)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func adaptKey() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	return base64.StdEncoding.EncodeToString(key)
}

func adaptFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What is wrong with a configuration is said when it is loaded, by the name of
// the session or option, and without a secret.
func TestAWrongConfigurationIsRefusedAtLoad(t *testing.T) {
	const canary = "CANARY-load-3b1c"
	t.Setenv("RULE_EMPTY", "")
	t.Setenv("RULE_CANARY", canary)
	t.Setenv("RULE_CANARY_NL", canary+"\nX: y")
	open := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	issuer := `"issuer":{"kind":"bearer","url":"https://127.0.0.1:1/x"}`
	session := func(more string) string { return `"sessions":{"billing":{` + issuer + `,` + more + `}}` }
	login := func(more string) string {
		return session(`"tokens":[{"from":"login","url":"https://127.0.0.1:1/x",` + more + `}]`)
	}
	imported := session(`"tokens":[{"from":"import"}]`)
	for _, tt := range []struct{ name, app, want string }{
		{"the tokens file is a directory", session(`"tokens":[{"from":"file","path":"/"}]`), "billing"},
		{"the tokens file is no JSON", session(`"tokens":[{"from":"file","path":"` + adaptFile(t, canary) + `"}]`), "billing"},
		{"the tokens file is empty", session(`"tokens":[{"from":"file","path":"` + adaptFile(t, "") + `"}]`), "billing"},
		{"the tokens file has no refresh token", session(`"tokens":[{"from":"file","path":"` + adaptFile(t, `{"accessToken":"`+canary+`"}`) + `"}]`), "billing"},
		{"the tokens file has no access token", session(`"tokens":[{"from":"file","path":"` + adaptFile(t, `{"refreshToken":"`+canary+`"}`) + `"}]`), "billing"},
		{"the tokens file has a number for a token", session(`"tokens":[{"from":"file","path":"` + adaptFile(t, `{"accessToken":"`+canary+`","refreshToken":5}`) + `"}]`), "billing"},
		{"the tokens file has a token twice", session(`"tokens":[{"from":"file","path":"` + adaptFile(t, `{"accessToken":"`+canary+`","accessToken":"b","refreshToken":"c"}`) + `"}]`), "billing"},
		{"the tokens file has a line break in a token", session(`"tokens":[{"from":"file","path":"` + adaptFile(t, `{"accessToken":"`+canary+`\n","refreshToken":"c"}`) + `"}]`), "billing"},
		{"the tokens file is huge", session(`"tokens":[{"from":"file","path":"` + adaptFile(t, `{"accessToken":"`+strings.Repeat(canary, 8000)+`","refreshToken":"c"}`) + `"}]`), "billing"},
		{"the tokens file's path has an unset variable", session(`"tokens":[{"from":"file","path":"{env.RULE_NOT_SET}/x"}]`), "{env.RULE_NOT_SET}"},
		{"only one of two variables is set", session(`"tokens":[{"from":"env","access":"RULE_CANARY","refresh":"RULE_NOT_SET"}]`), "RULE_NOT_SET"},
		{"a variable holds no token", session(`"tokens":[{"from":"env","access":"RULE_CANARY_NL","refresh":"RULE_CANARY"}]`), "billing"},
		{"the password's variable is not set", login(`"username":"u","password":"{env.RULE_NOT_SET}"`), "{env.RULE_NOT_SET}"},
		{"the password's variable is empty", login(`"username":"u","password":"{env.RULE_EMPTY}"`), "{env.RULE_EMPTY}"},
		{"the password's file is missing", login(`"username":"u","password":"{file./nonexistent/x}"`), "{file./nonexistent/x}"},
		{"an unknown placeholder beside a secret", login(`"username":"u","password":"` + canary + `{nothing.like.it}"`), "{nothing.like.it}"},
		{"the body's variable is not set", login(`"body":{"password":"` + canary + `{env.RULE_NOT_SET}"}`), "{env.RULE_NOT_SET}"},
		{"a header's variable is not set", login(`"username":"u","password":"p","header":{"X-Key":["{env.RULE_NOT_SET}"]}`), "{env.RULE_NOT_SET}"},
		{"a header's variable has a line break", login(`"username":"u","password":"p","header":{"X-Key":["{env.RULE_CANARY_NL}"]}`), "X-Key"},
		{"the encryption key is too short", `"encryption_keys":["` + base64.StdEncoding.EncodeToString([]byte(canary)) + `"],` + imported, "encryption_key"},
		{"the encryption key is not base64", `"encryption_keys":["{env.RULE_CANARY}"],` + imported, "encryption_key"},
		{"the encryption key's variable is not set", `"encryption_keys":["{env.RULE_NOT_SET}"],` + imported, "encryption_key"},
		{"the second encryption key is wrong", `"encryption_keys":["` + adaptKey() + `","{env.RULE_CANARY}"],` + imported, "encryption_key"},
		{"the state directory is a file", `"state_dir":"` + adaptFile(t, "") + `",` + imported, "file"},
		{"the state directory cannot be made", `"state_dir":"/proc/nothing/here",` + imported, "/proc/nothing"},
		{"the state directory is open to everybody", `"state_dir":"` + open + `",` + imported, open},
		{"the state directory's variable is not set", `"state_dir":"{env.RULE_NOT_SET}/x",` + imported, "state_dir"},
		{"two names differ in case", `"sessions":{"a":{` + issuer + `,"tokens":[{"from":"import"}]},"A":{` + issuer + `,"tokens":[{"from":"import"}]}}`, "case"},
		{"a name with a slash", `"sessions":{"../a":{` + issuer + `,"tokens":[{"from":"import"}]}}`, "../a"},
		{"an empty name", `"sessions":{"":{` + issuer + `,"tokens":[{"from":"import"}]}}`, "name"},
		{"a session that is null", `"sessions":{"billing":null}`, "billing"},
		{"a session without an issuer", `"sessions":{"billing":{"tokens":[{"from":"import"}]}}`, "issuer"},
		{"a session without tokens", `"sessions":{"billing":{` + issuer + `}}`, "tokens"},
		{"refresh_before of 150%", session(`"refresh_before":"150%","tokens":[{"from":"import"}]`), "refresh_before"},
		{"a negative wait", session(`"wait":-1,"tokens":[{"from":"import"}]`), "wait"},
		{"a negative timeout", `"sessions":{"billing":{"issuer":{"kind":"bearer","url":"https://127.0.0.1:1/","timeout":-1},"tokens":[{"from":"import"}]}}`, "timeout"},
		{"plain http", `"sessions":{"billing":{"issuer":{"kind":"bearer","url":"http://192.0.2.1/"},"tokens":[{"from":"import"}]}}`, "http"},
		{"a CA file that is missing", `"sessions":{"billing":{"issuer":{"kind":"bearer","url":"https://127.0.0.1:1/","tls":{"ca":"/nonexistent"}},"tokens":[{"from":"import"}]}}`, "ca"},
		{"a CA file that is none", `"sessions":{"billing":{"issuer":{"kind":"bearer","url":"https://127.0.0.1:1/","tls":{"ca":"` + adaptFile(t, canary) + `"}},"tokens":[{"from":"import"}]}}`, "ca"},
		{"a client certificate without key", `"sessions":{"billing":{"issuer":{"kind":"bearer","url":"https://127.0.0.1:1/","tls":{"client_certificate":"/x"}},"tokens":[{"from":"import"}]}}`, "client_certificate"},
		{"an unknown member", `"sesions":{}`, "sesions"},
		{"a handler of an undefined session", imported + `},"http":{"servers":{"x":{"listen":["127.0.0.1:0"],"routes":[{"handle":[{"handler":"token_refresh","session":"biling"}]}]}}`, "biling"},
		{"a handler with bad clients", imported + `},"http":{"servers":{"x":{"listen":["127.0.0.1:0"],"routes":[{"handle":[{"handler":"token_refresh","session":"billing","clients":["nobody"]}]}]}}`, "clients"},
		{"a handler with a bad header", imported + `},"http":{"servers":{"x":{"listen":["127.0.0.1:0"],"routes":[{"handle":[{"handler":"token_refresh","session":"billing","header":"connection"}]}]}}`, "Connection"},
		{"a handler with a huge replay_limit", imported + `},"http":{"servers":{"x":{"listen":["127.0.0.1:0"],"routes":[{"handle":[{"handler":"token_refresh","session":"billing","replay_limit":99999999999}]}]}}`, "replay_limit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := ruleNew(t)
			logs := filepath.Join(c.Dir, "log")
			if !strings.Contains(tt.app, "state_dir") {
				tt.app = fmt.Sprintf(`"state_dir":%q,`, filepath.Join(c.Dir, "state")) + tt.app
			}
			cfg := fmt.Sprintf(`{"admin":{"listen":%q,"config":{"persist":false}},
				"logging":{"logs":{"default":{"level":"DEBUG","writer":{"output":"file","filename":%q,"roll":false}}}},
				"apps":{"token_refresh":{%s}}}`, c.Admin, logs, tt.app)
			if !json.Valid([]byte(cfg)) {
				t.Fatalf("the test's JSON is wrong: %s", cfg)
			}
			err := LoadJSON([]byte(cfg))
			if err == nil {
				t.Fatal("it was loaded")
			}
			text, _ := os.ReadFile(logs)
			if strings.Contains(err.Error(), canary) || bytes.Contains(text, []byte(canary)) {
				t.Errorf("a secret is shown: %v\n%s", err, text)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error does not name %s: %v", tt.want, err)
			}
			if n := len(ruleHeld()); n != 0 {
				t.Errorf("%d sessions are held after the failure: %v", n, ruleHeld())
			}
		})
	}
}

func ruleHeld() (keys []string) {
	sharedSessions.Range(func(key, _ any) bool { keys = append(keys, key.(string)); return true })
	return keys
}

// With a key that does not open it, what is stored stays as it is: the right key
// may be at hand.
func TestAStoredPairThatTheKeyDoesNotOpenIsKept(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	right, wrong := adaptKey(), adaptKey()
	c := ruleNew(t)
	load := func(key, tokens string) {
		t.Helper()
		if err := c.load(ruleConfig{
			App:  "encryption_key " + key + "\nsession s {\n issuer bearer " + issuer + "/User/RefreshToken\n " + tokens + "\n}",
			Site: "token_refresh s\nreverse_proxy " + issuer,
		}); err != nil {
			t.Fatal(err)
		}
	}
	files := func() string {
		t.Helper()
		var all strings.Builder
		err := filepath.WalkDir(filepath.Join(c.Dir, "state"), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			fmt.Fprintf(&all, "%s %x\n", path, text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return all.String()
	}
	load(right, "tokens file "+rulePair(t, access, refresh))
	if status, body := c.get("/whoami"); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	if status, body := c.admin("POST", "/token_refresh/sessions/s/refresh", ""); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	before := files()

	for _, tokens := range []string{"tokens import", "tokens file " + rulePair(t, access, refresh), "tokens login " + issuer + "/User/Login {\nusername demo\npassword demo\n}"} {
		logins := sb.Stats().Logins
		load(wrong, tokens)
		ruleEventually(t, "the session is lost", func() bool { return ruleStatus(t, "s").State == refresher.PhaseLost })
		ruleEqual(t, "reason", ruleStatus(t, "s").Reason, refresher.ReasonUndecryptable)
		status, _, header := c.do("GET", "/whoami", nil)
		ruleEqual(t, "status", status, 503)
		ruleEqual(t, "Retry-After", header.Get("Retry-After"), "")
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
		if files() != before {
			t.Errorf("%.20s: the files were changed", tokens)
		}
		ruleEqual(t, "logins", sb.Stats().Logins, logins)
	}

	load(right, "tokens import")
	ruleEventually(t, "the session is back", func() bool { return ruleStatus(t, "s").State == refresher.PhaseFresh })
	ruleEqual(t, "generation", ruleStatus(t, "s").Generation, 2)
	if status, body := c.get("/whoami"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	load(wrong+"\nencryption_key "+right, "tokens import") // a new key seals, the old one opens
	ruleEventually(t, "the session is back", func() bool { return ruleStatus(t, "s").State == refresher.PhaseFresh })
}

func TestCommandsFailWithAnExitCodeAndNoSecret(t *testing.T) {
	const canary = "CANARY-child-77aa"
	dir := t.TempDir()
	write := func(app, site string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "Caddyfile")
		text := fmt.Sprintf("{\nadmin off\nstorage file_system %s\ntoken_refresh {\nstate_dir %s/state\n%s\n}\n}\nhttp://127.0.0.1:0 {\n%s\n}\n", dir, dir, app, site)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := "session s {\nissuer bearer https://127.0.0.1:1/x\ntokens file " + rulePair(t, "a-"+canary, "r-"+canary) + "\n}"
	for _, tt := range []struct {
		name, verb, app, site string
		ok                    bool
	}{
		{"adapt, a good one", "adapt", good, "token_refresh s", true},
		{"validate, a good one", "validate", good, "token_refresh s", true},
		{"adapt, an unknown option", "adapt", "secret " + canary, "respond ok", false},
		{"validate, an undefined session", "validate", good, "token_refresh other", false},
		{"validate, a bad tokens file", "validate", "session s {\nissuer bearer https://127.0.0.1:1/x\ntokens file " + adaptFile(t, canary) + "\n}", "respond ok", false},
		{"run, a bad tokens file", "run", "session s {\nissuer bearer https://127.0.0.1:1/x\ntokens file " + adaptFile(t, canary) + "\n}", "respond ok", false},
		{"run, an unset variable", "run", "session s {\nissuer bearer https://127.0.0.1:1/x {\nheader X " + canary + "{env.RULE_NOT_SET}\n}\ntokens import\n}", "respond ok", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := []string{tt.verb, "--config", write(tt.app, tt.site), "--adapter", "caddyfile"}
			code, stdout, stderr := adaptCaddy(t, dir, "", args...)
			if (code == 0) != tt.ok {
				t.Errorf("exit code %d\n%s", code, stderr)
			}
			if !tt.ok && strings.Contains(stdout+stderr, canary) {
				t.Errorf("a secret is shown:\n%s%s", stdout, stderr)
			}
			if tt.verb == "validate" {
				if _, err := os.Stat(filepath.Join(dir, "state")); err == nil {
					t.Error("validate made the state directory")
				}
			}
		})
	}
}
