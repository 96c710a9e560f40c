package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func (c *ruleCaddy) adminJSON(method, path, body string, to any, want int) string {
	c.t.Helper()
	status, text := c.admin(method, "/token_refresh/sessions"+path, body)
	if status != want {
		c.t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
	if to != nil {
		if err := json.Unmarshal([]byte(text), to); err != nil {
			c.t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
	return text
}

func TestTheAdminAPIShowsAndSteersAPoolsSessions(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	cfg := poolConfig(issuer)
	cfg.App += "\nsession other {\nissuer bearer " + issuer + "/User/RefreshToken\ntokens import\n}"
	c := ruleStart(t, cfg)
	var programs []*program
	for range 7 {
		p := c.program()
		if !p.login() {
			t.FailNow()
		}
		programs = append(programs, p)
	}
	var counts refresher.PoolCounts
	c.adminJSON("GET", "/portal", "", &counts, 200)
	if counts.Pool != "portal" || counts.Sessions != 7 || counts.States[refresher.PhaseFresh] != 7 {
		t.Errorf("counts %+v", counts)
	}
	var all sessionList
	if c.adminJSON("GET", "", "", &all, 200); len(all.Pools) != 1 || all.Pools[0].Sessions != 7 || len(all.Sessions) != 1 {
		t.Errorf("the list has %+v", all)
	}
	for limit := 1; limit <= 8; limit++ {
		seen, after := map[string]bool{}, ""
		for range 10 {
			var page sessionList
			text := c.adminJSON("GET", fmt.Sprintf("?pool=PORTAL&limit=%d&after=%s", limit, after), "", &page, 200)
			for _, st := range page.Sessions {
				if !strings.HasPrefix(st.Name, "portal:") || st.Pool != "portal" || seen[st.Name] {
					t.Errorf("limit %d: %+v", limit, st)
				}
				seen[st.Name] = true
			}
			for _, p := range programs {
				if strings.Contains(text, p.access) || strings.Contains(text, p.refresh) {
					t.Error("a token is shown")
				}
			}
			if len(page.Sessions) > limit {
				t.Errorf("limit %d: %d sessions", limit, len(page.Sessions))
			}
			if after = page.Next; after == "" {
				break
			}
		}
		if len(seen) != 7 {
			t.Errorf("limit %d: %d sessions", limit, len(seen))
		}
	}
	c.adminJSON("GET", "?pool=nobody", "", nil, 404)
	c.adminJSON("GET", "?pool=portal&after=portal:0011223344556677", "", nil, 200) // it has ended
	c.adminJSON("GET", "?pool=portal&after=portal:nonsense", "", nil, 400)

	// One of them, by its fingerprint.
	fingerprint := refresher.NewSecret(programs[0].access).Fingerprint()
	var page sessionList
	c.adminJSON("GET", "?pool=portal", "", &page, 200)
	name := ""
	for _, st := range page.Sessions {
		if st.Fingerprint == fingerprint {
			name = st.Name
		}
	}
	var one refresher.Status
	if c.adminJSON("GET", "/"+name, "", &one, 200); one.Name != name || one.Generation != 1 {
		t.Errorf("one: %+v", one)
	}
	if c.adminJSON("POST", "/"+name+"/refresh", "", &one, 200); one.Generation != 2 {
		t.Errorf("refreshed: %+v", one)
	}
	if status := programs[0].whoami(); status != 200 {
		t.Errorf("its caller gets %d", status)
	}
	for _, call := range []struct {
		method, path string
		want         int
	}{
		{"POST", "/" + name + "/token", 400}, {"POST", "/" + name + "/login", 400}, {"PUT", "/" + name, 405}, {"POST", "/portal/refresh", 400},
		{"POST", "/portal/token", 400}, {"DELETE", "/portal", 405}, {"GET", "/portal:", 404}, {"GET", "/portal:zz", 404}, {"GET", "/nobody:0011223344556677", 404},
		{"GET", "/portal:0011223344556677", 404}, {"DELETE", "/portal:0011223344556677", 404}, {"POST", "/portal:0011223344556677/refresh", 404},
	} {
		c.adminJSON(call.method, call.path, "", nil, call.want)
	}
	var ended endedSession
	c.adminJSON("DELETE", "/"+name, "", &ended, 200)
	if ended.RevokedAtIssuer || ended.Revocation != pairNotRevocable || ended.Name != name || ended.State != refresher.PhaseLost {
		t.Errorf("ended: %+v", ended)
	}
	c.adminJSON("DELETE", "/"+name, "", nil, 404)
	if status := programs[0].whoami(); status != 401 {
		t.Errorf("its caller gets %d", status)
	}
	if status := programs[1].whoami(); status != 200 {
		t.Errorf("another caller gets %d", status)
	}

	// A pair from elsewhere becomes a session of the pool.
	access, refresh := sb.Login()
	if c.adminJSON("PUT", "/portal", adaptPair(access, refresh), &one, 200); !strings.HasPrefix(one.Name, "portal:") {
		t.Errorf("imported: %+v", one)
	}
	c.adminJSON("POST", "/"+one.Name+"/refresh", "", nil, 200)
	p := c.program()
	p.access, p.refresh = access, refresh
	if status := p.whoami(); status != 200 || !p.renew() {
		t.Errorf("the caller of an imported session gets %d", status)
	}

	code, out, errs := adaptCaddy(t, c.Dir, "", "token-refresh", "list", "--pool", "portal", "--address", c.Admin)
	if code != 0 || strings.Count(out, "portal:") != 7 {
		t.Errorf("list --pool: %d\n%s%s", code, out, errs)
	}
	code, out, errs = adaptCaddy(t, c.Dir, "", "token-refresh", "list", "--pool", "portal", "--limit", "3", "--address", c.Admin)
	if code != 0 || strings.Count(out, "portal:") != 3 {
		t.Errorf("list --limit: %d\n%s%s", code, out, errs)
	}
	code, out, errs = adaptCaddy(t, c.Dir, "", "token-refresh", "list", "--address", c.Admin)
	if code != 0 || !strings.Contains(out, "pool of 7") {
		t.Errorf("list: %d\n%s%s", code, out, errs)
	}
	code, out, errs = adaptCaddy(t, c.Dir, "", "token-refresh", "show", "portal", "--address", c.Admin)
	if code != 0 || !strings.Contains(out, "fresh") || !strings.Contains(out, "sessions") {
		t.Errorf("show: %d\n%s%s", code, out, errs)
	}
}

func TestTheAdminAPIHandsTheAccessTokenToLocalProgramsOnly(t *testing.T) {
	c, sb := adaptSessions(t, sandbox.Config{}, "empty")
	access, refresh, _ := sb.Current("s1")
	status, text, header := c.send("POST", "http://"+c.Admin+"/token_refresh/sessions/s/token", strings.NewReader(""))
	var got takenToken
	if err := json.Unmarshal([]byte(text), &got); err != nil || status != 200 || got.AccessToken != access || got.ExpiresAt == nil || strings.Contains(text, refresh) {
		t.Errorf("%d %s", status, text)
	}
	if header.Get("Cache-Control") != "no-store" {
		t.Errorf("Cache-Control %q", header.Get("Cache-Control"))
	}
	c.adminJSON("GET", "/s/token", "", nil, 405)
	c.adminJSON("POST", "/nobody/token", "", nil, 404)
	if _, _, header := c.send("POST", "http://"+c.Admin+"/token_refresh/sessions/empty/token", strings.NewReader("")); header.Get("Retry-After") == "" {
		t.Error("without a token there is no Retry-After")
	}
	c.adminJSON("POST", "/empty/token", "", nil, 503)
	for _, h := range [][]string{{"X-Forwarded-For", "127.0.0.1"}, {"Forwarded", "for=x"}, {"Via", "1.1 Caddy"}, {"Origin", "https://evil.example"}, {"Sec-Fetch-Site", "cross-site"}} {
		if status, text := c.admin("POST", "/token_refresh/sessions/s/token", "", h...); status != 403 || strings.Contains(text, access) {
			t.Errorf("%v: %d %s", h, status, text)
		}
	}
	for remote, ok := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "@": true, "": true, "192.0.2.1:1": false, "[2001:db8::1]:1": false} {
		r := httptest.NewRequest(http.MethodPost, "http://localhost:2019/", nil)
		r.RemoteAddr = remote
		if err := localOnly(r); (err == nil) != ok {
			t.Errorf("%q: %v", remote, err)
		}
	}
	r := httptest.NewRequest(http.MethodPost, "https://localhost:2021/", nil)
	r.RemoteAddr = "127.0.0.1:1"
	if localOnly(r) == nil {
		t.Error("the remote admin endpoint hands out tokens")
	}
}
