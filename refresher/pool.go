package refresher

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// Pool is many sessions of one issuer that belong to the callers and are learned
// from traffic. At rest a session is an entry in a table and a record in a log:
// no goroutine, no timer, no file. What happens to one, an exchange or a request
// that needs the gate, happens to a [Session] that is made for it and goes back
// to being an entry afterwards.
//
// It is made by [NewPool], begins with the first [Pool.Attach], and ends with
// [Pool.Close]. All methods may be called at once.
type Pool struct {
	name  string
	dir   string
	clock Clock

	config   atomic.Pointer[PoolConfig] // in force; nil: none
	latest   atomic.Pointer[PoolConfig] // the same, or the one that was
	attached struct {
		sync.Mutex
		list  []*PoolConfig
		began bool
	}

	opened event // the table holds what was there
	failed atomic.Pointer[string]
	table  poolTable
	spent  spentTokens
	log    *journal.Log
	lock   *journal.Lock
	learns [poolParts]sync.Mutex // one login at a time, by its refresh token

	rekeyed   atomic.Bool   // what is on the disk opens with former keys
	compactAt time.Duration // Instant.Boot: not before; of who compacts
	key       []byte        // of all keyed values
	sums      *summer
	lost      atomic.Uint64 // sessions, since the process began
	load      struct {      // Instant.Boot: not before; of watchRate
		look, tell time.Duration
	}

	wake  chan struct{} // something may be due earlier
	woken atomic.Int64  // sessions that the schedule made live
	ctx   context.Context
	close context.CancelFunc
	work  sync.WaitGroup
}

// PoolConfig is what a running configuration wants of a pool.
type PoolConfig struct {
	Config // Sources and Store are not used

	// MaxSessions bounds the sessions: past it the least recently used is
	// forgotten. Default: 100,000.
	MaxSessions int
	// IdleTimeout is after which time without a request a session is forgotten.
	// Default: 24 h.
	IdleTimeout time.Duration
	// MaxAge is how long a session is kept at most. Default: 30 days.
	MaxAge time.Duration
	// Withhold gives callers an opaque handle in place of the refresh token.
	Withhold bool
	// Rate is how many exchanges a second the limiter lets pass, to warn where
	// the sessions need more; 0 is not known.
	Rate float64
}

func (c *PoolConfig) maxSessions() int64 {
	if c.MaxSessions > 0 {
		return int64(c.MaxSessions)
	}
	return 100_000
}

func (c *PoolConfig) idleTimeout() time.Duration { return orDefault(c.IdleTimeout, 24*time.Hour) }
func (c *PoolConfig) maxAge() time.Duration      { return orDefault(c.MaxAge, 30*24*time.Hour) }

// ErrForgotten says that a pool no longer has a session.
var ErrForgotten = errors.New("the pool no longer has this session")

// NewPool makes a pool. Nothing is read or started yet.
func NewPool(name string, opts Options) *Pool {
	p := &Pool{name: name, dir: opts.Dir, clock: opts.Clock, wake: make(chan struct{}, 1)}
	if p.clock == nil {
		p.clock = NewClock()
	}
	p.ctx, p.close = context.WithCancel(context.Background())
	return p
}

// Name returns the pool's name as configured.
func (p *Pool) Name() string { return p.name }

// Attach puts a configuration into force until detach is called, which may be
// done more than once. The first one begins to read the log, which
// [Pool.Ready] waits for.
func (p *Pool) Attach(cfg PoolConfig) (detach func(), err error) {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	p.attached.Lock()
	defer p.attached.Unlock()
	if p.ctx.Err() != nil {
		return nil, fmt.Errorf("pool %q has ended", p.name)
	}
	cfg.warnOfRate(p.name)
	p.attached.list = append(p.attached.list, &cfg)
	p.configure()
	if !p.attached.began {
		p.attached.began = true
		p.work.Go(func() { p.run(cfg) })
	}
	return sync.OnceFunc(func() { p.detach(&cfg) }), nil
}

