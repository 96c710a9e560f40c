//go:build chaos && unix

package chaos

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	long     = flag.Bool("chaos.long", false, "run for hours")
	jobs     = flag.Int("chaos.jobs", 6, "how many fleets at once")
	seed     = flag.Uint64("chaos.seed", 0, "of the random mix; 0 is by the clock")
	mixTime  = flag.Duration("chaos.mix", 0, "how long the random mix lasts; 0 is 20s, or 10m with -chaos.long")
	rounds   = flag.Int("chaos.rounds", 0, "how often each failpoint is hit; 0 is once, or 100 times with -chaos.long")
	keep     = flag.Bool("chaos.keep", false, "keep the directories of runs that passed, too")
	caddyExe string // built by TestMain, with the failpoints
)

// TestMain builds the program that is put to the test.
func TestMain(m *testing.M) {
	flag.Parse()
	if *mixTime == 0 {
		*mixTime = 20 * time.Second
		if *long {
			*mixTime = 10 * time.Minute
		}
	}
	if *rounds == 0 {
		*rounds = 1
		if *long {
			*rounds = 100
		}
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "chaos")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		caddyExe = filepath.Join(dir, "caddy")
		began := time.Now()
		out, err := exec.Command("go", "build", "-tags", "failpoint", "-o", caddyExe,
			"github.com/tokenrefresh/caddy-token-refresh/caddymodule/cmd/caddy").CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "building the program: %v\n%s", err, out)
			return 1
		}
		fmt.Fprintf(os.Stderr, "built in %v\n", time.Since(began).Round(time.Second))
		return m.Run()
	}())
}

// program returns the path of a program, or ends the test.
func program(t testing.TB, name, variable string) string {
	t.Helper()
	if path := os.Getenv(variable); variable != "" && path != "" {
		return path
	}
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("%s is missing: install it", name)
	default:
		t.Skipf("%s is missing", name)
	}
	return path
}

// usedPorts keeps one fleet's freed ports from becoming another's.
var usedPorts sync.Map

// freeAddr is an address that nobody listens on. It lies below the range from
// which the system takes ports for outgoing connections. No process is started
// meanwhile: until it runs it would have the listener, too, closed or not.
func freeAddr(t testing.TB) string {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		if _, used := usedPorts.LoadOrStore(addr, true); used {
			continue
		}
		if ln, err := net.Listen("tcp", addr); err == nil {
			_ = ln.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

// within waits until a condition holds.
func within(ctx context.Context, limit time.Duration, ok func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok() {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}
