package refresher_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
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

func TestRestarting(t *testing.T) {
	bubble(t, "goes on with the stored pair, not with the source's", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		k.await(40 * time.Second)
		k.end()
		k.await(5 * time.Second)
		k.start()
		synctest.Wait()
		if st := k.wantState(refresher.PhaseFresh, ""); st.Epoch != 1 || st.Generation != 2 {
			t.Errorf("%+v", st)
		}
		k.await(10 * time.Minute)
		if status := k.get("/whoami"); status != 200 {
			t.Errorf("status %d", status)
		}
		k.wantUnharmed()
	})
	bubble(t, "of the machine does so, too", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		k.await(40 * time.Second)
		k.end()
		k.clock.Reboot("the next boot")
		k.await(5 * time.Second)
		k.start()
		k.await(10 * time.Minute)
		if status := k.get("/whoami"); status != 200 {
			t.Errorf("status %d", status)
		}
		k.wantUnharmed()
	})
	bubble(t, "starts anew with a pair never seen", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		k.await(40 * time.Second)
		k.end()
		seeded(k)
		k.start()
		synctest.Wait()
		if st := k.wantState(refresher.PhaseFresh, ""); st.Epoch != 2 || st.Generation != 1 {
			t.Errorf("%+v", st)
		}
	})
	// A crash leaves the journal as it was when the request went out.
	crashed := func(t *testing.T, k *kit, f sandbox.Fault) {
		t.Helper()
		k.start()
		k.await(20 * time.Second)
		k.box.Fault(f, 1)
		for k.box.Stats().Attempts == 0 {
			k.await(10 * time.Millisecond)
		}
		copyDir(t, k.dir, filepath.Join(k.dir, "..", filepath.Base(k.dir)+"-copy"))
		k.end()
		k.dir = filepath.Join(k.dir, "..", filepath.Base(k.dir)+"-copy")
		t.Cleanup(func() { os.RemoveAll(k.dir) })
		k.start()
		synctest.Wait()
		if st := k.wantState(refresher.PhaseUncertain, ""); !st.IntentOpen {
			t.Errorf("%+v", st)
		}
	}
	bubble(t, "with an open intent waits for the hold-off and a witness", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		crashed(t, k, sandbox.Fault{Hang: true})
		for range 11 {
			if status := k.get("/whoami"); status != 200 {
				t.Fatalf("status %d", status)
			}
			k.await(time.Second)
		}
		if n := k.box.Stats().Attempts; n != 1 {
			t.Fatalf("%d attempts within the hold-off", n)
		}
		k.await(2 * time.Second)
		k.get("/whoami")
		k.await(time.Second)
		if st := k.wantState(refresher.PhaseFresh, ""); st.Generation != 2 || st.IntentOpen {
			t.Errorf("%+v", st)
		}
		k.wantUnharmed()
	})
	bubble(t, "with an open intent that was committed is two generals", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		crashed(t, k, sandbox.Fault{Commit: true, Hang: true})
		status, err := k.tryGet("/whoami")
		var u *refresher.Unavailable
		if !errors.As(err, &u) || u.Lost != refresher.ReasonTwoGenerals {
			t.Errorf("%d, %v", status, err)
		}
		k.wantState(refresher.PhaseLost, refresher.ReasonTwoGenerals)
		k.await(10 * time.Minute)
		k.wantUnharmed()
		if err := k.session.Import(t.Context(), pairOf(k.box.Login()), "import"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if status := k.get("/whoami"); status != 200 {
			t.Errorf("status %d", status)
		}
	})
	bubble(t, "with an open intent and a login signs in again", func(t *testing.T) {
		k := newKit(t, minute, signingIn)
		defer k.finish()
		crashed(t, k, sandbox.Fault{Commit: true, Hang: true})
		if status := k.get("/whoami"); status != 200 {
			t.Errorf("status %d", status)
		}
		if st := k.wantState(refresher.PhaseFresh, ""); st.Epoch != 2 || k.box.Stats().Logins != 2 {
			t.Errorf("%+v", st)
		}
		k.wantUnharmed()
	})
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(to, 0o700); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(to)
	for _, e := range entries {
		if err := os.Chmod(filepath.Join(to, e.Name()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestASecondProcessWaitsForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		k.await(40 * time.Second)
		first := k.session
		core, logs := observer.New(zapcore.WarnLevel)
		k.cfg.Logger = zap.New(core)
		k.start() // the second
		k.await(time.Minute)
		k.wantState(refresher.PhaseHolding, "")
		if logs.FilterMessageSnippet("another process").Len() != 1 {
			t.Errorf("logs %v", logs.All())
		}
		if err := k.session.Import(t.Context(), pairOf(k.box.Login()), "import"); !errors.Is(err, refresher.ErrNotNow) {
			t.Errorf("import: %v", err)
		}
		if err := first.Close(t.Context()); err != nil {
			t.Error(err)
		}
		k.await(time.Second)
		if st := k.wantState(refresher.PhaseFresh, ""); st.Generation < 2 || st.Epoch != 1 {
			t.Errorf("%+v", st)
		}
		if status := k.get("/whoami"); status != 200 {
			t.Errorf("status %d", status)
		}
		k.wantUnharmed()

		k.start2AndClose(t)
	})
}

