package caddymodule_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// child is a `caddy run` in a process of its own, which can be killed. Its
// sandboxes live on here.
type child struct {
	cmd  *exec.Cmd
	out  *syncBuffer
	done chan error // closed behind what Wait returned
}

// spawn runs the bench's configuration in a new process and waits until its
// sites answer.
func (b *bench) spawn(t *testing.T) *child {
	t.Helper()
	path := filepath.Join(b.dir, "Caddyfile")
	if err := os.WriteFile(path, []byte(b.caddyfile()), 0o600); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.Command(exe), out: new(syncBuffer), done: make(chan error, 1)}
	c.cmd.Env = append(os.Environ(), childConfig+"="+path,
		"XDG_CONFIG_HOME="+filepath.Join(b.dir, "config"), "XDG_DATA_HOME="+filepath.Join(b.dir, "data"))
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.out
	stdin, err := c.cmd.StdinPipe() // its end tells the child that this process is gone
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		c.done <- c.cmd.Wait()
		close(c.done)
		stdin.Close()
	}()
	t.Cleanup(func() { c.kill(); b.checkOutput(t, c) })

	ready := func() bool {
		for _, s := range b.sites {
			if _, err := s.tryStatus(t.Context()); err != nil {
				return false
			}
			a, err := send(b.client, request(t.Context(), http.MethodTrace, s.url("/"), nil))
			if err != nil || a.status != http.StatusMethodNotAllowed { // the handler's, without asking the upstream
				return false
			}
		}
		return true
	}
	if !within(t.Context(), 20*time.Second, ready) {
		t.Fatalf("the child does not serve: %s", c.out)
	}
	return c
}

// checkOutput looks for tokens in what the child wrote beside its log.
func (b *bench) checkOutput(t *testing.T, c *child) {
	if tokenLike.Match(c.out.Bytes()) {
		t.Error("a token is in the child's output")
	}
	if bytes.Contains(c.out.Bytes(), []byte("panic:")) || bytes.Contains(c.out.Bytes(), []byte("DATA RACE")) {
		t.Errorf("the child says:\n%s", c.out)
	}
}

// kill is kill -9.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	<-c.done
}

// terminate is what a service manager does. It returns how the child ended.
func (c *child) terminate(t *testing.T) error {
	t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-c.done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatalf("the child does not end: %s", c.out)
		return nil
	}
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

func (b *syncBuffer) String() string { return string(b.Bytes()) }

// get200 waits for the site to answer with 200.
func (s *site) get200(t *testing.T, limit time.Duration) {
	t.Helper()
	client := newClient(t, 1)
	var last answer
	eventually(t, limit, "a caller of "+s.name+" gets 200", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		var err error
		last, err = send(client, request(ctx, http.MethodGet, s.url("/whoami"), nil))
		return err == nil && last.status == http.StatusOK
	})
}

// Each of these has processes of its own and mostly waits.
func TestACrash(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	atOnce(t, map[string]func(*testing.T){
		"between exchanges goes on with the stored pair":                          crashBetween,
		"during an exchange that was not committed goes on after the hold-off":    crashUncommitted,
		"during an exchange that was committed ends a session that cannot return": crashCommittedFile,
		"during an exchange that was committed leads to a new login":              crashCommittedLogin,
		"before an exchange is committed behind its back leads to a new login":    crashCommittedLater,
		"during a forgiving issuer's exchange loses nothing":                      crashForgiven,
		"at any moment is recovered from by itself":                               crashAnyTime,
	})
}

const crashHoldOff = "hold_off 3s\ntimeout 5s"

func crashBetween(t *testing.T) {
	b := newBench(t)
	s := b.site(t, "between", sandbox.Config{AccessLifetime: 60 * time.Second})
	c := b.spawn(t)
	s.refresh(t)
	s.refresh(t)
	for generation := 3; generation <= 5; generation++ {
		c.kill()
		c = b.spawn(t)
		if who := s.whoami(t); who.Session != "s1" || who.Generation != generation {
			t.Errorf("the upstream sees %+v, want generation %d", who, generation)
		}
		if st := s.status(t); st.State != "fresh" || st.Epoch != 1 || st.Generation != generation {
			t.Errorf("the admin API shows %+v, want generation %d", st, generation)
		}
		s.refresh(t)
		// Long enough for a look at the file, which still holds the first pair.
		never(t, 1200*time.Millisecond, "another epoch", func() bool { return s.status(t).Epoch != 1 })
	}
	s.checkLedger(t)
	s.wantStats(t, map[string]int{"logins": 1, "attempts": 5, "exchanges": 5, "unauthorized": 0})
}

// killDuring starts an exchange and kills the process in its midst: when the
// sandbox has seen the attempt, or with committed, when it has done it.
func killDuring(t *testing.T, s *site, c *child, committed bool) {
	t.Helper()
	before := s.sandbox.Stats()
	go func() { _, _ = s.bench.api(context.Background(), http.MethodPost, "/"+s.name+"/refresh", nil) }()
	eventually(t, 5*time.Second, "the exchange is under way", func() bool {
		now := s.sandbox.Stats()
		return now.Attempts > before.Attempts && (!committed || now.Exchanges > before.Exchanges)
	})
	c.kill()
}

