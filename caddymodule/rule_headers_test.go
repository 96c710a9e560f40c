package caddymodule

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// ruleOneHeader checks that the upstream got one request with exactly one
// header of the carrier's name, in whatever spelling, and that this is ours.
func ruleOneHeader(t *testing.T, got [][]string, want, name string) {
	t.Helper()
	if len(got) != 1 {
		t.Errorf("the upstream saw %d requests, want 1: %q", len(got), got)
		return
	}
	var found []string
	for _, line := range got[0][1:] {
		field, _, _ := strings.Cut(line, ":")
		field = strings.NewReplacer("_", "-", " ", "-").Replace(strings.TrimSpace(field))
		if strings.EqualFold(field, strings.ReplaceAll(name, "_", "-")) {
			found = append(found, line)
		}
	}
	if len(found) != 1 || found[0] != want {
		t.Errorf("the upstream saw %q of %s, want %q alone", found, name, want)
	}
	for _, line := range got[0] {
		if strings.Contains(line, "EVIL") {
			t.Errorf("what the caller sent came through: %q", line)
		}
	}
}

// Every spelling of the token's header that a caller may send over a raw
// connection is replaced: the upstream sees one field, ours.
func TestTheUpstreamSeesExactlyOneTokenWhateverTheCallerSends(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	rec := newRuleRecorder(t)
	carriers := []struct{ option, name, value string }{
		{"", "Authorization", "Bearer " + access},
		{"header Authorization Token", "Authorization", "Token " + access},
		{"header authorization \"\"", "Authorization", access},
		{"header X-Api-Key", "X-Api-Key", access},
		{"header x-api-key", "X-Api-Key", access},
		{"header X-Api-Key Key", "X-Api-Key", "Key " + access},
		{"header X_Under_Score", "X_under_score", access},
		{"header Cookie", "Cookie", access},
	}
	var site strings.Builder
	for i, c := range carriers {
		fmt.Fprintf(&site, "handle /%d/* {\ntoken_refresh s {\n%s\n}\nreverse_proxy %s\n}\n", i, c.option, rec.Addr)
	}
	c := ruleStart(t, ruleConfig{App: ruleSession(issuer, rulePair(t, access, refresh)), Site: site.String()})

	requests := []string{
		"GET %[1]s HTTP/1.1\nHost: x\n",
		"GET %[1]s HTTP/1.1\nHost: x\n%[2]s: EVIL\n",
		"GET %[1]s HTTP/1.1\nHost: x\n%[2]s: Bearer EVIL\n%[2]s: Bearer EVIL\n",
		"GET %[1]s HTTP/1.1\nHost: x\n%[3]s: EVIL\n",
		"GET %[1]s HTTP/1.1\nHost: x\n%[4]s: EVIL\n",
		"GET %[1]s HTTP/1.1\nHost: x\n%[3]s: EVIL\n%[2]s: EVIL\n%[4]s: EVIL\n",
		"GET %[1]s HTTP/1.1\nHost: x\n%[5]s: EVIL\n",
		"GET %[1]s HTTP/1.1\nHost: x\n%[5]s: EVIL\n%[2]s: EVIL\nConnection: %[2]s, %[5]s\n",
		"GET %[1]s HTTP/1.1\nHost: x\n%[2]s: EVIL\nConnection: %[3]s\n",
		"GET %[1]s HTTP/1.1\nHost: x\nConnection: close, %[3]s\nConnection: %[4]s\n",
		"GET %[1]s HTTP/1.0\nHost: x\n%[2]s: EVIL\n",
		"GET %[1]s HTTP/1.0\n%[3]s: EVIL\nConnection: keep-alive, %[2]s\n",
		"GET %[1]s HTTP/1.1\nHost: x\n%[2]s:\n",
		"GET %[1]s HTTP/1.1\nHost: x\n%[2]s:EVIL\n%[2]s: \tEVIL\t \n",
		"POST %[1]s HTTP/1.1\nHost: x\nContent-Length: 0\n%[2]s: EVIL\n",
		"OPTIONS %[1]s HTTP/1.1\nHost: x\n%[2]s: EVIL\n",
		"HEAD %[1]s HTTP/1.1\nHost: x\n%[2]s: EVIL\n",
		"GET %[1]s HTTP/1.1\nHost: x\n%[6]s: EVIL\nConnection: %[6]s\n",
	}
	for i, carrier := range carriers {
		path := fmt.Sprintf("/%d/", i)
		for _, form := range requests {
			request := fmt.Sprintf(form, path, carrier.name, strings.ToLower(carrier.name), strings.ToUpper(carrier.name),
				strings.ReplaceAll(carrier.name, "-", "_"), strings.ReplaceAll(carrier.name, "_", "-")) + "\n"

			t.Run(fmt.Sprintf("%s/%q", carrier.option, request), func(t *testing.T) {
				answer := ruleRaw(t, c.Addr, strings.ReplaceAll(request, "\n", "\r\n"))
				if !strings.Contains(answer, " 200 OK\r\n") {
					t.Errorf("answer: %q", answer)
				}
				ruleOneHeader(t, rec.take(), carrier.name+": "+carrier.value, carrier.name)
			})
		}
	}
}

