package redisstore

import (
	"context"
	"strings"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// refuseReplica looks at the role of a server just connected to. Scripts find a
// replica, too, but not one that accepts writes (replica-read-only no). Where
// the ACL forbids the question, they must do.
func refuseReplica(ctx context.Context, conn *redis.Conn) error {
	info, err := conn.Info(ctx, "replication").Result()
	switch {
	case redis.HasErrorPrefix(err, "NOPERM"):
		return nil
	case err != nil:
		return err
	case field(info, "role") == "slave":
		return errReplica
	}
	return nil
}

// checkPersistence warns, once, where a restart or a full memory would lose what
// Create wrote.
func (s *Store) checkPersistence() {
	if s.checked {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.timeout)
	defer cancel()
	info, err := s.client.Info(ctx).Result()
	if err == nil && field(info, "aof_enabled") == "0" {
		var save map[string]string
		if save, err = s.client.ConfigGet(ctx, "save").Result(); err == nil {
			what := "redis writes nothing to disk: a restart loses the sessions"
			if save["save"] != "" {
				what = "redis writes snapshots only: a crash loses the last changes, and with them sessions"
			}
			s.logger.Warn(what+" (set appendonly yes)", zap.String("save", save["save"]))
		}
	}
	if policy := field(info, "maxmemory_policy"); strings.HasPrefix(policy, "allkeys-") && field(info, "maxmemory") != "0" {
		s.logger.Warn("redis drops keys when its memory is full, sessions too (set maxmemory-policy noeviction)", zap.String("maxmemory_policy", policy))
	}
	switch {
	case err == nil:
		s.checked = true
	case s.ctx.Err() == nil && isAnswer(err):
		s.checked = true
		s.logger.Warn("whether redis keeps its data on disk could not be checked", zap.Error(err))
	}
}

// isAnswer reports whether an error is the server's answer. Other errors pass,
// and the next connection asks again.
func isAnswer(err error) bool { return redis.HasErrorPrefix(err, "") }

// field returns a value out of the answer to INFO.
func field(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
