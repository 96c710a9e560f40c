//go:build unix

package redisstore

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

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

func conformance(t *testing.T, c Config, options ...storetest.Option) {
	storetest.Run(t, func(t *testing.T) refresher.Store {
		s, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		s.lease = time.Second
		return s
	}, append(options, storetest.Lease(time.Second))...)
}

func TestOneServer(t *testing.T) {
	server := servers.StartRedis(t, servers.RedisOptions{})
	conformance(t, Config{URL: "redis://" + server.Addr})
}

func TestAServerOnASocketInAnotherDatabaseThatFlushesEachWrite(t *testing.T) {
	server := servers.StartRedis(t, servers.RedisOptions{AppendOnly: true})
	conformance(t, Config{URL: "unix://" + server.Socket + "?db=3", Prefix: "x"}, storetest.Rounds(100, time.Second))
}

func TestACluster(t *testing.T) {
	server := servers.StartRedis(t, servers.RedisOptions{Cluster: true})
	conformance(t, Config{URL: "redis+cluster://" + server.Addr}, storetest.Rounds(100, time.Second))
}

func TestTLSAndAnACLUserWithNoMoreThanWhatIsDocumented(t *testing.T) {
	server := servers.StartRedis(t, servers.RedisOptions{TLS: true, AppendOnly: true, Args: strings.Fields(
		"--user default off --user tr on >secret-canary resetchannels -@all " +
			"~token_refresh:* &token_refresh:news +evalsha +eval +hkeys +hget +hsetnx " +
			"+hdel +set +get +del +publish +subscribe +ping +info +config|get",
	)})
	c := Config{URL: "rediss://" + server.TLSAddr, TLS: server.TLS, Username: "tr", Password: "secret-canary"}
	conformance(t, c, storetest.Rounds(20, time.Second))

	c.Password = "wrong-canary"
	storetest.WantFailures(t, open(t, c), "WRONGPASS")
	c.URL, c.Username, c.Password = "rediss://tr:url-canary@"+server.TLSAddr, "", ""
	s := open(t, c)
	storetest.WantFailures(t, s, "WRONGPASS")
	_, err := s.List(t.Context(), "s")
	if strings.Contains(err.Error(), "canary") {
		t.Errorf("the error tells the password: %v", err)
	}
	c.URL, c.TLS = "rediss://tr:secret-canary@"+server.TLSAddr, nil
	storetest.WantFailures(t, open(t, c), "certificate")
}

