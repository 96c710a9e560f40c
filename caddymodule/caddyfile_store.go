package caddymodule

import (
	"errors"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// UnmarshalCaddyfile reads the store.
//
//	store redis <url> {
//		username <name>
//		password <password>
//		sentinel_username <name>
//		sentinel_password <password>
//		prefix <prefix>
//		timeout <duration>
//		tls {
//			ca <file>
//			client_certificate <cert> <key>
//		}
//	}
func (s *RedisStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the kind
	if err := oneArg(d, &s.URL); err != nil {
		return err
	}
	err := storeOptions(d, func(option string) error {
		switch option {
		case "sentinel_username":
			return oneArg(d, &s.SentinelUsername)
		case "sentinel_password":
			return oneArg(d, &s.SentinelPassword)
		}
		return storeOption(d, option, &s.Username, &s.Password, &s.Prefix, &s.Timeout, &s.TLS)
	})
	if err != nil {
		return err
	}
	return wrapErr(d, s.check())
}

// UnmarshalCaddyfile reads the store.
//
//	store etcd <endpoint…> {
//		username <name>
//		password <password>
//		prefix <prefix>
//		timeout <duration>
//		tls {
//			ca <file>
//			client_certificate <cert> <key>
//		}
//	}
func (s *EtcdStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the kind
	s.Endpoints = d.RemainingArgs()
	err := storeOptions(d, func(option string) error {
		return storeOption(d, option, &s.Username, &s.Password, &s.Prefix, &s.Timeout, &s.TLS)
	})
	if err != nil {
		return err
	}
	return wrapErr(d, s.check())
}

// UnmarshalCaddyfile reads `store caddy`.
func (*CaddyStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if err := noArg(d); err != nil {
		return err
	}
	if d.NextBlock(d.Nesting()) {
		return d.Err("store caddy takes no options: Caddy's global option storage has them")
	}
	return nil
}

// storeOptions reads a block in which each option stands once.
func storeOptions(d *caddyfile.Dispenser, read func(option string) error) error {
	seen := map[string]bool{}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] {
			return d.Errf("%s stands twice", option)
		}
		seen[option] = true
		if err := read(option); err != nil {
			return err
		}
	}
	return nil
}

// storeOption reads an option that all stores over the network have.
func storeOption(d *caddyfile.Dispenser, option string, username, password, prefix *string, timeout *caddy.Duration, tls **TLSOptions) error {
	switch option {
	case "username":
		return oneArg(d, username)
	case "password":
		return oneArg(d, password)
	case "prefix":
		return oneArg(d, prefix)
	case "timeout":
		return duration(d, timeout)
	case "tls":
		return unmarshalTLS(d, tls)
	}
	return d.Errf("unrecognized option %q of a store", option)
}

// redisSchemes are what a store's URL begins with.
var redisSchemes = []string{"redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster", "unix"}

// checkRedisURL sees to it that a URL is one of the known kinds; what follows is
// read when the store is opened. The error does not show the URL, which can hold
// a password.
func checkRedisURL(text string) error {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok || !slices.Contains(redisSchemes, scheme) || rest == "" {
		return errors.New("store redis: want a URL redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://, not this one")
	}
	return nil
}

func isRediss(text string) bool { return strings.HasPrefix(text, "rediss") }

// redisURL takes the password and the hosts out of a URL; a socket is no host.
func redisURL(text string) (password string, hosts []string) {
	scheme, rest, _ := strings.Cut(text, "://")
	if scheme == "unix" {
		return "", nil
	}
	if end := strings.IndexAny(rest, "/?#"); end >= 0 && !strings.Contains(rest[end:], "@") {
		rest = rest[:end] // a placeholder, or a password that needs escaping, may hold these
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		_, password, _ = strings.Cut(rest[:at], ":")
		rest = rest[at+1:]
	}
	return password, strings.Split(rest, ",")
}

// withScheme makes a URL of an endpoint that is only host and port.
func withScheme(endpoint string) string {
	if strings.Contains(endpoint, "://") {
		return endpoint
	}
	return "x://" + endpoint
}

// isPlain reports whether the connection to an endpoint is not secured.
func isPlain(endpoint string, tls bool) bool {
	u, err := url.Parse(withScheme(endpoint))
	return err == nil && (u.Scheme == "http" || u.Scheme == "x" && !tls)
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*RedisStore)(nil)
	_ caddyfile.Unmarshaler = (*EtcdStore)(nil)
	_ caddyfile.Unmarshaler = (*CaddyStore)(nil)
)
