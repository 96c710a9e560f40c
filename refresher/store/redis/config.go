package redisstore

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
	"go.uber.org/zap"
)

// Config describes a store in Redis or Valkey. Only URL is required.
type Config struct {
	// URL is one of
	//
	//	redis://user:password@host:port/db
	//	unix:///path/to/socket?db=0
	//	redis+sentinel://user:password@host:port,host:port/db?master=name
	//	redis+cluster://user:password@host:port,host:port
	//
	// with rediss instead of redis for TLS. User and password are those of the
	// servers, not of Sentinel.
	URL string `json:"-"`

	// Username and Password take the place of the URL's where not empty.
	Username string
	Password string `json:"-"`

	// SentinelUsername and SentinelPassword are for Sentinel itself.
	SentinelUsername string
	SentinelPassword string `json:"-"`

	// TLS is used where not nil, whatever the URL begins with; nil with rediss
	// trusts the system's authorities.
	TLS *tls.Config `json:"-"`

	// Prefix begins all keys and the channel's name; "" is "token_refresh".
	// Fleets that share a server use different ones.
	Prefix string

	// Timeout bounds each command, with the connecting; 0 is 2 s.
	Timeout time.Duration

	// Logger takes what an operator should know; nil drops it.
	Logger *zap.Logger `json:"-"`
}

// Format implements [fmt.Formatter]: the URL can hold a password, too.
func (c Config) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "redisstore.Config[redacted]")
}

// complete fills in what was not given.
func (c *Config) complete() error {
	if c.Prefix == "" {
		c.Prefix = "token_refresh"
	}
	if strings.ContainsAny(c.Prefix, "{}") {
		return errors.New("the prefix holds a brace, which decides where a cluster keeps a key")
	}
	if c.Timeout < 0 {
		return errors.New("the timeout is negative")
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Second
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	return nil
}

// init silences what go-redis prints on stderr about each failed attempt to
// connect, which is returned, too, and each closing of a busy one. Its logger
// belongs to the whole process, so its other messages stay.
func init() {
	redis.SetLogger(logging.NewBlacklistLogger([]string{"failed to dial", "Unexpected conn"}))
}

// bufferSize is of a connection's two buffers; what is longer goes past them.
const bufferSize = 8 << 10

// newClient makes a client that has connected to nothing yet.
//
// Nothing is sent twice: a repeated Create whose first answer was lost would
// find its own value, and only the caller can tell. Nothing is read from a
// replica: none of ReadOnly, RouteByLatency, RouteRandomly and ReplicaOnly.
func newClient(t target, c Config) redis.UniversalClient {
	o := &redis.UniversalOptions{
		Addrs:            t.addrs,
		DB:               t.db,
		MasterName:       t.master,
		Username:         t.username,
		Password:         t.password,
		SentinelUsername: c.SentinelUsername,
		SentinelPassword: c.SentinelPassword,
		TLSConfig:        c.TLS,

		MaxRetries:            -1,
		ReadBufferSize:        bufferSize,
		WriteBufferSize:       bufferSize,
		DialerRetries:         1,
		DialTimeout:           c.Timeout,
		ReadTimeout:           c.Timeout,
		WriteTimeout:          c.Timeout,
		PoolTimeout:           c.Timeout,
		ContextTimeoutEnabled: true,

		// What is not needed, and a careful operator's ACL would not allow.
		Protocol:                 2,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if c.Username != "" {
		o.Username = c.Username
	}
	if c.Password != "" {
		o.Password = c.Password
	}
	if o.TLSConfig == nil && t.tls {
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	switch t.mode {
	case cluster:
		// No check of roles: a replica sends its clients on to the primary.
		all := o.Cluster()
		all.DisableRoutingPolicies = true
		return redis.NewClusterClient(all)
	case sentinel:
		o.OnConnect = refuseReplica
		return redis.NewFailoverClient(o.Failover())
	default:
		o.OnConnect = refuseReplica
		one := o.Simple()
		one.Network = t.network
		return redis.NewClient(one)
	}
}
