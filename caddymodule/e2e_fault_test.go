package caddymodule_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// shortWait makes an issuer's unknown outcomes short enough for a test.
const shortWait = "timeout 1s\nhold_off 1s"

// All that goes wrong at an issuer happens here at once, to one session each,
// under one Caddy.
func TestAFaultyIssuer(t *testing.T) {
	b := newBench(t)
	tests := map[string]func(*testing.T){}
	add := func(name string, test func(*testing.T)) { tests[name] = test }
	for _, f := range unnoticedFaults(t) {
		add(f.name, f.prepare(t, b))
	}
	add("without a request, an unknown outcome is not tried again", noWitness(t, b))
	add("ten lifetimes pass without traffic", quietSession(t, b))
	add("an answer lost after the commit ends an imported session", lostAnswerImported(t, b))
	add("an answer lost after the commit leads to a new login", lostAnswerLogin(t, b))
	add("and does so without a request, when the token ends", lostAnswerQuiet(t, b))
	add("an answer lost by a forgiving issuer is asked for again", lostAnswerForgiven(t, b))
	add("an issuer that cannot be reached", unreachableIssuer(t, b))

	b.start(t)
	atOnce(t, tests)
}

// fault is one that no caller may notice while the access token lives.
type fault struct {
	name   string
	cfg    sandbox.Config
	fault  sandbox.Fault
	times  int // how often it happens; 0: until cleared
	failed int // so many attempts are let fail before it is cleared
	issuer string

	// check looks at the attempts once the session has recovered.
	check func(t *testing.T, ledger []sandbox.Entry)
}

func unnoticedFaults(t *testing.T) []fault {
	var redirected atomic.Int32
	away := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { redirected.Add(1) }))
	date := time.Now().Add(7 * time.Second).Truncate(time.Second)
	once := func(name string, f sandbox.Fault) fault {
		return fault{
			name: name, fault: f, times: 1, failed: 1, issuer: shortWait,
			check: notBefore(time.Second),
		}
	}
	return []fault{
		{name: "500", fault: sandbox.Fault{Status: 500}, failed: 3},
		{name: "503", fault: sandbox.Fault{Status: 503}, failed: 3},
		{
			name: "429 with Retry-After in seconds", failed: 1,
			fault: sandbox.Fault{Status: 429, Header: http.Header{"Retry-After": {"4"}}},
			check: notBefore(4 * time.Second),
		},
		{
			name: "429 with Retry-After as a date", failed: 1,
			fault: sandbox.Fault{Status: 429, Header: http.Header{"Retry-After": {date.UTC().Format(http.TimeFormat)}}},
			check: func(t *testing.T, ledger []sandbox.Entry) {
				if at := ledger[1].At; at.Before(date) {
					t.Errorf("the second attempt came at %v, %v too early", at, date.Sub(at))
				}
			},
		},
		{
			name: "a redirect", failed: 2,
			fault: sandbox.Fault{Status: 307, Header: http.Header{"Location": {away + "/User/RefreshToken"}}},
			check: func(t *testing.T, _ []sandbox.Entry) {
				if n := redirected.Load(); n != 0 {
					t.Errorf("%d requests followed the redirect", n)
				}
			},
		},
		once("502", sandbox.Fault{Status: 502}),
		once("504", sandbox.Fault{Status: 504}),
		once("garbage", sandbox.Fault{Status: 200, Body: "%%%"}),
		once("a page of HTML", sandbox.Fault{Status: 200, Body: "<html><title>Sign in</title></html>", ContentType: "text/html"}),
		once("JSON without a pair", sandbox.Fault{Status: 200, Body: `{"result":true}`}),
		once("an answer cut short", sandbox.Fault{Status: 200, Body: `{"accessToken":"a","refreshToken":"b"}`, Truncate: true}),
		once("a connection closed", sandbox.Fault{Drop: true}),
		once("a connection reset", sandbox.Fault{Reset: true}),
		once("no answer", sandbox.Fault{Hang: true}),
		{name: "a slow answer", fault: sandbox.Fault{Commit: true, DelayAfter: 2 * time.Second}, times: 1, failed: 1},
		{name: "a slow exchange", fault: sandbox.Fault{Commit: true, DelayBefore: 2 * time.Second}, times: 1, failed: 1},
		{name: "no new refresh token", cfg: sandbox.Config{OmitRefreshToken: true}},
		{name: "the same refresh token", cfg: sandbox.Config{KeepRefreshToken: true}},
	}
}

