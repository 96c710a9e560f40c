package refresher_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// A minute's lifetime: due after 24 to 30 s, hold-off 12 s.
var minute = sandbox.Config{AccessLifetime: time.Minute}

func TestASessionWithoutTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		k.await(10 * time.Minute)
		st := k.wantState(refresher.PhaseFresh, "")
		if st.Generation < 19 || st.Generation > 26 {
			t.Errorf("generation %d after ten lifetimes", st.Generation)
		}
		for range 50 {
			if status := k.get("/whoami"); status != 200 {
				t.Errorf("status %d", status)
			}
		}
		k.wantUnharmed()
		if s := k.box.Stats(); s.Unauthorized != 0 {
			t.Errorf("the upstream saw %+v", s)
		}
		if len(st.Rotations) != 16 || st.Fingerprint == "" || st.Source != "fixed" || st.HoldOff.Round(time.Second) != 12*time.Second {
			t.Errorf("status %+v", st)
		}
	})
}

func TestALoginSourceThatIsNotUpAtFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, minute, signingIn)
		defer k.finish()
		k.stop()
		k.start()
		k.await(30 * time.Second)
		if st := k.wantState(refresher.PhaseEmpty, ""); !strings.Contains(st.LastError, "refused") {
			t.Errorf("status %+v", st)
		}
		if _, err := k.tryGet("/whoami"); err == nil {
			t.Error("a request went through")
		}
		k.serve()
		k.await(time.Minute)
		if status := k.get("/whoami"); status != 200 || k.box.Stats().Logins != 1 {
			t.Errorf("status %d, %d logins", status, k.box.Stats().Logins)
		}
	})
}

func TestAnIssuerThatIsAwayForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		k.await(23 * time.Second)
		k.stop()
		k.await(25 * time.Second)
		if st := k.session.Status(); st.State != refresher.PhaseBackoff && st.State != refresher.PhaseDegraded {
			t.Fatalf("%+v", st)
		}
		k.serve()
		k.await(8 * time.Second)
		if st := k.wantState(refresher.PhaseFresh, ""); st.Generation != 2 {
			t.Errorf("generation %d", st.Generation)
		}
		k.wantUnharmed()
	})
}

func TestAMachineThatSlept(t *testing.T) {
	bubble(t, "too long has lost its session", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		k.await(10 * time.Second)
		k.clock.Suspend(time.Hour)
		k.await(10 * time.Second)
		k.wantState(refresher.PhaseLost, refresher.ReasonExpired)
	})
	bubble(t, "too long signs in again", func(t *testing.T) {
		k := newKit(t, sandbox.Config{AccessLifetime: time.Minute, OpaqueAccess: true, ExpiresIn: true}, signingIn)
		defer k.finish()
		k.start()
		k.await(10 * time.Second)
		k.clock.Suspend(time.Hour)
		k.await(10 * time.Second)
		if st := k.wantState(refresher.PhaseFresh, ""); st.Epoch != 2 || k.box.Stats().Logins != 2 {
			t.Errorf("%+v", st)
		}
	})
	bubble(t, "for a while exchanges at once", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		k.await(10 * time.Second)
		k.clock.Suspend(35 * time.Second)
		k.await(4 * time.Second)
		if st := k.wantState(refresher.PhaseFresh, ""); st.Generation != 2 {
			t.Errorf("%+v", st)
		}
		k.wantUnharmed()
	})
}

func TestAWallClockThatIsSet(t *testing.T) {
	for name, by := range map[string]time.Duration{"forward": time.Hour, "backward": -time.Hour} {
		bubble(t, name+" makes at most one early exchange", func(t *testing.T) {
			k := newKit(t, sandbox.Config{AccessLifetime: 10 * time.Minute, ExpiresIn: true}, seeded)
			defer k.finish()
			k.start()
			k.await(time.Minute)
			k.clock.SetWall(by)
			k.await(6 * time.Minute) // before it would be due
			st := k.session.Status()
			if st.State != refresher.PhaseFresh || st.Generation > 2 || by < 0 && st.Generation != 1 {
				t.Errorf("%+v", st)
			}
			if k.notes.count(refresher.NoteClockStepped) != 1 {
				t.Error("not told")
			}
			k.await(time.Hour)
			if status := k.get("/whoami"); status != 200 {
				t.Errorf("status %d", status)
			}
			if n := k.box.Stats().Attempts; n < 6 || n > 20 {
				t.Errorf("%d attempts in an hour", n)
			}
			k.wantUnharmed()
		})
	}
}