// What is no valid request does not reach the upstream at all.
func TestMalformedHeadersReachNoUpstream(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	rec := newRuleRecorder(t)
	c := ruleStart(t, ruleConfig{App: ruleSession(issuer, rulePair(t, access, refresh)), Site: "token_refresh s\nreverse_proxy " + rec.Addr})
	for _, header := range []string{
		"Authorization : EVIL", "Authorization\t: EVIL", "Author ization: EVIL", "Authorization: EV\x00IL",
		"X: 1\r\n Authorization: folded", "Author\xc3\xadzation: EVIL", ": EVIL", "Authorization: EV\rIL",
	} {
		answer := ruleRaw(t, c.Addr, "GET / HTTP/1.1\r\nHost: x\r\n"+header+"\r\n\r\n")
		if got := rec.take(); len(got) != 0 {
			ruleOneHeader(t, got, "Authorization: Bearer "+access, "Authorization")
		} else if !strings.HasPrefix(answer, "HTTP/1.1 400") {
			t.Errorf("%q: %q", header, answer)
		}
	}
}

func TestTraceIsRefused(t *testing.T) {
	c, up, sb := ruleReplay(t, nil, nil)
	for _, method := range []string{"TRACE"} {
		status, body, _ := c.do(method, "/", nil)
		ruleEqual(t, "status of "+method, status, http.StatusMethodNotAllowed)
		if access, _, _ := sb.Current("s1"); strings.Contains(body, access) {
			t.Error("the answer shows the token")
		}
	}
	// Not TRACE, as methods are case-sensitive; upstreams that fold it are on
	// their own, but must not see two tokens.
	if len(up.requests()) != 0 {
		t.Errorf("the upstream saw %v", up.requests())
	}
}

func TestACallerOutsideClientsIsRefusedBeforeAnythingElse(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	up := newRuleUpstream(t, nil)
	log := filepath.Join(t.TempDir(), "log")
	c := ruleStart(t, ruleConfig{LogFile: log, App: ruleSession(issuer, rulePair(t, access, refresh)), Site: `
		handle /never/* {
			token_refresh s {
				clients 192.0.2.0/24 2001:db8::/32
			}
			reverse_proxy ` + up.URL + `
		}
		handle /ever/* {
			token_refresh s {
				clients 192.0.2.0/24 127.0.0.0/8
			}
			reverse_proxy ` + up.URL + `
		}
		handle /any/* {
			token_refresh s {
				clients any
			}
			reverse_proxy ` + up.URL + `
		}
		handle_errors {
			respond "{err.message}" {err.status_code}
		}`})
	for _, header := range [][]string{nil, {"X-Forwarded-For", "192.0.2.1"}, {"X-Real-Ip", "192.0.2.1"}, {"Forwarded", "for=192.0.2.1"}, {"Authorization", "Bearer x"}} {
		status, body, _ := c.do("POST", "/never/", strings.NewReader("body"), header...)
		ruleEqual(t, "status", status, 403)
		ruleEqual(t, "message", body, `this caller may not use session "s"`)
	}
	if len(up.requests()) != 0 {
		t.Errorf("the upstream saw %v", up.requests())
	}
	for _, path := range []string{"/ever/", "/any/"} {
		if status, _ := c.get(path); status != 200 {
			t.Errorf("%s: %d", path, status)
		}
	}
	text, _ := os.ReadFile(log)
	if !strings.Contains(string(text), "`clients` would let it in") {
		t.Error("the log does not say which option would let the caller in")
	}
}

