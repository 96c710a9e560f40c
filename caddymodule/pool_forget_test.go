package caddymodule

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func TestALogoutThatNamesItsSessionByTheRefreshTokenAloneEndsIt(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	status, seen := 200, ""
	var login string
	c, _ := poolBehind(t, issuer, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, login)
			return
		}
		body, _ := io.ReadAll(r.Body)
		seen = string(body)
		if int64(len(body)) != r.ContentLength || r.Header.Get("Authorization") != "" {
			t.Errorf("the upstream got %d of %d bytes, %v", len(body), r.ContentLength, r.Header)
		}
		w.WriteHeader(status)
	})
	const json, form = "application/json", "application/x-www-form-urlencoded"
	for name, call := range map[string]struct {
		path, kind, body, cookie string // R stands for the refresh token
		status                   int
		ends                     bool
	}{
		"JSON":                  {kind: json, body: `{"refreshToken":"R"}`, status: 200, ends: true},
		"JSON of other names":   {kind: json, body: `{"all":false,"token":{"value":"R"}}`, status: 204, ends: true},
		"a form":                {kind: form, body: "refresh_token=R&client_id=a", status: 200, ends: true},
		"a revocation (OAuth)":  {kind: form, body: "token=R&token_type_hint=refresh_token", status: 200, ends: true},
		"the query":             {path: "?refreshToken=R", status: 200, ends: true},
		"a cookie":              {cookie: "theme=1; refresh_token=R", status: 200, ends: true},
		"a refusal":             {kind: json, body: `{"refreshToken":"R"}`, status: 400},
		"another refresh token": {kind: json, body: `{"refreshToken":"unknown-to-the-pool"}`, status: 200},
		"no token":              {kind: json, body: `{}`, status: 200},
		"a very long body":      {kind: json, body: `{"x":"` + strings.Repeat("x", 64<<10) + `","refreshToken":"R"}`, status: 200},
	} {
		t.Run(name, func(t *testing.T) {
			access, refresh := sb.Login()
			login = fmt.Sprintf(`{"accessToken":%q,"refreshToken":%q}`, access, refresh)
			if got, _, _ := c.do("POST", "/login", nil); got != 200 {
				t.Fatalf("status %d", got)
			}
			before := poolSessions(t)
			status = call.status
			put := func(text string) string { return strings.ReplaceAll(text, "R", url.QueryEscape(refresh)) }
			header := []string{"Content-Type", call.kind}
			if call.cookie != "" {
				header = append(header, "Cookie", put(call.cookie))
			}
			got, _, _ := c.do("POST", "/logout"+put(call.path), strings.NewReader(put(call.body)), header...)
			if got != call.status || seen != put(call.body) {
				t.Errorf("status %d, and the upstream got %.100q", got, seen)
			}
			if ended := before - poolSessions(t); (ended == 1) != call.ends || ended > 1 {
				t.Errorf("%d sessions ended", ended)
			}
		})
	}
}

func TestTheTokensOfOneSessionInTheHeaderAndTheCookieAreBothSwapped(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	var login, dead string
	var seen http.Header
	c, _ := poolBehind(t, issuer, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, login)
			return
		}
		seen = r.Header
		if r.Header.Get("Authorization") == "Bearer "+dead { // it is replaced just now: the request is sent again
			app, err := activeApp()
			if err != nil {
				t.Error(err)
				return
			}
			pool, _ := app.pool("portal")
			m, _, _, _ := pool.shared.Find(dead, 0)
			if err := m.Refresh(r.Context()); err != nil {
				t.Error(err)
			}
			w.WriteHeader(401)
		}
	})
	type caller struct{ access, refresh, session string }
	signIn := func() (p caller) {
		p.access, p.refresh = sb.Login()
		who, _ := sb.Lookup(p.access)
		p.session = who.ID
		login = fmt.Sprintf(`{"accessToken":%q,"refreshToken":%q}`, p.access, p.refresh)
		if status, _, _ := c.do("POST", "/login", nil); status != 200 {
			t.Fatalf("status %d", status)
		}
		return p
	}
	one, other := signIn(), signIn()
	call := func(cookie string) map[string]string {
		t.Helper()
		status, _, header := c.do("GET", "/", nil, "Authorization", "Bearer "+one.access, "Cookie", cookie)
		current, _, _ := sb.Current(one.session)
		if status != 200 || seen.Get("Authorization") != "Bearer "+current {
			t.Errorf("status %d, the upstream got %q", status, seen.Get("Authorization"))
		}
		return cookiesOf(header)
	}
	mine := "a=1; access_token=" + one.access + "; refresh_token=" + one.refresh + "; b=2"
	call(mine)
	if got := seen.Get("Cookie"); got != "a=1; access_token="+one.access+"; b=2" {
		t.Errorf("of the first generation: %q", got)
	}
	for round := range 2 { // in the first one the request is sent again
		if round == 0 {
			dead = one.access
		}
		jar := call(mine)
		current, refresh, _ := sb.Current(one.session)
		if got := seen.Get("Cookie"); got != "a=1; access_token="+current+"; b=2" {
			t.Errorf("round %d: the upstream got %q", round, got)
		}
		if round > 0 && (jar["access_token"] != current || jar["refresh_token"] != refresh) {
			t.Errorf("round %d: the caller's cookies are not renewed: %v", round, jar)
		}
	}
	for _, cookie := range []string{"access_token=" + other.access + "; refresh_token=" + other.refresh, "access_token=unknown", "x=y"} {
		if jar := call(cookie); seen.Get("Cookie") != cookie || len(jar) > 0 {
			t.Errorf("%q became %q, %v", cookie, seen.Get("Cookie"), jar)
		}
	}
}

func TestAPoolThatTheRateCannotCarryIsWarnedOfAtLoad(t *testing.T) {
	_, issuer := ruleIssuer(t, sandbox.Config{})
	for sessions, want := range map[int]bool{100_000: true, 1000: false} {
		cfg := poolConfig(issuer, "lifetime 10m", fmt.Sprintf("max_sessions %d", sessions))
		cfg.LogFile = filepath.Join(t.TempDir(), "log")
		ruleStart(t, cfg)
		log, err := os.ReadFile(cfg.LogFile)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(log), "max_sessions is more than the issuer's rate can keep fresh"); (n == 1) != want || n > 1 {
			t.Errorf("%d sessions: warned %d times\n%s", sessions, n, log)
		}
	}
}
