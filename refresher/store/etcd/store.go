// Package etcdstore keeps what a fleet shares in etcd.
//
// A session's values are the keys <prefix><session>/<name>, its lock is
// <prefix>!lock/<session>. A user with a password needs a role that may read and
// write what begins with the prefix.
package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/store/internal/news"
)

// Store is a [refresher.Store]. Make it with [Open].
//
// No write is sent twice. Where the answer to a Create is lost, its caller gets
// an error and finds out with Get; when it then tries again, ErrStored may mean
// its own value.
type Store struct {
	config  clientv3.Config
	prefix  string
	timeout time.Duration
	lease   time.Duration // of a lock whose holder died; etcd rounds to seconds
	logger  *zap.Logger
	news    news.Board

	ctx  context.Context // of what runs in the background
	stop context.CancelFunc
	wg   sync.WaitGroup
	down bool // was said to be; the background's own

	dialling chan struct{} // holds one token: who has it may set dialled
	dialled  *clientv3.Client
}

// Open returns a store and begins to connect in the background: servers that are
// down are no error. Its error names what is wrong with the configuration.
func Open(cfg Config) (*Store, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("etcd store: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Store{
		config: cfg.client(ctx), prefix: cfg.Prefix, timeout: cfg.Timeout, lease: lease,
		logger: cfg.Logger, ctx: ctx, stop: stop, dialling: make(chan struct{}, 1),
	}
	s.dialling <- struct{}{}
	s.wg.Go(s.listen)
	return s, nil
}

// client returns the connection. It is made at the first use: with a password,
// making it means signing in, which fails while etcd is down.
func (s *Store) client(ctx context.Context) (*clientv3.Client, error) {
	select {
	case <-s.dialling:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { s.dialling <- struct{}{} }()
	switch {
	case s.ctx.Err() != nil:
		return nil, errors.New("the store is closed")
	case s.dialled != nil:
		return s.dialled, nil
	}
	c, err := clientv3.New(s.config)
	if err != nil {
		return nil, err
	}
	s.dialled = c
	return c, nil
}

func (s *Store) key(session, name string) string { return s.prefix + session + "/" + name }

// with gives an operation the client and the time it has.
func (s *Store) with(ctx context.Context, op func(context.Context, *clientv3.Client) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	c, err := s.client(limited)
	if err == nil {
		err = op(limited, c)
	}
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// List implements [refresher.Store].
func (s *Store) List(ctx context.Context, session string) (names []string, err error) {
	begin := s.key(session, "")
	err = s.with(ctx, func(ctx context.Context, c *clientv3.Client) error {
		answer, err := c.Get(ctx, begin, clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			return err
		}
		for _, kv := range answer.Kvs {
			names = append(names, strings.TrimPrefix(string(kv.Key), begin))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("etcd: listing %s: %w", session, err)
	}
	return names, nil
}

// Get implements [refresher.Store].
func (s *Store) Get(ctx context.Context, session, name string) (value []byte, err error) {
	err = s.with(ctx, func(ctx context.Context, c *clientv3.Client) error {
		answer, err := c.Get(ctx, s.key(session, name))
		if err != nil {
			return err
		}
		if len(answer.Kvs) == 0 {
			return refresher.ErrNotStored
		}
		value = append([]byte{}, answer.Kvs[0].Value...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("etcd: reading %s/%s: %w", session, name, err)
	}
	return value, nil
}

// Create implements [refresher.Store].
func (s *Store) Create(ctx context.Context, session, name string, value []byte) error {
	key := s.key(session, name)
	err := s.with(ctx, func(ctx context.Context, c *clientv3.Client) error {
		answer, err := c.Txn(ctx).If(absent(key)).Then(clientv3.OpPut(key, string(value))).Commit()
		if err == nil && !answer.Succeeded {
			err = refresher.ErrStored
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("etcd: creating %s/%s: %w", session, name, err)
	}
	return nil
}

func absent(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
}

// Delete implements [refresher.Store].
func (s *Store) Delete(ctx context.Context, session string, names ...string) error {
	names = slices.Compact(slices.Sorted(slices.Values(names))) // etcd refuses a key twice in one transaction
	for some := range slices.Chunk(names, 100) {                // and more than 128 operations
		var ops []clientv3.Op
		for _, name := range some {
			ops = append(ops, clientv3.OpDelete(s.key(session, name)))
		}
		err := s.with(ctx, func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.Txn(ctx).Then(ops...).Commit()
			return err
		})
		if err != nil {
			return fmt.Errorf("etcd: deleting from %s: %w", session, err)
		}
	}
	return nil
}

// Watch implements [refresher.Store].
func (s *Store) Watch(session string, wake func()) (cancel func()) {
	return s.news.Watch(session, wake)
}

// Pushes implements [refresher.Store].
func (s *Store) Pushes() bool { return s.news.Live() }

// Close implements [refresher.Store]. Locks that are held end by themselves.
func (s *Store) Close() error {
	s.stop()
	s.wg.Wait()
	<-s.dialling
	defer func() { s.dialling <- struct{}{} }()
	if s.dialled == nil {
		return nil
	}
	err := s.dialled.Close()
	s.dialled = nil
	if errors.Is(err, context.Canceled) { // by stop
		err = nil
	}
	return err
}

// Interface guard
var _ refresher.Store = (*Store)(nil)
