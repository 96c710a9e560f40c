package caddymodule

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// watchHandler is a handler of Caddy's events that keeps them.
type watchHandler struct{}

var watchSeen struct {
	sync.Mutex
	events []caddy.Event
	block  chan struct{} // nil: it does not
}

func init() { caddy.RegisterModule(watchHandler{}) }

func (watchHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.token_refresh_test", New: func() caddy.Module { return new(watchHandler) }}
}

func (watchHandler) Handle(_ context.Context, e caddy.Event) error {
	watchSeen.Lock()
	watchSeen.events = append(watchSeen.events, e)
	block := watchSeen.block
	watchSeen.Unlock()
	if block != nil {
		<-block
	}
	return errors.New("as the test wants it") // Caddy then logs the data at ERROR
}

// watchJSON adds a subscription of all events to a configuration.
func watchJSON(t *testing.T, caddyfile string) []byte {
	t.Helper()
	text, err := adaptText(caddyfile)
	if err != nil {
		t.Fatal(err)
	}
	var cfg map[string]any
	if err := json.Unmarshal(text, &cfg); err != nil {
		t.Fatal(err)
	}
	cfg["apps"].(map[string]any)["events"] = json.RawMessage(`{"subscriptions":[{"modules":["token_refresh"],"handlers":[{"handler":"token_refresh_test"}]}]}`)
	text, err = json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func watchReset(block chan struct{}) {
	watchSeen.Lock()
	defer watchSeen.Unlock()
	watchSeen.events, watchSeen.block = nil, block
}

func watchNames() (names []string) {
	watchSeen.Lock()
	defer watchSeen.Unlock()
	for _, e := range watchSeen.events {
		names = append(names, strings.TrimPrefix(e.Name(), "token_refresh."))
	}
	return names
}

func watchLast(name string) map[string]any {
	watchSeen.Lock()
	defer watchSeen.Unlock()
	for _, e := range slices.Backward(watchSeen.events) {
		if e.Name() == "token_refresh."+name {
			return e.Data
		}
	}
	return nil
}

// watchStream follows the admin API's events.
type watchStream struct {
	cancel context.CancelFunc
	mu     sync.Mutex
	lines  []string
	ended  chan struct{}
}

func (c *ruleCaddy) follow(url, last string) *watchStream {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || kind != "text/event-stream" {
		c.t.Fatalf("answered %d, %s", resp.StatusCode, kind)
	}
	s := &watchStream{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		defer resp.Body.Close()
		in := bufio.NewScanner(resp.Body)
		in.Buffer(nil, 16<<20)
		for in.Scan() {
			s.mu.Lock()
			s.lines = append(s.lines, in.Text())
			s.mu.Unlock()
		}
	}()
	c.t.Cleanup(func() { cancel(); <-s.ended })
	return s
}

func (s *watchStream) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

// fields are the values of all lines of a kind.
func (s *watchStream) fields(name string) (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range s.lines {
		if value, ok := strings.CutPrefix(line, name+": "); ok {
			list = append(list, value)
		}
	}
	return list
}

func (c *ruleCaddy) followAdmin(last string) *watchStream {
	return c.follow("http://"+c.Admin+"/token_refresh/events", last)
}

// A session goes through what there are events for; subscribers of Caddy's events
// and those who follow the admin API hear of the same.
func TestEventsReachSubscribersAndFollowers(t *testing.T) {
	watchReset(nil)
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	c := ruleNew(t)
	app := ruleSession(issuer, rulePair(t, access, refresh), "reauthenticate off") +
		fmt.Sprintf("\nsession back {\nissuer bearer %[1]s/User/RefreshToken {\nhold_off 1h\n}\ntokens login %[1]s/User/Login {\nusername demo\npassword demo\n}\n}", issuer)
	text := watchJSON(t, c.caddyfile(ruleConfig{App: app, Site: "respond ok", LogFile: filepath.Join(c.Dir, "log")}))
	if err := LoadJSON(text); err != nil {
		t.Fatal(err)
	}
	ruleEventually(t, "pairs", func() bool { return ruleStatus(t, "s").Generation == 1 && ruleStatus(t, "back").Generation == 1 })
	stream := c.followAdmin("")
	refreshNow := func(name string) (int, string) {
		return c.admin("POST", "/token_refresh/sessions/"+name+"/refresh", "")
	}
	refreshNow("s")
	ruleEventually(t, "rotated", func() bool { return watchLast("rotated") != nil })
	rotated := watchLast("rotated")
	st := ruleStatus(t, "s")
	for name, want := range map[string]any{
		"session": "s", "pool": "", "generation": uint64(2), "epoch": uint64(1), "outcome": "ok", "cause": "operator",
		"fingerprint": st.Fingerprint, "expires_at": timeText(st.ExpiresAt), "error": "",
	} {
		if rotated[name] != want {
			t.Errorf("rotated: %s is %v, want %v", name, rotated[name], want)
		}
	}
	if rotated["took_seconds"].(float64) <= 0 || rotated["at"] == "" || rotated["next_at"] == "" {
		t.Errorf("times are missing: %v", rotated)
	}

	sb.Fault(sandbox.Fault{Status: 503}, 1)
	refreshNow("s")
	sb.Fault(sandbox.Fault{Status: 200, Body: "nonsense"}, 1)
	refreshNow("back")
	sb.Fault(sandbox.Fault{Status: 400, Body: `{"error":"invalid_grant"}`}, 1)
	refreshNow("s")
	c.admin("DELETE", "/token_refresh/sessions/back", "")
	access, refresh = sb.Login()
	c.admin("PUT", "/token_refresh/sessions/s", adaptPair(access, refresh))
	want := []string{"rotated", "exchange_failed", "uncertain", "exchange_failed", "reuse_suspected", "lost", "revoked", "lost", "reauthenticated"}
	ruleEventually(t, "all events", func() bool { return len(watchNames()) >= len(want) })
	if got := watchNames(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	ruleEventually(t, "the follower has them, too", func() bool { return len(stream.fields("event")) >= len(want) })
	for i, name := range stream.fields("event") {
		ruleEqual(t, "a followed event", name, "token_refresh."+want[i])
	}
	for i, text := range stream.fields("data") {
		var data map[string]any
		if err := json.Unmarshal([]byte(text), &data); err != nil || data["session"] == "" || data["at"] == nil {
			t.Errorf("data %d: %v, %s", i, err, text)
		}
	}
	if lost := watchLast("lost"); lost["reason"] != "logged_out" || lost["login_needed"] != true {
		t.Errorf("lost: %v", lost)
	}

	// Who comes back gets what came behind the last it saw, and nothing twice.
	ids := stream.fields("id")
	ruleEqual(t, "ids", len(ids), len(want))
	again := c.followAdmin(ids[3])
	ruleEventually(t, "the rest", func() bool { return len(again.fields("id")) == len(want)-4 })
	ruleEqual(t, "the first of the rest", again.fields("id")[0], ids[4])
	foreign := c.followAdmin("another-7")
	ruleEventually(t, "all that is known", func() bool { return slices.Contains(foreign.fields("id"), ids[0]) })

	// A reload ends the streams, so that the server before can end, and loses
	// no event.
	if err := LoadJSON(watchJSON(t, c.caddyfile(ruleConfig{App: app, Site: "respond again"}))); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*watchStream{stream, again, foreign} {
		select {
		case <-s.ended:
		case <-time.After(5 * time.Second):
			t.Fatal("a stream outlived its configuration")
		}
	}
	refreshNow("s")
	ruleEventually(t, "events go on", func() bool { return len(watchNames()) == len(want)+1 })
}

// A handler that does not return stops no session; what does not fit into the
// queue is dropped and counted.
func TestASlowEventHandlerStopsNobody(t *testing.T) {
	block := make(chan struct{})
	watchReset(block)
	defer watchReset(nil)
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	c := ruleNew(t)
	log := filepath.Join(c.Dir, "log")
	if err := LoadJSON(watchJSON(t, c.caddyfile(ruleConfig{App: ruleSession(issuer, rulePair(t, access, refresh)), Site: "respond ok", LogFile: log}))); err != nil {
		t.Fatal(err)
	}
	ruleEventually(t, "a pair", func() bool { return ruleStatus(t, "s").Generation == 1 })
	for range 5 {
		if status, body := c.admin("POST", "/token_refresh/sessions/s/refresh", ""); status != 200 {
			t.Fatal(status, body)
		}
	}
	app, err := activeApp()
	if err != nil {
		t.Fatal(err)
	}
	observe := app.observer(&app.Sessions["s"].shared.watch)
	for range maxQueued + 100 {
		observe(refresher.Note{Kind: refresher.NoteDegraded, At: time.Now(), Session: "s"})
	}
	if n := app.emitter.dropped.Load(); n < 100 || n > 110 {
		t.Errorf("%d are dropped", n)
	}
	close(block)
	ruleEventually(t, "those in the queue", func() bool { return len(watchNames()) >= maxQueued })
	ruleEventually(t, "the log tells", func() bool {
		return func() bool { text, _ := os.ReadFile(log); return strings.Contains(string(text), "events were dropped") }()
	})
}

// An id leads to what is behind it, however far the ring has gone on.
func TestTheHubKnowsTheLastEvents(t *testing.T) {
	h := newEventHub()
	for i := range 3 * hubSize {
		h.publish(happening{name: fmt.Sprint(i + 1)})
	}
	events, last, missed := h.after(h.number(h.id(10)))
	if len(events) != hubSize || last != 3*hubSize || missed != 2*hubSize-10 || events[0].name != fmt.Sprint(2*hubSize+1) {
		t.Errorf("%d events, the last %d, %d missed, from %s", len(events), last, missed, events[0].name)
	}
	events, _, missed = h.after(h.number(h.id(3*hubSize - 1)))
	if len(events) != 1 || missed != 0 || events[0].name != fmt.Sprint(3*hubSize) {
		t.Errorf("%v, %d missed", events, missed)
	}
	for id, want := range map[string]uint64{"": 3 * hubSize, "x-1": 0, h.run + "-": 0, h.run + "-99999999": 0, h.run + "-7": 7, "7": 0} {
		ruleEqual(t, "number of "+id, h.number(id), want)
	}
	wake, leave := h.follow()
	h.publish(happening{}, happening{})
	h.publish()
	select {
	case <-wake:
	default:
		t.Error("nobody was woken")
	}
	leave()
	h.publish(happening{})
	select {
	case <-wake:
		t.Error("woken after leaving")
	default:
	}
}

// What nothing here explains is suspected; what age explains is not.
func TestOnlyAnUnexplainedRefusalIsSuspicious(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		note refresher.Note
		want string
	}{
		{refresher.Note{Kind: refresher.NoteLost, At: now, Reason: refresher.ReasonRejected}, "[reuse_suspected lost]"},
		{refresher.Note{Kind: refresher.NoteLost, At: now, Reason: refresher.ReasonRejected, RefreshEnds: now.Add(time.Hour)}, "[reuse_suspected lost]"},
		{refresher.Note{Kind: refresher.NoteLost, At: now, Reason: refresher.ReasonRejected, RefreshEnds: now.Add(-time.Hour)}, "[lost]"},
		{refresher.Note{Kind: refresher.NoteLost, At: now, Reason: refresher.ReasonTwoGenerals}, "[lost]"},
		{refresher.Note{Kind: refresher.NoteLost, At: now, Reason: refresher.ReasonLoggedOut}, "[revoked lost]"},
		{refresher.Note{Kind: refresher.NoteEnded, At: now}, "[revoked]"},
		{refresher.Note{Kind: refresher.NoteRefreshExpiring, At: now}, "[refresh_token_expiring]"},
		{refresher.Note{Kind: refresher.NoteJoined, At: now}, "[]"},
	} {
		if got := fmt.Sprint(eventsOf(test.note)); got != test.want {
			t.Errorf("%+v: %s, want %s", test.note, got, test.want)
		}
	}
}
