package refresher_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// The pair that an end hands over is the newest one, whatever is under way: what
// is revoked then is what would have lived on.
func TestAnEndHandsOverTheNewestPair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, sandbox.Config{AccessLifetime: time.Hour}, seeded)
		k.start()
		defer k.finish()
		k.await(time.Second)
		k.box.Fault(sandbox.Fault{Commit: true, DelayAfter: 2 * time.Second}, 1)
		refreshed := make(chan error, 1)
		go func() { refreshed <- k.session.Refresh(context.Background()) }()
		k.await(time.Second) // the exchange is under way
		last, err := k.session.End(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if err := <-refreshed; err != nil {
			t.Errorf("the exchange under way: %v", err)
		}
		access, refresh, _ := k.box.Current("s1")
		if last.Access.Reveal() != access || last.Refresh.Reveal() != refresh {
			t.Error("it is not the pair that the issuer has")
		}
		k.wantState(refresher.PhaseLost, refresher.ReasonLoggedOut)
		if again, err := k.session.End(context.Background()); err != nil || !again.Refresh.IsZero() {
			t.Errorf("a second end: %v, a pair: %v", err, !again.Refresh.IsZero())
		}
	})
}

func TestAnEndThatNobodyWaitedForHandsOverLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, sandbox.Config{AccessLifetime: time.Hour}, seeded)
		k.start()
		defer k.finish()
		k.await(time.Second)
		k.box.Fault(sandbox.Fault{Commit: true, DelayAfter: 2 * time.Second}, 1)
		go func() { _ = k.session.Refresh(context.Background()) }()
		k.await(time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if _, err := k.session.End(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v", err)
		}
		k.await(5 * time.Second)
		k.wantState(refresher.PhaseLost, refresher.ReasonLoggedOut)
		last, err := k.session.End(context.Background())
		if _, refresh, _ := k.box.Current("s1"); err != nil || last.Refresh.Reveal() != refresh {
			t.Errorf("error %v, or another pair", err)
		}
	})
}

func TestATokenIsGoodUntilItIsRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, sandbox.Config{AccessLifetime: time.Hour}, seeded)
		k.start()
		defer k.finish()
		k.await(time.Second)
		token, err := k.session.Token(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		st := k.session.Status()
		access, _, _ := k.box.Current("s1")
		want := st.ExpiresAt
		if k.cfg.Issuer.Profile().RevokesPrevious {
			want = st.RefreshAt
		}
		if token.Access.Reveal() != access || token.Generation != 1 || token.Epoch != 1 ||
			token.ExpiresAt.Sub(st.ExpiresAt).Abs() > time.Second || token.GoodUntil.Sub(want).Abs() > time.Second {
			t.Errorf("good until %v, expires %v, of %v", token.GoodUntil, token.ExpiresAt, st)
		}
		if _, err := k.session.End(context.Background()); err != nil {
			t.Fatal(err)
		}
		var u *refresher.Unavailable
		if _, err := k.session.Token(context.Background()); !errors.As(err, &u) || u.Lost != refresher.ReasonLoggedOut {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestOneOfAPoolsSessionsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newPoolKit(t, sandbox.Config{AccessLifetime: time.Hour})
		k.startPool()
		access, refresh := k.signIn()
		other, _ := k.signIn()
		m, _, ok, err := k.pool.Find(access, 0)
		if !ok || err != nil {
			t.Fatal(err)
		}
		last, err := m.End(context.Background())
		if err != nil || last.Refresh.Reveal() != refresh {
			t.Errorf("error %v, or another pair", err)
		}
		if _, err := m.End(context.Background()); !errors.Is(err, refresher.ErrForgotten) {
			t.Errorf("again: %v", err)
		}
		k.await(10 * time.Second)
		k.endPool()
		k.startPool()
		if _, _, ok, _ := k.pool.Find(access, 0); ok {
			t.Error("it is there again after a restart")
		}
		if _, _, ok, _ := k.pool.Find(other, 0); !ok {
			t.Error("another one has gone, too")
		}
		k.finishPool()
	})
}
