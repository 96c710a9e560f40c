package caddymodule

import (
	"encoding/json"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"
)

func init() {
	httpcaddyfile.RegisterGlobalOption(appName, parseGlobal)
	httpcaddyfile.RegisterHandlerDirective(appName, parseDirective)
	// Between us and the proxy nothing should see the token, and what checks
	// callers (basic_auth, forward_auth) has to come first.
	httpcaddyfile.RegisterDirectiveOrder(appName, httpcaddyfile.Before, "reverse_proxy")
}

// parseGlobal reads the global option. Several blocks are merged.
//
//	token_refresh {
//		state_dir <path>
//		encryption_key <base64>
//		harden on|off
//		store redis <url>|etcd <endpoint…>|caddy { … }
//		session <name> {
//			issuer <kind> <url> { … }
//			tokens <source> …
//			refresh_before <percent>%|<duration>
//			lifetime <duration>
//			wait <duration>
//			drain <duration>
//			reauthenticate on|off
//		}
//		pool <name> { … }
//		webhook <url> { … }
//		location {
//			city|country|latitude|longitude|region|zipcode <placeholder>
//		}
//	}
func parseGlobal(d *caddyfile.Dispenser, existing any) (any, error) {
	app := new(App)
	if prior, ok := existing.(httpcaddyfile.App); ok {
		if err := json.Unmarshal(prior.Value, app); err != nil {
			return nil, d.WrapErr(err)
		}
	}
	if err := app.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: appName, Value: caddyconfig.JSON(app, nil)}, nil
}

// UnmarshalCaddyfile reads the global option; see parseGlobal for its syntax.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	if d.NextArg() {
		return argErr(d)
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch option := d.Val(); option {
		case "state_dir":
			if a.StateDir != "" {
				return d.Errf("%s stands twice", option)
			}
			if err := oneArg(d, &a.StateDir); err != nil {
				return err
			}
		case "encryption_key":
			var key string
			if err := oneArg(d, &key); err != nil {
				return err
			}
			a.EncryptionKeys = append(a.EncryptionKeys, key)
		case "session":
			if err := a.unmarshalSession(d); err != nil {
				return err
			}
		case "store":
			if a.StoreRaw != nil {
				return d.Errf("%s stands twice", option)
			}
			raw, err := guest(d, option, "token_refresh.stores.", "kind")
			if err != nil {
				return err
			}
			a.StoreRaw = raw
		case "pool":
			if err := a.unmarshalPool(d); err != nil {
				return err
			}
		case "webhook":
			if err := a.unmarshalWebhook(d); err != nil {
				return err
			}
		case "harden":
			if a.Harden != nil {
				return d.Errf("%s stands twice", option)
			}
			if err := onOff(d, &a.Harden); err != nil {
				return err
			}
		case "location":
			if err := a.unmarshalLocation(d); err != nil {
				return err
			}
		default:
			return d.Errf("unrecognized option %q of %s", option, appName)
		}
	}
	return nil
}

func (a *App) unmarshalSession(d *caddyfile.Dispenser) error {
	var name string
	if err := oneArg(d, &name); err != nil {
		return err
	}
	if !validName.MatchString(name) {
		return d.Errf("session name %q: want a letter or digit, then at most 63 of A-Z a-z 0-9 . _ -", name)
	}
	if err := a.checkNew(name); err != nil {
		return d.WrapErr(err)
	}
	s := new(Session)
	if err := s.UnmarshalCaddyfile(d); err != nil {
		return err
	}
	if a.Sessions == nil {
		a.Sessions = map[string]*Session{}
	}
	a.Sessions[name] = s
	return nil
}

// UnmarshalCaddyfile reads a session's block; see parseGlobal for its syntax.
func (s *Session) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	seen := map[string]bool{}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] && option != "tokens" {
			return d.Errf("%s stands twice", option)
		}
		seen[option] = true
		if err := s.unmarshalOption(d, option); err != nil {
			return err
		}
	}
	if s.IssuerRaw == nil {
		return d.Err("the session has no issuer: issuer <kind> <url>")
	}
	if s.TokensRaw == nil {
		return d.Err("the session has no tokens source: say where the first pair comes from, if only `tokens import`")
	}
	return nil
}

func (s *Session) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "tokens":
		raw, err := guest(d, option, "token_refresh.sources.", "from")
		s.TokensRaw = append(s.TokensRaw, raw)
		return err
	case "reauthenticate":
		return onOff(d, &s.Reauthenticate)
	}
	return s.Rotation.unmarshalOption(d, option, "a session")
}