func TestConfigurationsAreStacked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		var second notes
		cfg := k.cfg
		cfg.Observe = second.add
		detach, err := k.session.Attach(cfg)
		if err != nil {
			t.Fatal(err)
		}
		k.await(40 * time.Second)
		if k.notes.count(refresher.NoteRotated) != 0 || second.count(refresher.NoteRotated) != 1 {
			t.Error("the newest is not in force")
		}
		detach()
		detach()
		k.await(30 * time.Second)
		if k.notes.count(refresher.NoteRotated) != 1 {
			t.Error("the one before is not in force again")
		}
		// Reloads attach the new one before the old one goes.
		detach, err = k.session.Attach(cfg)
		if err != nil {
			t.Fatal(err)
		}
		k.detach()
		k.await(30 * time.Second)
		if second.count(refresher.NoteRotated) != 2 {
			t.Error("the new one is not in force")
		}
		detach()
		k.await(20 * time.Second)
		n := k.box.Stats().Attempts
		k.await(30 * time.Second)
		if k.box.Stats().Attempts != n {
			t.Error("an exchange without a configuration")
		}
		if err := k.session.Refresh(t.Context()); !errors.Is(err, refresher.ErrNotNow) {
			t.Errorf("refresh: %v", err)
		}
		k.wantUnharmed()
	})
}

func TestImportAndRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, minute)
		defer k.finish()
		k.start()
		synctest.Wait()
		if err := k.session.Refresh(t.Context()); !errors.Is(err, refresher.ErrNotNow) || !strings.Contains(err.Error(), "Billing") {
			t.Errorf("refresh of nothing: %v", err)
		}
		first := pairOf(k.box.Login())
		if err := k.session.Import(t.Context(), first, "import"); err != nil {
			t.Fatal(err)
		}
		if err := k.session.Import(t.Context(), first, "import"); err != nil {
			t.Errorf("the one in use: %v", err)
		}
		if err := k.session.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := k.session.Import(t.Context(), first, "import"); !errors.Is(err, refresher.ErrSpent) {
			t.Errorf("spent: %v", err)
		}
		k.session.Offer(first, "file")
		k.session.Offer(pairOf(k.box.Login()), "file")
		synctest.Wait()
		if st := k.wantState(refresher.PhaseFresh, ""); st.Epoch != 2 || st.Source != "file" {
			t.Errorf("%+v", st)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := k.session.Import(ctx, first, "import"); err == nil {
			t.Error("imported for nobody")
		}
		if k.session.Name() != "Billing" {
			t.Error(k.session.Name())
		}
	})
}

func TestWhatTheIssuerDoes(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault sandbox.Fault
		after time.Duration
		state refresher.Phase
		why   refresher.Reason
		gen   uint64
	}{
		{"a 503 is tried again", sandbox.Fault{Status: 503}, 5 * time.Second, refresher.PhaseFresh, "", 2},
		{"a 502 after the hold-off", sandbox.Fault{Status: 502}, 16 * time.Second, refresher.PhaseFresh, "", 2},
		{"a 502 that was committed is two generals", sandbox.Fault{Commit: true, Status: 502}, 16 * time.Second, refresher.PhaseLost, refresher.ReasonTwoGenerals, 1},
		{"an answer that is lost is two generals", sandbox.Fault{Commit: true, Drop: true}, time.Second, refresher.PhaseLost, refresher.ReasonTwoGenerals, 1},
		{"an answer in HTML, too", sandbox.Fault{Commit: true, Body: "<html>", ContentType: "text/html"}, time.Second, refresher.PhaseLost, refresher.ReasonTwoGenerals, 1},
		{"a request that is lost is made again", sandbox.Fault{Drop: true}, 16 * time.Second, refresher.PhaseFresh, "", 2},
	} {
		bubble(t, test.name, func(t *testing.T) {
			k := newKit(t, minute, seeded)
			defer k.finish()
			k.start()
			k.box.Fault(test.fault, 1)
			for k.box.Stats().Attempts == 0 {
				k.await(10 * time.Millisecond)
			}
			for end := time.Now().Add(test.after); time.Now().Before(end); {
				_, _ = k.tryGet("/whoami")
				k.await(250 * time.Millisecond)
			}
			if st := k.wantState(test.state, test.why); st.Generation != test.gen {
				t.Errorf("%+v", st)
			}
		})
	}
}