func crashUncommitted(t *testing.T) {
	b := newBench(t)
	s := b.site(t, "uncommitted", sandbox.Config{AccessLifetime: 60 * time.Second})
	s.issuer = crashHoldOff
	c := b.spawn(t)
	s.refresh(t)
	s.sandbox.Fault(sandbox.Fault{Hang: true}, 1)
	killDuring(t, s, c, false)

	began := time.Now()
	b.spawn(t)
	if st := s.status(t); st.State != "uncertain" || !st.IntentOpen || st.Generation != 2 {
		t.Errorf("after the crash the admin API shows %+v", st)
	}
	if a, err := b.api(t.Context(), http.MethodPost, "/uncommitted/refresh", nil); err != nil || a.status != http.StatusConflict {
		t.Errorf("an operator's refresh during the hold-off: %v %v", a, err)
	}
	tr := s.traffic(t)
	eventually(t, 10*time.Second, "the exchange succeeds", s.at(t, 1, 3))
	tr.wantOnly(t, http.StatusOK)
	ledger := s.sandbox.Ledger()
	if wait := ledger[len(ledger)-1].At.Sub(began); wait < 3*time.Second {
		t.Errorf("the next attempt came %v after the start, before the hold-off's end", wait)
	}
	s.checkLedger(t)
	s.wantStats(t, map[string]int{"logins": 1, "attempts": 3, "exchanges": 2, "unauthorized": 0})
}

// slowAnswer commits at once and answers when it is too late.
var slowAnswer = sandbox.Fault{Commit: true, DelayAfter: 30 * time.Second}

func crashCommittedFile(t *testing.T) {
	b := newBench(t)
	s := b.site(t, "committed", sandbox.Config{AccessLifetime: 60 * time.Second})
	s.issuer = crashHoldOff
	c := b.spawn(t)
	s.refresh(t)
	s.sandbox.Fault(slowAnswer, 1)
	killDuring(t, s, c, true)

	b.spawn(t)
	a := s.get(t, "/whoami")
	if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") != "" || a.took > time.Second || !strings.Contains(a.body, "two_generals") {
		t.Errorf("a caller got %v, Retry-After %q", a, a.header.Get("Retry-After"))
	}
	if st := s.status(t); st.State != "lost" || st.Reason != "two_generals" {
		t.Errorf("the admin API shows %+v", st)
	}
	// Neither that token nor the file's, of the generation before, is presented.
	never(t, 5*time.Second, "another attempt", func() bool { return s.sandbox.Stats().Attempts > 2 })
	s.wantStats(t, map[string]int{"logins": 1, "attempts": 2, "exchanges": 2, "reuses": 0, "killed": 0})

	access, refresh := s.sandbox.Login()
	s.writeTokens(t, access, refresh)
	s.get200(t, 5*time.Second)
	if st := s.status(t); st.State != "fresh" || st.Epoch != 2 || st.Generation != 1 {
		t.Errorf("with a new pair the admin API shows %+v", st)
	}
}

func crashCommittedLogin(t *testing.T) {
	b := newBench(t)
	s := b.loginSite(t, "signsin", sandbox.Config{AccessLifetime: 60 * time.Second})
	s.issuer = crashHoldOff
	c := b.spawn(t)
	s.get200(t, 5*time.Second)
	s.refresh(t)
	s.sandbox.Fault(slowAnswer, 1)
	killDuring(t, s, c, true)

	b.spawn(t)
	if a := s.get(t, "/whoami"); a.status != http.StatusOK || !strings.Contains(a.body, `"session":"s2"`) {
		t.Errorf("the first caller got %v", a)
	}
	if st := s.status(t); st.State != "fresh" || st.Epoch != 2 || st.Generation != 1 {
		t.Errorf("the admin API shows %+v", st)
	}
	s.refresh(t)
	s.checkLedger(t)
	s.wantStats(t, map[string]int{"logins": 2, "attempts": 3, "exchanges": 3})
}

// crashCommittedLater: the request outlives the process that sent it, and is
// carried out after the next one has begun, within the hold-off.
func crashCommittedLater(t *testing.T) {
	b := newBench(t)
	s := b.loginSite(t, "later", sandbox.Config{AccessLifetime: 60 * time.Second})
	s.issuer = "hold_off 6s\ntimeout 5s"
	c := b.spawn(t)
	s.get200(t, 5*time.Second)
	s.refresh(t)
	s.sandbox.Fault(sandbox.Fault{DelayBefore: 5 * time.Second, Outlive: true, Commit: true}, 1)
	killDuring(t, s, c, false)

	b.spawn(t)
	s.get200(t, time.Second)
	if n := s.sandbox.Stats().Exchanges; n != 1 {
		t.Fatalf("%d exchanges: the delayed one came too early for this test", n)
	}
	tr := s.traffic(t)
	eventually(t, 12*time.Second, "a new login", s.at(t, 2, 1))
	tr.wantOnly(t, http.StatusOK)
	s.checkLedger(t)
	s.wantStats(t, map[string]int{"logins": 2, "attempts": 2, "exchanges": 2})
}

