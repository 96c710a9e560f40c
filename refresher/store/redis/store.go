// Package redisstore keeps what a fleet shares in Redis or Valkey.
//
// The values of a session are the fields of one hash, <prefix>:{<session>}, its
// lock is <prefix>:{<session>}:lock, and the channel <prefix>:news carries the
// names of sessions that changed. An ACL user for it needs:
//
//	~token_refresh:* &token_refresh:news +evalsha +eval +hkeys +hget +hsetnx
//	+hdel +set +get +del +publish +subscribe +ping +info +config|get
//
// with +select for a database other than 0 and +cluster|slots +cluster|shards
// for a cluster; without config|get persistence cannot be checked.
//
// Redis copies to replicas after it has answered. A failover can therefore lose
// what Create wrote; min-replicas-to-write 1 and appendfsync always make that
// rarer, never impossible.
package redisstore

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

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/store/internal/news"
)

// lease is how long a lock is held that nobody releases.
const lease = 15 * time.Second

// Store is a [refresher.Store]. Make it with [Open].
//
// No command is sent twice. Where the answer to a Create is lost, its caller
// gets an error and finds out with Get; when it then tries again, ErrStored may
// mean its own value.
type Store struct {
	client  redis.UniversalClient
	prefix  string
	timeout time.Duration
	lease   time.Duration
	logger  *zap.Logger
	news    news.Board

	ctx     context.Context // of what runs in the background
	stop    context.CancelFunc
	wg      sync.WaitGroup
	checked bool        // persistence was; the background's own
	down    bool        // was said to be; the background's own
	muted   atomic.Bool // the server refuses our news
}

// Open returns a store and begins to connect in the background: a server that is
// down is no error. Its error names what is wrong with the configuration and
// repeats no secret.
func Open(cfg Config) (*Store, error) {
	t, err := parseURL(cfg.URL)
	if err == nil {
		err = cfg.complete()
	}
	if err != nil {
		return nil, fmt.Errorf("redis store: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Store{
		client: newClient(t, cfg), prefix: cfg.Prefix, timeout: cfg.Timeout, lease: lease,
		logger: cfg.Logger, ctx: ctx, stop: stop,
	}
	s.wg.Go(s.listen)
	return s, nil
}

func (s *Store) key(session string) string { return s.prefix + ":{" + session + "}" }

func (s *Store) channel() string { return s.prefix + ":news" }

// List implements [refresher.Store].
func (s *Store) List(ctx context.Context, session string) ([]string, error) {
	names, err := s.run(ctx, listScript, session).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("redis: listing %s: %w", session, explain(ctx, err))
	}
	return names, nil
}

// Get implements [refresher.Store].
func (s *Store) Get(ctx context.Context, session, name string) ([]byte, error) {
	value, err := s.run(ctx, getScript, session, name).Text()
	if errors.Is(err, redis.Nil) {
		err = refresher.ErrNotStored
	}
	if err != nil {
		return nil, fmt.Errorf("redis: reading %s/%s: %w", session, name, explain(ctx, err))
	}
	return []byte(value), nil
}

// Create implements [refresher.Store].
func (s *Store) Create(ctx context.Context, session, name string, value []byte) error {
	wrote, err := s.run(ctx, createScript, session, s.channel(), session, name, value).Int()
	if err == nil && wrote == 0 {
		err = refresher.ErrStored
	}
	if err != nil {
		return fmt.Errorf("redis: creating %s/%s: %w", session, name, explain(ctx, err))
	}
	s.note(wrote)
	return nil
}

// Delete implements [refresher.Store].
func (s *Store) Delete(ctx context.Context, session string, names ...string) error {
	for some := range slices.Chunk(names, 1000) { // Lua takes some thousands at most
		args := []any{s.channel(), session}
		for _, name := range some {
			args = append(args, name)
		}
		done, err := s.run(ctx, deleteScript, session, args...).Int()
		if err != nil {
			return fmt.Errorf("redis: deleting from %s: %w", session, explain(ctx, err))
		}
		s.note(done)
	}
	return nil
}

// Lock implements [refresher.Store]. The lock ends after 15 s even if nobody
// releases it.
func (s *Store) Lock(ctx context.Context, session string) (unlock func(), err error) {
	key, token := s.key(session)+":lock", rand.Text()
	for {
		err := s.do(ctx, "set", key, token, "nx", "px", s.lease.Milliseconds()).Err()
		if err == nil {
			return sync.OnceFunc(func() { s.unlock(session, token) }), nil
		}
		if errors.Is(err, redis.Nil) {
			err = pause(ctx, 50*time.Millisecond)
		}
		if err != nil {
			return nil, fmt.Errorf("redis: locking %s: %w", session, explain(ctx, err))
		}
	}
}

// unlock releases the lock where it is still ours. Where that fails, it ends by
// itself.
func (s *Store) unlock(session, token string) {
	_ = s.runOn(context.Background(), unlockScript, s.key(session)+":lock", token).Err()
}

// Watch implements [refresher.Store].
func (s *Store) Watch(session string, wake func()) (cancel func()) {
	return s.news.Watch(session, wake)
}

// Pushes implements [refresher.Store]. In a cluster, news travel between its
// nodes with no check that they arrive.
func (s *Store) Pushes() bool { return s.news.Live() && !s.muted.Load() }

// Close implements [refresher.Store]. Locks that are held end by themselves.
func (s *Store) Close() error {
	s.stop()
	err := s.client.Close()
	s.wg.Wait()
	if errors.Is(err, redis.ErrClosed) {
		err = nil
	}
	return err
}

var errReplica = errors.New("the server is a replica, whose answers may be old: name the primary, or use redis+sentinel://")

// explain adds what to do about an error, and says of a context that it ended
// where that is why.
func explain(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, refresher.ErrStored), errors.Is(err, refresher.ErrNotStored):
		return err
	case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	case errors.Is(err, errReplica):
		return err
	case strings.Contains(err.Error(), "READONLY"):
		return fmt.Errorf("%w (%w)", errReplica, err)
	case strings.HasPrefix(err.Error(), "NOPERM"):
		return fmt.Errorf("%w (the ACL user needs what the package's documentation lists)", err)
	}
	return err
}

// Interface guard
var _ refresher.Store = (*Store)(nil)
