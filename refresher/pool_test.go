package refresher_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/refreshertest"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// poolKit is a pool in front of the kit's issuer and API.
type poolKit struct {
	*kit
	cfg    refresher.PoolConfig
	pool   *refresher.Pool
	detach func()
}

func newPoolKit(t *testing.T, box sandbox.Config, change ...func(*refresher.PoolConfig)) *poolKit {
	t.Helper()
	k := &poolKit{kit: newKit(t, box)}
	k.cfg = refresher.PoolConfig{Config: k.kit.cfg}
	for _, f := range change {
		f(&k.cfg)
	}
	return k
}

func (k *poolKit) startPool() {
	k.t.Helper()
	k.pool = refresher.NewPool("Portal", refresher.Options{Dir: k.dir, Clock: k.clock})
	var err error
	if k.detach, err = k.pool.Attach(k.cfg); err != nil {
		k.t.Fatal(err)
	}
	if err := k.pool.Ready(context.Background()); err != nil {
		k.t.Fatal(err)
	}
}

func (k *poolKit) endPool() {
	k.t.Helper()
	if k.pool == nil {
		return
	}
	if err := k.pool.Close(context.Background()); err != nil {
		k.t.Error(err)
	}
	k.pool = nil
}

func (k *poolKit) finishPool() {
	k.endPool()
	k.finish()
}

// login signs a caller in through the pool.
func (k *poolKit) signIn() (access, refresh string) {
	k.t.Helper()
	access, refresh = k.box.Login()
	_, handle, err := k.pool.Learn(context.Background(), pairOf(access, refresh), refresher.Pair{})
	if err != nil {
		k.t.Fatal(err)
	}
	if !handle.IsZero() {
		refresh = handle.Reveal()
	}
	return access, refresh
}

// call is a request of a caller's as the handler serves it.
func (k *poolKit) call(token, path string, repeatable bool) int {
	k.t.Helper()
	ctx := context.Background()
	m, kind, ok, err := k.pool.Find(token, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	if !ok || kind != refresher.AccessToken {
		return -1 // it goes on untouched
	}
	p, err := m.Enter(ctx, repeatable)
	if err != nil {
		k.t.Logf("%s: %v", path, err)
		return 503
	}
	defer func() { p.Settle() }()
	status := k.send(path, p)
	if status != 401 || !repeatable {
		if status == 401 {
			m.NoteUnauthorized(context.Background(), p, refresher.Route("GET", path), false)
		}
		return status
	}
	p.Settle()
	next, again, err := m.Unauthorized(ctx, p, refresher.Route("GET", path))
	if err != nil || !again {
		return status
	}
	p = next
	if status = k.send(path, p); status == 401 {
		m.NoteUnauthorized(context.Background(), p, refresher.Route("GET", path), true)
	}
	return status
}

func (k *poolKit) wantCalls(want int, tokens ...string) {
	k.t.Helper()
	for i, token := range tokens {
		if status := k.call(token, "/whoami", i%2 == 0); status != want {
			k.t.Errorf("token %d: status %d, want %d", i, status, want)
		}
	}
}

func TestACallerGoesOnWithItsFirstTokenForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, minute)
		defer k.finishPool()
		k.startPool()
		first, _ := k.signIn()
		second, _ := k.signIn()
		for range 200 {
			k.wantCalls(200, first, second, first)
			k.await(7 * time.Second)
		}
		k.wantUnharmed()
		s := k.box.Stats()
		if s.Unauthorized != 0 {
			t.Errorf("the upstream saw %+v", s)
		}
		// An idle session costs nothing but its entry.
		k.await(3 * time.Second)
		if c := k.pool.Counts(); c.Sessions != 2 || c.Live != 0 {
			t.Errorf("%+v", c)
		}
	})
}

func TestAPoolSurvivesItsProcess(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprintf("closed %t", clean), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newPoolKit(t, minute)
				defer k.finishPool()
				k.startPool()
				first, _ := k.signIn()
				ended, _ := k.signIn()
				k.await(100 * time.Second)
				k.wantCalls(200, first, ended)
				m, _, _, _ := k.pool.Find(ended, 0)
				if err := m.Forget(nil); err != nil {
					t.Fatal(err)
				}
				k.wantCalls(-1, ended)
				k.endPool()
				if !clean {
					k.await(0) // the log's last batch is its end in either case; see the crash tests of the journal
				}
				k.startPool()
				k.wantCalls(200, first)
				k.wantCalls(-1, ended)
				k.await(5 * time.Minute)
				k.wantCalls(200, first)
				k.wantUnharmed()
			})
		})
	}
}

func TestA401LeadsToOneExchangeAndANewRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &double{profile: refresher.Profile{RevokesPrevious: true}, life: time.Hour, delay: 50 * time.Millisecond}
		p := refresher.NewPool("portal", refresher.Options{Dir: stateDir(t), Clock: refreshertest.NewClock()})
		defer p.Close(context.Background())
		if _, err := p.Attach(refresher.PoolConfig{Config: refresher.Config{Issuer: d, Keys: keyring(t, "key")}}); err != nil {
			t.Fatal(err)
		}
		m, _, err := p.Learn(context.Background(), d.pairLocked(), refresher.Pair{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		var wg sync.WaitGroup
		for range 50 { // the upstream refuses the token of all of them
			wg.Go(func() {
				ctx := context.Background()
				pass, err := m.Enter(ctx, true)
				if err != nil {
					t.Error(err)
					return
				}
				pass.Settle()
				next, again, err := m.Unauthorized(ctx, pass, "GET /")
				if err != nil || !again || !d.accepts(next) {
					t.Errorf("sent again %t with the new token: %v", again, err)
				}
				next.Settle()
			})
		}
		wg.Wait()
		if d.committed() != 1 {
			t.Errorf("%d exchanges", d.committed())
		}
	})
}