func TestWhoClientsAdmits(t *testing.T) {
	for _, tt := range []struct {
		clients string
		in, out []string
	}{
		{"", []string{"127.0.0.1:1", "127.255.0.9:65535", "[::1]:1", "[::ffff:127.0.0.1]:1", "@", "", "/run/x.sock", "[::1%lo]:1"},
			[]string{"10.0.0.1:1", "[::2]:1", "[fe80::1%eth0]:1", "[::ffff:10.0.0.1]:1", "0.0.0.0:1", "localhost:1", "example.com:1", "127.0.0.1", "garbage", "[::]:1", "169.254.0.1:1"}},
		{"any", []string{"10.0.0.1:1", "[2001:db8::1]:1", "@", "", "garbage"}, nil},
		{"10.0.0.0/8", []string{"10.0.0.1:1", "10.255.255.255:1", "[::ffff:10.1.2.3]:1"},
			[]string{"11.0.0.1:1", "127.0.0.1:1", "[::1]:1", "@", "", "[::ffff:11.0.0.1]:1", "[2001:db8::1]:1"}},
		{"10.1.2.3", []string{"10.1.2.3:1", "[::ffff:10.1.2.3]:9"}, []string{"10.1.2.4:1", "127.0.0.1:1"}},
		{"10.1.2.3/8", []string{"10.9.9.9:1"}, []string{"11.1.2.3:1"}},
		{"::ffff:10.1.2.3", []string{"10.1.2.3:1", "[::ffff:10.1.2.3]:9"}, []string{"10.1.2.4:1"}},
		{"::ffff:10.0.0.0/104", []string{"10.1.2.3:1", "[::ffff:10.1.2.3]:9"}, []string{"11.1.2.4:1"}},
		{"2001:db8::/32", []string{"[2001:db8::1]:1", "[2001:db8:ffff::1%eth0]:1"}, []string{"[2001:db9::1]:1", "10.0.0.1:1"}},
		{"fe80::/10", []string{"[fe80::1%eth0]:1", "[fe80::1]:1"}, []string{"[fec0::1]:1"}},
		{"0.0.0.0/0", []string{"8.8.8.8:1", "[::ffff:8.8.8.8]:1"}, []string{"[2001:db8::1]:1", "@", ""}},
		{"::/0", []string{"[2001:db8::1]:1", "[::1]:1"}, []string{"8.8.8.8:1", "@"}},
		{"0.0.0.0/0 ::/0", []string{"8.8.8.8:1", "[2001:db8::1]:1"}, []string{"@", "garbage"}},
		{"127.0.0.1 ::1", []string{"127.0.0.1:1", "[::1]:1"}, []string{"127.0.0.2:1"}},
	} {
		list, err := parseClients(strings.Fields(tt.clients))
		if err != nil {
			t.Errorf("clients %s: %v", tt.clients, err)
			continue
		}
		for _, remote := range tt.in {
			if !list.admits(remote) {
				t.Errorf("clients %q refuses %q", tt.clients, remote)
			}
		}
		for _, remote := range tt.out {
			if list.admits(remote) {
				t.Errorf("clients %q admits %q", tt.clients, remote)
			}
		}
	}
	for _, bad := range []string{"10.0.0.0/33", "localhost", "10.0.0", "", "fe80::/129", "all", "10.0.0.0/8,11.0.0.0/8", "ANY", "1.2.3.4:80"} {
		if _, err := parseClients([]string{bad}); err == nil {
			t.Errorf("clients %q is no error", bad)
		}
	}
}

