package caddymodule

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func storeSession(store string) string {
	return "store " + store + "\nsession s {\nissuer bearer https://127.0.0.1:1/x\ntokens import\n}"
}

// What is wrong with a store is said when it is loaded, with no secret.
func TestAWrongStoreIsRefusedAtLoad(t *testing.T) {
	const canary = "CANARY-store-91d2"
	t.Setenv("RULE_CANARY", canary)
	t.Setenv("RULE_EMPTY", "")
	for _, tt := range []struct{ name, app, want string }{
		{"no key", `"store":{"kind":"caddy"}`, "encryption_key"},
		{"no kind", `"store":{"url":"redis://:` + canary + `@127.0.0.1"},KEY`, `"kind"`},
		{"an unknown kind", `"store":{"kind":"memcached","password":"` + canary + `"},KEY`, "memcached"},
		{"an unknown option", `"store":{"kind":"redis","url":"redis://127.0.0.1","pasword":"x"},KEY`, "pasword"},
		{"no URL", `"store":{"kind":"redis"},KEY`, "URL"},
		{"another URL", `"store":{"kind":"redis","url":"http://:` + canary + `@127.0.0.1"},KEY`, "redis://"},
		{"another URL from a variable", `"store":{"kind":"redis","url":"{env.RULE_CANARY}"},KEY`, "redis://"},
		{"a URL that cannot be read", `"store":{"kind":"redis","url":"redis://:` + canary + `%zz@127.0.0.1"},KEY`, "URL"},
		{"a URL with an unknown option", `"store":{"kind":"redis","url":"redis://127.0.0.1/0?replicas=yes"},KEY`, "replicas"},
		{"a prefix with a brace", `"store":{"kind":"redis","url":"redis://127.0.0.1","prefix":"a{b}"},KEY`, "prefix"},
		{"an unset variable in the URL", `"store":{"kind":"redis","url":"redis://:` + canary + `{env.RULE_NOT_SET}@127.0.0.1"},KEY`, "{env.RULE_NOT_SET}"},
		{"an unset password", `"store":{"kind":"redis","url":"redis://127.0.0.1","password":"{env.RULE_NOT_SET}"},KEY`, "password: a placeholder is unknown or empty: {env.RULE_NOT_SET}"},
		{"an empty password", `"store":{"kind":"redis","url":"redis://127.0.0.1","password":"{env.RULE_EMPTY}"},KEY`, "{env.RULE_EMPTY}"},
		{"an unset user name", `"store":{"kind":"redis","url":"redis://127.0.0.1","username":"{env.RULE_NOT_SET}"},KEY`, "username"},
		{"an unset password for Sentinel", `"store":{"kind":"redis","url":"redis://127.0.0.1","sentinel_password":"{env.RULE_NOT_SET}"},KEY`, "sentinel_password"},
		{"a negative timeout", `"store":{"kind":"redis","url":"redis://127.0.0.1","timeout":-1},KEY`, "timeout"},
		{"a missing CA file", `"store":{"kind":"redis","url":"redis://127.0.0.1","tls":{"ca":"/nonexistent"}},KEY`, "ca"},
		{"no endpoint", `"store":{"kind":"etcd"},KEY`, "endpoints"},
		{"an endpoint that is none", `"store":{"kind":"etcd","endpoints":["postgres://:` + canary + `@x"]},KEY`, "endpoint"},
		{"an endpoint with a password", `"store":{"kind":"etcd","endpoints":["http://u:` + canary + `@127.0.0.1:1"]},KEY`, "endpoint"},
		{"an unset variable in an endpoint", `"store":{"kind":"etcd","endpoints":["{env.RULE_NOT_SET}"]},KEY`, "{env.RULE_NOT_SET}"},
		{"a password alone", `"store":{"kind":"etcd","endpoints":["http://127.0.0.1:1"],"password":"` + canary + `"},KEY`, "together"},
		{"an unset password for etcd", `"store":{"kind":"etcd","endpoints":["http://127.0.0.1:1"],"username":"u","password":"{env.RULE_NOT_SET}"},KEY`, "{env.RULE_NOT_SET}"},
		{"an option of Caddy's store", `"store":{"kind":"caddy","prefix":"x"},KEY`, "prefix"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := ruleNew(t)
			logs := filepath.Join(c.Dir, "log")
			app := strings.Replace(tt.app, "KEY", `"encryption_keys":["`+adaptKey()+`"]`, 1)
			cfg := fmt.Sprintf(`{"admin":{"listen":%q,"config":{"persist":false}},
				"logging":{"logs":{"default":{"level":"DEBUG","writer":{"output":"file","filename":%q,"roll":false}}}},
				"apps":{"token_refresh":{"state_dir":%q,%s,"sessions":{"s":{"issuer":{"kind":"bearer","url":"https://127.0.0.1:1/x"},"tokens":[{"from":"import"}]}}}}}`,
				c.Admin, logs, filepath.Join(c.Dir, "state"), app)
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
			if len(ruleHeld()) != 0 || len(storesHeld()) != 0 {
				t.Errorf("held after the failure: %v %v", ruleHeld(), storesHeld())
			}
		})
	}
}

