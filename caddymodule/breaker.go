package caddymodule

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// The breaker of an issuer opens when at least breakerFailures of the exchanges
// that ended within breakerWindow failed, these were at least half of them
// (rotation.md 7.2), and they were not all of one session: its own backoff and
// budget bound that one, and alone it would only come back later. It stays open
// for breakerPause, twice as long after each trial that fails, at most
// breakerMaxPause.
const (
	breakerWindow   = 30 * time.Second
	breakerFailures = 5
	breakerPause    = 10 * time.Second
	breakerMaxPause = 2 * time.Minute
)

// breaker bounds the exchanges with one issuer: so many a second, and while it
// fails, one now and then. The sessions of the process share it.
type breaker struct {
	host string
	rate *rate.Limiter
	now  func() time.Time

	mu    sync.Mutex
	ended [breakerWindow / time.Second]tally // by second, while closed
	last  failure                            // of all
	other failure                            // the last of any session but that of last
	pause time.Duration                      // 0: closed
	until time.Time                          // open: when one exchange may try
	trial bool                               // it does
	turn  uint64                             // so often has it opened, closed, or stayed open after a trial
}

// tally counts the exchanges that ended within one second.
type tally struct {
	second     int64
	good, fail int
}

// failure is one of a session, and when.
type failure struct {
	session string
	second  int64
}

// ticket is an exchange that may begin.
type ticket struct {
	session string
	turn    uint64
	trial   bool // it decides whether the others may
}

// change is what an outcome did to a breaker.
type change int

const (
	changeNone change = iota
	changeOpened
	changeClosed
)

// admit says whether an exchange may begin. The last one before its access
// token's end may, come what may.
func (b *breaker) admit(session string, last bool) (ticket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := ticket{session: session, turn: b.turn}
	if b.pause == 0 || last {
		return t, nil
	}
	left := b.until.Sub(b.now())
	if left > 0 || b.trial {
		when := "when the one under way has ended"
		if left > 0 {
			when = "at " + b.until.Format(time.RFC3339)
		}
		return t, &refresher.RetryError{Err: fmt.Errorf("the issuer %s is failing: next attempt %s", b.host, when), After: left}
	}
	b.trial, t.trial = true, true
	return t, nil
}

// done takes what came of an exchange that was admitted.
func (b *breaker) done(t ticket, class refresher.Class, status int) change {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t.trial && t.turn == b.turn {
		b.trial = false
	}
	failed, counts := verdict(class, status)
	switch {
	case class == 0 || t.turn != b.turn: // it ended unsent, or began under other circumstances
		return changeNone
	case b.pause == 0:
		if counts {
			b.count(t.session, failed)
		}
		if !failed || !b.failing() {
			return changeNone
		}
		b.open(breakerPause)
		return changeOpened
	case !failed: // it answers again, if only with a refusal
		b.pause, b.trial, b.ended, b.last, b.other = 0, false, [len(b.ended)]tally{}, failure{}, failure{}
		b.turn++
		return changeClosed
	case t.trial:
		b.open(min(2*b.pause, breakerMaxPause))
	}
	return changeNone
}

// verdict says whether an outcome is a failure of the issuer, and whether it
// tells anything of the issuer at all: one bad session must not stop the others,
// nor hide that they fail.
func verdict(class refresher.Class, status int) (failed, counts bool) {
	switch class {
	case refresher.ClassNotSent, refresher.ClassQuiet, refresher.ClassUnknown:
		return true, true
	case refresher.ClassRetry:
		return status >= 500, true
	case refresher.ClassOK:
		return false, true
	}
	return false, false
}

func (b *breaker) count(session string, failed bool) {
	second := b.now().Unix()
	t := &b.ended[second%int64(len(b.ended))]
	if t.second != second {
		*t = tally{second: second}
	}
	if !failed {
		t.good++
		return
	}
	t.fail++
	if b.last.session != session {
		b.other = b.last
	}
	b.last = failure{session, second}
}

func (b *breaker) failing() bool {
	oldest := b.now().Unix() - int64(len(b.ended))
	good, fail := 0, 0
	for _, t := range b.ended {
		if t.second > oldest {
			good, fail = good+t.good, fail+t.fail
		}
	}
	return fail >= breakerFailures && fail >= good && b.other.second > oldest
}

func (b *breaker) open(pause time.Duration) {
	b.pause, b.until, b.trial = pause, b.now().Add(pause), false
	b.turn++
}

// issuerLimiter is a breaker as one session of one configuration uses it.
type issuerLimiter struct {
	*breaker
	session string
	logger  *zap.Logger
}

// Begin implements refresher.Limiter.
func (l *issuerLimiter) Begin(ctx context.Context, last bool) (end func(refresher.Class, int), err error) {
	t, err := l.admit(l.session, last)
	if err != nil {
		return nil, err
	}
	end = func(class refresher.Class, status int) { l.tell(l.done(t, class, status)) }
	if err := l.rate.Wait(ctx); err != nil {
		end(0, 0)
		return nil, fmt.Errorf("waiting for the issuer's rate: %w", err)
	}
	return end, nil
}

func (l *issuerLimiter) tell(c change) {
	switch c {
	case changeOpened:
		l.logger.Warn("the issuer is failing; it is left alone but for one exchange now and then, and for sessions about to end",
			zap.String("issuer", l.host))
	case changeClosed:
		l.logger.Info("the issuer answers again", zap.String("issuer", l.host))
	}
}

// breakers are those of the process by the issuer's origin, whatever sessions
// and configurations name it.
var breakers struct {
	sync.Mutex
	byOrigin map[string]*breaker
}

// breakerFor returns the breaker of the issuer at an address; the newest
// configuration's rate counts.
func breakerFor(address string, perSecond float64) *breaker {
	if perSecond == 0 {
		perSecond = 50
	}
	origin, host := address, address
	if u, err := url.Parse(address); err == nil {
		host = strings.ToLower(u.Host)
		origin = u.Scheme + "://" + host
	}
	burst := max(1, int(perSecond))
	breakers.Lock()
	defer breakers.Unlock()
	b, ok := breakers.byOrigin[origin]
	if !ok {
		b = &breaker{host: host, rate: rate.NewLimiter(0, 0), now: time.Now}
		if breakers.byOrigin == nil {
			breakers.byOrigin = map[string]*breaker{}
		}
		breakers.byOrigin[origin] = b
	}
	b.rate.SetLimit(rate.Limit(perSecond))
	b.rate.SetBurst(burst)
	return b
}

// Interface guard
var _ refresher.Limiter = (*issuerLimiter)(nil)