// notBefore wants the second attempt so long after the first.
func notBefore(d time.Duration) func(*testing.T, []sandbox.Entry) {
	return func(t *testing.T, ledger []sandbox.Entry) {
		if gap := ledger[1].At.Sub(ledger[0].At); gap < d {
			t.Errorf("the second attempt came after %v, want at least %v", gap, d)
		}
	}
}

// prepare adds the site and returns the test.
func (f fault) prepare(t *testing.T, b *bench) func(*testing.T) {
	f.cfg.AccessLifetime = 16 * time.Second
	s := b.site(t, fmt.Sprint("f", len(b.sites)), f.cfg)
	s.session, s.issuer = "refresh_before 90%", f.issuer
	switch {
	case f.times > 0:
		s.sandbox.Fault(f.fault, f.times)
	case f.failed > 0:
		s.sandbox.SetFault(f.fault)
	}
	return func(t *testing.T) {
		tr := s.traffic(t)
		faulty := func() (n int) {
			for _, e := range s.sandbox.Ledger() {
				if e.Fault {
					n++
				}
			}
			return n
		}
		eventually(t, 10*time.Second, "the fault happens", func() bool { return faulty() >= f.failed })
		s.sandbox.ClearFaults()
		eventually(t, 15*time.Second, "two exchanges succeed", func() bool { return s.sandbox.Stats().Exchanges >= 2 })
		eventually(t, 5*time.Second, "the session is fresh again", func() bool {
			st := s.status(t)
			return st.State == "fresh" && st.LastError == "" && st.Epoch == 1
		})
		n, slowest := tr.wantOnly(t, http.StatusOK)

		ledger := s.sandbox.Ledger()
		s.checkLedger(t)
		s.wantStats(t, map[string]int{"logins": 1})
		if f.check != nil {
			f.check(t, ledger)
		}
		t.Logf("%d requests, slowest %v; %d attempts, %d with the fault", n, slowest.Round(time.Millisecond), len(ledger), faulty())
	}
}

// An access token that the upstream accepts after the hold-off is the witness
// that nothing was committed; without one nobody knows.
func noWitness(t *testing.T, b *bench) func(*testing.T) {
	s := b.site(t, "nowitness", sandbox.Config{AccessLifetime: 16 * time.Second})
	s.session, s.issuer = "refresh_before 90%", shortWait
	s.sandbox.Fault(sandbox.Fault{Drop: true}, 1)
	return func(t *testing.T) {
		eventually(t, 5*time.Second, "the first attempt fails", func() bool { return s.status(t).State == "uncertain" })
		never(t, 3*time.Second, "a second attempt", func() bool { return s.sandbox.Stats().Attempts > 1 })
		s.whoami(t)
		eventually(t, 3*time.Second, "the second attempt succeeds", s.at(t, 1, 2))
		s.checkLedger(t)
		s.wantStats(t, map[string]int{"logins": 1, "attempts": 2, "exchanges": 1})
	}
}

