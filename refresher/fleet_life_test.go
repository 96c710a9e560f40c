package refresher_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/refreshertest"
)

// strictCrew is a fleet of n at a strict issuer.
func strictCrew(t *testing.T, n int, life time.Duration) *crew {
	t.Helper()
	issuer := &double{profile: strictProfile(), delay: 20 * time.Millisecond, life: life, n: 1}
	return newCrew(t, n, issuer, refreshertest.NewStore(true))
}

// wantAll: every instance is fresh, at the same generation; 0 is any.
func (c *crew) wantAll(epoch, generation uint64) {
	c.t.Helper()
	for i, s := range c.sessions {
		st := s.Status()
		well := st.State == refresher.PhaseFresh || generation == 0 && st.State == refresher.PhaseExchanging
		if !well || st.Epoch != epoch || generation != 0 && st.Generation != generation {
			c.t.Errorf("instance %d: %s %d.%d (%s), want fresh %d.%d", i, st.State, st.Epoch, st.Generation, st.LastError, epoch, generation)
		}
	}
}

func (c *crew) count(kind refresher.NoteKind) (n int) {
	for _, told := range c.notes {
		n += told.count(kind)
	}
	return n
}

func (c *crew) wantUnharmed() {
	c.t.Helper()
	if c.issuer.reuses != 0 || c.issuer.most > 1 {
		c.t.Errorf("%d spent tokens, %d exchanges at once", c.issuer.reuses, c.issuer.most)
	}
}

func TestWithoutItsStoreAFleetHoldsAndRecoversByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := strictCrew(t, 3, time.Minute)
		defer c.close()
		time.Sleep(10 * time.Second)
		c.store.Fault(func(string, string) error { return errors.New("no route to the store") })
		time.Sleep(40 * time.Second) // the exchange has been due for a while
		if c.issuer.committed() != 0 {
			t.Fatal("rotated without the store")
		}
		for _, s := range c.sessions {
			if st := s.Status(); st.State != refresher.PhaseHolding || !strings.Contains(st.LastError, "no route") {
				t.Errorf("%s: %q", st.State, st.LastError)
			}
			if got := c.request(s, true); got != 200 {
				t.Errorf("a request while it holds: %d", got)
			}
		}
		c.store.Fault(nil)
		time.Sleep(5 * time.Second)
		c.wantAll(1, 2)
		c.wantUnharmed()
	})
}

func TestAPairThatCouldNotBeStoredServesAndIsStoredLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := strictCrew(t, 3, time.Minute)
		defer c.close()
		time.Sleep(5 * time.Second)
		var failing atomic.Bool
		failing.Store(true)
		c.store.Fault(func(op, name string) error {
			if failing.Load() && op == "Create" && strings.HasPrefix(name, "r.") {
				return errors.New("the store is read-only")
			}
			return nil
		})
		time.Sleep(40 * time.Second)
		if got := c.issuer.committed(); got != 1 {
			t.Fatalf("%d rotations, want 1: nothing more before the pair is stored", got)
		}
		failing.Store(false)
		time.Sleep(6 * time.Second)
		c.wantAll(1, 2)
		c.wantUnharmed()
	})
}

func TestAStoreThatForgotEverythingIsWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := strictCrew(t, 3, time.Minute)
		defer c.close()
		time.Sleep(45 * time.Second)
		before := c.sessions[0].Status().Generation
		c.store.Wipe()
		time.Sleep(5 * time.Minute)
		if c.count(refresher.NoteStoreRegressed) == 0 {
			t.Error("nobody has noticed")
		}
		c.wantAll(1, 0)
		if got := c.sessions[0].Status().Generation; got < before+5 {
			t.Errorf("generation %d after %d: it does not go on", got, before)
		}
		c.wantUnharmed()
	})
}

func TestALogoutEndsTheSessionInEveryInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := strictCrew(t, 3, time.Minute)
		defer c.close()
		time.Sleep(45 * time.Second)
		if _, err := c.sessions[1].End(context.Background()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for i, s := range c.sessions {
			if st := s.Status(); st.State != refresher.PhaseLost || st.Reason != refresher.ReasonLoggedOut {
				t.Errorf("instance %d: %s(%s)", i, st.State, st.Reason)
			}
		}
		late := c.join() // whose file still holds the first pair
		time.Sleep(time.Second)
		if st := late.Status(); st.Reason != refresher.ReasonLoggedOut {
			t.Errorf("one that starts later: %s(%s)", st.State, st.Reason)
		}
		for name, value := range c.store.Dump("double") {
			if bytes.Contains(value, []byte("refresh-")) {
				t.Errorf("%s holds a token", name)
			}
		}
	})
}

func TestAnOperatorsExchangeIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := strictCrew(t, 3, time.Hour)
		defer c.close()
		time.Sleep(10 * time.Second)
		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- c.sessions[2].Refresh(context.Background()) }()
		time.Sleep(1900 * time.Millisecond)
		if c.issuer.committed() != 0 {
			t.Error("at once: the others could not hold back what cannot be sent again")
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("after %v", took)
		}
		time.Sleep(time.Second)
		c.wantAll(1, 2)
		c.wantUnharmed()
	})
}

// counting is a login source that counts.
type counting struct {
	refresher.Source
	issuer *double
	logins *atomic.Int32
}

