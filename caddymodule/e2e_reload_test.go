package caddymodule_test

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/caddymodule"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// A configuration that fails leaves Caddy's admin endpoint with its routers, and
// may fail after our app has started.
func TestAReloadThatFailsChangesNothing(t *testing.T) {
	b := newBench(t)
	s := b.site(t, "kept", sandbox.Config{AccessLifetime: 6 * time.Second})
	b.reloads = true
	b.start(t)
	good := b.json(t)

	// What the failing configurations name as issuer must never be asked.
	other := sandbox.New(sandbox.Config{})
	otherURL := serve(t, other)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	elsewhere := bytes.ReplaceAll(good, []byte(s.server.URL+"/User"), []byte(otherURL+"/User"))

	tr := s.traffic(t)
	for i, bad := range []struct {
		name   string
		config []byte
	}{
		{"a session option that cannot be", edit(t, good, `"issuer":`, `"refresh_before":"400%","issuer":`)},
		{"an unknown issuer", edit(t, good, `"kind":"bearer"`, `"kind":"barer"`)},
		{"a handler whose session is not defined", edit(t, good, `"session":"kept"`, `"session":"gone"`)},
		{"an address that is taken", edit(t, elsewhere, s.addr, taken.Addr().String())},
		{"the same again, as apps start in any order", edit(t, elsewhere, s.addr, taken.Addr().String())},
		{"and again", edit(t, elsewhere, s.addr, taken.Addr().String())},
		{"another state directory and a taken address", edit(t, edit(t, elsewhere, s.addr, taken.Addr().String()), "/state\"", "/other\"")},
	} {
		t.Run(bad.name, func(t *testing.T) {
			if err := caddymodule.LoadJSON(bad.config); err == nil {
				t.Fatal("the configuration was loaded")
			}
			if st := s.status(t); st.State != "fresh" || st.Generation != i+1 || st.LastError != "" {
				t.Errorf("the admin API shows %+v, want generation %d", st, i+1)
			}
			list, err := b.api(t.Context(), http.MethodGet, "", nil)
			if err != nil || list.status != http.StatusOK || !strings.Contains(list.body, `"kept"`) {
				t.Errorf("the admin API lists: %v %v", list, err)
			}
			s.refresh(t)
			if who := s.whoami(t); who.Session != "s1" || who.Generation != i+2 {
				t.Errorf("the upstream sees %+v, want generation %d", who, i+2)
			}
		})
	}
	// Nobody asks for the next one.
	eventually(t, 5*time.Second, "the next exchange when it is due", s.at(t, 1, 9))
	n, _ := tr.wantOnly(t, http.StatusOK)
	if st := other.Stats(); st != (sandbox.Stats{}) {
		t.Errorf("the issuer of a configuration that failed was asked: %+v", st)
	}
	s.checkLedger(t)
	s.wantStats(t, map[string]int{"logins": 1, "attempts": 8, "exchanges": 8})
	t.Logf("%d requests meanwhile", n)
}

// edit replaces text in a configuration, which must be there and stay JSON.
func edit(t *testing.T, config []byte, from, to string) []byte {
	t.Helper()
	if !bytes.Contains(config, []byte(from)) {
		t.Fatalf("the configuration has no %s: %s", from, config)
	}
	config = bytes.ReplaceAll(config, []byte(from), []byte(to))
	if !json.Valid(config) {
		t.Fatalf("not JSON any more: %s", config)
	}
	return config
}
