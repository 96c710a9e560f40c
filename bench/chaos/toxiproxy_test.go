//go:build chaos && unix

package chaos

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"runtime"
	"testing"
	"time"
)

// toxiproxy is a running toxiproxy-server.
type toxiproxy struct{ url string }

// link is one of its proxies: the way of one instance to one server.
type link struct {
	server   *toxiproxy
	name     string
	addr     string
	upstream string
}

// toxic is what can be wrong with a link.
type toxic struct {
	Name       string         `json:"name"`
	Type       string         `json:"type"`
	Stream     string         `json:"stream"`
	Toxicity   float64        `json:"toxicity"`
	Attributes map[string]any `json:"attributes"`
}

var proxyClient = &http.Client{Timeout: 5 * time.Second}

// startToxiproxy runs a server until the test ends.
func startToxiproxy(t testing.TB) *toxiproxy {
	t.Helper()
	path := program(t, "toxiproxy-server", "TOXIPROXY_SERVER")
	addr := freeAddr(t)
	_, port, _ := bytes.Cut([]byte(addr), []byte(":"))
	cmd := exec.Command(path, "-host", "127.0.0.1", "-port", string(port))
	ended, err := startDying(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	p := &toxiproxy{url: "http://" + addr}
	if !within(t.Context(), 10*time.Second, func() bool { return p.call(http.MethodGet, "/version", nil) == nil }) {
		t.Fatal("toxiproxy-server does not answer")
	}
	return p
}

// startDying starts a process that is killed when this one ends. ended is closed
// when it has.
func startDying(cmd *exec.Cmd) (ended <-chan struct{}, err error) {
	cmd.SysProcAttr = dieWithParent()
	started, over := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the system looks at the thread that started it
		defer runtime.UnlockOSThread()
		defer close(over)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	return over, <-started
}

func (p *toxiproxy) call(method, path string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(method, p.url+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "chaos")
	resp, err := proxyClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, _ := io.ReadAll(resp.Body)
	if resp.StatusCode > 299 {
		return fmt.Errorf("toxiproxy: %s %s: %s %.200s", method, path, resp.Status, answer)
	}
	return nil
}

// link makes a proxy to a server.
func (p *toxiproxy) link(t testing.TB, name, upstream string) *link {
	t.Helper()
	l := &link{server: p, name: name, addr: freeAddr(t), upstream: upstream}
	l.make(t)
	return l
}

func (l *link) make(t testing.TB) {
	t.Helper()
	err := l.server.call(http.MethodPost, "/proxies", map[string]any{
		"name": l.name, "listen": l.addr, "upstream": l.upstream, "enabled": true,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// add makes something wrong, in both directions unless it says otherwise.
func (l *link) add(t testing.TB, kind string, attributes map[string]any, streams ...string) {
	t.Helper()
	if len(streams) == 0 {
		streams = []string{"upstream", "downstream"}
	}
	err := l.tryAdd(kind, attributes, streams)
	if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
		l.mend(t) // it waits for a connection that is just ending, see there
		err = l.tryAdd(kind, attributes, streams)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (l *link) tryAdd(kind string, attributes map[string]any, streams []string) error {
	for _, stream := range streams {
		err := l.server.call(http.MethodPost, "/proxies/"+l.name+"/toxics",
			toxic{Name: kind + "_" + stream, Type: kind, Stream: stream, Toxicity: 1, Attributes: attributes})
		if err != nil {
			return err
		}
	}
	return nil
}

// silence lets nothing through and closes nothing: what a firewall does.
func (l *link) silence(t testing.TB) {
	t.Helper()
	l.add(t, "timeout", map[string]any{"timeout": 0})
}

// close refuses connections and ends those there are.
func (l *link) close(t testing.TB) {
	t.Helper()
	if err := l.server.call(http.MethodPost, "/proxies/"+l.name, map[string]any{"enabled": false}); err != nil {
		t.Fatal(err)
	}
}

// mend ends all of that. The connections made meanwhile are ended, too. The proxy
// is made anew: toxiproxy waits for ever to take a toxic out of a connection that
// ends with something still in it.
func (l *link) mend(t testing.TB) {
	t.Helper()
	if err := l.server.call(http.MethodDelete, "/proxies/"+l.name, nil); err != nil {
		t.Fatal(err)
	}
	l.make(t)
}