func (counting) SignsIn() bool { return true }
func (s counting) Fetch(context.Context) (refresher.Pair, error) {
	s.logins.Add(1)
	time.Sleep(100 * time.Millisecond)
	s.issuer.mu.Lock()
	defer s.issuer.mu.Unlock()
	return s.issuer.pairLocked(), nil
}

func TestAFleetSignsInOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := &double{profile: strictProfile(), delay: 20 * time.Millisecond, life: time.Minute, n: 1}
		c := &crew{t: t, issuer: issuer, store: refreshertest.NewStore(true)}
		defer c.close()
		var logins atomic.Int32
		for range 4 {
			c.sessions = append(c.sessions, issuer.attach(t, func(cfg *refresher.Config) {
				cfg.Store, cfg.Sources = c.store, []refresher.Source{counting{issuer.source(), issuer, &logins}}
			}))
		}
		time.Sleep(5 * time.Second)
		if got := logins.Load(); got != 1 {
			t.Errorf("%d logins", got)
		}
		c.wantAll(1, 1)
	})
}

func TestAnInstanceWithAnotherKeyOverwritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := strictCrew(t, 1, time.Minute)
		defer c.close()
		time.Sleep(time.Second)
		before := c.store.Dump("double")
		s := c.issuer.attach(t, func(cfg *refresher.Config) { cfg.Store, cfg.Keys = c.store, keyring(t, "another") })
		defer closeSession(t, s)
		time.Sleep(5 * time.Second)
		if st := s.Status(); st.State != refresher.PhaseLost || st.Reason != refresher.ReasonUndecryptable {
			t.Errorf("%s(%s): %s", st.State, st.Reason, st.LastError)
		}
		for name, value := range before {
			if !bytes.Equal(c.store.Dump("double")[name], value) {
				t.Errorf("%s was changed", name)
			}
		}
	})
}

func TestKeysAreRotatedWithoutAStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := strictCrew(t, 2, time.Minute)
		defer c.close()
		time.Sleep(time.Second)
		for _, keys := range [][]string{{"key", "next"}, {"next", "key"}, {"next"}} {
			for _, s := range c.sessions {
				if _, err := s.Attach(refresher.Config{Issuer: c.issuer, Keys: keyring(t, keys...), Store: c.store}); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(2 * time.Minute)
			c.wantAll(1, 0)
		}
		c.wantUnharmed()
	})
}

func TestForgedAndForeignNamesStopNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := strictCrew(t, 2, time.Minute)
		defer c.close()
		time.Sleep(time.Second)
		for _, name := range []string{
			"i.0000000000000001.0000000000000001.00000000000000ff00000001.0123456789abcdef",
			"p.0000000000000001.0000000000000001.0000000000000000.0123456789abcdef",
			"q.0000000000000001.0000000000000001.00000000000000ff00000001.0123456789abcdef",
			"i.1.1", "r", "", "x.y.z", "r.0000000000000001.zzzzzzzzzzzzzzzz", "tmp123",
		} {
			c.store.Put("double", name, nil)
		}
		time.Sleep(5 * time.Minute)
		c.wantAll(1, 0)
		if c.issuer.committed() < 5 {
			t.Errorf("%d rotations in 5 minutes", c.issuer.committed())
		}
		c.wantUnharmed()
	})
}

func TestARecordUnderAnotherNameIsNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := strictCrew(t, 2, time.Hour)
		defer c.close()
		time.Sleep(time.Second)
		for _, value := range c.store.Dump("double") {
			c.store.Put("double", "r.0000000000000001.0000000000000009", value) // somebody with access to the store
		}
		time.Sleep(10 * time.Second)
		for _, s := range c.sessions {
			if st := s.Status(); st.Generation != 1 || !strings.Contains(st.LastError, "does not authenticate") {
				t.Errorf("%d.%d %s: %q", st.Epoch, st.Generation, st.State, st.LastError)
			}
			if got := c.request(s, true); got != 200 {
				t.Errorf("a request: %d", got)
			}
		}
	})
}

func TestInstancesMayShareAStateDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := stateDir(t)
		issuer := &double{profile: strictProfile(), delay: 20 * time.Millisecond, life: 20 * time.Second, n: 1}
		store := refreshertest.NewStore(true)
		c := &crew{t: t, issuer: issuer, store: store}
		clock := refreshertest.NewClock() // of the one machine
		start := func() *refresher.Session {
			s := refresher.New("double", refresher.Options{Dir: dir, Clock: clock})
			if _, err := s.Attach(refresher.Config{Issuer: issuer, Sources: []refresher.Source{issuer.source()}, Keys: keyring(t, "key"), Store: store}); err != nil {
				t.Fatal(err)
			}
			return s
		}
		c.sessions = []*refresher.Session{start(), start(), start()}
		time.Sleep(time.Minute)
		c.wantAll(1, 0)
		c.close()
		// The store is gone, too: the newest pair of all the journals counts.
		c.store = refreshertest.NewStore(true)
		store = c.store
		before := issuer.committed()
		c.sessions = []*refresher.Session{start()}
		time.Sleep(time.Minute)
		c.wantAll(1, 0)
		if issuer.committed() == before {
			t.Error("it does not go on")
		}
		c.wantUnharmed()
		c.close()
	})
}
