//go:build chaos && unix

package chaos

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/store/storetest/servers"
)

// params are what differs from one fleet to another.
type params struct {
	store   string // redis or etcd
	sandbox sandbox.Config
	issuer  string // further options, a line each
	timeout time.Duration
	holdOff time.Duration
	life    time.Duration
	forgets bool // the store loses all when it is restarted
	rules   Rules
}

func (p params) withDefaults() params {
	if p.timeout == 0 {
		p.timeout = time.Second
	}
	if p.holdOff == 0 {
		p.holdOff = 3 * time.Second
	}
	if p.life == 0 {
		p.life = 12 * time.Second
	}
	p.sandbox.AccessLifetime = p.life
	if p.rules.Recovery == 0 {
		p.rules.Recovery = p.life*3/4 + 2*p.holdOff // lead + 2 H
	}
	p.rules.Login = 15 * time.Second // a dead instance's lock may stand in the way
	return p
}

// fleet is three instances that share a session, with all around them.
type fleet struct {
	t           *testing.T
	params      params
	dir         string
	key         string
	redis       *servers.Redis
	etcd        *servers.Etcd
	sandbox     *sandbox.Sandbox
	server      *httptest.Server
	history     *History
	adminClient *http.Client
	members     []*instance
	traffic     *traffic
	stopPolling func()
	finished    sync.Once
	began       time.Time
}

const members = 3