func quietSession(t *testing.T, b *bench) func(*testing.T) {
	s := b.site(t, "quiet", sandbox.Config{AccessLifetime: 3 * time.Second}) // in whole seconds: 2 to 3
	return func(t *testing.T) {
		pause(t.Context(), 20*time.Second)
		client := newClient(t, 0)
		answers := make(chan error, 50)
		for range cap(answers) {
			go func() {
				a, err := send(client, request(t.Context(), http.MethodGet, s.url("/whoami"), nil))
				if err == nil {
					err = a.want(`"session":"s1"`)
				}
				answers <- err
			}()
		}
		for range cap(answers) {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
		n := s.checkLedger(t)
		s.wantStats(t, map[string]int{"logins": 1, "attempts": n, "served": 50, "unauthorized": 0})
		if n < 8 {
			t.Errorf("%d exchanges in 20 s", n)
		}
		t.Logf("%d exchanges", n)
	}
}

// lostAfterCommit is the one loss that a client can do nothing about.
var lostAfterCommit = sandbox.Fault{Commit: true, Drop: true}

func lostAnswerImported(t *testing.T, b *bench) func(*testing.T) {
	s := b.emptySite(t, "imported", sandbox.Config{AccessLifetime: 12 * time.Second})
	s.tokens = "tokens import"
	return func(t *testing.T) {
		if a := s.get(t, "/whoami"); a.status != http.StatusServiceUnavailable {
			t.Errorf("before the import a caller gets %v", a)
		}
		access, refresh := s.sandbox.Login()
		s.put(t, access, refresh)
		eventually(t, time.Second, "the pair is in use", s.at(t, 1, 1))
		s.sandbox.Fault(lostAfterCommit, 1)
		tr := s.traffic(t)
		eventually(t, 12*time.Second, "the exchange is committed", func() bool { return s.sandbox.Stats().Exchanges == 1 })
		committed := time.Now()
		t.Cleanup(func() {
			if t.Failed() {
				tr.stop()
				t.Logf("%d answers 200, %d 401, %d 503; the admin API shows %+v", tr.count(200), tr.count(401), tr.count(503), s.status(t))
			}
		})
		eventually(t, 2*time.Second, "callers are told", func() bool { return tr.count(http.StatusServiceUnavailable) > 0 })
		t.Logf("the first 503 came %v after the commit", time.Since(committed).Round(time.Millisecond))
		if st := s.status(t); st.State != "lost" || st.Reason != "two_generals" {
			t.Errorf("the admin API shows %+v", st)
		}
		never(t, 3*time.Second, "another attempt", func() bool { return s.sandbox.Stats().Attempts > 1 })
		tr.stop()
		ok, no := tr.count(http.StatusOK), tr.count(http.StatusServiceUnavailable)
		if ok == 0 || ok+no != len(tr.answers) || len(tr.errs) > 0 {
			t.Errorf("%d answers are 200, %d 503, of %d; errors: %v", ok, no, len(tr.answers), tr.errs)
		}
		for _, a := range tr.answers {
			if a.status == http.StatusOK {
				continue
			}
			if a.took > time.Second || a.header.Get("Retry-After") != "" || !strings.Contains(a.body, "imported") || !strings.Contains(a.body, "two_generals") {
				t.Errorf("a caller got %v, Retry-After %q", a, a.header.Get("Retry-After"))
				break
			}
		}
		s.wantStats(t, map[string]int{"logins": 1, "attempts": 1, "exchanges": 1, "reuses": 0, "killed": 0})

		access, refresh = s.sandbox.Login()
		s.put(t, access, refresh)
		if who := s.whoami(t); who.Session != "s2" {
			t.Errorf("after another import the upstream sees %+v", who)
		}
		if st := s.status(t); st.State != "fresh" || st.Epoch != 2 || st.Generation != 1 {
			t.Errorf("after another import the admin API shows %+v", st)
		}
	}
}

func lostAnswerLogin(t *testing.T, b *bench) func(*testing.T) {
	s := b.loginSite(t, "signsin", sandbox.Config{AccessLifetime: 12 * time.Second})
	return func(t *testing.T) {
		s.sandbox.Fault(lostAfterCommit, 1)
		tr := s.traffic(t)
		eventually(t, 12*time.Second, "the exchange is committed", func() bool { return s.sandbox.Stats().Exchanges == 1 })
		eventually(t, 3*time.Second, "a new login", s.at(t, 2, 1))
		eventually(t, 12*time.Second, "the new session rotates", s.at(t, 2, 2))
		n, slowest := tr.wantOnly(t, http.StatusOK)
		s.checkLedger(t)
		s.wantStats(t, map[string]int{"logins": 2, "attempts": 2, "exchanges": 2})
		t.Logf("%d requests, slowest %v", n, slowest.Round(time.Millisecond))
	}
}

func lostAnswerQuiet(t *testing.T, b *bench) func(*testing.T) {
	s := b.loginSite(t, "quietlogin", sandbox.Config{AccessLifetime: 5 * time.Second})
	return func(t *testing.T) {
		s.sandbox.Fault(lostAfterCommit, 1)
		eventually(t, 10*time.Second, "a new login", s.at(t, 2, 1))
		s.wantStats(t, map[string]int{"logins": 2, "attempts": 1, "exchanges": 1, "reuses": 0})
		if a := s.get(t, "/whoami"); a.status != http.StatusOK {
			t.Errorf("a caller gets %v", a)
		}
	}
}

func lostAnswerForgiven(t *testing.T, b *bench) func(*testing.T) {
	s := b.site(t, "forgiven", sandbox.Config{AccessLifetime: 12 * time.Second, ReuseInterval: 30 * time.Second, ReuseSame: true})
	s.issuer = "reuse_interval 30s same"
	return func(t *testing.T) {
		s.sandbox.Fault(lostAfterCommit, 1)
		tr := s.traffic(t)
		eventually(t, 12*time.Second, "the exchange is committed", func() bool { return s.sandbox.Stats().Exchanges == 1 })
		eventually(t, 5*time.Second, "its answer is had after all", s.at(t, 1, 2))
		tr.wantOnly(t, http.StatusOK)
		s.wantStats(t, map[string]int{"logins": 1, "attempts": 2, "exchanges": 1, "reuses": 1, "killed": 0})
	}
}

// unreachableIssuer: nothing was sent, so the pair is as good as before.
func unreachableIssuer(t *testing.T, b *bench) func(*testing.T) {
	s := b.site(t, "unreachable", sandbox.Config{AccessLifetime: 16 * time.Second})
	s.session = "refresh_before 90%"
	addr := freeAddr(t)
	s.issuerURL = "http://" + addr
	return func(t *testing.T) {
		tr := s.traffic(t)
		eventually(t, 6*time.Second, "exchanges fail", func() bool { return s.status(t).State == "degraded" || s.status(t).State == "backoff" })
		serveAt(t, addr, s.sandbox)
		eventually(t, 6*time.Second, "an exchange succeeds", s.at(t, 1, 2))
		tr.wantOnly(t, http.StatusOK)
		s.checkLedger(t)
		s.wantStats(t, map[string]int{"logins": 1})
	}
}

// The first 401 tells that the exchange had been committed. Before: the request
// that brought it was sent again before the loss was published, with the token
// that had just been refused, and its caller got a 401.
func TestNoCallerNoticesALossThatIsFollowedByALogin(t *testing.T) {
	b := newBench(t)
	s := b.loginSite(t, "crowd", sandbox.Config{AccessLifetime: 60 * time.Second})
	b.start(t)
	client := newClient(t, 0)
	const losses = 40
	for n := 1; n <= losses; n++ {
		s.get200(t, 5*time.Second)
		s.refresh(t) // a login that came to nothing is not repeated at once
		s.sandbox.Fault(lostAfterCommit, 1)
		if a, err := b.api(t.Context(), http.MethodPost, "/crowd/refresh", nil); err != nil || a.status != http.StatusBadGateway {
			t.Fatalf("the exchange whose answer is lost: %v %v", a, err)
		}
		answers := make(chan error, 20)
		for range cap(answers) {
			go func() {
				a, err := send(client, request(t.Context(), http.MethodGet, s.url("/whoami"), nil))
				if err == nil {
					err = a.want(fmt.Sprintf(`"session":"s%d"`, n+1))
				}
				answers <- err
			}()
		}
		for range cap(answers) {
			if err := <-answers; err != nil {
				t.Errorf("loss %d: %v", n, err)
			}
		}
	}
	s.wantStats(t, map[string]int{"logins": 1 + losses, "attempts": 2 * losses, "exchanges": 2 * losses, "reuses": 0})
}
