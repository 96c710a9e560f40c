//go:build chaos && unix

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// instance is one Caddy of a fleet, a process that can be killed and started
// again on the same state.
type instance struct {
	fleet  *fleet
	name   string
	dir    string
	addr   string // of its site
	admin  string
	store  *link
	issuer *link

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  <-chan struct{}
	output *output
	run    int
	up     bool // it has answered since it was started
}

// output keeps what a process prints.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (i *instance) logFile() string { return filepath.Join(i.dir, "caddy.log") }

func (i *instance) caddyfile() string {
	p := i.fleet.params
	store := "redis redis://" + i.store.addr + "/0"
	if i.fleet.etcd != nil {
		store = "etcd http://" + i.store.addr
	}
	return fmt.Sprintf(`{
	admin %s
	persist_config off
	auto_https off
	storage_clean_interval off
	grace_period 1s
	servers {
		enable_full_duplex
	}
	storage file_system %s
	log {
		exclude admin.api
		output file %s {
			roll_disabled
		}
	}
	token_refresh {
		state_dir %s
		encryption_key %s
		store %s
		session fleet {
			issuer bearer http://%s/User/RefreshToken {
				timeout %s
				hold_off %s
				rate 1000
				%s
			}
			tokens login http://%s/User/Login {
				username demo
				password demo
			}
			refresh_before 75%%
		}
	}
}
http://%s {
	bind 127.0.0.1
	token_refresh fleet {
		replay_limit 32KiB
	}
	reverse_proxy %s
}
`, i.admin, filepath.Join(i.dir, "storage"), i.logFile(), filepath.Join(i.dir, "state"), i.fleet.key, store,
		i.issuer.addr, p.timeout, p.holdOff, p.issuer, i.issuer.addr, i.addr, i.fleet.server.URL)
}

// start runs the instance, with a failpoint if one is given, and waits until it
// answers.
func (i *instance) start(t testing.TB, failpoint string) {
	t.Helper()
	path := filepath.Join(i.dir, "Caddyfile")
	if err := os.WriteFile(path, []byte(i.caddyfile()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, out := exec.Command(caddyExe, "run", "--config", path, "--adapter", "caddyfile"), new(output)
	cmd.Env = append(os.Environ(), "TOKEN_REFRESH_FAILPOINT="+failpoint,
		"XDG_CONFIG_HOME="+filepath.Join(i.dir, "config"), "XDG_DATA_HOME="+filepath.Join(i.dir, "data"))
	cmd.Stdout, cmd.Stderr = out, out
	ended, err := startDying(cmd)
	if err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	i.cmd, i.output, i.ended = cmd, out, ended
	i.run++
	i.mu.Unlock()
	i.fleet.history.Add(Event{Who: i.name, Op: OpStart, Run: i.runs(), Result: failpoint})
	ok := within(t.Context(), 20*time.Second, func() bool {
		select {
		case <-ended:
			return true
		default:
		}
		_, err := i.status(t.Context())
		return err == nil
	})
	if !ok {
		t.Fatalf("%s does not answer:\n%s", i.name, out)
	}
	i.setUp(true)
}

func (i *instance) setUp(up bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.up = up
}

func (i *instance) isUp() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.up
}

func (i *instance) runs() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.run
}

// kill is kill -9.
func (i *instance) kill() {
	i.setUp(false)
	_ = i.cmd.Process.Kill()
	<-i.ended
	i.fleet.history.Add(Event{Who: i.name, Op: OpKill, Run: i.runs()})
}

// terminate is what a service manager does.
func (i *instance) terminate(t testing.TB) {
	t.Helper()
	i.setUp(false)
	_ = i.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-i.ended:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s does not end:\n%s", i.name, i.output)
	}
	i.fleet.history.Add(Event{Who: i.name, Op: OpKill, Run: i.runs(), Result: "terminated"})
}

func (i *instance) pause() {
	i.fleet.history.Add(Event{Who: i.name, Op: OpPause, Run: i.runs()})
	_ = i.cmd.Process.Signal(syscall.SIGSTOP)
}

func (i *instance) resume() {
	_ = i.cmd.Process.Signal(syscall.SIGCONT)
	i.fleet.history.Add(Event{Who: i.name, Op: OpResume, Run: i.runs()})
}

// died waits for the failpoint to end the process.
func (i *instance) died(limit time.Duration) bool {
	select {
	case <-i.ended:
	case <-time.After(limit):
		return false
	}
	i.setUp(false)
	point, _, _ := strings.Cut(i.reached(), ":")
	i.fleet.history.Add(Event{Who: i.name, Op: OpKill, Run: i.runs(), Result: point})
	return true
}

// reached is the failpoint that the process has said it reached.
func (i *instance) reached() string {
	_, after, ok := strings.Cut(i.output.String(), "failpoint ")
	if !ok {
		return ""
	}
	line, _, _ := strings.Cut(after, "\n")
	return line
}

// cut takes an instance's way to the store or issuer; mend gives it back.
func (i *instance) cut(t testing.TB, what string, silent bool) {
	t.Helper()
	i.fleet.history.Add(Event{Who: i.name, Op: OpCut, Result: what})
	if l := i.link(what); silent {
		l.silence(t)
	} else {
		l.close(t)
	}
}

func (i *instance) mend(t testing.TB, what string) {
	t.Helper()
	i.link(what).mend(t)
	i.fleet.history.Add(Event{Who: i.name, Op: OpHeal, Result: what})
}

func (i *instance) link(what string) *link {
	if what == "store" {
		return i.store
	}
	return i.issuer
}

// status is what the admin API shows of the session.
type status struct {
	State       string `json:"state"`
	Reason      string `json:"reason"`
	Epoch       int    `json:"epoch"`
	Generation  int    `json:"generation"`
	LastError   string `json:"last_error"`
	Fingerprint string `json:"fingerprint"`
}

func (i *instance) api(ctx context.Context, method, path string, limit time.Duration) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+i.admin+"/token_refresh/sessions/fleet"+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := i.fleet.adminClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

func (i *instance) status(ctx context.Context) (status, error) {
	code, body, err := i.api(ctx, http.MethodGet, "", time.Second)
	if err != nil {
		return status{}, err
	}
	var st status
	if err := json.Unmarshal(body, &st); err != nil || code != http.StatusOK {
		return status{}, fmt.Errorf("admin API: %d %.200s", code, body)
	}
	return st, nil
}

// logged adds what the instance logged to the history.
func (i *instance) logged(t testing.TB) {
	t.Helper()
	text, err := os.ReadFile(i.logFile())
	if err != nil {
		t.Errorf("reading the log: %v", err)
	}
	for line := range bytes.Lines(text) {
		var l struct {
			TS         float64 `json:"ts"`
			Msg        string  `json:"msg"`
			Epoch      int     `json:"epoch"`
			Generation int     `json:"generation"`
			Reason     string  `json:"reason"`
		}
		if json.Unmarshal(line, &l) != nil {
			continue // the last one of a process that was killed
		}
		e := Event{Who: i.name, Epoch: l.Epoch, Generation: l.Generation}
		seconds, part := math.Modf(l.TS)
		e.T = time.Unix(int64(seconds), int64(part*1e9))
		switch {
		case l.Msg == "token pair rotated":
			e.Op = OpRotated
		case l.Msg == "another instance has rotated":
			e.Op = OpJoined
		case strings.HasPrefix(l.Msg, "session started"):
			e.Op = OpStarted
		case strings.HasPrefix(l.Msg, "session lost"):
			e.Op, e.Result = OpLost, l.Reason
		default:
			continue
		}
		i.fleet.history.Add(e)
	}
}
