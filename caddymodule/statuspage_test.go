package caddymodule

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// pageCaddy has a status page at /status and a session s.
func pageCaddy(t *testing.T, options string) *ruleCaddy {
	t.Helper()
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	return ruleStart(t, ruleConfig{
		App: ruleSession(issuer, rulePair(t, access, refresh)),
		// The site's address is any host on that port, so the page has to look for itself.
		Site: "handle /status {\ntoken_refresh_status {\n" + options + "\n}\n}\nrespond other",
	})
}

func pageOverview(t *testing.T, c *ruleCaddy) (o overview) {
	t.Helper()
	status, body, _ := c.do("GET", "/status", nil, "Accept", "application/json")
	if err := json.Unmarshal([]byte(body), &o); status != 200 || err != nil {
		t.Fatal(status, err, body)
	}
	return o
}

func TestThePartsOfTheStatusPageAreServedWithAStrictPolicy(t *testing.T) {
	c := pageCaddy(t, "")
	for query, want := range map[string]string{
		"":              "text/html; charset=utf-8",
		"?style":        "text/css; charset=utf-8",
		"?script":       "text/javascript; charset=utf-8",
		"?live":         "text/javascript; charset=utf-8",
		"?icon":         "image/svg+xml",
		"?status":       "application/json",
		"?utm=whatever": "text/html; charset=utf-8",
	} {
		status, body, header := c.do("GET", "/status"+query, nil, "Accept", "text/html,*/*")
		if status != 200 || header.Get("Content-Type") != want || body == "" {
			t.Errorf("%s: %d, %s", query, status, header.Get("Content-Type"))
		}
		policy := header.Get("Content-Security-Policy")
		if strings.Contains(policy, "unsafe") || !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s: the policy is %s", query, policy)
		}
		for name, want := range map[string]string{"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"} {
			ruleEqual(t, query+" "+name, header.Get(name), want)
		}
		for _, elsewhere := range []string{"http://", "https://", "//"} {
			if query != "?status" && strings.Contains(strings.NewReplacer("http://www.w3.org/2000/svg", "", "// ", "", "\n//\n", "").Replace(body), elsewhere) {
				t.Errorf("%s names another place: %s", query, elsewhere)
			}
		}
		if strings.Contains(body, " style=") || strings.Contains(body, "innerHTML") {
			t.Errorf("%s holds what the policy forbids", query)
		}
	}
	if status, body, _ := c.do("HEAD", "/status", nil); status != 200 || body != "" {
		t.Errorf("HEAD: %d %q", status, body)
	}
	for _, method := range []string{"PUT", "DELETE", "TRACE", "OPTIONS"} {
		if status, _, _ := c.do(method, "/status", nil); status != 405 {
			t.Errorf("%s: %d", method, status)
		}
	}
}