// unmarshalOption reads an option that sessions and pools share.
func (r *Rotation) unmarshalOption(d *caddyfile.Dispenser, option, of string) error {
	switch option {
	case "issuer":
		raw, err := guest(d, option, "token_refresh.issuers.", "kind")
		r.IssuerRaw = raw
		return err
	case "refresh_before":
		if err := oneArg(d, &r.RefreshBefore); err != nil {
			return err
		}
		if _, _, err := parseRefreshBefore(r.RefreshBefore); err != nil {
			return d.WrapErr(err)
		}
		return nil
	case "lifetime":
		return duration(d, &r.Lifetime)
	case "wait":
		return duration(d, &r.Wait)
	case "drain":
		return duration(d, &r.Drain)
	}
	return d.Errf("unrecognized option %q of %s", option, of)
}

// guest reads a module's segment: its name, then what the module makes of it.
func guest(d *caddyfile.Dispenser, option, namespace, inlineKey string) (json.RawMessage, error) {
	if !d.NextArg() {
		return nil, argErr(d)
	}
	name := d.Val()
	if strings.Contains(name, "://") {
		return nil, d.Errf("%s: the kind is missing before the address", option)
	}
	if _, err := caddy.GetModule(namespace + name); err != nil {
		return nil, d.Errf("%s: unknown kind %q", option, name)
	}
	mod, err := caddyfile.UnmarshalModule(d, namespace+name)
	if err != nil {
		return nil, err
	}
	return caddyconfig.JSONModuleObject(mod, inlineKey, name, nil), nil
}

// parseDirective reads the handler directive.
//
//	token_refresh [<matcher>] <session or pool> {
//		mode inject|swap
//		header <name> [<scheme>]
//		replay_limit <size>
//		clients <cidr…>|any
//		origins <origin…>
//	}
func parseDirective(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	if err := handler.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	app, err := definedApp(h)
	if err != nil {
		return nil, err
	}
	_, isSession := app.session(handler.Session)
	if _, isPool := app.pool(handler.Session); !isSession && !isPool {
		return nil, h.Errf("session %q is not defined: the global option %s defines sessions and pools", handler.Session, appName)
	}
	return handler, nil
}

// UnmarshalCaddyfile reads the directive; see parseDirective for its syntax.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if err := oneArg(d, &h.Session); err != nil {
		return err
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch option := d.Val(); option {
		case "mode":
			if err := oneArg(d, &h.Mode); err != nil {
				return err
			}
			if err := checkMode(h.Mode); err != nil {
				return d.WrapErr(err)
			}
		case "header":
			if err := h.unmarshalHeader(d); err != nil {
				return err
			}
		case "replay_limit":
			var text string
			if err := oneArg(d, &text); err != nil {
				return err
			}
			size, err := humanize.ParseBytes(text)
			if err != nil || size > maxCaptured {
				return d.Errf("replay_limit: want a size up to 32MiB such as 1MiB, or 0, not %q", text)
			}
			h.ReplayLimit = int64(size)
			if size == 0 {
				h.ReplayLimit = -1
			}
		case "clients":
			if err := clientsOption(d, &h.Clients); err != nil {
				return err
			}
		case "origins":
			if err := originsOption(d, &h.Origins); err != nil {
				return err
			}
		default:
			return d.Errf("unrecognized option %q of %s", option, appName)
		}
	}
	return nil
}

func (h *Handler) unmarshalHeader(d *caddyfile.Dispenser) error {
	if h.Header != "" {
		return d.Err("header stands twice")
	}
	args := d.RemainingArgs()
	switch len(args) {
	case 2:
		h.Scheme = &args[1]
		fallthrough
	case 1:
		h.Header = args[0]
	default:
		return argErr(d)
	}
	probe := Handler{Header: h.Header, Scheme: h.Scheme}
	if err := probe.provisionCarrier(); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

// argErr is the dispenser's ArgErr without the argument, which may be half of a
// password.
func argErr(d *caddyfile.Dispenser) error {
	return d.Err("wrong number of arguments (put quotes around one that holds spaces)")
}

// oneArg reads the option's single argument.
func oneArg(d *caddyfile.Dispenser, to *string) error {
	if !d.NextArg() {
		return argErr(d)
	}
	*to = d.Val()
	if d.NextArg() {
		return argErr(d)
	}
	return nil
}

func duration(d *caddyfile.Dispenser, to *caddy.Duration) error {
	option := d.Val()
	var text string
	if err := oneArg(d, &text); err != nil {
		return err
	}
	dur, err := caddy.ParseDuration(text)
	if err != nil || dur <= 0 {
		return d.Errf("%s: %q is not a duration such as 30s or 5m", option, text)
	}
	*to = caddy.Duration(dur)
	return nil
}

func onOff(d *caddyfile.Dispenser, to **bool) error {
	option := d.Val()
	var text string
	if err := oneArg(d, &text); err != nil {
		return err
	}
	if text != "on" && text != "off" {
		return d.Errf("%s: want on or off, not %q", option, text)
	}
	value := text == "on"
	*to = &value
	return nil
}

func onOffValue(d *caddyfile.Dispenser, to *bool) error {
	var on *bool
	err := onOff(d, &on)
	if err == nil {
		*to = *on
	}
	return err
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*App)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
)
