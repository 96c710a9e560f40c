package refresher

import (
	"math"
	"time"

	"go.uber.org/zap"
)

const (
	loadLooked = time.Minute // how often a pool adds up what its sessions need
	loadTold   = time.Hour   // how often it tells, at most
)

// interval is how long an access token that lives for life is in use; 0 is for
// ever.
func (c *PoolConfig) interval(life time.Duration, known bool) time.Duration {
	const middle = 0.5 // of the jitter
	return plan(c.Policy, c.Issuer.Profile(), Instant{}, life, known, middle).refreshAt.Boot
}

// warnOfRate tells at load of a bound that the issuer's rate cannot carry, where
// it is known how long the tokens live.
func (c *PoolConfig) warnOfRate(pool string) {
	life := c.Policy.Lifetime
	if c.Rate <= 0 || life <= 0 {
		return
	}
	if need := float64(c.maxSessions()) / c.interval(life, true).Seconds(); need > c.Rate {
		c.Logger.Warn("max_sessions is more than the issuer's rate can keep fresh: with so many, tokens would end before they are replaced",
			zap.String("pool", pool), zap.Int64("max_sessions", c.maxSessions()), zap.Duration("lifetime", life),
			zap.Float64("exchanges_per_second", rounded(need)), zap.Float64("rate", c.Rate),
			zap.Int64("sessions_at_that_rate", int64(c.Rate*c.interval(life, true).Seconds())))
	}
}

// watchRate tells now and then that the sessions that there are need more than
// the issuer's rate. It is tidy's.
func (p *Pool) watchRate(cfg *PoolConfig) {
	now := p.now().Boot
	if cfg.Rate <= 0 || now < p.load.look || now < p.load.tell {
		return
	}
	p.load.look = now + loadLooked
	need := 0.0 // exchanges a second
	for n := range p.table.parts {
		part := &p.table.parts[n]
		part.RLock()
		for i := range part.slots {
			s := &part.slots[i]
			if s.ref == 0 {
				continue
			}
			e := packedEntry(part.bytes.Get(s.ref)).times()
			if every := cfg.interval(e.rec.Left, e.rec.Expires); every > 0 {
				need += 1 / every.Seconds()
			}
		}
		part.RUnlock()
	}
	if need > cfg.Rate {
		p.load.tell = now + loadTold
		cfg.Logger.Warn("the pool's sessions need more exchanges than the issuer's rate allows: tokens end before they are replaced",
			zap.String("pool", p.name), zap.Int64("sessions", p.table.count.Load()),
			zap.Float64("exchanges_per_second", rounded(need)), zap.Float64("rate", cfg.Rate))
	}
}

func rounded(x float64) float64 { return math.Round(10*x) / 10 }