func storesHeld() (keys []string) {
	sharedStores.Range(func(key, _ any) bool { keys = append(keys, key.(string)); return true })
	return keys
}

// A store that is down stops no start, a reload goes on with the connection
// unless a setting is another, and no secret is a key of the pool or in a log.
func TestAReloadGoesOnWithTheStore(t *testing.T) {
	const canary = "CANARY-pool-5577"
	t.Setenv("RULE_PASSWORD", canary)
	c := ruleNew(t)
	logs, key := filepath.Join(c.Dir, "log"), adaptKey()
	load := func(store, more string) *sharedStore {
		t.Helper()
		err := c.load(ruleConfig{App: "encryption_key " + key + "\n" + storeSession(store), Site: "respond " + more, LogFile: logs})
		if err != nil {
			t.Fatal(err)
		}
		app, err := activeApp()
		if err != nil {
			t.Fatal(err)
		}
		if held := storesHeld(); len(held) != 1 || strings.Contains(held[0], canary) {
			t.Errorf("held: %q", held)
		}
		return app.shared
	}
	dead := ruleFreeAddr(t)
	redis := "redis redis://" + dead + " {\npassword {env.RULE_PASSWORD}\n"
	first := load(redis+"}", "one")
	if load(redis+"}", "two") != first {
		t.Error("the same settings: another store")
	}
	other := load(redis+"prefix x\n}", "three")
	if other == first {
		t.Error("another prefix: the same store")
	}
	t.Setenv("RULE_PASSWORD", canary+"2")
	if load(redis+"prefix x\n}", "four") == other {
		t.Error("another password: the same store")
	}
	certificate := filepath.Join(c.Dir, "ca.pem")
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	for i := range 2 {
		if err := os.WriteFile(certificate, bytes.Repeat(authority, i+1), 0o600); err != nil {
			t.Fatal(err)
		}
		if next := load(redis+"tls {\nca "+certificate+"\n}\n}", fmt.Sprint("tls", i)); next == other {
			t.Error("another authority: the same store")
		} else {
			other = next
		}
	}
	etcd := load("etcd http://"+dead, "five")
	if load("etcd http://"+dead, "six") != etcd {
		t.Error("the same etcd: another store")
	}
	files := load("caddy", "seven")
	if load("caddy", "eight") != files {
		t.Error("the same folder: another store")
	}
	if err := c.load(ruleConfig{App: strings.TrimPrefix(storeSession(""), "store"), Site: "respond nine", LogFile: logs}); err != nil {
		t.Fatal(err)
	}
	if held := storesHeld(); len(held) != 0 {
		t.Errorf("held without a store: %q", held)
	}
	text, err := os.ReadFile(logs)
	if err != nil || bytes.Contains(text, []byte(canary)) {
		t.Errorf("the log: %v, or a secret is in it", err)
	}
}

func TestAPasswordThatCanBeReadIsWarnedOf(t *testing.T) {
	t.Setenv("RULE_PASSWORD", "CANARY")
	const clear, literal = "in the clear", "in the configuration itself"
	for _, tt := range []struct{ store, want string }{
		{"redis redis://192.0.2.1 {\npassword {env.RULE_PASSWORD}\n}", clear},
		{"redis redis://:{env.RULE_PASSWORD}@192.0.2.1", clear},
		{"redis redis+sentinel://127.0.0.1,192.0.2.1?master=m {\npassword {env.RULE_PASSWORD}\n}", clear},
		{"redis rediss://:{env.RULE_PASSWORD}@192.0.2.1", ""},
		{"redis redis://192.0.2.1", ""},
		{"redis redis://:secret@127.0.0.1", ""},
		{"redis redis://:secret@localhost:1/0", ""},
		{"redis redis://:secret@[::1]:1/0", ""},
		{"redis unix:///nonexistent {\npassword secret\n}", ""},
		{"redis rediss://:secret@192.0.2.1", literal},
		{"redis rediss://192.0.2.1 {\nsentinel_password secret\n}", literal},
		{"redis redis://:secret@192.0.2.1", clear},
		{"etcd http://192.0.2.1:1 {\ntimeout 100ms\nusername u\npassword {env.RULE_PASSWORD}\n}", clear},
		{"etcd 192.0.2.1:1 {\ntimeout 100ms\nusername u\npassword {env.RULE_PASSWORD}\n}", clear},
		{"etcd https://192.0.2.1:1 {\ntimeout 100ms\nusername u\npassword {env.RULE_PASSWORD}\n}", ""},
		{"etcd https://192.0.2.1:1 {\ntimeout 100ms\nusername u\npassword secret\n}", literal},
		{"etcd http://127.0.0.1:1 localhost:2 {\ntimeout 100ms\nusername u\npassword secret\n}", ""},
	} {
		t.Run(tt.store, func(t *testing.T) {
			c := ruleNew(t)
			logs := filepath.Join(c.Dir, "log")
			if err := c.load(ruleConfig{App: "encryption_key " + adaptKey() + "\n" + storeSession(tt.store), Site: "respond ok", LogFile: logs}); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(logs)
			if err != nil {
				t.Fatal(err)
			}
			for _, warning := range []string{clear, literal} {
				want := warning == tt.want || strings.Contains(tt.store, ":secret@192.0.2.1") && warning == literal
				if bytes.Contains(text, []byte(warning)) != want {
					t.Errorf("warning that it is %s: want %v", warning, want)
				}
			}
			if bytes.Contains(text, []byte("CANARY")) {
				t.Error("the password is in the log")
			}
		})
	}
}

