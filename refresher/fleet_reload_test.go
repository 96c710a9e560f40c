package refresher_test

import (
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