func TestCallersThatRefreshForThemselvesSpendNothing(t *testing.T) {
	for _, withhold := range []bool{false, true} {
		t.Run(fmt.Sprintf("withheld %t", withhold), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newPoolKit(t, minute, func(c *refresher.PoolConfig) { c.Withhold = withhold })
				defer k.finishPool()
				k.startPool()
				access, refresh := k.signIn()
				type caller struct{ access, refresh string }
				callers := make([]caller, 20)
				for i := range callers {
					callers[i] = caller{access, refresh}
				}
				for round := range 30 {
					k.await(11 * time.Second)
					for i := range callers {
						c := &callers[i]
						k.wantCalls(200, c.access)
						if (round+i)%3 > 0 {
							continue
						}
						m, kind, ok, err := k.pool.Find(c.refresh, 0)
						if err != nil || !ok || kind != refresher.RefreshToken {
							t.Fatalf("the refresh token of round %d is not known: %v %v", round, kind, err)
						}
						pair, err := m.Pair(context.Background(), refresher.NewSecret(c.refresh))
						if err != nil {
							t.Fatal(err)
						}
						if withhold && pair.Refresh.Reveal() != c.refresh {
							t.Error("the refresh token was not withheld")
						}
						if pair.ExpiresIn <= 0 || pair.ExpiresIn > time.Minute {
							t.Errorf("expires in %s", pair.ExpiresIn)
						}
						c.access, c.refresh = pair.Access.Reveal(), pair.Refresh.Reveal()
					}
				}
				k.wantCalls(200, access)
				k.wantUnharmed()
			})
		})
	}
}

func TestATokenIsBoundToItsFirstCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, minute)
		defer k.finishPool()
		k.startPool()
		token, _ := k.signIn()
		alice, mallory := k.pool.Caller("10.0.0.1"), k.pool.Caller("10.0.0.2")
		for _, c := range []struct {
			who  refresher.Caller
			want error
		}{{alice, nil}, {alice, nil}, {mallory, refresher.ErrOtherCaller}, {0, nil}} {
			if _, _, ok, err := k.pool.Find(token, c.who); !ok || !errors.Is(err, c.want) {
				t.Errorf("caller %d: %v, %v, want %v", c.who, ok, err, c.want)
			}
		}
		k.await(3 * time.Minute) // over rotations
		k.endPool()
		k.startPool()
		if _, _, _, err := k.pool.Find(token, mallory); !errors.Is(err, refresher.ErrOtherCaller) {
			t.Errorf("after a restart: %v", err)
		}
	})
}

func TestABoundedPoolForgetsTheLeastRecentlyUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, sandbox.Config{AccessLifetime: time.Hour}, func(c *refresher.PoolConfig) { c.MaxSessions = 10 })
		defer k.finishPool()
		k.startPool()
		var tokens []string
		for range 10 {
			token, _ := k.signIn()
			tokens = append(tokens, token)
			k.await(time.Second)
		}
		k.wantCalls(200, tokens[0], tokens[1], tokens[2])
		for range 3 {
			k.signIn()
			k.await(2 * time.Second)
		}
		for i, token := range tokens {
			_, _, ok, _ := k.pool.Find(token, 0)
			if want := i < 3 || i > 5; ok != want {
				t.Errorf("session %d: known %t, want %t", i, ok, want)
			}
		}
	})
}

func TestSessionsEndByTime(t *testing.T) {
	for name, c := range map[string]struct {
		idle, age, used, unused time.Duration
	}{
		"idle_timeout": {idle: time.Hour, age: 100 * time.Hour, unused: 90 * time.Minute},
		"max_age":      {idle: 100 * time.Hour, age: time.Hour, used: 90 * time.Minute, unused: 90 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newPoolKit(t, sandbox.Config{AccessLifetime: 10 * time.Minute}, func(p *refresher.PoolConfig) { p.IdleTimeout, p.MaxAge = c.idle, c.age })
				defer k.finishPool()
				k.startPool()
				used, _ := k.signIn()
				unused, _ := k.signIn()
				for range 18 {
					k.await(5 * time.Minute)
					if c.used == 0 {
						k.wantCalls(200, used)
					} else {
						k.call(used, "/whoami", true)
					}
				}
				k.await(time.Minute)
				if _, _, ok, _ := k.pool.Find(used, 0); ok != (c.used == 0) {
					t.Errorf("the used one is known: %t", ok)
				}
				if _, _, ok, _ := k.pool.Find(unused, 0); ok {
					t.Error("the unused one is known")
				}
			})
		})
	}
}

func TestALostSessionIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, minute)
		defer k.finishPool()
		k.startPool()
		token, _ := k.signIn()
		other, _ := k.signIn()
		killed, _ := k.box.Lookup(token)
		k.box.KillSession(killed.ID)
		k.await(2 * time.Minute)
		k.wantCalls(-1, token)
		k.wantCalls(200, other)
		if k.notes.count(refresher.NoteLost) != 1 {
			t.Error("nobody was told")
		}
	})
}

func TestAReloadGoesOnWithThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, minute)
		defer k.finishPool()
		k.startPool()
		token, _ := k.signIn()
		for range 20 {
			old := k.detach
			k.cfg.Keys = keyring(t, "other", "key")
			var err error
			if k.detach, err = k.pool.Attach(k.cfg); err != nil {
				t.Fatal(err)
			}
			old()
			k.await(5 * time.Second)
			k.wantCalls(200, token)
		}
		k.wantUnharmed()
	})
}
