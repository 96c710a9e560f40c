//go:build !race

package refresher_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/refreshertest"
)

func TestSessionsThatFailDoNotKeepTheOthersFromTheirExchanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := refresher.NewPool("portal", refresher.Options{Dir: stateDir(t), Clock: refreshertest.NewClock()})
		defer p.Close(context.Background())
		if _, err := p.Attach(refresher.PoolConfig{Config: refresher.Config{Issuer: &stuck{}, Keys: keyring(t, "key")}}); err != nil {
			t.Fatal(err)
		}
		learn := func(access, refresh string) refresher.Member {
			m, _, err := p.Learn(context.Background(), refresher.Pair{
				Access: refresher.NewSecret(access), Refresh: refresher.NewSecret(refresh), ExpiresIn: time.Hour,
			}, refresher.Pair{})
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		for i := range 2100 { // more than the schedule has live at a time
			learn(fmt.Sprintf("sa%d", i), fmt.Sprintf("s%d", i))
		}
		time.Sleep(5 * time.Minute)
		good := learn("good", "good")
		time.Sleep(59 * time.Minute)
		st, err := good.Status()
		if err != nil || st.Generation != 2 {
			t.Errorf("%+v, %v", st, err)
		}
	})
}