// start2AndClose: one that still waits can be closed, and its callers with it.
func (k *kit) start2AndClose(t *testing.T) {
	t.Helper()
	waiting := refresher.New("billing", refresher.Options{Dir: k.dir, Clock: k.clock})
	if _, err := waiting.Attach(k.cfg); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := waiting.Enter(t.Context(), true); done <- err }()
	synctest.Wait()
	closeSession(t, waiting)
	var u *refresher.Unavailable
	if err := <-done; !errors.As(err, &u) {
		t.Errorf("enter: %v", err)
	}
	if err := waiting.Refresh(t.Context()); err == nil {
		t.Error("refreshed after its end")
	}
}

func TestKeys(t *testing.T) {
	bubble(t, "an old key opens, the first seals", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		k.await(40 * time.Second)
		k.end()
		k.cfg.Keys = keyring(t, "new", "key")
		k.start()
		synctest.Wait()
		k.wantState(refresher.PhaseFresh, "")
		k.await(time.Minute) // rotates, and is sealed with the new key
		k.end()
		k.cfg.Keys = keyring(t, "new")
		k.start()
		synctest.Wait()
		if st := k.wantState(refresher.PhaseFresh, ""); st.Epoch != 1 || st.Generation < 3 {
			t.Errorf("%+v", st)
		}
		k.wantUnharmed()
	})
	bubble(t, "a wrong one leaves the files alone, an import puts them aside", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		k.await(40 * time.Second)
		k.end()
		before := content(t, k.dir)
		k.cfg.Keys = keyring(t, "wrong")
		k.cfg.Sources = append(k.cfg.Sources, k.login())
		k.start()
		k.await(10 * time.Minute)
		k.wantState(refresher.PhaseLost, refresher.ReasonUndecryptable)
		k.session.Offer(pairOf(k.box.Login()), "file")
		synctest.Wait()
		k.wantState(refresher.PhaseLost, refresher.ReasonUndecryptable)
		if after := content(t, k.dir); after != before {
			t.Error("the files were changed")
		}
		k.end()
		k.cfg.Keys = keyring(t, "key") // the operator finds the right one: nothing was lost
		k.cfg.Sources = nil
		k.start()
		synctest.Wait()
		if st := k.session.Status(); st.Epoch != 1 || st.Generation != 2 {
			t.Errorf("%+v", st)
		}
		k.end()
		k.cfg.Keys = keyring(t, "wrong")
		k.start()
		synctest.Wait()
		if err := k.session.Import(t.Context(), pairOf(k.box.Login()), "import"); err != nil {
			t.Fatal(err)
		}
		k.await(time.Second)
		k.wantState(refresher.PhaseFresh, "")
		if names := files(t, k.dir); !strings.Contains(names, "billing.j0.unreadable-") || !strings.Contains(names, "billing.j1.unreadable-") {
			t.Errorf("files: %s", names)
		}
		k.end()
		k.start()
		synctest.Wait()
		k.wantState(refresher.PhaseFresh, "")
		if status := k.get("/whoami"); status != 200 {
			t.Errorf("status %d", status)
		}
	})
	bubble(t, "damaged files are as undecryptable ones", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		k.await(40 * time.Second)
		k.end()
		for _, name := range []string{"billing.j0", "billing.j1"} {
			if err := os.WriteFile(filepath.Join(k.dir, name), []byte(strings.Repeat("x", 128<<10)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		k.start()
		synctest.Wait()
		k.wantState(refresher.PhaseLost, refresher.ReasonUndecryptable)
	})
}

func content(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	for _, name := range strings.Fields(files(t, dir)) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString(name + ":" + string(b))
	}
	return all.String()
}

func TestClosingDuringAnExchangeKeepsItsOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		k.start()
		k.await(20 * time.Second)
		k.box.Fault(sandbox.Fault{Commit: true, DelayAfter: 5 * time.Second}, 1)
		for k.box.Stats().Exchanges == 0 {
			k.await(10 * time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := k.session.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v", err)
		}
		began := time.Now()
		k.end()
		if d := time.Since(began); d < 3*time.Second {
			t.Errorf("closed after %v", d)
		}
		k.start()
		synctest.Wait()
		if st := k.wantState(refresher.PhaseFresh, ""); st.Generation != 2 || st.IntentOpen {
			t.Errorf("%+v", st)
		}
		if status := k.get("/whoami"); status != 200 {
			t.Errorf("status %d", status)
		}
		k.wantUnharmed()
	})
}

func TestAttachingFailsWhereTheJournalCannotBeUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		if err := os.Chmod(k.dir, 0o777); err != nil {
			t.Fatal(err)
		}
		s := refresher.New("billing", refresher.Options{Dir: k.dir, Clock: k.clock})
		defer closeSession(t, s)
		if _, err := s.Attach(k.cfg); err == nil {
			t.Fatal("a directory that is open to others")
		}
		if err := os.Chmod(k.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Attach(k.cfg); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if st := s.Status(); st.State != refresher.PhaseFresh {
			t.Errorf("%+v", st)
		}
	})
}
