package refresher_test

import (
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

func TestASessionGoesOverToAnotherStoreAndBackWithoutAStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := strictCrew(t, 1, 20*time.Second)
		defer c.close()
		s := c.sessions[0]
		for _, store := range []refresher.Store{refreshertest.NewStore(false), nil, c.store, nil, refreshertest.NewStore(true)} {
			time.Sleep(9700 * time.Millisecond) // now and then in the middle of an exchange
			if _, err := s.Attach(refresher.Config{Issuer: c.issuer, Keys: keyring(t, "key"), Store: store}); err != nil {
				t.Fatal(err)
			}
			before := c.issuer.committed()
			time.Sleep(50 * time.Second)
			c.wantAll(1, 0)
			if c.issuer.committed() < before+3 {
				t.Errorf("%d rotations in 50 s", c.issuer.committed()-before)
			}
		}
		c.wantUnharmed()
	})
}

// flaky is the double whose first exchange ends with an unknown outcome and has
// committed nothing.
type flaky struct {
	*double
	failed atomic.Bool
}

func (f *flaky) Prepare(ctx context.Context) (refresher.Exchange, error) { return f, nil }
func (f *flaky) Send(ctx context.Context, p refresher.Pair) refresher.Answer {
	if !f.failed.Swap(true) {
		return refresher.Answer{Class: refresher.ClassUnknown, Err: errors.New("reset")}
	}
	return f.double.Send(ctx, p)
}

func TestAnExchangeWaitsForWhatPassedByAnEarlierSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &flaky{double: &double{profile: strictProfile(), delay: 20 * time.Millisecond, life: 5 * time.Minute, n: 1}}
		s := d.attach(t, func(c *refresher.Config) { c.Issuer = d })
		defer closeSession(t, s)
		for !d.failed.Load() {
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(35 * time.Second) // hold-off over
		if st := s.Status(); st.State != refresher.PhaseUncertain {
			t.Fatalf("%+v", st)
		}
		// An upload that cannot be sent again enters...
		upload, err := s.Enter(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		// ...and another request is accepted: the witness.
		p, err := s.Enter(t.Context(), true)
		if err != nil || !d.accepts(p) {
			t.Fatal(err)
		}
		p.Settle()
		s.Accepted(p)
		time.Sleep(300 * time.Millisecond) // the upstream looks at the upload's token now
		if !d.accepts(upload) {
			t.Errorf("the upload's token was revoked under it after 300 ms (drain is 2 s): generation %d, %d commits", upload.Generation(), d.committed())
		}
		upload.Settle()
	})
}

func TestTheStoreMayBeTakenAwayWhileAnIntentIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &double{profile: strictProfile(), delay: 20 * time.Millisecond, life: time.Minute, n: 1}
		store := refreshertest.NewStore(true)
		var posting atomic.Bool
		store.Fault(func(op, name string) error {
			if op == "Create" && strings.HasPrefix(name, "i.") {
				posting.Store(true)
				time.Sleep(time.Second)
			}
			return nil
		})
		s := d.attach(t, func(c *refresher.Config) { c.Store = store })
		defer closeSession(t, s)
		for !posting.Load() {
			time.Sleep(10 * time.Millisecond)
		}
		cfg := refresher.Config{Issuer: d, Sources: []refresher.Source{d.source()}, Keys: keyring(t, "key")}
		if _, err := s.Attach(cfg); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
	})
}

type slowLogin struct{}

func (slowLogin) String() string { return "slow" }
func (slowLogin) SignsIn() bool  { return true }
func (slowLogin) Fetch(ctx context.Context) (refresher.Pair, error) {
	time.Sleep(5 * time.Second)
	return refresher.Pair{}, &refresher.RetryError{Err: errors.New("503")}
}

func TestTheStoreMayBeTakenAwayWhileASourceSignsIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &double{profile: strictProfile(), life: time.Minute, n: 1}
		s := d.attach(t, func(c *refresher.Config) {
			c.Store = refreshertest.NewStore(true)
			c.Sources = []refresher.Source{slowLogin{}}
		})
		defer closeSession(t, s)
		time.Sleep(3 * time.Second)
		if _, err := s.Attach(refresher.Config{Issuer: d, Sources: []refresher.Source{slowLogin{}}, Keys: keyring(t, "key")}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
	})
}
