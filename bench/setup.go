package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// serveUpstream answers a kilobyte to everything.
func serveUpstream(address string) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 64)
	err := http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(body)
	}))
	fmt.Fprintln(os.Stderr, err)
}

// freeAddress is a loopback address that nobody listens on.
func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// issue runs the sandbox, and returns the lines of a session that uses it.
func issue(cfg sandbox.Config) (box *sandbox.Sandbox, url, session string, stop func()) {
	box = sandbox.New(cfg)
	srv := httptest.NewServer(box)
	session = fmt.Sprintf(`
		session bench {
			issuer bearer %[1]s/User/RefreshToken
			tokens login %[1]s/User/Login {
				username demo
				password demo
			}
		}`, srv.URL)
	return box, srv.URL, session, srv.Close
}

// startCaddy runs Caddy with a global block and sites, and waits for the last
// address to answer 200.
func startCaddy(dir, global, sites, ready string) (*exec.Cmd, func(), error) {
	config := filepath.Join(dir, "Caddyfile")
	text := "{\n\tadmin off\n\tpersist_config off\n\tlog {\n\t\tlevel ERROR\n\t}\n" + global + "\n}\n" + sites
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, nil, err
	}
	cmd, stop, err := child("caddy", "run", "--config", config, "--adapter", "caddyfile")
	if err != nil {
		return nil, nil, err
	}
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		if ready == "" {
			return cmd, stop, nil
		}
		if resp, err := http.Get("http://" + ready + "/"); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return cmd, stop, nil
			}
		}
		<-time.After(50 * time.Millisecond)
	}
	stop()
	return nil, nil, fmt.Errorf("caddy does not answer at %s (BENCH_VERBOSE=1 shows its log)", ready)
}

// cpuTime is the user and system time of a process so far.
func cpuTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err == nil {
		return cpuOfThreads(pid)
	}
	return 0, fmt.Errorf("this benchmark needs Linux's /proc (%w): %s", err, stat)
}

// cpuOfThreads adds up the nanoseconds that each thread ran; /proc/PID/stat has
// hundredths of a second only. Threads of Go end rarely.
func cpuOfThreads(pid int) (sum time.Duration, err error) {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// resident is a process's resident memory in KiB.
func resident(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			return strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	return 0, fmt.Errorf("no Pss of process %d", pid)
}
