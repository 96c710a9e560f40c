package refresher_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func TestAPoolTellsAtLoadOfMoreSessionsThanItsRateCarries(t *testing.T) {
	for name, c := range map[string]struct {
		most     int
		lifetime time.Duration
		rate     float64
		want     int
	}{
		"far more":                {100_000, 10 * time.Minute, 50, 1},
		"by default":              {0, 10 * time.Minute, 50, 1},
		"fewer":                   {10_000, 10 * time.Minute, 50, 0},
		"of long lives":           {100_000, time.Hour, 50, 0},
		"of lives nobody knows":   {100_000, 0, 50, 0},
		"at a rate nobody knows":  {100_000, 10 * time.Minute, 0, 0},
		"at a rate that was made": {100_000, 10 * time.Minute, 500, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zap.WarnLevel)
				k := newPoolKit(t, minute, func(p *refresher.PoolConfig) {
					p.MaxSessions, p.Policy.Lifetime, p.Rate, p.Logger = c.most, c.lifetime, c.rate, zap.New(core)
				})
				defer k.finishPool()
				k.startPool()
				told := logs.FilterMessageSnippet("max_sessions is more").All()
				if len(told) != c.want {
					t.Fatalf("told %d times", len(told))
				}
				if c.want > 0 { // one exchange in about 435 s
					need, _ := told[0].ContextMap()["exchanges_per_second"].(float64)
					if need < 200 || need > 260 {
						t.Errorf("it needs %v exchanges a second", need)
					}
				}
			})
		})
	}
}

func TestAPoolTellsOnceThatItsSessionsNeedMoreThanItsRate(t *testing.T) {
	for name, c := range map[string]struct {
		rate float64
		want int
	}{"too low": {1, 1}, "enough": {3, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zap.WarnLevel)
				k := newPoolKit(t, minute, func(p *refresher.PoolConfig) { p.Rate, p.Logger = c.rate, zap.New(core) })
				defer k.finishPool()
				k.startPool()
				for range 60 { // each is exchanged twice a minute
					k.signIn()
				}
				k.await(10 * time.Minute)
				told := logs.FilterMessageSnippet("need more exchanges").All()
				if len(told) != c.want {
					t.Fatalf("told %d times", len(told))
				}
				if c.want > 0 {
					f := told[0].ContextMap() // perhaps before the last of them signed in
					need, sessions := f["exchanges_per_second"].(float64), float64(f["sessions"].(int64))
					if need < 1 || sessions > 60 || math.Abs(need-sessions/30) > 0.3 {
						t.Errorf("%v", f)
					}
					k.await(time.Hour)
					if n := logs.FilterMessageSnippet("need more exchanges").Len(); n != 2 {
						t.Errorf("an hour later: told %d times", n)
					}
				}
			})
		})
	}
}
