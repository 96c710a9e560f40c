package refresher_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

var revoking = refresher.Profile{RevokesPrevious: true, NeedsAccess: true}

// Ten thousand rotations that revoke, against an upstream that takes nothing but
// the current token: no caller sees a 401.
func TestNoCallerSeesARotation(t *testing.T) {
	rotations := 10_000
	switch {
	case testing.Short():
		rotations = 500
	case refresher.RaceDetector:
		rotations = 2_000 // all of them take minutes
	}
	synctest.Test(t, func(t *testing.T) {
		d := &double{profile: revoking, delay: 20 * time.Millisecond, life: 2 * time.Second}
		s := d.attach(t)
		var requests, replayed, waited, refused atomic.Int64
		var wg sync.WaitGroup
		for caller := range 6 {
			rng := rand.New(rand.NewPCG(uint64(caller), 1))
			between := func(limit time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(limit))) }
			wg.Go(func() {
				for d.committed() < rotations && refused.Load() == 0 {
					time.Sleep(between(200 * time.Millisecond))
					requests.Add(1)
					repeatable := caller%2 == 0
					p, err := s.Enter(t.Context(), repeatable)
					if err != nil {
						t.Errorf("a request gets %v", err)
						refused.Add(1)
						return
					}
					if p.Waited > 0 {
						waited.Add(1)
					}
					slowest := 30 * time.Millisecond
					if repeatable {
						slowest = 300 * time.Millisecond
					}
					time.Sleep(between(slowest))
					ok := d.accepts(p)
					time.Sleep(between(slowest))
					p.Settle()
					if ok {
						s.Accepted(p)
						continue
					}
					if !repeatable {
						s.NoteUnauthorized(context.Background(), p, "GET /", false)
						refused.Add(1)
						continue
					}
					p, again, err := s.Unauthorized(t.Context(), p, "GET /")
					if !again {
						t.Errorf("the caller gets the 401 (%v)", err)
						refused.Add(1)
						continue
					}
					replayed.Add(1)
					time.Sleep(between(30 * time.Millisecond))
					if !d.accepts(p) {
						refused.Add(1)
					}
					p.Settle()
				}
			})
		}
		wg.Wait()
		closeSession(t, s)
		if refused.Load() != 0 || d.reuses != 0 || d.most != 1 {
			t.Errorf("%d refused, %d reuses, %d exchanges at once", refused.Load(), d.reuses, d.most)
		}
		t.Logf("%d rotations, %d requests, %d waited, %d sent again", d.commits, requests.Load(), waited.Load(), replayed.Load())
	})
}

