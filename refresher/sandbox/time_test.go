package sandbox_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// pass lets time go by in a bubble.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	<-time.After(d)
	synctest.Wait()
}

func TestTimePasses(t *testing.T) {
	bubble := func(name string, test func(t *testing.T)) {
		t.Helper()
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
	bubble("and an access token expires to the second", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		p := login(s)
		pass(t, 30*time.Second-1)
		wantStatus(t, "a nanosecond before", call(s, p.Access), 200)
		pass(t, 1)
		wantStatus(t, "at exp", call(s, p.Access), 401)
		if s.Stats().ExpiredAccess != 1 || s.Stats().StaleAccess != 0 {
			t.Errorf("stats %+v", s.Stats())
		}
		status, _ := exchange(t, s, p)
		wantStatus(t, "exchange with an expired access token", status, 401)
	})
	bubble("and exp is cut to a whole second, not rounded up", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		pass(t, 900*time.Millisecond)
		p := login(s)
		pass(t, 29*time.Second)
		wantStatus(t, "after 29 s", call(s, p.Access), 200)
		pass(t, 100*time.Millisecond)
		wantStatus(t, "after 29.1 s", call(s, p.Access), 401)
	})
	bubble("and a negative lifetime is over from the start", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{AccessLifetime: -time.Second, AcceptExpired: true})
		p := login(s)
		wantStatus(t, "API", call(s, p.Access), 401)
		mustExchange(t, s, p)
	})
	bubble("and AcceptExpired lets an expired token refresh, but not a superseded one", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{AcceptExpired: true})
		first := login(s)
		second := mustExchange(t, s, first)
		pass(t, time.Hour)
		wantStatus(t, "API", call(s, second.Access), 401)
		status, _ := exchange(t, s, pair{Access: first.Access, Refresh: second.Refresh})
		wantStatus(t, "superseded access token", status, 401)
		mustExchange(t, s, second)
	})
	bubble("and a refresh token expires", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{AccessLifetime: time.Hour, RefreshLifetime: time.Minute})
		p := login(s)
		pass(t, time.Minute)
		status, _ := exchange(t, s, p)
		wantStatus(t, "exchange", status, 400)
	})
	bubble("and each new refresh token starts afresh", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{AccessLifetime: time.Hour, RefreshLifetime: time.Minute})
		p := login(s)
		for range 5 {
			pass(t, 59*time.Second)
			p = mustExchange(t, s, p)
		}
	})
	bubble("and a refresh token that is kept does not", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{AccessLifetime: time.Hour, RefreshLifetime: time.Minute, KeepRefreshToken: true})
		p := mustExchange(t, s, login(s))
		pass(t, 59*time.Second)
		p = mustExchange(t, s, p)
		pass(t, time.Second)
		status, _ := exchange(t, s, p)
		wantStatus(t, "exchange", status, 400)
	})
	bubble("and what nobody needs any more is forgotten", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		login(s)
		pass(t, 31*24*time.Hour)
		p := login(s)
		if n := s.Stats().Sessions; n != 1 {
			t.Errorf("%d sessions, want 1", n)
		}
		mustExchange(t, s, p)
	})
	bubble("and /slow answers later, /late looks at the token later", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		p := login(s)
		begin := time.Now()
		statuses := make(chan [2]int)
		for i, path := range []string{"/slow?delay=2s", "/late?delay=2s"} {
			go func() { statuses <- [2]int{i, serve(s, apiRequest("", "GET", path, p.Access, nil)).Code} }()
		}
		pass(t, time.Second)
		mustExchange(t, s, p)
		for range 2 {
			got := <-statuses
			wantStatus(t, "path", got[1], []int{200, 401}[got[0]])
		}
		if d := time.Since(begin); d != 2*time.Second {
			t.Errorf("took %v", d)
		}
	})
	bubble("and a fault delays around the commit", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		s.Fault(sandbox.Fault{DelayBefore: 2 * time.Second, Commit: true, DelayAfter: 3 * time.Second}, 1)
		begin := time.Now()
		mustExchange(t, s, login(s))
		e := s.Ledger()[0]
		if !e.At.Equal(begin) || e.CommittedAt.Sub(begin) != 2*time.Second || time.Since(begin) != 5*time.Second {
			t.Errorf("arrived %v, committed %v, answered after %v", e.At, e.CommittedAt, time.Since(begin))
		}
	})
	bubble("and a caller who hangs up too early prevents the exchange", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		p := login(s)
		s.Fault(sandbox.Fault{DelayBefore: 2 * time.Second, Commit: true}, 1)
		if !aborted(s, hangUpAfter(exchangeRequest("", p), time.Second)) {
			t.Error("there must be no answer")
		}
		pass(t, 5*time.Second)
		mustExchange(t, s, p)
	})
	bubble("and an exchange that outlives its connection is done all the same", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		p := login(s)
		s.Fault(sandbox.Fault{DelayBefore: 2 * time.Second, Outlive: true, Commit: true}, 1)
		aborted(s, hangUpAfter(exchangeRequest("", p), time.Second))
		e := s.Ledger()[0]
		if e.CommittedAt.Sub(e.At) != 2*time.Second || e.Delivered {
			t.Errorf("entry %+v", e)
		}
		wantStatus(t, "API", call(s, p.Access), 401)
	})
	bubble("and a hanging call ends with its caller's patience", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		s.Fault(sandbox.Fault{Commit: true, Hang: true}, 1)
		begin := time.Now()
		if !aborted(s, hangUpAfter(exchangeRequest("", login(s)), time.Minute)) || time.Since(begin) != time.Minute {
			t.Errorf("took %v", time.Since(begin))
		}
		if e := s.Ledger()[0]; e.CommittedAt.IsZero() || e.Status != 0 || e.Delivered {
			t.Errorf("entry %+v", e)
		}
	})
}

