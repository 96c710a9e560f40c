package webhook

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// The environment of a child process.
const (
	childDir = "TOKEN_REFRESH_WEBHOOK_DIR"
	childURL = "TOKEN_REFRESH_WEBHOOK_URL"
)

const childSessions = 3

// child announces events of a few sessions, as fast as it can, until it is
// killed, and prints the session and id of each that is safe.
func child(dir string) int {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3) // the test that started this process is gone
	}()
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ring, err := journal.NewKeyring(make([]byte, 32))
	if err != nil {
		return fail(err)
	}
	o, err := Open(Config{Dir: dir, Keyring: ring, Logger: zap.NewExample(zap.IncreaseLevel(zap.ErrorLevel))})
	if err != nil {
		return fail(err)
	}
	hook, err := NewHook(HookConfig{URL: os.Getenv(childURL)})
	if err != nil {
		return fail(err)
	}
	if err := o.Configure(hook); err != nil {
		return fail(err)
	}
	var out sync.Mutex
	var wg sync.WaitGroup
	for s := range childSessions {
		wg.Go(func() {
			for {
				ev := testEvent(fmt.Sprint("s", s))
				ev.UserID = ev.Session
				if _, err := o.Announce(context.Background(), ev, nil); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				out.Lock()
				fmt.Println(ev.Session, ev.ID)
				out.Unlock()
			}
		})
	}
	wg.Wait()
	return 1
}

// TestKillLosesNoEventAndKeepsEachSessionsOrder kills a process that announces
// and delivers, again and again, while the receiver fails now and then. Whatever
// was acknowledged arrives, and each session's events arrive for the first time
// in their order.
func TestKillLosesNoEventAndKeepsEachSessionsOrder(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	box := &inbox{answer: func(*http.Request, wireEvent) int {
		if rand.IntN(400) == 0 {
			return http.StatusBadGateway
		}
		return http.StatusOK
	}}
	srv := serve(t, box)
	dir := t.TempDir()
	want := map[string][]string{}
	for range rounds {
		for _, line := range runChild(t, dir, srv.URL, time.Duration(20+rand.IntN(150))*time.Millisecond) {
			session, id, _ := strings.Cut(line, " ")
			want[session] = append(want[session], id)
		}
	}
	if len(want) != childSessions {
		t.Fatalf("the children announced for %d sessions", len(want))
	}

	// The last process is not killed. Its backlog is what the killed ones left.
	ring, err := journal.NewKeyring(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	o := openTest(t, Config{Dir: dir, Keyring: ring}, testHook(t, HookConfig{URL: srv.URL}))
	for deadline := time.Now().Add(60 * time.Second); o.Status()[0].Pending > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d events still wait", o.Status()[0].Pending)
		}
	}
	_, took := box.seen()
	place := map[string]int{}
	last := map[string]int{} // session -> events that came for the first time
	for _, a := range took {
		if _, known := place[a.event.ID]; !known {
			place[a.event.ID] = last[a.event.UserID]
			last[a.event.UserID]++
		}
	}
	total := 0
	for session, ids := range want {
		at := -1
		for _, id := range ids {
			n, ok := place[id]
			if !ok {
				t.Fatalf("session %s: event %s was acknowledged and never arrived", session, id)
			}
			if n <= at {
				t.Fatalf("session %s: event %s came out of order", session, id)
			}
			at = n
			total++
		}
	}
	t.Logf("%d events acknowledged by %d killed processes, %d deliveries", total, rounds, len(took))
}

// runChild runs a process that announces, kills it after a while and returns
// what it has acknowledged.
func runChild(t *testing.T, dir, url string, life time.Duration) (lines []string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childDir+"="+dir, childURL+"="+url)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var timer *time.Timer
	for scan := bufio.NewScanner(stdout); scan.Scan(); {
		if timer == nil { // it is at work
			timer = time.AfterFunc(life, func() { _ = cmd.Process.Kill() })
		}
		lines = append(lines, scan.Text())
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed: that is its error
	if len(lines) == 0 {
		t.Fatal("the child announced nothing")
	}
	if last := lines[len(lines)-1]; len(last) != len(lines[0]) {
		lines = lines[:len(lines)-1] // killed while it printed
	}
	return lines
}

// TestAFileCutAnywhereOpensWithAllThatWasWholeInIt is kill -9 and a power cut in
// the middle of a write, at each byte of the last two frames.
func TestAFileCutAnywhereOpensWithAllThatWasWholeInIt(t *testing.T) {
	dir := t.TempDir()
	first := openTest(t, Config{Dir: dir}, deadHook(t, HookConfig{}))
	hook := first.receivers[onlyKey(first)].hook
	path := filepath.Join(dir, logName)
	var sizes []int64
	for i := range 3 {
		announce(t, first, testEvent(fmt.Sprint("s", i)), nil)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, info.Size())
	}
	closeNow(t, first)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := sizes[0]; cut <= sizes[2]; cut += 1 + int64(rand.IntN(7)) {
		at := t.TempDir()
		if err := os.Chmod(at, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, logName), data[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		want := 1
		for _, size := range sizes[1:] {
			if cut >= size {
				want++
			}
		}
		o, err := Open(Config{Dir: at, Keyring: testRing(t)})
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		o.mu.Lock()
		got := len(o.receivers[hook.key].entries)
		o.mu.Unlock()
		closeNow(t, o)
		if got != want {
			t.Fatalf("cut at %d of %v: %d events, want %d", cut, sizes, got, want)
		}
		if _, err := os.Stat(filepath.Join(at, damagedName)); err == nil {
			t.Fatalf("cut at %d: taken for damage", cut)
		}
	}
}