func TestAnotherSitesPageIsRefusedUnlessItsOriginIsListed(t *testing.T) {
	origins, err := parseOrigins([]string{"https://App.example.com", "http://localhost:3000"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		header http.Header
		cross  bool
	}{
		{"a program", nil, false},
		{"the address bar", http.Header{"Sec-Fetch-Site": {"none"}}, false},
		{"its own page", http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {"http://localhost:8080"}}, false},
		{"its own page, by an old browser", http.Header{"Origin": {"http://localhost:8080"}}, false},
		{"another page", http.Header{"Sec-Fetch-Site": {"cross-site"}}, true},
		{"another page, with its origin", http.Header{"Sec-Fetch-Site": {"cross-site"}, "Origin": {"https://evil.example"}}, true},
		{"another page, by an old browser", http.Header{"Origin": {"https://evil.example"}}, true},
		{"another port of this host", http.Header{"Sec-Fetch-Site": {"same-site"}, "Origin": {"http://localhost:3001"}}, true},
		{"another port, by an old browser", http.Header{"Origin": {"http://localhost:3001"}}, true},
		{"a listed origin", http.Header{"Sec-Fetch-Site": {"cross-site"}, "Origin": {"https://app.example.com"}}, false},
		{"a listed origin, in capitals", http.Header{"Sec-Fetch-Site": {"cross-site"}, "Origin": {"HTTPS://APP.example.com"}}, false},
		{"a listed local origin", http.Header{"Sec-Fetch-Site": {"same-site"}, "Origin": {"http://localhost:3000"}}, false},
		{"a sandboxed page", http.Header{"Origin": {"null"}}, true},
		{"a sandboxed page, same-origin", http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {"null"}}, true},
		{"an origin that begins like a listed one", http.Header{"Origin": {"https://app.example.com.evil.example"}}, true},
		{"two origins", http.Header{"Origin": {"https://app.example.com", "https://evil.example"}}, true},
		{"an empty origin", http.Header{"Origin": {""}}, true},
		{"an unknown site", http.Header{"Sec-Fetch-Site": {"whatever"}}, true},
		{"two sites", http.Header{"Sec-Fetch-Site": {"none", "cross-site"}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "http://localhost:8080/", nil)
			for name, values := range tt.header {
				r.Header[name] = values
			}
			if got := crossSite(r, origins); got != tt.cross {
				t.Errorf("crossSite is %v, want %v", got, tt.cross)
			}
		})
	}
	for _, bad := range []string{"app.example.com", "https://app.example.com/", "https://app.example.com/x", "*", "https://", "https://u@app.example.com", "https://a?b", "https://app.example.com#x"} {
		if _, err := parseOrigins([]string{bad}); err == nil {
			t.Errorf("origins %q is no error", bad)
		}
	}
}

func TestAWebPageDoesNotSpeakThroughTheSidecar(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	up := newRuleUpstream(t, nil)
	c := ruleStart(t, ruleConfig{App: ruleSession(issuer, rulePair(t, access, refresh)), Site: "token_refresh s {\norigins https://app.example.com\n}\nreverse_proxy " + up.URL})
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site"},
		{"Origin", "https://evil.example"},
		{"Origin", "null"},
		{"sec-fetch-site", "same-site"},
	} {
		for _, method := range []string{"GET", "POST", "OPTIONS"} {
			if status, _, _ := c.do(method, "/", nil, header...); status != 403 {
				t.Errorf("%s %v: %d", method, header, status)
			}
		}
	}
	if len(up.requests()) != 0 {
		t.Errorf("the upstream saw %v", up.requests())
	}
	if status, _, _ := c.do("GET", "/", nil, "Origin", "https://app.example.com", "Sec-Fetch-Site", "cross-site"); status != 200 {
		t.Errorf("a listed origin: %d", status)
	}
}

func TestACallerOnAUnixSocketIsLocal(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	up := newRuleUpstream(t, nil)
	c := ruleNew(t)
	socket := filepath.Join(c.Dir, "s.sock")
	text := strings.Replace(c.caddyfile(ruleConfig{App: ruleSession(issuer, rulePair(t, access, refresh)), Site: "token_refresh s\nreverse_proxy " + up.URL}),
		"bind 127.0.0.1", "bind unix/"+socket, 1)
	ruleLoadText(t, text)
	client := ruleUnixClient(t, socket)
	ruleEventually(t, "the session's pair", func() bool { return ruleStatus(t, "s").Generation == 1 })
	resp, err := client.Get("http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	ruleEqual(t, "status", resp.StatusCode, 200)
}
