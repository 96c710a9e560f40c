package etcdstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Config describes a store in etcd 3.4 or newer. Only Endpoints is required.
type Config struct {
	// Endpoints are the members, as https://host:port, http://host:port or
	// host:port.
	Endpoints []string

	// Username and Password sign in; without them, or with a client's
	// certificate in TLS, nobody does.
	Username string
	Password string `json:"-"`

	// TLS is for https endpoints, and for those without a scheme; nil trusts
	// the system's authorities for https.
	TLS *tls.Config `json:"-"`

	// Prefix begins all keys; "" is "token_refresh/". Fleets that share an etcd
	// use different ones, of which none begins with another.
	Prefix string

	// Timeout bounds each request, with the connecting; 0 is 2 s.
	Timeout time.Duration

	// Logger takes what an operator should know; nil drops it.
	Logger *zap.Logger `json:"-"`
}

// Format implements [fmt.Formatter], so that no verb reaches the password.
func (c Config) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "etcdstore.Config[redacted]")
}

// complete fills in what was not given. Its errors repeat no endpoint: a
// password could stand in it.
func (c *Config) complete() error {
	if len(c.Endpoints) == 0 {
		return errors.New("no endpoint is given")
	}
	for _, endpoint := range c.Endpoints {
		if !strings.Contains(endpoint, "://") {
			endpoint = "http://" + endpoint
		}
		u, err := url.Parse(endpoint)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
			return errors.New("an endpoint is none: want https://host:port")
		case u.User != nil:
			return errors.New("an endpoint holds a user name, which would show in logs: give it apart")
		case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
			return errors.New("an endpoint has more than a host and a port")
		}
	}
	switch {
	case (c.Username == "") != (c.Password == ""):
		return errors.New("user name and password are only of use together")
	case c.Timeout < 0:
		return errors.New("the timeout is negative")
	}
	if c.Prefix == "" {
		c.Prefix = "token_refresh/"
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Second
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	return nil
}

// client is the configuration of etcd's own client. It repeats reads only, and
// writes of which it knows that they were not sent.
func (c Config) client(ctx context.Context) clientv3.Config {
	return clientv3.Config{
		Endpoints: c.Endpoints, Username: c.Username, Password: c.Password, TLS: c.TLS,
		Context:              ctx,
		DialTimeout:          c.Timeout,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			// gRPC's own would wait up to two minutes for servers that were down.
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: c.Timeout,
		})},
		// Of what it says nothing is for an operator that errors do not say.
		Logger: zap.NewNop(),
	}
}