func crashForgiven(t *testing.T) {
	b := newBench(t)
	s := b.site(t, "forgiven", sandbox.Config{AccessLifetime: 60 * time.Second, ReuseInterval: 30 * time.Second, ReuseSame: true})
	s.issuer = "reuse_interval 30s same"
	c := b.spawn(t)
	s.refresh(t)
	s.sandbox.Fault(slowAnswer, 1)
	killDuring(t, s, c, true)

	b.spawn(t)
	tr := s.traffic(t)
	eventually(t, 5*time.Second, "the answer is had after all", s.at(t, 1, 3))
	tr.wantOnly(t, http.StatusOK)
	s.refresh(t)
	s.wantStats(t, map[string]int{"logins": 1, "attempts": 4, "exchanges": 3, "reuses": 1, "killed": 0})
}

// crashAnyTime: exchanges take a good part of the time, so that many of the
// kills hit one.
func crashAnyTime(t *testing.T) {
	b := newBench(t)
	s := b.loginSite(t, "anytime", sandbox.Config{AccessLifetime: 5 * time.Second})
	s.issuer, s.session = "hold_off 1s\ntimeout 5s", "refresh_before 90%"
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	const kills = 8
	hit := 0
	for range kills {
		s.sandbox.SetFault(sandbox.Fault{
			Commit:      true,
			DelayBefore: time.Duration(rng.IntN(200)) * time.Millisecond, Outlive: rng.IntN(2) == 0,
			DelayAfter: time.Duration(rng.IntN(200)) * time.Millisecond,
		})
		c := b.spawn(t)
		s.get200(t, 10*time.Second)
		pause(t.Context(), time.Duration(rng.IntN(1200))*time.Millisecond)
		c.kill()
		if ledger := s.sandbox.Ledger(); len(ledger) > 0 && !ledger[len(ledger)-1].Delivered {
			hit++
		}
	}
	s.sandbox.ClearFaults()
	b.spawn(t)
	s.get200(t, 10*time.Second)
	generation := s.status(t).Generation
	eventually(t, 10*time.Second, "it rotates", func() bool { return s.status(t).Generation > generation })
	s.checkLedger(t)
	st := s.sandbox.Stats()
	if st.Logins > 1+kills {
		t.Errorf("%d logins after %d kills", st.Logins, kills)
	}
	t.Logf("%d kills, %d of them during an exchange: %d logins, %d exchanges in %d attempts", kills, hit, st.Logins, st.Exchanges, st.Attempts)
}

func TestSIGTERMFinishesTheExchange(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	if runtime.GOOS == "windows" {
		t.Skip("no SIGTERM")
	}
	b := newBench(t)
	s := b.site(t, "term", sandbox.Config{AccessLifetime: 60 * time.Second})
	c := b.spawn(t)
	s.refresh(t)
	s.sandbox.Fault(sandbox.Fault{Commit: true, DelayAfter: 2 * time.Second}, 1)
	go func() { _, _ = b.api(context.Background(), http.MethodPost, "/term/refresh", nil) }()
	eventually(t, 5*time.Second, "the exchange is committed", func() bool { return s.sandbox.Stats().Exchanges == 2 })

	// A caller that waits at the gate when the signal comes gets its answer.
	caller := make(chan error, 1)
	go func() {
		a, err := send(newClient(t, 1), request(t.Context(), http.MethodGet, s.url("/whoami"), nil))
		if err == nil {
			err = a.want(`"generation":3`)
		}
		caller <- err
	}()
	eventually(t, time.Second, "the caller waits", func() bool {
		a, err := b.api(t.Context(), http.MethodGet, "/term", nil)
		return err == nil && strings.Contains(a.body, `"waiting":1`)
	})
	began := time.Now()
	if err := c.terminate(t); err != nil {
		t.Errorf("the child ended with %v: %s", err, c.out)
	}
	took := time.Since(began)
	if err := <-caller; err != nil {
		t.Errorf("the caller at the gate: %v", err)
	}
	ledger := s.sandbox.Ledger()
	if last := ledger[len(ledger)-1]; !last.Delivered || last.Issued != 3 {
		t.Errorf("the exchange: %+v", last)
	}

	b.spawn(t)
	if who := s.whoami(t); who.Session != "s1" || who.Generation != 3 {
		t.Errorf("after the next start the upstream sees %+v", who)
	}
	if st := s.status(t); st.State != "fresh" || st.Epoch != 1 || st.Generation != 3 {
		t.Errorf("after the next start the admin API shows %+v", st)
	}
	s.refresh(t)
	s.checkLedger(t)
	s.wantStats(t, map[string]int{"logins": 1, "attempts": 3, "exchanges": 3, "unauthorized": 0})
	t.Logf("the process ended %v after the signal", took.Round(time.Millisecond))
}
