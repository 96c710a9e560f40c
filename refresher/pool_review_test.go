package refresher_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func TestASessionInUseIsNotIdleAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, sandbox.Config{AccessLifetime: 100 * time.Hour}, func(c *refresher.PoolConfig) { c.IdleTimeout = time.Hour })
		defer k.finishPool()
		k.startPool()
		used, _ := k.signIn()
		idle, _ := k.signIn()
		for range 30 { // its token is not replaced in all that time
			k.await(3 * time.Minute)
			k.wantCalls(200, used)
		}
		k.endPool()
		k.startPool()
		k.await(3 * time.Second)
		k.wantCalls(200, used)
		k.wantCalls(-1, idle)
	})
}

func TestTheFormerKeyMayGoAfterAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, minute)
		defer k.finishPool()
		k.startPool()
		token, _ := k.signIn()
		for _, keys := range [][]string{{"next", "key"}, {"next"}} {
			k.cfg.Keys = keyring(t, keys...)
			old := k.detach
			var err error
			if k.detach, err = k.pool.Attach(k.cfg); err != nil {
				t.Fatal(err)
			}
			old()
			k.await(3 * time.Second)
		}
		k.endPool()
		k.startPool()
		k.wantCalls(200, token)
	})
}

func TestAPairThatIsAnsweredTwiceIsOneSession(t *testing.T) {
	for _, withhold := range []bool{false, true} {
		t.Run(fmt.Sprintf("withheld %t", withhold), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newPoolKit(t, minute, func(c *refresher.PoolConfig) { c.Withhold = withhold })
				defer k.finishPool()
				k.startPool()
				access, refresh := k.box.Login()
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() {
						m, handle, err := k.pool.Learn(context.Background(), pairOf(access, refresh), refresher.Pair{})
						if err != nil || handle.IsZero() == withhold {
							t.Errorf("handle %v, %v", handle, err)
							return
						}
						if withhold {
							if found, kind, ok, _ := k.pool.Find(handle.Reveal(), 0); !ok || kind != refresher.RefreshToken || !found.Same(m) {
								t.Error("the handle is not known")
							}
						}
					})
				}
				wg.Wait()
				if c := k.pool.Counts(); c.Sessions != 1 {
					t.Errorf("%d sessions", c.Sessions)
				}
				k.await(3 * time.Minute)
				k.wantCalls(200, access)
				k.wantUnharmed()
			})
		})
	}
}

// stuck is an issuer that answers some sessions with an error that only people
// can mend.
type stuck struct {
	delay time.Duration

	mu sync.Mutex
	n  int
}

func (*stuck) Profile() refresher.Profile {
	return refresher.Profile{RevokesPrevious: true}
}
func (s *stuck) Prepare(context.Context) (refresher.Exchange, error) { return s, nil }
func (s *stuck) Close()                                              {}
func (s *stuck) Send(_ context.Context, p refresher.Pair) refresher.Answer {
	time.Sleep(s.delay)
	if p.Refresh.Reveal()[0] == 's' {
		return refresher.Answer{Class: refresher.ClassConfig, Status: 403}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	return refresher.Answer{Class: refresher.ClassOK, Pair: refresher.Pair{
		Access: refresher.NewSecret(fmt.Sprintf("a%d", s.n)), Refresh: refresher.NewSecret(fmt.Sprintf("r%d", s.n)), ExpiresIn: time.Hour,
	}}
}

func TestARequestDoesNotOutliveItsPool(t *testing.T) {
	p := refresher.NewPool("portal", refresher.Options{Dir: stateDir(t)})
	if _, err := p.Attach(refresher.PoolConfig{Config: refresher.Config{Issuer: &stuck{delay: 500 * time.Millisecond}, Keys: keyring(t, "key")}}); err != nil {
		t.Fatal(err)
	}
	if err := p.Ready(context.Background()); err != nil {
		t.Fatal(err)
	}
	m, _, err := p.Learn(context.Background(), refresher.Pair{
		Access: refresher.NewSecret("x"), Refresh: refresher.NewSecret("spent"), ExpiresIn: time.Second,
	}, refresher.Pair{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(1050 * time.Millisecond) // it has ended, and the exchange is under way
	done := make(chan error, 1)
	go func() {
		_, err := m.Enter(context.Background(), true)
		done <- err
	}()
	time.Sleep(20 * time.Millisecond)
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Logf("%v", err)
	case <-time.After(5 * time.Second):
		t.Fatal("it goes on for ever")
	}
}

func TestNobodyCanMakeASessionRotateAtWill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, sandbox.Config{AccessLifetime: 8 * time.Hour})
		defer k.finishPool()
		k.startPool()
		token, _ := k.signIn()
		for i := range 3600 { // each of them a 401 to a request that cannot be sent again
			m, _, _, _ := k.pool.Find(token, 0)
			p, err := m.Enter(context.Background(), false)
			if err != nil {
				t.Fatal(err)
			}
			p.Settle()
			m.NoteUnauthorized(context.Background(), p, fmt.Sprintf("POST /%d", i), false)
			k.await(time.Second)
		}
		if s := k.box.Stats(); s.Exchanges > 13 { // rotation.md 7.2
			t.Errorf("%d exchanges in an hour", s.Exchanges)
		}
	})
}

func TestAFloodOfLoginsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, minute, func(c *refresher.PoolConfig) { c.MaxSessions = 50 })
		defer k.finishPool()
		k.startPool()
		for i := range 5000 {
			if _, _, err := k.pool.Learn(context.Background(), pairOf(fmt.Sprintf("a%d", i), fmt.Sprintf("r%d", i)), refresher.Pair{}); err != nil {
				t.Fatal(err)
			}
		}
		k.await(2 * time.Second)
		if c := k.pool.Counts(); c.Sessions > 50 {
			t.Errorf("%d sessions", c.Sessions)
		}
		k.endPool()
		k.startPool()
		if c := k.pool.Counts(); c.Sessions > 50 {
			t.Errorf("%d sessions after a restart", c.Sessions)
		}
	})
}

// Known: beyond 64 tokens the oldest are forgotten, and an exchange with one of
// them goes to the issuer, which takes it for a theft.
func TestARefreshTokenThatWasEverGivenIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, minute)
		defer k.finishPool()
		k.startPool()
		_, refresh := k.signIn()
		late := ""
		for range 60 {
			m, _, ok, _ := k.pool.Find(refresh, 0)
			if !ok {
				t.Fatal("unknown")
			}
			pair, err := m.Pair(context.Background(), refresher.NewSecret(refresh))
			if err != nil {
				t.Fatal(err)
			}
			if refresh = pair.Refresh.Reveal(); late == "" {
				k.await(time.Minute)
				pair, err = m.Pair(context.Background(), refresher.NewSecret(refresh))
				if err != nil {
					t.Fatal(err)
				}
				late = pair.Refresh.Reveal() // another program's, which seldom refreshes
			}
			k.await(time.Minute)
		}
		for _, when := range []string{"at once", "after a restart"} {
			if _, kind, ok, _ := k.pool.Find(late, 0); !ok || kind == refresher.AccessToken {
				t.Errorf("%s: it would go to the issuer, spent", when)
			}
			k.endPool()
			k.startPool()
		}
	})
}

func TestTheRefreshTokensOfASessionThatHasEndedAreSpent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, minute, func(c *refresher.PoolConfig) { c.MaxSessions = 2 })
		defer k.finishPool()
		k.startPool()
		_, loggedOut := k.signIn()
		m, _, _, _ := k.pool.Find(loggedOut, 0)
		if err := m.Forget(nil); err != nil {
			t.Fatal(err)
		}
		_, evicted := k.signIn()
		k.await(time.Second)
		k.signIn()
		k.await(time.Second)
		k.signIn()
		k.await(2 * time.Second)
		for _, when := range []string{"at once", "after a restart"} {
			if _, kind, ok, _ := k.pool.Find(loggedOut, 0); !ok || kind != refresher.SpentToken {
				t.Errorf("%s: the one of a session that has ended is %v (%t)", when, kind, ok)
			}
			if _, _, ok, _ := k.pool.Find(evicted, 0); ok {
				t.Errorf("%s: one that is good at the issuer does not get there", when)
			}
			k.endPool()
			k.startPool()
		}
	})
}

func TestWhoeverHasTheTokensOfAnExchangeThatPassedByIsOfItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, minute)
		defer k.finishPool()
		k.startPool()
		access, refresh := k.box.Login() // before the sidecar was there
		next := pairOf(k.box.Login())
		m, _, err := k.pool.Learn(context.Background(), next, pairOf(access, refresh))
		if err != nil {
			t.Fatal(err)
		}
		for token, want := range map[string]refresher.TokenKind{access: refresher.AccessToken, refresh: refresher.RefreshToken} {
			if got, kind, ok, _ := k.pool.Find(token, 0); !ok || kind != want || !got.Same(m) {
				t.Errorf("a former token is %v (%t)", kind, ok)
			}
		}
	})
}

func TestASessionThatIsNeededBetweenTwoConfigurationsDoesNoHarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, minute)
		defer k.finishPool()
		k.startPool()
		token, _ := k.signIn()
		k.detach()
		m, _, _, _ := k.pool.Find(token, 0)
		p, err := m.Enter(context.Background(), false) // which makes it live, without a configuration
		if err != nil {
			t.Fatal(err)
		}
		p.Settle()
		for range 2 { // and one that comes and goes
			detach, err := k.pool.Attach(k.cfg)
			if err != nil {
				t.Fatal(err)
			}
			detach()
			detach()
		}
		if _, err := k.pool.Attach(k.cfg); err != nil {
			t.Fatal(err)
		}
		k.await(2 * time.Minute)
		k.wantCalls(200, token)
		k.wantUnharmed()
	})
}
