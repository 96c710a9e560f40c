package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// wanderer is a program that uses its session in every way that it may, over
// restarts of the sidecar, and knows whose tokens it has.
type wanderer struct {
	t      *testing.T
	base   string
	client *http.Client
	rng    *rand.Rand

	access, refresh string
	first           string // the access token of its login
	session         string
	calls           *atomic.Int64
	stops           *atomic.Int64 // begun and ended ones
}

// call tries again while nobody listens: Caddy is being restarted. One that is
// under way then may be told to come back: a Caddy that stops without the
// process's ending does not wait for its requests.
func (p *wanderer) call(method, path, access, body string) (int, string) {
	for until := time.Now().Add(10 * time.Second); ; {
		stops := p.stops.Load()
		req, err := http.NewRequest(method, p.base+path, strings.NewReader(body))
		if err != nil {
			p.t.Error(err)
			return 0, ""
		}
		req.Header.Set("Version", "2.0")
		req.Header.Set("Content-Type", "application/json")
		if access != "" {
			req.Header.Set("Authorization", "Bearer "+access)
		}
		resp, err := p.client.Do(req)
		if err == nil {
			text, readErr := io.ReadAll(resp.Body)
			resp.Body.Close()
			switch err = readErr; {
			case err != nil:
			case resp.StatusCode == http.StatusServiceUnavailable && (stops%2 == 1 || p.stops.Load() != stops):
				err = errors.New(resp.Status)
			default:
				p.calls.Add(1)
				return resp.StatusCode, string(text)
			}
		}
		if time.Now().After(until) {
			p.t.Error(err)
			return 0, ""
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (p *wanderer) take(what string, status int, body string) bool {
	var pair struct{ AccessToken, RefreshToken string }
	if status != 200 || json.Unmarshal([]byte(body), &pair) != nil || pair.AccessToken == "" || pair.RefreshToken == "" {
		p.t.Errorf("%s of %s: %d %s", what, p.session, status, body)
		return false
	}
	p.access, p.refresh = pair.AccessToken, pair.RefreshToken
	return true
}

func (p *wanderer) login() bool {
	status, body := p.call("POST", "/User/Login", "", `{"username":"demo","password":"demo"}`)
	if p.session = "nobody"; !p.take("login", status, body) {
		return false
	}
	p.first, p.session = p.access, ""
	return p.own(p.access)
}

// own asks the upstream whose token that is by now.
func (p *wanderer) own(access string) bool {
	status, body := p.call("GET", "/whoami", access, "")
	var who struct{ Session string }
	if status != 200 || json.Unmarshal([]byte(body), &who) != nil || p.session != "" && who.Session != p.session {
		p.t.Errorf("a caller of session %q: %d %s", p.session, status, body)
		return false
	}
	p.session = who.Session
	return true
}

func (p *wanderer) step() bool {
	switch n := p.rng.IntN(100); {
	case n < 50:
		return p.own(p.access)
	case n < 75:
		return p.own(p.first)
	case n < 85:
		if status, body := p.call("POST", "/upload", p.access, strings.Repeat("x", 20_000)); status != 200 {
			p.t.Errorf("an upload of %s: %d %s", p.session, status, body)
			return false
		}
		return true
	case n < 97:
		body, _ := json.Marshal(map[string]string{"refreshToken": p.refresh})
		status, text := p.call("POST", "/User/RefreshToken", p.access, string(body))
		return p.take("refreshing", status, text) && p.own(p.access)
	default:
		former := p.access
		// One that is repeated because its answer was lost finds nobody there, and
		// the pool has yet to find that out, from an issuer that has its troubles.
		out, body := p.call("POST", "/User/Logout", p.access, "")
		if out/100 != 2 && out != 401 {
			p.t.Errorf("logging out of %s: %d %s", p.session, out, body)
			return false
		}
		if status, _ := p.call("GET", "/whoami", former, ""); status != 401 && (status != 503 || out != 401) {
			p.t.Errorf("after logging out of %s (%d): %d", p.session, out, status)
		}
		return p.login()
	}
}

func TestSessionsOfAPoolGetAlongWithEverything(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	for name, withhold := range map[string]string{"plain": "off", "withheld": "on"} {
		t.Run(name, func(t *testing.T) { poolStress(t, withhold) })
	}
}

func poolStress(t *testing.T, withhold string) {
	const callers, bystanders, most = 24, 4, 120
	sb, issuer := ruleIssuer(t, sandbox.Config{AccessLifetime: 4 * time.Second, AcceptExpired: true})
	config := func(n int) ruleConfig {
		cfg := poolConfig(issuer, fmt.Sprintf("max_sessions %d", most), "withhold_refresh_token "+withhold, fmt.Sprintf("refresh_before %d%%", 30+n%20))
		// A restart takes longer than such a token may be late.
		cfg.App = strings.Replace(cfg.App, "/User/RefreshToken", "/User/RefreshToken {\naccept_expired on\n}", 1)
		cfg.LogFile = os.Getenv("STRESS_LOG")
		return cfg
	}
	c := ruleStart(t, config(0))
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	var calls, stops, signIns atomic.Int64
	until := time.Now().Add(7 * time.Second)
	newWanderer := func() *wanderer {
		return &wanderer{t: t, base: "http://" + c.Addr, client: client, calls: &calls, stops: &stops, rng: rand.New(rand.NewPCG(rand.Uint64(), 0))}
	}
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			p := newWanderer()
			for ok := p.login(); ok && time.Now().Before(until); ok = p.step() {
				<-time.After(time.Duration(p.rng.IntN(40)) * time.Millisecond)
			}
		})
	}
	for range bystanders { // they sign in and never come back: evicted in the end
		wg.Go(func() {
			for time.Now().Before(until) {
				p := newWanderer()
				if !p.login() {
					return
				}
				signIns.Add(1)
				<-time.After(100 * time.Millisecond)
			}
		})
	}
	wg.Go(func() { // the issuer
		for time.Now().Before(until.Add(-time.Second)) {
			sb.Fault([]sandbox.Fault{
				{Status: 503}, {Status: 500}, {Commit: true, DelayAfter: 300 * time.Millisecond}, {Commit: true, DelayBefore: 300 * time.Millisecond},
			}[rand.IntN(4)], 1)
			<-time.After(100 * time.Millisecond)
		}
	})
	for n := 1; time.Now().Before(until); n++ { // the operator
		<-time.After(700 * time.Millisecond)
		if n%5 == 0 {
			stops.Add(1)
			if err := caddy.Stop(); err != nil {
				t.Error(err)
			}
			stops.Add(1)
		}
		if err := c.load(config(n)); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	s := sb.Stats()
	t.Logf("%d calls, %d bystanders: %+v", calls.Load(), signIns.Load(), s)
	if s.Reuses != 0 || s.SessionsKilled != 0 {
		t.Errorf("the issuer saw %+v", s)
	}
	ruleEventually(t, "no more sessions than allowed", func() bool {
		app, err := activeApp()
		return err == nil && app.Pools["portal"].shared.Counts().Sessions <= most
	})
}
