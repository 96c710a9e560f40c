package etcdstore

import (
	"context"
	"errors"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// askAfter is how often the watch is asked for a sign of life.
const askAfter = 3 * time.Second

// listen keeps one watch for all sessions until the store is closed.
func (s *Store) listen() {
	for s.ctx.Err() == nil {
		err := s.follow()
		s.news.Lost()
		if s.ctx.Err() != nil {
			return
		}
		if !s.down {
			s.logger.Warn("no watch on etcd (retrying)", zap.Error(err))
			s.down = true
		}
		_ = pause(s.ctx, 500*time.Millisecond)
	}
}

// follow watches and hands on what it hears until something fails. The client
// takes up a watch again after a lost connection, without a gap; a new one wakes
// all: news may have been missed before it.
func (s *Store) follow() error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(s.ctx))
	defer cancel()
	c, err := s.client(ctx)
	if err != nil {
		return err
	}
	if err := s.reachable(ctx, c); err != nil {
		return err
	}
	answers := c.Watch(ctx, s.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	ask := time.NewTicker(askAfter)
	defer ask.Stop()
	var revision int64
	for {
		select {
		case answer, ok := <-answers:
			if err := answer.Err(); err != nil || !ok {
				return errors.Join(err, errors.New("the watch has ended"))
			}
			if answer.Header.Revision < revision {
				// A watch would wait until etcd has caught up with it.
				return errors.New("etcd has gone back: it lost data")
			}
			revision = answer.Header.Revision
			s.heard(answer)
		case <-ask.C:
			if err := c.RequestProgress(ctx); err != nil {
				return err
			}
		}
	}
}

// reachable fails within the timeout where the watch would wait in silence.
func (s *Store) reachable(ctx context.Context, c *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	_, err := c.Get(ctx, s.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	return err
}

func (s *Store) heard(answer clientv3.WatchResponse) {
	s.news.Heard()
	if answer.Created {
		if s.down {
			s.logger.Info("etcd is watched again")
			s.down = false
		}
		s.news.WakeAll()
	}
	last := ""
	for _, event := range answer.Events {
		session, _, _ := strings.Cut(strings.TrimPrefix(string(event.Kv.Key), s.prefix), "/")
		if session != last {
			s.news.Wake(session)
			last = session
		}
	}
}