// newFleet starts everything and waits for the first rotation.
func newFleet(t *testing.T, p params) *fleet {
	t.Helper()
	p = p.withDefaults()
	f := &fleet{t: t, params: p, sandbox: sandbox.New(p.sandbox), began: time.Now(),
		adminClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	proxies := startToxiproxy(t)
	var address string
	switch p.store {
	case "redis":
		f.redis = servers.StartRedis(t, servers.RedisOptions{AppendOnly: !p.forgets})
		address = f.redis.Addr
	case "etcd":
		f.etcd = servers.StartEtcd(t)
		address = strings.TrimPrefix(f.etcd.Endpoint, "http://")
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	f.key = base64.StdEncoding.EncodeToString(key)
	f.server = httptest.NewServer(f.sandbox)
	t.Cleanup(f.server.Close)
	dir, err := os.MkdirTemp("", "chaosrun")
	if err != nil {
		t.Fatal(err)
	}
	f.dir = dir
	if f.history, err = NewHistory(filepath.Join(dir, "history.jsonl")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.finish()
		if t.Failed() || *keep {
			t.Logf("kept: %s", dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	for n := 1; n <= members; n++ {
		name := fmt.Sprintf("i%d", n)
		i := &instance{
			fleet: f, name: name, dir: filepath.Join(dir, name), addr: freeAddr(t), admin: freeAddr(t),
			store:  proxies.link(t, name+"-store", address),
			issuer: proxies.link(t, name+"-issuer", strings.TrimPrefix(f.server.URL, "http://")),
		}
		if err := os.Mkdir(i.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		f.members = append(f.members, i)
		t.Cleanup(func() {
			if i.cmd != nil {
				_ = i.cmd.Process.Kill()
				<-i.ended
			}
		})
	}
	f.poll()
	for _, i := range f.members {
		i.start(t, "")
	}
	if !f.isFresh(20 * time.Second) {
		t.Fatalf("the fleet does not start: %s", f.describe())
	}
	f.traffic = newTraffic(f)
	f.awaitGeneration(f.generation()+1, 20*time.Second)
	return f
}

// poll follows what the instances and the issuer show.
func (f *fleet) poll() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	every := func(d time.Duration, do func()) {
		wg.Go(func() {
			tick := time.NewTicker(d)
			defer tick.Stop()
			for ctx.Err() == nil {
				do()
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	for _, i := range f.members {
		var last Event
		every(250*time.Millisecond, func() {
			if !i.isUp() {
				return
			}
			st, err := i.status(ctx)
			if err != nil {
				return
			}
			e := Event{Who: i.name, Op: OpStatus, Run: i.runs(), Epoch: st.Epoch, Generation: st.Generation, Result: st.State, Fingerprint: st.Fingerprint}
			if e != last {
				last = e
				f.history.Add(e)
			}
		})
	}
	seen := map[string]string{}
	every(50*time.Millisecond, func() {
		for n := 1; n <= f.sandbox.Stats().Logins; n++ {
			session := fmt.Sprintf("s%d", n)
			access, _, ok := f.sandbox.Current(session)
			if fp := refresher.NewSecret(access).Fingerprint(); ok && seen[session] != fp {
				seen[session] = fp
				f.history.Add(Event{Op: OpPair, Session: session, Fingerprint: fp})
			}
		}
	})
	f.stopPolling = func() { cancel(); wg.Wait() }
}

// fault says that from here on things may go wrong.
func (f *fleet) fault(what string) { f.history.Add(Event{Op: OpFault, Result: what}) }

// recover says that no fault is in effect any more, waits until all are fresh
// again and returns how long that took.
func (f *fleet) recover() time.Duration {
	f.t.Helper()
	began := time.Now()
	f.history.Add(Event{Op: OpCalm})
	if limit := f.params.rules.Recovery + f.params.rules.Login; !f.isFresh(limit) {
		f.t.Fatalf("not fresh again within %v: %s", limit, f.describe())
	}
	f.history.Add(Event{Op: OpRecovered})
	return time.Since(began)
}

// isFresh waits until all instances have the issuer's newest pair and serve.
func (f *fleet) isFresh(limit time.Duration) bool {
	return within(f.t.Context(), limit, func() bool {
		var first status
		for n, i := range f.members {
			st, err := i.status(f.t.Context())
			if n == 0 {
				first = st
			}
			if err != nil || st.State != "fresh" || st.Epoch != first.Epoch || st.Generation != first.Generation {
				return false
			}
		}
		for _, i := range f.members {
			if f.get(i) != http.StatusOK {
				return false
			}
		}
		return true
	})
}

func (f *fleet) get(i *instance) int {
	ctx, cancel := context.WithTimeout(f.t.Context(), 2*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+i.addr+"/whoami", nil)
	resp, err := f.adminClient.Do(req)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

func (f *fleet) describe() string {
	var b strings.Builder
	for _, i := range f.members {
		st, err := i.status(context.Background())
		fmt.Fprintf(&b, "%s: %+v %v; ", i.name, st, err)
	}
	fmt.Fprintf(&b, "issuer: %+v", f.sandbox.Stats())
	return b.String()
}

// generation is the newest that any instance shows.
func (f *fleet) generation() (newest int) {
	for _, i := range f.members {
		if st, err := i.status(f.t.Context()); err == nil {
			newest = max(newest, st.Epoch*1_000_000+st.Generation)
		}
	}
	return newest
}

// awaitGeneration waits for rotations.
func (f *fleet) awaitGeneration(n int, limit time.Duration) {
	f.t.Helper()
	if !within(f.t.Context(), limit, func() bool { return f.generation() >= n }) {
		f.t.Fatalf("no rotation within %v: %s", limit, f.describe())
	}
}

// losses is how often a new login was needed so far.
func (f *fleet) losses() int { return f.sandbox.Stats().Logins - 1 }

// finish ends the run and checks its history.
func (f *fleet) finish() {
	f.finished.Do(func() {
		if f.traffic != nil {
			f.traffic.stop()
		}
		if f.stopPolling != nil { // it came to that
			f.stopPolling()
		}
		for _, i := range f.members {
			if i.cmd != nil {
				i.logged(f.t)
				if out := i.output.String(); strings.Contains(out, "panic:") {
					f.t.Errorf("%s says:\n%s", i.name, out)
				}
			}
		}
		r := Check(f.history.Events(), f.sandbox.Ledger(), f.params.rules)
		for _, p := range r.Problems {
			f.t.Error(p)
		}
		f.t.Logf("%s: answers %v, of them disturbed %v; %d rotations in %d attempts, %d repeats; losses %v; recoveries %v; in %v",
			f.params.store, r.Answers, r.Disturbed, r.Rotations, r.Attempts, r.Repeats, r.Losses, rounded(r.Recoveries), time.Since(f.began).Round(time.Second))
		if err := f.history.Close(); err != nil {
			f.t.Error(err)
		}
	})
}

func rounded(list []time.Duration) (out []time.Duration) {
	for _, d := range list {
		out = append(out, d.Round(10*time.Millisecond))
	}
	return out
}