func TestAServerThatIsDownAndComesBack(t *testing.T) {
	server := servers.StartRedis(t, servers.RedisOptions{AppendOnly: true})
	s := open(t, Config{URL: "redis://" + server.Addr})
	if err := s.Create(t.Context(), "s", "a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, "it pushes", s.Pushes)
	server.Kill()
	storetest.WantFailures(t, s, "refused")
	storetest.Eventually(t, "it does not push", func() bool { return !s.Pushes() })
	server.Start()
	storetest.Eventually(t, "it works", storetest.Works(s))
	if value, err := s.Get(t.Context(), "s", "a"); err != nil || string(value) != "x" {
		t.Errorf("what was acknowledged before a kill: %q, %v", value, err)
	}
	storetest.Eventually(t, "it pushes", s.Pushes)
}

func TestAServerThatIsDownAtTheStart(t *testing.T) {
	server := servers.StartRedis(t, servers.RedisOptions{})
	server.Stop()
	s := open(t, Config{URL: "redis://" + server.Addr})
	storetest.WantFailures(t, s, "refused")
	server.Start()
	storetest.Eventually(t, "it works", storetest.Works(s))
	storetest.Eventually(t, "it pushes", s.Pushes)
}

func TestARestartWithoutPersistenceLosesAllAndWakesTheWatchers(t *testing.T) {
	server := servers.StartRedis(t, servers.RedisOptions{})
	core, logs := observer.New(zapcore.WarnLevel)
	s := open(t, Config{URL: "redis://" + server.Addr, Logger: zap.New(core)})
	if err := s.Create(t.Context(), "s", "a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, "it warns", func() bool { return logs.FilterMessageSnippet("a restart loses").Len() == 1 })
	woken := make(chan struct{}, 100)
	defer s.Watch("s", func() { woken <- struct{}{} })()
	server.Stop()
	storetest.Eventually(t, "it does not push", func() bool { return !s.Pushes() })
	for len(woken) > 0 {
		<-woken
	}
	server.Start()
	select {
	case <-woken:
	case <-time.After(10 * time.Second):
		t.Error("the watcher is not woken")
	}
	if names, err := s.List(t.Context(), "s"); err != nil || len(names) != 0 {
		t.Errorf("%q, %v", names, err)
	}
	if n := logs.FilterMessageSnippet("a restart loses").Len(); n != 1 {
		t.Errorf("it warns %d times", n)
	}
}

func TestAFrozenServerTakesNoLongerThanTheTimeout(t *testing.T) {
	server := servers.StartRedis(t, servers.RedisOptions{})
	s := open(t, Config{URL: "redis://" + server.Addr, Timeout: 200 * time.Millisecond})
	storetest.Eventually(t, "it works", storetest.Works(s))
	server.Pause()
	begin := time.Now()
	_, err := s.List(t.Context(), "s")
	if d := time.Since(begin); err == nil || d > time.Second {
		t.Errorf("after %v: %v", d, err)
	}
	server.Resume()
	storetest.Eventually(t, "it works", storetest.Works(s))
}

func TestAReplicaIsRefused(t *testing.T) {
	primary := servers.StartRedis(t, servers.RedisOptions{})
	replica := servers.StartRedis(t, servers.RedisOptions{ReplicaOf: primary})
	writable := servers.StartRedis(t, servers.RedisOptions{ReplicaOf: primary, Args: []string{"--replica-read-only", "no"}})
	storetest.WantFailures(t, open(t, Config{URL: "redis://" + replica.Addr}), "name the primary")
	storetest.WantFailures(t, open(t, Config{URL: "redis://" + writable.Addr}), "name the primary")

	// A primary that becomes a replica keeps its connections.
	s := open(t, Config{URL: "redis://" + primary.Addr})
	storetest.Eventually(t, "it works", storetest.Works(s))
	host, port, _ := strings.Cut(writable.Addr, ":")
	writable.Do(t, "REPLICAOF", "NO", "ONE")
	primary.Do(t, "REPLICAOF", host, port)
	storetest.WantFailures(t, s, "name the primary")
	primary.Do(t, "REPLICAOF", "NO", "ONE")
	storetest.Eventually(t, "it works", storetest.Works(s))
}

func TestAnIsolatedPrimaryRefusesReadsWhereItMust(t *testing.T) {
	primary := servers.StartRedis(t, servers.RedisOptions{Args: []string{"--min-replicas-to-write", "1", "--min-replicas-max-lag", "1"}})
	replica := servers.StartRedis(t, servers.RedisOptions{ReplicaOf: primary})
	s := open(t, Config{URL: "redis://" + primary.Addr})
	storetest.Eventually(t, "it works", storetest.Works(s))
	replica.Kill()
	storetest.Eventually(t, "it refuses", func() bool { return !storetest.Works(s)() })
	storetest.WantFailures(t, s, "NOREPLICAS")
}

func TestSentinelLeadsToTheNewPrimary(t *testing.T) {
	primary := servers.StartRedis(t, servers.RedisOptions{})
	replica := servers.StartRedis(t, servers.RedisOptions{ReplicaOf: primary})
	sentinel := servers.StartSentinel(t, "fleet", primary)
	sentinel.Await(t, "slaves=1", "INFO", "sentinel")
	s := open(t, Config{URL: "redis+sentinel://" + sentinel.Addr + "/0?master=fleet"})
	if err := s.Create(t.Context(), "s", "a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, "it pushes", s.Pushes)
	replica.Await(t, "1", "EXISTS", "token_refresh:{s}")
	primary.Kill()
	storetest.Eventually(t, "it works", storetest.Works(s))
	if value, err := s.Get(t.Context(), "s", "a"); err != nil || string(value) != "x" {
		t.Errorf("what the replica had: %q, %v", value, err)
	}
	storetest.Eventually(t, "it pushes", s.Pushes)
}

func TestNewsThatTheServerRefusesAreNotReliedUpon(t *testing.T) {
	server := servers.StartRedis(t, servers.RedisOptions{})
	s := open(t, Config{URL: "redis://" + server.Addr})
	storetest.Eventually(t, "it pushes", s.Pushes)
	server.Do(t, "ACL", "SETUSER", "default", "-publish")
	if err := s.Create(t.Context(), "s", "a", nil); err != nil {
		t.Fatal(err)
	}
	if s.Pushes() {
		t.Error("it says that it pushes")
	}
	if _, err := s.Get(t.Context(), "s", "a"); err != nil {
		t.Error(err)
	}
}

func TestEachOperationIsOneCommand(t *testing.T) {
	server := servers.StartRedis(t, servers.RedisOptions{})
	s := open(t, Config{URL: "redis://" + server.Addr})
	ctx := t.Context()
	all := []struct {
		name string
		do   func() error
	}{
		{"Create", func() error { return s.Create(ctx, "s", "a", []byte("x")) }},
		{"Get", func() error { _, err := s.Get(ctx, "s", "a"); return err }},
		{"List", func() error { _, err := s.List(ctx, "s"); return err }},
		{"Delete", func() error { return s.Delete(ctx, "s", "a", "b") }},
		{"Lock", func() error {
			unlock, err := s.Lock(ctx, "s")
			if err == nil {
				unlock()
			}
			return err
		}},
	}
	for range 2 { // the server learns the scripts in the first round
		server.Do(t, "CONFIG", "RESETSTAT")
		for _, op := range all {
			if err := op.do(); err != nil {
				t.Fatalf("%s: %v", op.name, err)
			}
		}
	}
	stats := server.Do(t, "INFO", "commandstats")
	if calls := field(stats, "cmdstat_evalsha"); !strings.HasPrefix(calls, "calls=5,") {
		t.Errorf("evalsha: %q, want 5 calls: one each, and Unlock's", calls)
	}
	if calls := field(stats, "cmdstat_eval"); calls != "" {
		t.Errorf("eval: %q, want none", calls)
	}
}
