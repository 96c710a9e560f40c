package redisstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// pingAfter is how long the subscription may be silent before it is asked for a
// sign of life, and how long that may take.
const pingAfter = 3 * time.Second

// listen keeps one subscription for all sessions until the store is closed.
func (s *Store) listen() {
	for s.ctx.Err() == nil {
		err := s.subscription()
		s.news.Lost()
		if s.ctx.Err() != nil {
			return
		}
		if !s.down {
			s.logger.Warn("no connection to redis (retrying)", zap.Error(explain(s.ctx, err)))
			s.down = true
		}
		_ = pause(s.ctx, 500*time.Millisecond)
	}
}

// subscription subscribes and hands on what it hears until something fails. A
// new subscription wakes all: news may have been missed before it.
func (s *Store) subscription() error {
	sub := s.client.Subscribe(s.ctx, s.channel())
	defer func() { _ = sub.Close() }()
	defer context.AfterFunc(s.ctx, func() { _ = sub.Close() })() // a read knows no context
	asked := false
	for {
		msg, err := sub.ReceiveTimeout(s.ctx, pingAfter)
		var slow net.Error
		switch {
		case err != nil && errors.As(err, &slow) && slow.Timeout() && !asked:
			asked = true
			if err := sub.Ping(s.ctx); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		asked = false
		s.news.Heard()
		switch msg := msg.(type) {
		case *redis.Subscription:
			if s.down {
				s.logger.Info("connected to redis again")
				s.down = false
			}
			s.muted.Store(false) // the next write tells
			s.news.WakeAll()
			s.checkPersistence()
		case *redis.Message:
			s.news.Wake(msg.Payload)
		case *redis.Pong:
		default:
			return fmt.Errorf("the subscription answers with a %T", msg)
		}
	}
}
