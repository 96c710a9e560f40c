//go:build unix

package etcdstore

import (
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/store/storetest"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/store/storetest/servers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, c Config) *Store {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func TestEtcd(t *testing.T) {
	server := servers.StartEtcd(t)
	storetest.Run(t, func(t *testing.T) refresher.Store {
		s, err := Open(Config{Endpoints: []string{server.Endpoint}, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		s.lease = 2 * time.Second // the least that etcd grants
		return s
	}, storetest.Lease(5*time.Second), storetest.Rounds(2000, 2*time.Second))
}

func TestAnEtcdThatIsDownAndComesBack(t *testing.T) {
	t.Parallel()
	server := servers.StartEtcd(t)
	s := open(t, Config{Endpoints: []string{server.Endpoint}, Timeout: 300 * time.Millisecond})
	storetest.Eventually(t, "it works", storetest.Works(s))
	if err := s.Create(t.Context(), "s", "a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, "it pushes", s.Pushes)
	woken := make(chan struct{}, 100)
	defer s.Watch("s", func() { woken <- struct{}{} })()
	server.Kill()
	storetest.WantFailures(t, s, "etcd: ")
	server.Start()
	storetest.Eventually(t, "it works", storetest.Works(s))
	if value, err := s.Get(t.Context(), "s", "a"); err != nil || string(value) != "x" {
		t.Errorf("what was acknowledged before a kill: %q, %v", value, err)
	}
	if err := s.Create(t.Context(), "s", "b", nil); err != nil {
		t.Error(err)
	}
	select {
	case <-woken:
	case <-time.After(10 * time.Second):
		t.Error("the watcher is not woken")
	}
	storetest.Eventually(t, "it pushes", s.Pushes)
}

func TestAnEtcdWithAPasswordThatIsDownAtTheStart(t *testing.T) {
	t.Parallel()
	server := servers.StartEtcd(t)
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{server.Endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	_, err = admin.UserAdd(ctx, "root", "root-canary")
	for _, step := range []func() error{
		func() error { _, err := admin.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := admin.RoleAdd(ctx, "fleet"); return err },
		func() error {
			_, err := admin.RoleGrantPermission(ctx, "fleet", "token_refresh/", clientv3.GetPrefixRangeEnd("token_refresh/"), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := admin.UserAdd(ctx, "tr", "secret-canary"); return err },
		func() error { _, err := admin.UserGrantRole(ctx, "tr", "fleet"); return err },
		func() error { _, err := admin.AuthEnable(ctx); return err },
		admin.Close,
	} {
		if err == nil {
			err = step()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	server.Stop()
	c := Config{Endpoints: []string{server.Endpoint}, Username: "tr", Password: "secret-canary", Timeout: 500 * time.Millisecond}
	begin := time.Now()
	s := open(t, c)
	if d := time.Since(begin); d > 100*time.Millisecond {
		t.Errorf("Open took %v", d)
	}
	if storetest.Works(s)() {
		t.Error("it works although etcd is down")
	}
	server.Start()
	storetest.Eventually(t, "it works", storetest.Works(s))
	if err := s.Create(ctx, "s", "a", []byte("x")); err != nil {
		t.Error(err)
	}
	if names, err := s.List(ctx, "s"); err != nil || len(names) != 1 {
		t.Errorf("%q, %v", names, err)
	}
	unlock, err := s.Lock(ctx, "s")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	storetest.Eventually(t, "it pushes", s.Pushes)

	c.Password = "wrong-canary"
	storetest.WantFailures(t, open(t, c), "invalid user ID or password")
}

func TestAFrozenEtcdTakesNoLongerThanTheTimeoutAndIsNotReliedUpon(t *testing.T) {
	t.Parallel()
	server := servers.StartEtcd(t)
	s := open(t, Config{Endpoints: []string{server.Endpoint}, Timeout: 200 * time.Millisecond})
	storetest.Eventually(t, "it pushes", s.Pushes)
	storetest.Eventually(t, "it works", storetest.Works(s))
	server.Pause()
	begin := time.Now()
	_, err := s.List(t.Context(), "s")
	if d := time.Since(begin); err == nil || d > time.Second {
		t.Errorf("after %v: %v", d, err)
	}
	storetest.Eventually(t, "it does not push", func() bool { return !s.Pushes() })
	server.Resume()
	storetest.Eventually(t, "it works", storetest.Works(s))
	storetest.Eventually(t, "it pushes", s.Pushes)
}

// Before it looked at the revision, the watch waited for the old one to come
// again.
func TestAnEtcdThatLostItsDataIsWatchedAnew(t *testing.T) {
	t.Parallel()
	server := servers.StartEtcd(t)
	s := open(t, Config{Endpoints: []string{server.Endpoint}})
	for _, name := range []string{"a", "b", "c", "d"} {
		if err := s.Create(t.Context(), "s", name, nil); err != nil {
			t.Fatal(err)
		}
	}
	storetest.Eventually(t, "it pushes", s.Pushes)
	server.Stop()
	server.Wipe()
	woken := make(chan struct{}, 100)
	defer s.Watch("s", func() { woken <- struct{}{} })()
	server.Start()
	select {
	case <-woken:
	case <-time.After(time.Minute): // it is a new server, and the client has backed off
		t.Fatal("the watcher is not woken")
	}
	if names, err := s.List(t.Context(), "s"); err != nil || len(names) != 0 {
		t.Errorf("%q, %v", names, err)
	}
	storetest.Eventually(t, "it pushes", s.Pushes)
	for len(woken) > 0 {
		<-woken
	}
	if err := s.Create(t.Context(), "s", "a", nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-woken:
	case <-time.After(10 * time.Second):
		t.Error("the watcher is not woken after a change")
	}
}