func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func TestWaitingAtTheGate(t *testing.T) {
	bubble(t, "ends when the exchange does", func(t *testing.T) {
		d := &double{profile: revoking, delay: time.Second, life: time.Hour}
		s := d.attach(t)
		defer closeSession(t, s)
		synctest.Wait()
		go s.Refresh(t.Context())
		synctest.Wait()
		p, err := s.Enter(t.Context(), true)
		if err != nil || p.Generation() != 2 || p.Waited != 2*time.Second {
			t.Errorf("%v, generation %d, after %v", err, p.Generation(), p.Waited)
		}
	})
	for name, life := range map[string]time.Duration{"its known end": time.Hour, "no known end": 0} {
		bubble(t, "takes no longer than wait, then the live token serves, with "+name, func(t *testing.T) {
			d := &double{profile: revoking, delay: 4 * time.Second, life: life}
			s := d.attach(t, func(c *refresher.Config) { c.Policy.Wait = time.Second })
			defer closeSession(t, s)
			synctest.Wait()
			go s.Refresh(t.Context())
			synctest.Wait()
			began := time.Now()
			p, err := s.Enter(t.Context(), true)
			if time.Since(began) != time.Second {
				t.Errorf("waited %v", time.Since(began))
			}
			if err != nil {
				t.Fatalf("the issuer is slow, the token lives: %v", err)
			}
			if p.Generation() != 1 || p.Waited != time.Second {
				t.Errorf("generation %d after %v", p.Generation(), p.Waited)
			}
		})
	}
	bubble(t, "is for 1,024", func(t *testing.T) {
		d := &double{profile: revoking, delay: time.Second, life: time.Hour}
		s := d.attach(t)
		defer closeSession(t, s)
		synctest.Wait()
		go s.Refresh(t.Context())
		synctest.Wait()
		var passed, busy atomic.Int64
		var wg sync.WaitGroup
		for range 1500 {
			wg.Go(func() {
				_, err := s.Enter(t.Context(), true)
				var u *refresher.Unavailable
				switch {
				case err == nil:
					passed.Add(1)
				case errors.As(err, &u) && u.Busy && u.RetryAfter == time.Second && u.Error() != "":
					busy.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := s.Status().Waiting; n != 1024 {
			t.Errorf("%d wait", n)
		}
		wg.Wait()
		if passed.Load() != 1024 || busy.Load() != 476 || s.Status().Waiting != 0 {
			t.Errorf("%d passed, %d turned away, %d still wait", passed.Load(), busy.Load(), s.Status().Waiting)
		}
	})
	bubble(t, "ends when the caller hangs up", func(t *testing.T) {
		d := &double{profile: revoking, delay: time.Second, life: time.Hour}
		s := d.attach(t)
		defer closeSession(t, s)
		synctest.Wait()
		go s.Refresh(t.Context())
		synctest.Wait()
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(100*time.Millisecond, func() { cancel(gone) })
		if _, err := s.Enter(ctx, true); !errors.Is(err, gone) {
			t.Error(err)
		}
		if n := s.Status().Waiting; n != 0 {
			t.Errorf("%d wait", n)
		}
	})
	bubble(t, "ends with the session", func(t *testing.T) {
		d := &double{profile: revoking, delay: time.Second, life: time.Hour}
		s := d.attach(t, func(c *refresher.Config) { c.Sources = nil; c.Issuer = d })
		time.AfterFunc(time.Second, func() { closeSession(t, s) })
		synctest.Wait()
		_, err := s.Enter(t.Context(), true)
		var u *refresher.Unavailable
		if !errors.As(err, &u) || u.RetryAfter != 5*time.Second {
			t.Errorf("an empty session: %v", err)
		}
		time.Sleep(2 * time.Second)
	})
	bubble(t, "is of no use where the session is lost", func(t *testing.T) {
		d := &double{profile: revoking, life: time.Hour}
		s := d.attach(t)
		defer closeSession(t, s)
		synctest.Wait()
		d.mu.Lock()
		d.n += 5 // somebody else used the refresh token
		d.mu.Unlock()
		if err := s.Refresh(t.Context()); err == nil {
			t.Error("refreshed")
		}
		began := time.Now()
		_, err := s.Enter(t.Context(), true)
		var u *refresher.Unavailable
		if !errors.As(err, &u) || u.Lost != refresher.ReasonRejected || u.RetryAfter != 0 || time.Since(began) != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
	bubble(t, "is for the next attempt only if that is near", func(t *testing.T) {
		d := &double{profile: refresher.Profile{}, life: 20 * time.Second}
		s := d.attach(t)
		defer closeSession(t, s)
		synctest.Wait()
		d.mu.Lock()
		d.refuse = errors.New("refused")
		d.mu.Unlock()
		time.Sleep(21 * time.Second)
		st := s.Status()
		if st.State != refresher.PhaseExpired || st.LastError != "refused" || st.NextAttempt.IsZero() {
			t.Fatalf("%+v", st)
		}
		p, err := s.Enter(t.Context(), true)
		var u *refresher.Unavailable
		if !errors.As(err, &u) || u.RetryAfter < time.Second || u.Lost != "" {
			t.Fatalf("%v, %+v", err, p)
		}
		d.mu.Lock()
		d.refuse = nil
		d.mu.Unlock()
		if p, err := s.Enter(t.Context(), true); err != nil || p.Generation() != 2 {
			t.Errorf("%v, %+v", err, p)
		}
	})
}

func Test401sOfTheUpstream(t *testing.T) {
	bubble(t, "to a token of the past are sent again at once", func(t *testing.T) {
		d := &double{profile: revoking, life: time.Hour}
		s := d.attach(t)
		defer closeSession(t, s)
		synctest.Wait()
		old, _ := s.Enter(t.Context(), true)
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		p, again, err := s.Unauthorized(t.Context(), old, "GET /")
		if err != nil || !again || p.Generation() != 2 {
			t.Errorf("%v, %v, %+v", again, err, p)
		}
		p.Settle()
	})
	bubble(t, "lead to an exchange, once", func(t *testing.T) {
		d := &double{profile: revoking, life: time.Hour}
		s := d.attach(t)
		defer closeSession(t, s)
		synctest.Wait()
		p, _ := s.Enter(t.Context(), true)
		next, again, err := s.Unauthorized(t.Context(), p, "GET /")
		if err != nil || !again || next.Generation() != 2 || d.committed() != 1 {
			t.Fatalf("%v, %v, %+v", again, err, next)
		}
		next.Settle()
		// The token is new: the upstream may not know it yet.
		began := time.Now()
		same, again, err := s.Unauthorized(t.Context(), next, "GET /")
		if err != nil || !again || same.Generation() != 2 || time.Since(began) != 250*time.Millisecond {
			t.Errorf("lag: %v, %v, %+v after %v", again, err, same, time.Since(began))
		}
		same.Settle()
		s.NoteUnauthorized(context.Background(), same, "GET /", true)
		time.Sleep(time.Minute)
		if _, again, err := s.Unauthorized(t.Context(), same, "GET /"); again || err != nil || d.committed() != 1 {
			t.Errorf("in quarantine: %v, %v", again, err)
		}
	})
	bubble(t, "of one route do not make a storm", func(t *testing.T) {
		d := &double{profile: revoking, delay: 50 * time.Millisecond, life: time.Hour}
		s := d.attach(t)
		defer closeSession(t, s)
		synctest.Wait()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				for range 100 {
					p, err := s.Enter(t.Context(), true)
					if err != nil {
						t.Error(err)
						return
					}
					next, again, _ := s.Unauthorized(t.Context(), p, "GET /always401")
					if again {
						next.Settle()
						s.NoteUnauthorized(context.Background(), next, "GET /always401", true)
					}
					time.Sleep(100 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		if n := d.committed(); n != 1 {
			t.Errorf("10,000 refusals led to %d exchanges", n)
		}
		if d.reuses != 0 || d.most != 1 {
			t.Errorf("%d reuses, %d at once", d.reuses, d.most)
		}
	})
	bubble(t, "are waited on for no longer than wait", func(t *testing.T) {
		d := &double{profile: refresher.Profile{}, delay: 4 * time.Second, life: time.Hour}
		s := d.attach(t, func(c *refresher.Config) { c.Policy.Wait = time.Second })
		defer closeSession(t, s)
		synctest.Wait()
		p, _ := s.Enter(t.Context(), true)
		began := time.Now()
		if _, again, err := s.Unauthorized(t.Context(), p, "GET /"); again || err != nil || time.Since(began) != time.Second {
			t.Errorf("%v, %v after %v", again, err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, again, err := s.Unauthorized(ctx, p, "GET /"); again || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("hung up: %v, %v", again, err)
		}
	})
	bubble(t, "in sum hold a request no longer than wait", func(t *testing.T) {
		d := &double{profile: refresher.Profile{}, delay: 5 * time.Second, life: 10 * time.Second}
		s := d.attach(t, func(c *refresher.Config) { c.Policy.Wait = 2 * time.Second })
		defer closeSession(t, s)
		synctest.Wait()
		p, err := s.Enter(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Second) // the exchange is under way; in a second the token ends
		began := time.Now()
		_, _, err = s.Unauthorized(t.Context(), p, "GET /")
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("held for %v, then %v", d, err)
		}
	})
}

func TestDrainingWaitsForWhatCannotBeSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &double{profile: revoking, life: time.Hour}
		s := d.attach(t)
		defer closeSession(t, s)
		synctest.Wait()
		p, err := s.Enter(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Refresh(t.Context()) }()
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		if d.committed() != 0 || !d.accepts(p) {
			t.Fatal("the token died under a request")
		}
		p.Settle()
		if err := <-done; err != nil {
			t.Error(err)
		}
		again, err := s.Enter(t.Context(), false)
		if err != nil || again.Generation() != 2 {
			t.Errorf("%v, %+v", err, again)
		}
		again.Settle()
	})
}

// The same with real goroutines and real time, for the race detector.
func TestASessionUnderRaces(t *testing.T) {
	d := &double{profile: revoking, life: time.Hour}
	s := d.attach(t)
	cfg := refresher.Config{Issuer: d, Sources: []refresher.Source{d.source()}, Keys: keyring(t, "key")}
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for i := range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				p, err := s.Enter(ctx, i%2 == 0)
				if err != nil {
					continue
				}
				if !d.accepts(p) {
					s.NoteUnauthorized(context.Background(), p, fmt.Sprint("GET /", i), false)
				} else {
					s.Accepted(p)
				}
				p.Settle()
				_ = s.Status()
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = s.Refresh(ctx)
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			detach, err := s.Attach(cfg)
			if err != nil {
				t.Error(err)
				return
			}
			detach()
			detach()
		}
	})
	wg.Wait()
	closeSession(t, s)
	if d.reuses != 0 || d.most > 1 {
		t.Errorf("%d reuses, %d at once", d.reuses, d.most)
	}
}