// A store that is down is counted, and stops neither the start nor what is not
// about the session.
func TestAStoreThatIsDownIsCounted(t *testing.T) {
	c := ruleStart(t, ruleConfig{
		Global: "metrics",
		App:    "encryption_key " + adaptKey() + "\n" + strings.Replace(storeSession("redis redis://"+ruleFreeAddr(t)), "session s", "session down", 1),
		Site:   "respond /fine ok\ntoken_refresh down\nreverse_proxy 127.0.0.1:1",
	})
	ruleEventually(t, "the failures are counted", func() bool {
		for name, n := range adaptMetrics(t, c, "down") {
			if strings.HasPrefix(name, "caddy_token_refresh_store_errors_total") && n > 0 {
				return true
			}
		}
		return false
	})
	if status, body := c.get("/fine"); status != 200 || body != "ok" {
		t.Errorf("%d %s", status, body)
	}
	if status, body := c.get("/"); status != 503 {
		t.Errorf("without a pair: %d %s", status, body)
	}
	if status, body := c.admin("GET", "/token_refresh/sessions/down", ""); status != 200 {
		t.Errorf("%d %s", status, body)
	}
}

func TestAnOperatorEndsASession(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	c := ruleStart(t, ruleConfig{
		App:  "session s {\nissuer bearer " + issuer + "/User/RefreshToken\ntokens login " + issuer + "/User/Login {\nusername demo\npassword demo\n}\n}\nsession other {\nissuer bearer " + issuer + "/User/RefreshToken\ntokens import\n}",
		Site: "token_refresh s\nreverse_proxy " + issuer,
	})
	ruleEventually(t, "a pair", func() bool { return ruleStatus(t, "s").State == refresher.PhaseFresh })
	if status, body := c.get("/whoami"); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	status, body := c.admin("DELETE", "/token_refresh/sessions/S", "")
	for _, want := range []string{`"revoked_at_issuer":false`, `"note":"the pair is forgotten here`, `"state":"lost"`, `"reason":"logged_out"`} {
		if status != 200 || !strings.Contains(body, want) {
			t.Errorf("the answer lacks %s: %d %s", want, status, body)
		}
	}
	if status, _ := c.admin("DELETE", "/token_refresh/sessions/nobody", ""); status != 404 {
		t.Errorf("an unknown session: %d", status)
	}
	status, _, header := c.do("GET", "/whoami", nil)
	ruleEqual(t, "status", status, 503)
	ruleEqual(t, "Retry-After", header.Get("Retry-After"), "")
	ruleEqual(t, "logins", sb.Stats().Logins, 1)

	// A new pair starts it anew, and the command line ends it once more.
	access, refresh := sb.Login()
	if status, body := c.admin("PUT", "/token_refresh/sessions/s", adaptPair(access, refresh)); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	if status, body := c.get("/whoami"); status != 200 {
		t.Errorf("with a new pair: %d %s", status, body)
	}
	run := func(args ...string) (int, string, string) {
		return adaptCaddy(t, c.Dir, "", append([]string{"token-refresh", "revoke", "--address", c.Admin}, args...)...)
	}
	if code, out, errs := run("s"); code != 0 || !strings.HasPrefix(out, "s: the pair is forgotten") {
		t.Errorf("revoke: %d\n%s%s", code, out, errs)
	}
	if status, _ := c.get("/whoami"); status != 503 {
		t.Errorf("after the command: %d", status)
	}
	if code, out, errs := run("other", "--json"); code != 0 || !strings.Contains(out, `"revoked_at_issuer":false`) {
		t.Errorf("revoke --json of a session without a pair: %d\n%s%s", code, out, errs)
	}
	if code, _, errs := run("nobody"); code == 0 || !strings.Contains(errs, "no session or pool has that name") {
		t.Errorf("revoke of an unknown session: %d %s", code, errs)
	}
}
