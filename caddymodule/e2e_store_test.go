//go:build unix

package caddymodule_test

import (
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/store/storetest/servers"
)

// fleetKey is an encryption_key, the same in all instances.
func fleetKey() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	return base64.StdEncoding.EncodeToString(key)
}

// share gives the site's Caddy a store. The first line ends the session's block;
// what ends it otherwise ends the store's.
func (s *site) share(key, store string, options ...string) {
	s.session += "\n}\nencryption_key " + key + "\nstore " + store + " {\n" + strings.Join(options, "\n")
}

// peer is another instance of the site, with a Caddy and a state directory of its
// own. Its login gets it nothing: it has no source.
func (s *site) peer(t testing.TB) *site {
	b := newBench(t)
	other := *s
	other.bench, other.addr, other.tokens = b, freeAddr(t), "tokens import"
	b.sites = []*site{&other}
	return &other
}

// Two instances with directories of their own share one session through Redis:
// one of them makes each exchange, both serve, and neither's callers notice.
func TestTwoInstancesShareASessionThroughRedis(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	redis := servers.StartRedis(t, servers.RedisOptions{AppendOnly: true, Args: []string{"--requirepass", "the-store's"}})
	t.Setenv("FLEET_REDIS", "the-store's")
	a := newBench(t).site(t, "shared", sandbox.Config{AccessLifetime: 6 * time.Second})
	a.share(fleetKey(), "redis redis://"+redis.Addr, "password {env.FLEET_REDIS}")
	b := a.peer(t)
	a.bench.start(t)
	a.get200(t, 10*time.Second)
	child := b.bench.spawn(t)
	b.get200(t, 10*time.Second)
	if who := b.whoami(t); who.Session != "s1" {
		t.Errorf("the second instance uses %+v", who)
	}

	ta, tb := a.traffic(t), b.traffic(t)
	eventually(t, 30*time.Second, "three exchanges", func() bool { return a.sandbox.Stats().Exchanges >= 3 })

	// An operator may ask either.
	before := a.sandbox.Stats().Exchanges
	b.refresh(t)
	generation := b.status(t).Generation
	if n := a.sandbox.Stats().Exchanges; n <= before {
		t.Errorf("%d exchanges after an operator's, %d before", n, before)
	}
	eventually(t, 5*time.Second, "the first instance has what the second got", func() bool { return a.status(t).Generation >= generation })

	// The survivor goes on, and one that comes back joins.
	n, slow := tb.wantOnly(t, http.StatusOK)
	t.Logf("the second instance: %d requests, the slowest took %v", n, slow.Round(time.Millisecond))
	child.kill()
	exchanges := a.sandbox.Stats().Exchanges
	eventually(t, 30*time.Second, "the first instance goes on alone", func() bool { return a.sandbox.Stats().Exchanges >= exchanges+1 })
	b.bench.spawn(t)
	b.get200(t, 10*time.Second)
	n, slow = ta.wantOnly(t, http.StatusOK)
	t.Logf("the first instance: %d requests, the slowest took %v", n, slow.Round(time.Millisecond))
	a.checkLedger(t)
	a.wantStats(t, map[string]int{"logins": 1})

	// Its end is the end of both.
	if answer, err := a.bench.api(t.Context(), http.MethodDelete, "/shared", nil); err != nil || answer.status != http.StatusOK {
		t.Errorf("DELETE: %v %v", answer, err)
	}
	eventually(t, 5*time.Second, "the second instance knows", func() bool { return b.status(t).Reason == "logged_out" })
	answer := b.get(t, "/whoami")
	if answer.status != http.StatusServiceUnavailable {
		t.Errorf("after the end a caller got %v", answer)
	}
	if strings.Contains(child.out.String()+answer.body, "the-store's") {
		t.Error("the store's password is shown")
	}
}

// The same in short through the other stores; with Caddy's storage the two have
// one folder for everything, as on a file system that both mount.
func TestTwoInstancesShareASessionThroughOtherStores(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	etcd := servers.StartEtcd(t)
	atOnce(t, map[string]func(*testing.T){
		"etcd":  func(t *testing.T) { shareThrough(t, "etcd "+etcd.Endpoint, false) },
		"caddy": func(t *testing.T) { shareThrough(t, "caddy", true) },
	})
}

func shareThrough(t *testing.T, store string, oneFolder bool) {
	a := newBench(t).site(t, "shared", sandbox.Config{AccessLifetime: 60 * time.Second})
	a.share(fleetKey(), store)
	b := a.peer(t)
	if oneFolder {
		b.bench.dir = a.bench.dir
	}
	a.bench.spawn(t)
	a.get200(t, 10*time.Second)
	b.bench.spawn(t)
	b.get200(t, 10*time.Second)
	for i, s := range []*site{a, b, a} {
		s.refresh(t)
		for _, s := range []*site{a, b} {
			eventually(t, 10*time.Second, "both have the pair", func() bool { return s.status(t).Generation == i+2 })
			if who := s.whoami(t); who.Session != "s1" || who.Generation != i+2 {
				t.Errorf("the upstream sees %+v, want generation %d", who, i+2)
			}
		}
	}
	a.checkLedger(t)
	a.wantStats(t, map[string]int{"logins": 1, "exchanges": 3, "attempts": 3})
}
