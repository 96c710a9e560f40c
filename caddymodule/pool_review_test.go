package caddymodule

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func TestACallersRefreshCallDoesNotSlipPastInAnotherForm(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{AccessLifetime: 3 * time.Second})
	upstream := newRuleUpstream(t, nil)
	cfg := poolConfig(issuer)
	cfg.Site = "@login path /User/Login\ntoken_refresh portal\nreverse_proxy @login " + strings.TrimPrefix(issuer, "http://") +
		"\nreverse_proxy " + strings.TrimPrefix(upstream.URL, "http://")
	c := ruleStart(t, cfg)
	p := c.program()
	if !p.login() {
		t.FailNow()
	}
	ruleEventually(t, "its tokens are spent", func() bool { return sb.Stats().Exchanges > 0 })
	escaped := strings.ReplaceAll(p.refresh, "-", `\u002d`)
	const json, form = "application/json", "application/x-www-form-urlencoded"
	for name, call := range map[string]struct{ path, kind, body string }{
		"names in another case":    {"/User/RefreshToken", json, `{"RefreshToken":"` + p.refresh + `"}`},
		"a name twice":             {"/User/RefreshToken", json, `{"refreshToken":"x","refreshToken":"` + p.refresh + `"}`},
		"nested":                   {"/User/RefreshToken", json, `{"data":{"refreshToken":"` + escaped + `"}}`},
		"text behind it":           {"/User/RefreshToken", json, `{"refreshToken":"` + p.refresh + `"} x`},
		"a byte order mark":        {"/User/RefreshToken", json, "\ufeff" + `{"refreshToken":"` + p.refresh + `"}`},
		"no content type":          {"/User/RefreshToken", "", `{"refreshToken":"` + p.refresh + `"}`},
		"a charset":                {"/User/RefreshToken", json + "; charset=utf-8", `{"refreshToken":"` + p.refresh + `"}`},
		"a form":                   {"/User/RefreshToken", form, "refreshToken=" + url.QueryEscape(p.refresh)},
		"a form of OAuth":          {"/User/RefreshToken", form, "grant_type=refresh_token&refresh_token=" + url.QueryEscape(p.refresh)},
		"a form without its type":  {"/User/RefreshToken", "", "refresh_token=" + p.refresh},
		"XML":                      {"/User/RefreshToken", "application/xml", "<r><refreshToken>" + p.refresh + "</refreshToken></r>"},
		"the query":                {"/User/RefreshToken?refreshToken=" + url.QueryEscape(p.refresh), json, ""},
		"a path parameter":         {"/User/RefreshToken;v=2", json, `{"refreshToken":"` + p.refresh + `"}`},
		"a path parameter within":  {"/User;v=2/RefreshToken", json, `{"refreshToken":"` + p.refresh + `"}`},
		"a backslash":              {"/User%5CRefreshToken", json, `{"refreshToken":"` + p.refresh + `"}`},
		"an escaped slash":         {"/User%2FRefreshToken", json, `{"refreshToken":"` + p.refresh + `"}`},
		"an escaped letter":        {"/%55ser/RefreshToken", json, `{"refreshToken":"` + p.refresh + `"}`},
		"two slashes":              {"//User//RefreshToken//", json, `{"refreshToken":"` + p.refresh + `"}`},
		"dots":                     {"/x/../User/./RefreshToken", json, `{"refreshToken":"` + p.refresh + `"}`},
		"escaped dots":             {"/x/%2e%2e/User/RefreshToken", json, `{"refreshToken":"` + p.refresh + `"}`},
		"a query beside the point": {"/User/RefreshToken?x=1", json, `{"refreshToken":"` + p.refresh + `"}`},
		"compressed":               {"/User/RefreshToken", json, string(compressed(t, "gzip", `{"refreshToken":"`+p.refresh+`"}`))},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(upstream.requests())
			header := []string{"Content-Type", call.kind}
			if name == "compressed" {
				header = append(header, "Content-Encoding", "gzip")
			}
			status, body := p.call("POST", call.path, call.body, header...)
			if status != 200 || !strings.Contains(body, "refreshToken") || len(upstream.requests()) != before {
				t.Errorf("%d %q, and the issuer got %d requests", status, body, len(upstream.requests())-before)
			}
		})
	}
	// What cannot be looked at is not passed on either.
	for name, call := range map[string]struct{ encoding, body string }{
		"a long one":       {"", `{"x":"` + strings.Repeat("x", 70<<10) + `","refreshToken":"` + p.refresh + `"}`},
		"another encoding": {"br", "\x0b\x02\x80"},
	} {
		before := len(upstream.requests())
		status, body := p.call("POST", "/User/RefreshToken", call.body, "Content-Type", json, "Content-Encoding", call.encoding)
		if status != 413 || len(upstream.requests()) != before {
			t.Errorf("%s: %d %q, and the issuer got %d requests", name, status, body, len(upstream.requests())-before)
		}
	}
}

