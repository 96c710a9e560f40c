package caddymodule

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// poolConfig puts a pool before everything that the issuer serves.
func poolConfig(issuerURL string, more ...string) ruleConfig {
	return ruleConfig{
		App: fmt.Sprintf(`pool portal {
			issuer bearer %s/User/RefreshToken
			learn POST /User/Login
			forget POST /User/Logout
			%s
		}`, issuerURL, strings.Join(more, "\n")),
		Site: "token_refresh portal\nreverse_proxy " + strings.TrimPrefix(issuerURL, "http://"),
	}
}

// program is one that knows nothing of the sidecar.
type program struct {
	t               *testing.T
	base            string
	client          *http.Client
	access, refresh string
}

func (p *program) call(method, path, body string, header ...string) (int, string) {
	req, err := http.NewRequest(method, p.base+path, strings.NewReader(body))
	if err != nil {
		p.t.Error(err)
		return 0, ""
	}
	req.Header.Set("Version", "2.0")
	req.Header.Set("Content-Type", "application/json")
	if p.access != "" {
		req.Header.Set("Authorization", "Bearer "+p.access)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := p.client.Do(req)
	if err != nil {
		p.t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Error(err)
	}
	return resp.StatusCode, string(text)
}

// take reads a pair out of an answer.
func (p *program) take(status int, body string) bool {
	var pair struct{ AccessToken, RefreshToken string }
	if status != 200 || json.Unmarshal([]byte(body), &pair) != nil || pair.AccessToken == "" || pair.RefreshToken == "" {
		p.t.Errorf("no pair in the answer: %d %s", status, body)
		return false
	}
	p.access, p.refresh = pair.AccessToken, pair.RefreshToken
	return true
}

func (p *program) login() bool {
	p.access = ""
	return p.take(p.call("POST", "/User/Login", `{"username":"demo","password":"demo"}`))
}

func (p *program) renew() bool {
	body, _ := json.Marshal(map[string]string{"refreshToken": p.refresh})
	return p.take(p.call("POST", "/User/RefreshToken", string(body)))
}

func (p *program) whoami() int {
	status, _ := p.call("GET", "/whoami", "")
	return status
}

func (c *ruleCaddy) program() *program {
	return &program{t: c.t, base: "http://" + c.Addr, client: c.client}
}

func TestTwentyProgramsShareOneLoginAndEachRefreshesWhenItLikes(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	for name, more := range map[string][]string{"plain": nil, "withheld": {"withhold_refresh_token on"}} {
		t.Run(name, func(t *testing.T) {
			sb, issuer := ruleIssuer(t, sandbox.Config{AccessLifetime: 4 * time.Second})
			c := ruleStart(t, poolConfig(issuer, more...))
			first := c.program()
			if !first.login() {
				t.FailNow()
			}
			var wg sync.WaitGroup
			until := time.Now().Add(9 * time.Second)
			for n := range 20 {
				wg.Go(func() {
					p := c.program()
					p.access, p.refresh = first.access, first.refresh
					for i := 0; time.Now().Before(until); i++ {
						if status := p.whoami(); status != 200 {
							t.Errorf("program %d: status %d", n, status)
							return
						}
						if n > 0 && rand.IntN(20) == 0 && !p.renew() { // the first never does
							return
						}
						if status, body := p.call("POST", "/upload", strings.Repeat("x", 10_000)); status != 200 {
							t.Errorf("program %d: upload: %d %s", n, status, body)
							return
						}
					}
				})
			}
			wg.Wait()
			s := sb.Stats()
			if s.Logins != 1 || s.Reuses != 0 || s.Unauthorized != 0 || s.SessionsKilled != 0 || s.Attempts != s.Exchanges {
				t.Errorf("the issuer saw %+v", s)
			}
			if s.Exchanges < 2 || s.Exchanges > 9 {
				t.Errorf("%d exchanges in 9 s with tokens of 4 s", s.Exchanges)
			}
		})
	}
}

func TestALogoutEndsTheSession(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	cfg := poolConfig(issuer)
	c := ruleStart(t, cfg)
	p, other := c.program(), c.program()
	if !p.login() || !other.login() {
		t.FailNow()
	}
	access, refresh := p.access, p.refresh
	if status := p.whoami(); status != 200 {
		t.Fatalf("status %d", status)
	}
	if status, body := p.call("POST", "/User/Logout", ""); status/100 != 2 {
		t.Fatalf("logging out: %d %s", status, body)
	}
	for _, when := range []string{"at once", "after a restart"} {
		p.access, p.refresh = access, refresh
		if status := p.whoami(); status != 401 {
			t.Errorf("%s: status %d with the token of an ended session", when, status)
		}
		if status := other.whoami(); status != 200 {
			t.Errorf("%s: status %d in another session", when, status)
		}
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := c.load(cfg); err != nil {
			t.Fatal(err)
		}
	}
	if s := sb.Stats(); s.Logouts != 1 || s.Reuses != 0 {
		t.Errorf("the issuer saw %+v", s)
	}
}

func TestWhatThePoolDoesNotKnowPassesUntouched(t *testing.T) {
	_, issuer := ruleIssuer(t, sandbox.Config{})
	upstream := newRuleUpstream(t, nil)
	cfg := poolConfig(issuer)
	cfg.Site = "token_refresh portal\nreverse_proxy " + strings.TrimPrefix(upstream.URL, "http://")
	c := ruleStart(t, cfg)
	for _, header := range [][]string{
		{}, {"Authorization", "Bearer unknown"}, {"Authorization", "Basic ZGVtbzpkZW1v"}, {"Authorization", "Bearer"},
		{"Authorization", "Bearer a", "Authorization", "Bearer b"}, {"Cookie", "access_token=unknown; other=1"},
	} {
		if status, _, _ := c.do("GET", "/x", nil, header...); status != 200 {
			t.Errorf("%q: status %d", header, status)
		}
		seen := upstream.requests()
		got := seen[len(seen)-1].Header
		for i := 0; i+1 < len(header); i += 2 {
			if !strings.Contains(strings.Join(got.Values(header[i]), "|"), header[i+1]) {
				t.Errorf("%q became %q", header, got.Values(header[i]))
			}
		}
	}
	// An exchange with an unknown refresh token goes on, too.
	status, _, _ := c.do("POST", "/User/RefreshToken", strings.NewReader(`{"refreshToken":"unknown"}`), "Authorization", "Bearer x")
	seen := upstream.requests()
	if last := seen[len(seen)-1]; status != 200 || last.Path != "/User/RefreshToken" || last.Header.Get("Authorization") != "Bearer x" {
		t.Errorf("status %d, the upstream saw %+v", status, last)
	}
}

func TestAKnownRefreshTokenWithoutAnAccessTokenOfItsSessionGetsA401(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	c := ruleStart(t, poolConfig(issuer))
	p, other := c.program(), c.program()
	if !p.login() || !other.login() {
		t.FailNow()
	}
	body := `{"refreshToken":"` + p.refresh + `"}`
	for name, access := range map[string]string{"none": "", "another session's": other.access, "unknown": "x"} {
		q := c.program()
		q.access = access
		for _, path := range []string{"/User/RefreshToken", "/user/refreshtoken", "/User/RefreshToken/", "/User/./RefreshToken"} {
			if status, _ := q.call("POST", path, body); status != 401 {
				t.Errorf("%s access token, %s: status %d", name, path, status)
			}
		}
	}
	if s := sb.Stats(); s.Attempts != 0 {
		t.Errorf("the issuer saw %+v", s)
	}
}

func TestAProgramThatLoggedInBeforeTheSidecarIsLearnedWhenItRefreshes(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	c := ruleStart(t, poolConfig(issuer))
	p := c.program()
	p.access, p.refresh = sb.Login()
	if status := p.whoami(); status != 200 || !p.renew() {
		t.Fatalf("status %d", status)
	}
	access, refresh := p.access, p.refresh
	for range 3 {
		if !p.renew() || p.access != access {
			t.Error("it was not answered here")
		}
	}
	if s := sb.Stats(); s.Attempts != 1 || s.Reuses != 0 {
		t.Errorf("the issuer saw %+v", s)
	}
	_ = refresh
}

func TestTokensInCookies(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{AccessLifetime: 3 * time.Second})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			access, refresh := sb.Login()
			form := http.Cookie{Path: "/app", Domain: "example.com", MaxAge: 3600, HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: true}
			for name, value := range map[string]string{"access_token": access, "refresh_token": refresh} {
				form.Name, form.Value = name, value
				http.SetCookie(w, &form)
			}
			return
		}
		c, err := r.Cookie("access_token")
		if _, failed := r.Cookie("refresh_token"); failed == nil {
			t.Error("the upstream got a refresh token")
		}
		other, _ := r.Cookie("other")
		if err == nil && other != nil && other.Value == "kept" {
			if _, ok := sb.Lookup(c.Value); ok {
				return
			}
		}
		w.WriteHeader(401)
	}))
	t.Cleanup(upstream.Close)
	cfg := poolConfig(issuer, "learn POST /login")
	cfg.Site = "token_refresh portal\nreverse_proxy " + strings.TrimPrefix(upstream.URL, "http://")
	c := ruleStart(t, cfg)
	status, _, header := c.do("POST", "/login", nil)
	jar := cookiesOf(header)
	if status != 200 || jar["access_token"] == "" || jar["refresh_token"] == "" {
		t.Fatalf("status %d, cookies %v", status, jar)
	}
	first, renewed := jar["access_token"], 0
	for until := time.Now().Add(7 * time.Second); time.Now().Before(until); {
		cookie := "other=kept; access_token=" + jar["access_token"] + "; refresh_token=" + jar["refresh_token"]
		status, _, header := c.do("GET", "/", nil, "Cookie", cookie)
		if status != 200 {
			t.Fatalf("status %d", status)
		}
		if fresh := cookiesOf(header); fresh["access_token"] != "" {
			jar = fresh
			renewed++
			for _, line := range header["Set-Cookie"] {
				if !strings.HasSuffix(line, "; Path=/app; Domain=example.com; HttpOnly; Secure; SameSite=Strict") {
					t.Errorf("not as the login had it: %s", line)
				}
			}
		}
		// One that keeps its first cookie goes on, too.
		if status, _, _ := c.do("GET", "/", nil, "Cookie", "access_token=of-another-path; other=kept; access_token="+first); status != 200 {
			t.Fatalf("status %d with the first cookie", status)
		}
	}
	if renewed < 2 || renewed > 8 || jar["access_token"] == first {
		t.Errorf("the cookies were renewed %d times", renewed)
	}
	if s := sb.Stats(); s.Reuses != 0 || s.Logins != 1 {
		t.Errorf("the issuer saw %+v", s)
	}
}

func cookiesOf(h http.Header) map[string]string {
	out := map[string]string{}
	for _, c := range (&http.Response{Header: h}).Cookies() {
		out[c.Name] = c.Value
	}
	return out
}

func TestAPoolKeepsItsSessionsOverReloadsAndRestarts(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{AccessLifetime: 3 * time.Second})
	cfg := poolConfig(issuer)
	c := ruleStart(t, cfg)
	p := c.program()
	if !p.login() {
		t.FailNow()
	}
	for i := range 8 {
		if i%2 == 0 {
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.load(cfg); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if status := p.whoami(); status != 200 {
				t.Fatalf("round %d: status %d", i, status)
			}
			<-time.After(60 * time.Millisecond)
		}
	}
	if s := sb.Stats(); s.Reuses != 0 || s.Logins != 1 || s.Exchanges < 1 {
		t.Errorf("the issuer saw %+v", s)
	}
}
