package caddymodule

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

const readyDirective = "token_refresh_ready"

func init() {
	caddy.RegisterModule(new(ReadyHandler))
	httpcaddyfile.RegisterHandlerDirective(readyDirective, func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		handler := new(ReadyHandler)
		return handler, handler.UnmarshalCaddyfile(h.Dispenser)
	})
	httpcaddyfile.RegisterDirectiveOrder(readyDirective, httpcaddyfile.Before, "respond") // it answers for itself
}

// ReadyHandler answers a readiness probe: 200 while requests would get a token,
// 503 while they would not. An issuer that fails does not turn it red as long as
// the access token lives: requests go on.
type ReadyHandler struct {
	// The sessions and pools that count. Default: all that are configured.
	Sessions []string `json:"sessions,omitempty"`

	app *App
}

// CaddyModule returns the Caddy module information.
func (*ReadyHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers." + readyDirective, New: func() caddy.Module { return new(ReadyHandler) }}
}

// Provision sets up the handler.
func (h *ReadyHandler) Provision(ctx caddy.Context) error {
	mod, err := ctx.App(appName)
	if err != nil {
		return fmt.Errorf("loading the %s app: %w", appName, err)
	}
	h.app = mod.(*App)
	for _, name := range h.Sessions {
		_, isSession := h.app.session(name)
		if _, isPool := h.app.pool(name); !isSession && !isPool {
			return fmt.Errorf("session %q is not defined in the %s app", name, appName)
		}
	}
	if len(h.Sessions) == 0 {
		h.Sessions = slices.Sorted(maps.Keys(h.app.Sessions))
		h.Sessions = append(h.Sessions, slices.Sorted(maps.Keys(h.app.Pools))...)
	}
	return nil
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *ReadyHandler) ServeHTTP(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
	var not []string
	for _, name := range h.Sessions {
		if cfg, ok := h.app.session(name); ok && !cfg.shared.Ready() {
			not = append(not, name+": "+string(cfg.shared.Status().State))
		}
		if cfg, ok := h.app.pool(name); ok && !cfg.shared.Opened() {
			not = append(not, name+": not restored yet")
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if len(not) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, err := fmt.Fprintln(w, strings.Join(not, "\n"))
		return err
	}
	_, err := fmt.Fprintln(w, "ready")
	return err
}

// UnmarshalCaddyfile reads the directive.
//
//	token_refresh_ready [<matcher>] [<session or pool>…]
//
// As all directives it takes a first argument that begins with a slash for a
// matcher.
func (h *ReadyHandler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	h.Sessions = d.RemainingArgs()
	if d.NextBlock(d.Nesting()) {
		return d.Errf("%s has no options", readyDirective)
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*ReadyHandler)(nil)
	_ caddyfile.Unmarshaler       = (*ReadyHandler)(nil)
	_ caddyhttp.MiddlewareHandler = (*ReadyHandler)(nil)
)