func TestAWithheldRefreshTokenStaysWithTheSidecar(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{AccessLifetime: time.Hour})
	var secret string
	answers := map[string]func(http.ResponseWriter, string, string){
		"/json-and-cookie": func(w http.ResponseWriter, access, refresh string) {
			http.SetCookie(w, &http.Cookie{Name: "refresh_token", Value: refresh, Path: "/auth", HttpOnly: true})
			w.Header().Add("Set-Cookie", `theme={"a":1}; Priority=High`)
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"accessToken":%q,"refreshToken":%q}`, access, refresh)
		},
		"/nested": func(w http.ResponseWriter, access, refresh string) {
			w.Header().Set("Content-Type", "application/json; charset=utf-8")
			w.Header().Set("X-Refresh-Token", refresh)
			fmt.Fprintf(w, `{"accessToken":%q,"refreshToken":%q,"refresh_token":%q,"big":12345678901234567890,"data":{"list":[%q]}}`, access, refresh, refresh, refresh)
		},
		"/cookies": func(w http.ResponseWriter, access, refresh string) {
			http.SetCookie(w, &http.Cookie{Name: "access_token", Value: access})
			http.SetCookie(w, &http.Cookie{Name: "refresh_token", Value: refresh})
			fmt.Fprintf(w, "<html>%s</html>", refresh)
		},
		"/copied": func(w http.ResponseWriter, access, refresh string) { // as file_server does
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.Copy(w, struct{ io.Reader }{strings.NewReader(fmt.Sprintf(`{"accessToken":%q,"refreshToken":%q}`, access, refresh))})
		},
	}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		access, refresh := sb.Login()
		secret = refresh
		answers[r.URL.Path](w, access, refresh)
	}))
	t.Cleanup(upstream.Close)
	more := []string{"withhold_refresh_token on"}
	for path := range answers {
		more = append(more, "learn POST "+path)
	}
	cfg := poolConfig(issuer, more...)
	cfg.Site = "token_refresh portal\nreverse_proxy " + strings.TrimPrefix(upstream.URL, "http://")
	c := ruleStart(t, cfg)
	for path := range answers {
		status, body, header := c.do("POST", path, nil)
		text := fmt.Sprint(header, body)
		if status != 200 || strings.Contains(text, secret) || !strings.Contains(text, "trh_") {
			t.Errorf("%s: %d %s", path, status, text)
		}
		if path == "/json-and-cookie" && (!slices.Contains(header["Set-Cookie"], `theme={"a":1}; Priority=High`) || !strings.Contains(text, "Path=/auth; HttpOnly")) {
			t.Errorf("%s: the cookies became %q", path, header["Set-Cookie"])
		}
		if path == "/nested" && !strings.Contains(body, "12345678901234567890") {
			t.Errorf("%s: %s", path, body)
		}
	}
}

// What is copied into a held answer goes through it.
func TestAHeldAnswerIsNotGoneAround(t *testing.T) {
	rec := httptest.NewRecorder()
	held := newHeldAnswer(rec, func() error { return nil })
	if _, err := io.Copy(http.ResponseWriter(held), struct{ io.Reader }{strings.NewReader("secret")}); err != nil {
		t.Fatal(err)
	}
	if rec.Body.Len() > 0 || string(held.body) != "secret" {
		t.Errorf("%q went on, %q is held", rec.Body, held.body)
	}
}

func TestAnAccessCookieAloneGetsNoRefreshToken(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{AccessLifetime: 3 * time.Second})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			access, refresh := sb.Login()
			http.SetCookie(w, &http.Cookie{Name: "access_token", Value: access, HttpOnly: true})
			http.SetCookie(w, &http.Cookie{Name: "refresh_token", Value: refresh, HttpOnly: true})
			return
		}
		w.Header().Set("Cache-Control", "public, max-age=600")
	}))
	t.Cleanup(upstream.Close)
	cfg := poolConfig(issuer, "learn POST /login")
	cfg.Site = "token_refresh portal\nreverse_proxy " + strings.TrimPrefix(upstream.URL, "http://")
	c := ruleStart(t, cfg)
	_, _, header := c.do("POST", "/login", nil)
	jar := cookiesOf(header)
	_, _, header = c.do("POST", "/login", nil)
	other := cookiesOf(header)
	ruleEventually(t, "the tokens are replaced", func() bool { return sb.Stats().Exchanges > 1 })
	for name, cookie := range map[string]string{
		"alone":                           "access_token=" + jar["access_token"],
		"with another session's":          "access_token=" + jar["access_token"] + "; refresh_token=" + other["refresh_token"],
		"with one that nobody ever heard": "access_token=" + jar["access_token"] + "; refresh_token=x",
	} {
		_, _, header := c.do("GET", "/", nil, "Cookie", cookie)
		got := cookiesOf(header)
		if got["access_token"] == "" || got["refresh_token"] != "" {
			t.Errorf("%s: %v", name, got)
		}
		if !strings.Contains(strings.Join(header["Cache-Control"], ","), "no-store") {
			t.Errorf("%s: a cache may keep it: %q", name, header["Cache-Control"])
		}
	}
	_, _, header = c.do("GET", "/", nil, "Cookie", "access_token="+jar["access_token"]+"; refresh_token="+jar["refresh_token"])
	if got := cookiesOf(header); got["refresh_token"] == "" {
		t.Errorf("with its own: %v", got)
	}
}

func TestOneLineOfTheHeaderCountsInAnySpelling(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{AccessLifetime: 3 * time.Second})
	upstream := newRuleUpstream(t, nil)
	cfg := poolConfig(issuer)
	cfg.Site = "@login path /User/Login\ntoken_refresh portal\nreverse_proxy @login " + strings.TrimPrefix(issuer, "http://") +
		"\nreverse_proxy " + strings.TrimPrefix(upstream.URL, "http://")
	c := ruleStart(t, cfg)
	p := c.program()
	if !p.login() {
		t.FailNow()
	}
	ruleEventually(t, "its token is replaced", func() bool { return sb.Stats().Exchanges > 0 })
	for _, header := range [][]string{
		{"Authorization", "bearer " + p.access}, {"authorization", "BEARER   " + p.access}, {"AUTHORIZATION", "Bearer " + p.access + "  "},
	} {
		c.do("GET", "/x", nil, header...)
		seen := upstream.requests()
		if got := seen[len(seen)-1].Header["Authorization"]; len(got) != 1 || strings.Contains(got[0], p.access) || !strings.HasPrefix(got[0], "Bearer ") {
			t.Errorf("%q became %q", header, got)
		}
	}
	for _, header := range [][]string{ // not sure whose: untouched
		{"Authorization", "Bearer " + p.access, "Authorization", "Bearer other"},
		{"Authorization", "Bearer " + p.access + ", Bearer other"},
	} {
		c.do("GET", "/x", nil, header...)
		seen := upstream.requests()
		if got := strings.Join(seen[len(seen)-1].Header["Authorization"], "|"); !strings.Contains(got, p.access) || !strings.Contains(got, "other") {
			t.Errorf("%q became %q", header, got)
		}
	}
}