// limiterFunc is a limiter that may refuse.
type limiterFunc func() error

func (f limiterFunc) Begin(context.Context, bool) (func(refresher.Class, int), error) {
	return func(refresher.Class, int) {}, f()
}

func TestLogsTellWhatHappens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.DebugLevel)
		k := newKit(t, minute, func(k *kit) {
			k.cfg.Logger = zap.New(core)
			k.cfg.Sources = []refresher.Source{&fixed{err: errors.New("unreadable")}, k.login()}
		})
		defer k.finish()
		throttled := 0
		k.cfg.Limiter = limiterFunc(func() error {
			if throttled++; throttled == 1 {
				return errors.New("too many")
			}
			return nil
		})
		k.start()
		k.await(40 * time.Second)
		k.box.Fault(sandbox.Fault{Status: 503}, 1)
		k.await(30 * time.Second)
		k.box.Fault(sandbox.Fault{Commit: true, Drop: true}, 1)
		k.await(2 * time.Minute)
		k.box.Fault(sandbox.Fault{Path: "/User/Login", Status: 401}, 1)
		k.box.Kill()
		k.await(2 * time.Minute)
		for _, want := range []string{"session started", "token pair rotated", "exchange failed", "outcome of an exchange is unknown", "session lost", "signing in failed"} {
			if logs.FilterMessageSnippet(want).Len() == 0 {
				t.Errorf("no line with %q", want)
			}
		}
		for _, e := range logs.All() {
			for name, v := range e.ContextMap() {
				if s, ok := v.(string); ok && len(s) > 200 {
					t.Errorf("%s: %s is as long as a token: %s", e.Message, name, s)
				}
			}
		}
	})
}

func TestClocksOfTheSystem(t *testing.T) {
	for _, c := range []refresher.Clock{refresher.NewClock(), refresher.NewProcessClock()} {
		a, b := c.Now(), c.Now()
		if a.Wall.IsZero() || b.Sub(a) < 0 || a.IsZero() || a.Add(time.Second).Sub(a) != time.Second {
			t.Errorf("%T: %v, %v", c, a, b)
		}
	}
	if c := refresher.NewProcessClock(); c.CountsSleep() || c.BootID() != "" {
		t.Error("the process's clock knows of sleep")
	}
	s := refresher.New("x", refresher.Options{Dir: t.TempDir()})
	if st := s.Status(); st.Name != "x" || st.State != refresher.PhaseHolding {
		t.Errorf("%+v", st)
	}
	closeSession(t, s)
	if err := (&refresher.RetryError{Err: os.ErrExist}); !errors.Is(err, os.ErrExist) || err.Error() == "" {
		t.Error(err)
	}
}

// A machine whose clock is ahead of the issuer's by more than a lifetime finds
// that each new login has ended already. It must not sign in as fast as the
// network carries it.
func TestAClockThatIsFarAheadMakesNoStormOfLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, minute, signingIn)
		defer k.finish()
		k.clock.SetWall(time.Hour)
		k.box.SetFault(sandbox.Fault{Path: "/User/Login", Commit: true, DelayAfter: 100 * time.Millisecond})
		k.start()
		k.await(time.Minute)
		if n := k.box.Stats().Logins; n > 12 {
			t.Errorf("%d logins in a minute", n)
		}
	})
}
