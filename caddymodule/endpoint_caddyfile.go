package caddymodule

import (
	"encoding/json"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

const endpointDirective = "token_refresh_endpoint"

func init() {
	httpcaddyfile.RegisterHandlerDirective(endpointDirective, parseEndpoint)
	// It answers by itself: before everything else that does, behind what checks
	// callers.
	httpcaddyfile.RegisterDirectiveOrder(endpointDirective, httpcaddyfile.Before, "respond")
}

// parseEndpoint reads the directive.
//
//	token_refresh_endpoint [<matcher>] <session> {
//		handle <text>
//		clients <cidr…>|any
//		origins <origin…>
//	}
func parseEndpoint(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	e := new(TokenEndpoint)
	if err := e.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	app, err := definedApp(h)
	if err != nil {
		return nil, err
	}
	if _, ok := app.session(e.Session); !ok {
		return nil, h.Errf("session %q is not defined: the global option %s defines sessions (for a pool, see its option exchange)", e.Session, appName)
	}
	return e, nil
}

// UnmarshalCaddyfile reads the directive; see parseEndpoint for its syntax.
func (e *TokenEndpoint) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if err := oneArg(d, &e.Session); err != nil {
		return err
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch option := d.Val(); option {
		case "handle":
			var handle string
			if err := oneArg(d, &handle); err != nil {
				return err
			}
			e.Handles = append(e.Handles, handle)
		case "clients":
			if err := clientsOption(d, &e.Clients); err != nil {
				return err
			}
		case "origins":
			if err := originsOption(d, &e.Origins); err != nil {
				return err
			}
		default:
			return d.Errf("unrecognized option %q of %s", option, endpointDirective)
		}
	}
	if len(e.Handles) == 0 {
		return d.Err("the handle is missing, which programs send as their refresh token: handle {env.NAME}")
	}
	return nil
}

// definedApp is what the global option has defined.
func definedApp(h httpcaddyfile.Helper) (*App, error) {
	app := new(App)
	if option, ok := h.Option(appName).(httpcaddyfile.App); ok {
		if err := json.Unmarshal(option.Value, app); err != nil {
			return nil, h.WrapErr(err)
		}
	}
	return app, nil
}

func clientsOption(d *caddyfile.Dispenser, to *[]string) error {
	list := d.RemainingArgs()
	if _, err := parseClients(list); err != nil || len(list) == 0 {
		return d.Errf("clients: want ranges (10.0.0.0/8), addresses, or any, not %q", list)
	}
	*to = append(*to, list...)
	return nil
}

func originsOption(d *caddyfile.Dispenser, to *[]string) error {
	list := d.RemainingArgs()
	if _, err := parseOrigins(list); err != nil || len(list) == 0 {
		return d.Errf("origins: want origins such as https://app.example.com, not %q", list)
	}
	*to = append(*to, list...)
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*TokenEndpoint)(nil)
