package refresher_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/refreshertest"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// revocable is a double that can revoke.
type revocable struct {
	*double
	mu      sync.Mutex
	revoked []string
}

func (r *revocable) Revoke(_ context.Context, p refresher.Pair) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revoked = append(r.revoked, p.Refresh.Reveal())
	return nil
}

// Whatever is under way when a caller signs out: what would have lived on at the
// issuer is revoked, and the caller does not wait for it.
func TestALogoutRevokesAlsoThePairThatIsJustBeingMade(t *testing.T) {
	for name, c := range map[string]struct {
		after time.Duration // from the beginning of the exchange, which is committed after a second
		want  string
	}{
		"before the exchange": {-time.Minute, "refresh-0"},
		"before its commit":   {500 * time.Millisecond, "refresh-1"},
		"before its answer":   {1500 * time.Millisecond, "refresh-1"},
		"after its answer":    {2100 * time.Millisecond, "refresh-1"},
		"long after it ended": {10 * time.Minute, "refresh-1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				issuer := &revocable{double: &double{life: 2 * time.Hour, delay: time.Second}}
				p := refresher.NewPool("portal", refresher.Options{Dir: stateDir(t), Clock: refreshertest.NewClock()})
				defer p.Close(context.Background())
				if _, err := p.Attach(refresher.PoolConfig{Config: refresher.Config{
					Issuer: issuer, Keys: keyring(t, "key"), Policy: refresher.Policy{RefreshPercent: 50},
				}}); err != nil {
					t.Fatal(err)
				}
				m, _, err := p.Learn(context.Background(), issuer.pairLocked(), refresher.Pair{})
				if err != nil {
					t.Fatal(err)
				}
				st, err := m.Status()
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Until(st.RefreshAt) - time.Minute)
				if c.after > 0 {
					for issuer.running() == 0 {
						time.Sleep(10 * time.Millisecond)
					}
					time.Sleep(c.after)
				}
				began, revoked := time.Now(), make(chan error, 1)
				if err := m.Forget(func(err error) { revoked <- err }); err != nil {
					t.Fatal(err)
				}
				if waited := time.Since(began); waited > 100*time.Millisecond {
					t.Errorf("the caller waited %s", waited)
				}
				if _, _, ok, _ := p.Find("access-0", 0); ok {
					t.Error("its token is still known")
				}
				if err := <-revoked; err != nil || !slices.Equal(issuer.revoked, []string{c.want}) {
					t.Errorf("revoked %v, %v, want %s", issuer.revoked, err, c.want)
				}
			})
		})
	}
}

func (r *revocable) running() int {
	r.double.mu.Lock()
	defer r.double.mu.Unlock()
	return r.under
}

func TestAListGoesOnWhereASessionHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, sandbox.Config{AccessLifetime: time.Hour})
		defer k.finishPool()
		k.startPool()
		all := map[string]bool{}
		for range 100 {
			k.signIn()
		}
		list, next := k.pool.List("", 1000)
		for _, st := range list {
			all[st.Name] = true
		}
		if len(all) != 100 || next != "" {
			t.Fatalf("%d sessions, and then %q", len(all), next)
		}
		for _, limit := range []int{1, 7, 100} {
			seen, last := map[string]bool{}, ""
			for after := ""; ; {
				list, next := k.pool.List(after, limit)
				for _, st := range list {
					if seen[st.Name] || st.Name <= last {
						t.Errorf("limit %d: %s comes again, or too late", limit, st.Name)
					}
					seen[st.Name], last = true, st.Name
				}
				if after = next; after == "" {
					break
				}
				if m, ok := k.pool.Session(after); !ok {
					t.Fatal("it ended by itself")
				} else if err := m.Forget(nil); err != nil { // between two pages
					t.Fatal(err)
				}
				delete(all, last)
				k.signIn() // and its place is taken
			}
			for name := range all {
				if !seen[name] {
					t.Errorf("limit %d: %s is missing", limit, name)
				}
			}
		}
	})
}