func (p *Pool) detach(cfg *PoolConfig) {
	p.attached.Lock()
	defer p.attached.Unlock()
	p.attached.list = slices.DeleteFunc(p.attached.list, func(c *PoolConfig) bool { return c == cfg })
	p.configure()
}

// configure puts the newest configuration into force; the lock is held.
func (p *Pool) configure() {
	var cfg *PoolConfig
	if n := len(p.attached.list); n > 0 {
		cfg = p.attached.list[n-1]
	}
	before := p.config.Load()
	if before == cfg {
		return
	}
	p.config.Store(cfg)
	if cfg != nil {
		p.latest.Store(cfg)
	}
	for i := range p.table.parts {
		part := &p.table.parts[i]
		part.RLock()
		for _, s := range part.live {
			s.reconfigure(p.attachment())
		}
		part.RUnlock()
	}
	if cfg != nil && p.log != nil && !before.keysSame(cfg) {
		p.rekey(cfg.Keys)
	}
	p.stir()
}

// rekey seals with other keys from now on, and soon all that is there: whoever
// takes the former keys away next must find nothing that needs them.
func (p *Pool) rekey(keys *journal.Keyring) {
	p.log.Rekey(keys)
	p.rekeyed.Store(true)
}

// settings are what requests go by that are still under way when the
// configuration ends: Caddy stops its apps in any order.
func (p *Pool) settings() *PoolConfig { return p.latest.Load() }

func (c *PoolConfig) keysSame(other *PoolConfig) bool {
	return c != nil && c.Keys.SameFirst(other.Keys)
}

// attachment is the configuration as the pool's sessions get it.
func (p *Pool) attachment() *attachment {
	cfg := p.config.Load()
	if cfg == nil {
		return nil
	}
	return Config{
		Policy: cfg.Policy, Issuer: cfg.Issuer, Keys: cfg.Keys,
		Logger: cfg.Logger, Limiter: cfg.Limiter, Observe: cfg.Observe, Announcer: cfg.Announcer,
	}.attachment()
}

// Close ends the pool: exchanges under way are waited for and their outcome
// written; ctx bounds the wait of this caller only.
func (p *Pool) Close(ctx context.Context) error {
	p.close()
	done := make(chan struct{})
	go func() {
		p.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("pool %q is still ending: %w", p.name, context.Cause(ctx))
	}
}

// Ready waits until the pool knows its sessions: after a start, until they are
// read. Its error is an [*Unavailable] or the context's cause.
func (p *Pool) Ready(ctx context.Context) error {
	if p.opened.over() {
		return nil
	}
	limit := time.NewTimer(p.wait())
	defer limit.Stop()
	select {
	case <-p.opened.happened():
		return nil
	case <-limit.C:
		return &Unavailable{Session: p.name, RetryAfter: time.Second}
	case <-p.ctx.Done():
		return &Unavailable{Session: p.name, RetryAfter: time.Second}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Opened reports whether the pool knows its sessions.
func (p *Pool) Opened() bool { return p.opened.over() }

func (p *Pool) wait() time.Duration {
	if cfg := p.config.Load(); cfg != nil {
		return cfg.Policy.wait()
	}
	return Policy{}.wait()
}

// Caller makes what tells callers apart out of what the listener knows of one: a
// certificate, an address. The empty string is nobody in particular.
func (p *Pool) Caller(identity string) Caller {
	if identity == "" {
		return 0
	}
	return max(1, Caller(keyedSum(p.key, "caller", identity)))
}

// stir has the pool look at what is due.
func (p *Pool) stir() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Pool) now() Instant { return p.clock.Now() }

// sessionName is what a session is called in logs and by the admin API.
func (p *Pool) sessionName(id poolID) string { return p.name + ":" + id.String() }

// newID draws the name of a session.
func newID() (id poolID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// fileName is the pool's in file names.
func (p *Pool) fileName() string { return strings.ToLower(p.name) + ".pool" }
