package refresher

import (
	"context"
	"sync"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/failpoint"
)

// Limiter decides when one more exchange may go to an issuer, over all the
// sessions that have it. It must be safe for concurrent use.
type Limiter interface {
	// Begin waits until an exchange may begin, or says why it may not; an error
	// means that nothing was sent. last says that it is the last attempt before
	// the access token's end. end is told what came of it: a class and the HTTP
	// status of the answer, or 0 and 0 if nothing was sent after all. It is
	// called once.
	Begin(ctx context.Context, last bool) (end func(Class, int), err error)
}

// limited is an exchange whose outcome a limiter is told.
type limited struct {
	Exchange
	once sync.Once
	end  func(Class, int)
}

func (l *limited) Send(ctx context.Context, p Pair) Answer {
	a := l.Exchange.Send(ctx, p)
	l.once.Do(func() { l.end(a.Class, a.Status) })
	return a
}

func (l *limited) Close() {
	l.Exchange.Close()
	l.once.Do(func() { l.end(0, 0) })
}

// prepare connects to the issuer, as soon as the limiter allows.
func (s *Session) prepare(ctx context.Context, cfg *attachment, last bool) (Exchange, error) {
	failpoint.Reach("W0")
	timeout := orDefault(cfg.Issuer.Profile().Timeout, defaultTimeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if cfg.Limiter == nil {
		return cfg.Issuer.Prepare(ctx)
	}
	end, err := cfg.Limiter.Begin(ctx, last)
	if err != nil {
		return nil, err
	}
	conn, err := cfg.Issuer.Prepare(ctx)
	if err != nil {
		end(ClassNotSent, 0)
		return nil, err
	}
	return &limited{Exchange: conn, end: end}, nil
}
