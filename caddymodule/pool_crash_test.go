package caddymodule_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// pooled is a program that signed in through the pool.
type pooled struct{ access, refresh, first, session string }

// spawnPool runs a Caddy with a pool in a process of its own, and waits until it
// serves.
func spawnPool(t *testing.T, dir, addr, caddyfile string) *child {
	t.Helper()
	path := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(path, []byte(caddyfile), 0o600); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.Command(exe), out: new(syncBuffer), done: make(chan error, 1)}
	c.cmd.Env = append(os.Environ(), childConfig+"="+path,
		"XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "XDG_DATA_HOME="+filepath.Join(dir, "data"))
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
	t.Cleanup(c.kill)
	client := newClient(t, 1)
	if !within(t.Context(), 20*time.Second, func() bool {
		a, err := send(client, request(t.Context(), http.MethodGet, "http://"+addr+"/ready", nil))
		return err == nil && a.status == http.StatusNoContent
	}) {
		t.Fatalf("the child does not serve: %s", c.out)
	}
	return c
}

// What a caller was answered is known after a kill -9 at any moment, and an
// exchange that the kill hit is made up for, since this issuer accepts a spent
// refresh token for a while.
func TestAPoolIsAsGoodAfterAKill(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	sb := sandbox.New(sandbox.Config{AccessLifetime: 4 * time.Second, ReuseInterval: time.Minute, ReuseSame: true, AcceptExpired: true})
	issuer := httptest.NewServer(sb)
	t.Cleanup(func() {
		issuer.CloseClientConnections()
		issuer.Close()
	})
	dir, addr := t.TempDir(), freeAddr(t)
	caddyfile := fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https off
	storage file_system %[1]s/storage
	token_refresh {
		state_dir %[1]s/state
		pool portal {
			issuer bearer %[2]s/User/RefreshToken {
				reuse_interval 1m same
				accept_expired on
			}
			learn POST /User/Login
			forget POST /User/Logout
		}
	}
}
http://%[3]s {
	bind 127.0.0.1
	respond /ready 204
	token_refresh portal
	reverse_proxy %[2]s
}
`, dir, issuer.URL, addr)

	client := newClient(t, 0)
	call := func(method, path, access, body string) (int, []byte, error) {
		req, _ := http.NewRequest(method, "http://"+addr+path, bytes.NewReader([]byte(body)))
		req.Header.Set("Version", "2.0")
		req.Header.Set("Content-Type", "application/json")
		if access != "" {
			req.Header.Set("Authorization", "Bearer "+access)
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, nil, err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return resp.StatusCode, text, err
	}
	pair := func(p *pooled, path, access, body string) error {
		status, text, err := call("POST", path, access, body)
		var got struct{ AccessToken, RefreshToken string }
		if err != nil {
			return err
		}
		if status != 200 || json.Unmarshal(text, &got) != nil || got.AccessToken == "" {
			t.Errorf("POST %s of %s: %d %s", path, p.session, status, text)
			return nil
		}
		p.access, p.refresh = got.AccessToken, got.RefreshToken
		return nil
	}
	own := func(p *pooled, access string) error {
		status, text, err := call("GET", "/whoami", access, "")
		var who struct{ Session string }
		if err != nil {
			return err
		}
		if status != 200 || json.Unmarshal(text, &who) != nil || p.session != "" && p.session != who.Session {
			t.Errorf("a caller of session %q: %d %s", p.session, status, text)
		}
		p.session = who.Session
		return nil
	}

	const kills = 6
	var all []*pooled
	var ended []string // tokens of those who have signed out
	for range kills {
		c := spawnPool(t, dir, addr, caddyfile)
		for _, token := range ended {
			if status, text, err := call("GET", "/whoami", token, ""); status != 401 || err != nil {
				t.Errorf("after a logout: %d %s %v", status, text, err)
			}
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, p := range all {
			wg.Go(func() { // until the process is gone
				for err := own(p, p.first); err == nil && !t.Failed(); err = own(p, p.access) {
					if rand.IntN(8) == 0 {
						body, _ := json.Marshal(map[string]string{"refreshToken": p.refresh})
						if pair(p, "/User/RefreshToken", p.access, string(body)) != nil {
							return
						}
					}
				}
			})
		}
		for range 4 {
			wg.Go(func() {
				for range 6 { // the last ones just before the kill
					p := &pooled{}
					if pair(p, "/User/Login", "", `{"username":"demo","password":"demo"}`) != nil {
						return
					}
					p.first = p.access
					mu.Lock()
					all = append(all, p)
					mu.Unlock()
					if rand.IntN(4) > 0 {
						continue
					}
					status, _, err := call("POST", "/User/Logout", p.access, "")
					mu.Lock()
					all = all[:len(all):len(all)]
					for i := range all {
						if all[i] == p {
							all = append(all[:i:i], all[i+1:]...)
							break
						}
					}
					if err == nil && status/100 == 2 {
						ended = append(ended, p.first)
					}
					mu.Unlock()
				}
			})
		}
		pause(t.Context(), time.Duration(300+rand.IntN(1500))*time.Millisecond)
		c.kill()
		wg.Wait()
		if bytes.Contains(c.out.Bytes(), []byte("panic:")) || bytes.Contains(c.out.Bytes(), []byte("DATA RACE")) {
			t.Fatalf("the child says:\n%s", c.out)
		}
	}
	spawnPool(t, dir, addr, caddyfile)
	for _, p := range all {
		for _, token := range []string{p.first, p.access} {
			if err := own(p, token); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := sb.Stats()
	t.Logf("%d sessions, %d ended, after %d kills: %+v", len(all), len(ended), kills, s)
	if s.SessionsKilled != 0 || s.Reuses != s.Replays {
		t.Errorf("the issuer saw %+v", s)
	}
}