// TestASpentRefreshToken is about the reuse interval.
func TestASpentRefreshToken(t *testing.T) {
	bubble := func(name string, cfg sandbox.Config, test func(t *testing.T, s *sandbox.Sandbox)) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, sandbox.New(cfg)) })
		})
	}
	same := sandbox.Config{ReuseInterval: 5 * time.Second, ReuseSame: true}
	other := sandbox.Config{ReuseInterval: 5 * time.Second}

	bubble("gets the same successor within the interval", same, func(t *testing.T, s *sandbox.Sandbox) {
		first := login(s)
		second := mustExchange(t, s, first)
		pass(t, 5*time.Second-1)
		if again := mustExchange(t, s, first); again != second {
			t.Error("not the same successor")
		}
		wantStatus(t, "API", call(s, second.Access), 200)
		stats := s.Stats()
		if stats.Exchanges != 1 || stats.Reuses != 1 || stats.Replays != 1 || stats.SessionsKilled != 0 {
			t.Errorf("stats %+v", stats)
		}
	})
	bubble("gets another successor within the interval", other, func(t *testing.T, s *sandbox.Sandbox) {
		first := login(s)
		second := mustExchange(t, s, first)
		third := mustExchange(t, s, first)
		if third.Access == second.Access || third.Refresh == second.Refresh {
			t.Error("not another successor")
		}
		wantStatus(t, "successor in between", call(s, second.Access), 401)
		wantStatus(t, "newest", call(s, third.Access), 200)
		mustExchange(t, s, second) // not spent: an answer that arrived after all can be used
	})
	bubble("ends the session after the interval", same, func(t *testing.T, s *sandbox.Sandbox) {
		first := login(s)
		second := mustExchange(t, s, first)
		pass(t, 5*time.Second)
		status, _ := exchange(t, s, first)
		wantStatus(t, "reuse", status, 400)
		wantStatus(t, "API", call(s, second.Access), 401)
	})
	bubble("ends the session once a successor was exchanged", other, func(t *testing.T, s *sandbox.Sandbox) {
		first := login(s)
		third := mustExchange(t, s, mustExchange(t, s, first))
		status, _ := exchange(t, s, first)
		wantStatus(t, "reuse", status, 400)
		wantStatus(t, "API", call(s, third.Access), 401)
	})
	bubble("needs the access token of its own pair", same, func(t *testing.T, s *sandbox.Sandbox) {
		first, stranger := login(s), login(s)
		mustExchange(t, s, first)
		status, _ := exchange(t, s, pair{Access: stranger.Access, Refresh: first.Refresh})
		wantStatus(t, "reuse with another access token", status, 400)
	})
}

// hangUpAfter gives a request a caller with so much patience.
func hangUpAfter(r *http.Request, patience time.Duration) *http.Request {
	ctx, cancel := context.WithCancel(r.Context())
	time.AfterFunc(patience, cancel)
	return r.WithContext(ctx)
}

// aborted reports whether the handler ended without an answer.
func aborted(h http.Handler, r *http.Request) (yes bool) {
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler {
				panic(v)
			}
			yes = true
		}
	}()
	serve(h, r)
	return false
}
