package refresher_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/refreshertest"
)

// crew is a fleet in front of the double: instances with journals of their own
// and one store.
type crew struct {
	t        *testing.T
	issuer   *double
	store    *refreshertest.Store
	sessions []*refresher.Session
	notes    []*notes
}

func newCrew(t *testing.T, n int, issuer *double, store *refreshertest.Store) *crew {
	t.Helper()
	c := &crew{t: t, issuer: issuer, store: store}
	for range n {
		c.join()
	}
	return c
}

// join adds an instance.
func (c *crew) join() *refresher.Session {
	c.t.Helper()
	told := &notes{}
	s := c.issuer.attach(c.t, func(cfg *refresher.Config) { cfg.Store, cfg.Observe = c.store, told.add })
	c.sessions = append(c.sessions, s)
	c.notes = append(c.notes, told)
	return s
}

func (c *crew) close() {
	for _, s := range c.sessions {
		closeSession(c.t, s)
	}
}

// request is what the handler does.
func (c *crew) request(s *refresher.Session, repeatable bool) int {
	ctx := context.Background()
	p, err := s.Enter(ctx, repeatable)
	if err != nil {
		return 503
	}
	time.Sleep(rand.N(20 * time.Millisecond))
	ok := c.issuer.accepts(p)
	time.Sleep(rand.N(20 * time.Millisecond))
	p.Settle()
	if ok {
		s.Accepted(p)
		return 200
	}
	if !repeatable {
		s.NoteUnauthorized(context.Background(), p, "GET /", false)
		return 401
	}
	next, again, err := s.Unauthorized(ctx, p, "GET /")
	if err != nil || !again {
		return 401
	}
	defer next.Settle()
	if !c.issuer.accepts(next) {
		s.NoteUnauthorized(context.Background(), next, "GET /", true)
		return 401
	}
	return 200
}

func TestAFleetRotatesOncePerGenerationAndNoCallerNotices(t *testing.T) {
	for _, push := range []bool{true, false} {
		t.Run(fmt.Sprintf("with news pushed %v", push), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				issuer := &double{profile: strictProfile(), delay: 40 * time.Millisecond, life: 20 * time.Second, n: 1}
				c := newCrew(t, 3, issuer, refreshertest.NewStore(push))
				defer c.close()
				c.store.Delay(2 * time.Millisecond)
				var wg sync.WaitGroup
				var mu sync.Mutex
				counts := map[int]int{}
				for i := range 30 {
					wg.Go(func() {
						for range 4000 {
							status := c.request(c.sessions[i%3], i%5 != 0)
							mu.Lock()
							counts[status]++
							mu.Unlock()
							time.Sleep(rand.N(300 * time.Millisecond))
						}
					})
				}
				wg.Wait()
				if len(counts) != 1 || counts[200] == 0 {
					t.Errorf("answers: %v", counts)
				}
				if issuer.reuses != 0 || issuer.most > 1 || issuer.commits < 30 {
					t.Errorf("%d rotations, %d spent tokens, %d at once", issuer.commits, issuer.reuses, issuer.most)
				}
				t.Logf("%v, %d rotations, calls %v", counts, issuer.commits, c.store.Calls())
				for _, s := range c.sessions {
					if st := s.Status(); st.State != refresher.PhaseFresh {
						t.Errorf("%+v", st)
					}
				}
			})
		})
	}
}

func strictProfile() refresher.Profile {
	return refresher.Profile{RevokesPrevious: true, NeedsAccess: true, Timeout: time.Second}
}