func TestWhoMaySeeTheStatusPage(t *testing.T) {
	c := pageCaddy(t, "")
	for _, test := range []struct {
		name   string
		header []string
		want   int
	}{
		{"a program", nil, 200},
		{"a browser's address bar", []string{"Sec-Fetch-Site", "none"}, 200},
		{"the page itself", []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://" + c.Addr}, 200},
		{"another site's page", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"another port's page", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"a foreign origin", []string{"Origin", "https://evil.example"}, 403},
		{"no origin", []string{"Origin", "null"}, 403},
		{"a name that leads here (rebinding)", []string{"Host", "evil.example"}, 403},
		{"localhost", []string{"Host", "localhost:1"}, 200},
		{"a name below localhost", []string{"Host", "status.localhost"}, 200},
		{"an IPv6 address", []string{"Host", "[::1]:80"}, 200},
	} {
		for _, path := range []string{"/status", "/status?status", "/status?script"} {
			req, err := http.NewRequest("GET", "http://"+c.Addr+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(test.header); i += 2 {
				req.Header.Set(test.header[i], test.header[i+1])
			}
			if host := req.Header.Get("Host"); host != "" {
				req.Host = host
			}
			resp, err := c.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != test.want {
				t.Errorf("%s, %s: %d, want %d", test.name, path, resp.StatusCode, test.want)
			}
		}
	}
	// Callers are told apart by the address of the connection's other end.
	for _, test := range []struct {
		clients []string
		remote  string
		host    string
		want    bool
	}{
		{nil, "127.0.0.1:9", "localhost", true},
		{nil, "@", "anything", true},
		{nil, "192.0.2.1:9", "localhost", false},
		{[]string{"192.0.2.0/24"}, "192.0.2.1:9", "status.example.com", true},
		{[]string{"192.0.2.0/24"}, "127.0.0.1:9", "localhost", false},
		{[]string{"any"}, "203.0.113.5:9", "status.example.com", true},
	} {
		clients, err := parseClients(test.clients)
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr, r.Host = test.remote, test.host
		s := &StatusPage{clients: clients, logger: caddy.Log()}
		if err := s.admit(r); (err == nil) != test.want {
			t.Errorf("%v from %s as %s: %v", test.clients, test.remote, test.host, err)
		}
	}
}

// What a page of another site, a form, an old page or a program without the token
// sends does nothing.
func TestActionsNeedThePageItself(t *testing.T) {
	c := pageCaddy(t, "actions on")
	o := pageOverview(t, c)
	if !o.Actions || len(o.ActionToken) < 20 {
		t.Fatalf("%+v", o)
	}
	body := `{"action":"refresh","session":"s"}`
	own := []string{"Origin", "http://" + c.Addr, "Sec-Fetch-Site", "same-origin", "Content-Type", "application/json", "Token-Refresh-Action", o.ActionToken}
	without := func(name, value string) []string {
		var list []string
		for i := 0; i < len(own); i += 2 {
			switch {
			case own[i] != name:
				list = append(list, own[i], own[i+1])
			case value != "":
				list = append(list, own[i], value)
			}
		}
		return list
	}
	for name, header := range map[string][]string{
		"another token":   without("Token-Refresh-Action", "x"+o.ActionToken[1:]),
		"no token":        without("Token-Refresh-Action", ""),
		"a form":          without("Content-Type", "application/x-www-form-urlencoded"),
		"plain text":      without("Content-Type", "text/plain"),
		"another site":    without("Sec-Fetch-Site", "cross-site"),
		"another port":    without("Sec-Fetch-Site", "same-site"),
		"the address bar": {"Sec-Fetch-Site", "none", "Content-Type", "application/json", "Token-Refresh-Action", o.ActionToken},
		"another origin":  without("Origin", "https://evil.example"),
		"no browser":      {"Content-Type", "application/json", "Token-Refresh-Action", o.ActionToken},
	} {
		status, answer, _ := c.do("POST", "/status", strings.NewReader(body), header...)
		if status != 403 {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	ruleEqual(t, "generation after what does nothing", ruleStatus(t, "s").Generation, 1)
	for body, want := range map[string]int{`{"action":"refresh","session":"nobody"}`: 404, `{"action":"token","session":"s"}`: 400, `nonsense`: 400} {
		if status, answer, _ := c.do("POST", "/status", strings.NewReader(body), own...); status != want {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	if status, answer, _ := c.do("POST", "/status", strings.NewReader(body), own...); status != 200 || !strings.Contains(answer, "in force") {
		t.Errorf("the page's own: %d %s", status, answer)
	}
	ruleEqual(t, "generation", ruleStatus(t, "s").Generation, 2)
	if status, answer, _ := c.do("POST", "/status", strings.NewReader(`{"action":"end","session":"s"}`), own...); status != 200 {
		t.Errorf("the end: %d %s", status, answer)
	}
	ruleEqual(t, "state", ruleStatus(t, "s").State, refresher.PhaseLost)
	if status, answer, _ := c.do("POST", "/status", strings.NewReader(body), own...); status != 409 || !strings.Contains(answer, "error") {
		t.Errorf("a refresh of what has ended: %d %s", status, answer)
	}

	off := pageCaddy(t, "actions off")
	if o := pageOverview(t, off); o.Actions || o.ActionToken != "" {
		t.Errorf("%+v", o)
	}
}

// The page's stream sends what has changed, and ends with its configuration.
func TestTheStatusPageIsLive(t *testing.T) {
	c := pageCaddy(t, "")
	s := c.follow("http://"+c.Addr+"/status?events", "")
	ruleEventually(t, "the first", func() bool { return len(s.fields("data")) == 1 })
	c.admin("POST", "/token_refresh/sessions/s/refresh", "")
	ruleEventually(t, "the rotation", func() bool {
		data := s.fields("data")
		var o overview
		return json.Unmarshal([]byte(data[len(data)-1]), &o) == nil && o.Sessions[0].Generation == 2 && o.Events[0].Name == eventRotated
	})
	if n := len(s.fields("data")); n > 4 {
		t.Errorf("%d messages for one change", n)
	}
	if err := c.load(ruleConfig{App: "session other {\nissuer bearer https://127.0.0.1:1/x\ntokens import\n}", Site: "respond ok"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.ended:
	case <-ruleTimeout(t).Done():
		t.Error("the stream outlived its configuration")
	}
}

func TestTheStatusPageTellsOfKeyAndStore(t *testing.T) {
	c := pageCaddy(t, "")
	o := pageOverview(t, c)
	if !o.Key.Made || o.Store.Kind != "" || o.Version.Caddy == "" || o.Version.Module == "" || o.Summary.Text != "the session is fresh" {
		t.Errorf("%+v", o)
	}
	if err := c.load(ruleConfig{
		App:  "encryption_key " + adaptKey() + "\nstore caddy\nsession s2 {\nissuer bearer https://127.0.0.1:1/x\ntokens import\n}",
		Site: "token_refresh_status /status",
	}); err != nil {
		t.Fatal(err)
	}
	c.client.CloseIdleConnections() // they lead to the server that has ended
	o = pageOverview(t, c)
	if o.Key.Made || o.Store.Kind != "caddy" || !strings.Contains(o.Store.Text, "caddy") {
		t.Errorf("%+v", o)
	}
	app, err := activeApp()
	if err != nil {
		t.Fatal(err)
	}
	watch := &app.Sessions["s2"].shared.watch
	watch.note(refresher.Note{Kind: refresher.NoteStoreFailed, Err: "it is away"})
	if o := app.overview(); len(o.Store.Trouble) != 1 || o.Store.Trouble[0].Error != "it is away" || o.Store.Trouble[0].Session != "s2" {
		t.Errorf("%+v", o.Store)
	}
	watch.note(refresher.Note{Kind: refresher.NoteStoreBack})
	if o := app.overview(); len(o.Store.Trouble) != 0 {
		t.Errorf("%+v", o.Store)
	}
}

// Every state has words, a level and, unless all is well, advice.
func TestEveryStateIsExplained(t *testing.T) {
	for _, p := range []refresher.Phase{
		refresher.PhaseEmpty, refresher.PhaseFresh, refresher.PhaseExchanging, refresher.PhaseBackoff, refresher.PhaseDegraded,
		refresher.PhaseUncertain, refresher.PhaseHolding, refresher.PhaseExpired, refresher.PhaseLost,
	} {
		for _, signsIn := range []bool{false, true} {
			st := refresher.Status{Name: "s", State: p, Reason: refresher.ReasonRejected}
			well := p == refresher.PhaseFresh || p == refresher.PhaseExchanging
			if words := wordsOf(st, signsIn); words == "" || len(words) > 40 {
				t.Errorf("%s: %q", p, words)
			}
			if (levelOf(p) == levelGood) != well || (adviceOf(st, signsIn) == "") != well {
				t.Errorf("%s: %s, %q", p, levelOf(p), adviceOf(st, signsIn))
			}
		}
	}
	seen := map[string]bool{}
	for _, reason := range []refresher.Reason{refresher.ReasonTwoGenerals, refresher.ReasonRejected, refresher.ReasonExpired, refresher.ReasonLoggedOut, refresher.ReasonUndecryptable} {
		advice := adviceOf(refresher.Status{Name: "s", State: refresher.PhaseLost, Reason: reason}, false)
		if seen[advice] || advice == newPair {
			t.Errorf("%s is not explained: %q", reason, advice)
		}
		seen[advice] = true
	}
}

func TestTheFirstLine(t *testing.T) {
	view := func(name string, p refresher.Phase) sessionView {
		return sessionView{Status: refresher.Status{Name: name, State: p}, Level: levelOf(p)}
	}
	signsIn := view("d", refresher.PhaseLost)
	signsIn.SignsIn = true
	var many []sessionView
	for range 1200 {
		many = append(many, view("x", refresher.PhaseFresh))
	}
	pool := poolView{PoolCounts: refresher.PoolCounts{Pool: "portal", Sessions: 1204}}
	bad := poolView{PoolCounts: refresher.PoolCounts{Pool: "broken", Problem: "no"}}
	for _, test := range []struct {
		sessions []sessionView
		pools    []poolView
		level    level
		want     string
	}{
		{nil, nil, levelWaiting, "no sessions are configured"},
		{[]sessionView{view("a", refresher.PhaseFresh)}, nil, levelGood, "the session is fresh"},
		{many, nil, levelGood, "all 1,200 sessions fresh"},
		{many[:12], []poolView{pool}, levelGood, "all 12 sessions fresh; 1,204 sessions in pool portal"},
		{nil, []poolView{pool}, levelGood, "1,204 sessions in pool portal"},
		{[]sessionView{view("a", refresher.PhaseLost), view("b", refresher.PhaseFresh)}, nil, levelBad, "1 needs a login: a"},
		{[]sessionView{signsIn, view("e", refresher.PhaseEmpty)}, nil, levelBad, "1 has no live token: d; 1 waits for its first pair: e"},
		{[]sessionView{view("a", refresher.PhaseBackoff), view("b", refresher.PhaseUncertain), view("c", refresher.PhaseHolding), view("d", refresher.PhaseDegraded)}, nil, levelTrouble, "4 are in trouble: a, b, c and 1 more"},
		{[]sessionView{view("a", refresher.PhaseFresh)}, []poolView{pool, bad}, levelBad, "1 pool is not ready: broken; 1,204 sessions in 2 pools"},
	} {
		got := summarize(test.sessions, test.pools, nil)
		if text := strings.Join(append([]string{got.Text}, got.Also...), "; "); text != test.want || got.Level != test.level {
			t.Errorf("%s: %q, want %s: %q", got.Level, text, test.level, test.want)
		}
	}
}

// A caller that does not read is let go, and one that leaves leaves nothing behind.
func TestOnlySoManyPagesFollow(t *testing.T) {
	c := pageCaddy(t, "")
	var list []*watchStream
	for range maxStreams {
		list = append(list, c.follow("http://"+c.Addr+"/status?events", ""))
	}
	status, _, header := c.do("GET", "/status?events", nil)
	if status != 503 || header.Get("Retry-After") == "" {
		t.Errorf("one more is answered %d", status)
	}
	for _, s := range list {
		s.cancel()
		<-s.ended
	}
	ruleEventually(t, "all have left", func() bool { hub.mu.Lock(); defer hub.mu.Unlock(); return len(hub.wakes) == 0 })
	c.follow("http://"+c.Addr+"/status?events", "")
}

// A unix socket is this machine.
func TestTheStatusPageOnASocket(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	c := ruleNew(t)
	socket := filepath.Join(t.TempDir(), "s.sock")
	text := c.caddyfile(ruleConfig{App: ruleSession(issuer, rulePair(t, access, refresh)), Site: "token_refresh_status /status"})
	ruleLoadText(t, strings.Replace(text, "bind 127.0.0.1", "bind unix/"+socket, 1))
	resp, err := ruleUnixClient(t, socket).Get("http://anything:" + rulePort(c.Addr) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	ruleEqual(t, "status", resp.StatusCode, 200)
}
