package caddymodule

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// checkNew reports whether a name is free: sessions and pools share theirs.
func (a *App) checkNew(name string) error {
	if other, _, ok := lookup(a.Sessions, name); ok {
		return fmt.Errorf("session %q is defined already (names differ in more than case)", other)
	}
	if other, _, ok := lookup(a.Pools, name); ok {
		return fmt.Errorf("pool %q is defined already (names differ in more than case)", other)
	}
	return nil
}

func (a *App) unmarshalPool(d *caddyfile.Dispenser) error {
	var name string
	if err := oneArg(d, &name); err != nil {
		return err
	}
	if !validName.MatchString(name) {
		return d.Errf("pool name %q: want a letter or digit, then at most 63 of A-Z a-z 0-9 . _ -", name)
	}
	if err := a.checkNew(name); err != nil {
		return d.WrapErr(err)
	}
	p := new(Pool)
	if err := p.UnmarshalCaddyfile(d); err != nil {
		return err
	}
	if a.Pools == nil {
		a.Pools = map[string]*Pool{}
	}
	a.Pools[name] = p
	return nil
}

// UnmarshalCaddyfile reads a pool's block.
//
//	pool <name> {
//		issuer <kind> <url> { … }
//		learn <method> <path>
//		forget <method> <path>
//		exchange <method> <path>
//		withhold_refresh_token on|off
//		max_sessions <number>
//		idle_timeout <duration>
//		max_age <duration>
//		cookies <access> [<refresh>]
//		verify jwks <url>
//		refresh_before <percent>%|<duration>
//		lifetime <duration>
//		wait <duration>
//		drain <duration>
//	}
func (p *Pool) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	seen := map[string]bool{}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		switch option {
		case "learn", "forget", "exchange":
		default:
			if seen[option] {
				return d.Errf("%s stands twice", option)
			}
		}
		seen[option] = true
		if err := p.unmarshalOption(d, option); err != nil {
			return err
		}
	}
	if p.IssuerRaw == nil {
		return d.Err("the pool has no issuer: issuer <kind> <url>")
	}
	return nil
}

func (p *Pool) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "learn":
		return endpoint(d, &p.Learn)
	case "forget":
		return endpoint(d, &p.Forget)
	case "exchange":
		return endpoint(d, &p.Exchange)
	case "withhold_refresh_token":
		return onOff(d, &p.WithholdRefreshToken)
	case "max_sessions":
		var text string
		if err := oneArg(d, &text); err != nil {
			return err
		}
		n, err := strconv.Atoi(strings.ReplaceAll(text, "_", ""))
		if err != nil || n < 1 {
			return d.Errf("max_sessions: want a number from 1 up, not %q", text)
		}
		p.MaxSessions = n
		return nil
	case "idle_timeout":
		return duration(d, &p.IdleTimeout)
	case "max_age":
		return duration(d, &p.MaxAge)
	case "verify":
		args := d.RemainingArgs()
		if len(args) != 2 || args[0] != "jwks" {
			return d.Err("verify: want jwks <url>")
		}
		p.VerifyJWKS = args[1]
		return nil
	case "cookies":
		args := d.RemainingArgs()
		if len(args) < 1 || len(args) > 2 {
			return argErr(d)
		}
		p.Cookies = &CookieNames{Access: args[0]}
		if len(args) == 2 {
			p.Cookies.Refresh = args[1]
		}
		return nil
	}
	return p.Rotation.unmarshalOption(d, option, "a pool")
}

func endpoint(d *caddyfile.Dispenser, to *[]Endpoint) error {
	option := d.Val()
	args := d.RemainingArgs()
	if len(args) != 2 {
		return argErr(d)
	}
	e := Endpoint{Method: strings.ToUpper(args[0]), Path: args[1]}
	if err := e.check(); err != nil {
		return d.Errf("%s: %v", option, err)
	}
	*to = append(*to, e)
	return nil
}
