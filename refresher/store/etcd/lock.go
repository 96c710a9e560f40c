package etcdstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// lease is how long a lock is held whose holder died.
const lease = 15 * time.Second

// Lock implements [refresher.Store]. The lock lasts until it is released, for
// its lease is kept alive.
func (s *Store) Lock(ctx context.Context, session string) (unlock func(), err error) {
	key := s.prefix + "!lock/" + session // no session's name begins so
	for {
		var taken bool
		if err = s.with(ctx, func(ctx context.Context, c *clientv3.Client) error {
			// A look is cheaper than a lease, for all members.
			answer, err := c.Get(ctx, key, clientv3.WithCountOnly())
			taken = err == nil && answer.Count > 0
			return err
		}); err != nil {
			break
		}
		if !taken {
			if unlock, err = s.tryLock(ctx, key); unlock != nil || err != nil {
				break
			}
		}
		if err = pause(ctx, 50*time.Millisecond); err != nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("etcd: locking %s: %w", session, err)
	}
	return unlock, nil
}

// tryLock returns neither an unlock nor an error where another was faster.
func (s *Store) tryLock(ctx context.Context, key string) (unlock func(), err error) {
	var held *clientv3.LeaseGrantResponse
	var got *clientv3.TxnResponse
	err = s.with(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		if held, err = c.Grant(ctx, int64(s.lease/time.Second)); err != nil {
			return err
		}
		got, err = c.Txn(ctx).If(absent(key)).Then(clientv3.OpPut(key, "", clientv3.WithLease(held.ID))).Commit()
		return err
	})
	if held == nil {
		return nil, err
	}
	if err != nil || !got.Succeeded {
		s.revoke(held.ID)
		return nil, err
	}
	alive, stop := context.WithCancel(s.ctx)
	go s.keepAlive(alive, held.ID)
	return sync.OnceFunc(func() {
		stop()
		s.revoke(held.ID)
	}), nil
}

// keepAlive renews a lease until ctx ends or the lease is lost, which nobody is
// told: the lock is advisory.
func (s *Store) keepAlive(ctx context.Context, id clientv3.LeaseID) {
	c, err := s.client(ctx)
	if err != nil {
		return
	}
	answers, err := c.KeepAlive(ctx, id)
	if err != nil {
		return
	}
	for range answers { // the client complains where nobody takes them
	}
}

// revoke ends a lease and what hangs on it. Where that fails, it ends by itself.
func (s *Store) revoke(id clientv3.LeaseID) {
	_ = s.with(s.ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Revoke(ctx, id)
		return err
	})
}

// pause waits about d.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
