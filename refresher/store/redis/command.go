package redisstore

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// Reads begin with a write that changes nothing. A server refuses it after it
// became a replica, also on connections from before, and a primary that is cut
// off from its replicas refuses it where min-replicas-to-write is set: their
// answers could be old.
var (
	listScript = newScript(`redis.call('HDEL', KEYS[1], '')
return redis.call('HKEYS', KEYS[1])`)

	getScript = newScript(`redis.call('HDEL', KEYS[1], '')
return redis.call('HGET', KEYS[1], ARGV[1])`)
)

// Scripts that write tell the others. Their value is 2 where that was refused:
// the write stands. Arguments are the channel, what to say there, and the names.
var (
	createScript = newScript(`if redis.call('HSETNX', KEYS[1], ARGV[3], ARGV[4]) == 0 then return 0 end
local told = redis.pcall('PUBLISH', ARGV[1], ARGV[2])
return type(told) == 'table' and told.err and 2 or 1`)

	deleteScript = newScript(`if redis.call('HDEL', KEYS[1], unpack(ARGV, 3)) == 0 then return 0 end
local told = redis.pcall('PUBLISH', ARGV[1], ARGV[2])
return type(told) == 'table' and told.err and 2 or 1`)
)

var unlockScript = newScript(`if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`)

// script is a text and the name the server knows it by.
type script struct{ text, hash string }

func newScript(text string) script { return script{text, redis.NewScript(text).Hash()} }

// once is a command that go-redis sends no second time, also in a cluster, where
// it would do so despite MaxRetries. Being sent on to another node is no second
// time, for the first one has not carried it out.
type once struct{ *redis.Cmd }

func (once) NoRetry() bool { return true }

// do sends a command.
func (s *Store) do(ctx context.Context, args ...any) *redis.Cmd {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	cmd := redis.NewCmd(ctx, args...)
	_ = s.client.Process(ctx, once{cmd}) // cmd holds it, too
	return cmd
}

// run runs a script on a session's values.
func (s *Store) run(ctx context.Context, script script, session string, args ...any) *redis.Cmd {
	return s.runOn(ctx, script, s.key(session), args...)
}

// runOn runs a script on a key. A server that does not know the script has done
// nothing yet, and gets its text.
func (s *Store) runOn(ctx context.Context, script script, key string, args ...any) *redis.Cmd {
	cmd := s.do(ctx, append([]any{"evalsha", script.hash, 1, key}, args...)...)
	if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
		cmd = s.do(ctx, append([]any{"eval", script.text, 1, key}, args...)...)
	}
	return cmd
}

// note looks at what a script that writes says of the news.
func (s *Store) note(result int) {
	if result == 2 && !s.muted.Swap(true) {
		s.logger.Warn("redis refuses to publish news; other instances see changes later (allow +publish on the channel)",
			zap.String("channel", s.channel()))
	}
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
