package caddymodule

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func init() {
	caddy.RegisterModule(new(Sandbox))
	httpcaddyfile.RegisterHandlerDirective(sandboxName, parseSandbox)
	httpcaddyfile.RegisterDirectiveOrder(sandboxName, httpcaddyfile.Before, "reverse_proxy")
}

const sandboxName = "token_refresh_sandbox"

// Sandbox is an issuer and a protected API to try things against: it issues
// short-lived access tokens, revokes and rotates at each exchange, ends a session
// whose spent refresh token is presented again, and answers 401 to anything but
// the current access token. It takes `POST /User/Login` and `POST
// /User/RefreshToken`; every other path is the API. Faults can be set at
// `/sandbox/faults`, and `/sandbox/stats` counts.
//
// It is no issuer for production, answers only callers on this machine, and
// forgets its sessions when the process ends.
type Sandbox struct {
	// How long an access token lives. Default: 30s.
	AccessLifetime caddy.Duration `json:"access_lifetime,omitempty"`

	// How long a refresh token lives. Default: 30 days.
	RefreshLifetime caddy.Duration `json:"refresh_lifetime,omitempty"`

	// What `POST /User/Login` takes. Default: `demo` and `demo`.
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`

	// An expired access token may still be exchanged. Default: false.
	AcceptExpired bool `json:"accept_expired,omitempty"`

	// An exchange keeps the refresh token: the answer repeats it, or with
	// `omit_refresh_token` has none. Default: false.
	KeepRefreshToken bool `json:"keep_refresh_token,omitempty"`
	OmitRefreshToken bool `json:"omit_refresh_token,omitempty"`

	// How long a spent refresh token is accepted again, and whether it gets the
	// same successor. Default: never.
	ReuseInterval caddy.Duration `json:"reuse_interval,omitempty"`
	ReuseSame     bool           `json:"reuse_same,omitempty"`

	// The previous access token lives on. Default: false.
	KeepPreviousAccess bool `json:"keep_previous_access,omitempty"`

	*sandbox.Sandbox `json:"-"`
	key              string
}

// CaddyModule returns the Caddy module information.
func (*Sandbox) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers." + sandboxName, New: func() caddy.Module { return new(Sandbox) }}
}

// sandboxes outlive a reload: a session should not end because a configuration
// did. They are told apart by their options.
var sandboxes = caddy.NewUsagePool()

var errSandboxLocal = errors.New("the sandbox answers only callers on this machine")

type sharedSandbox struct{ *sandbox.Sandbox }

func (sharedSandbox) Destruct() error { return nil }

// Provision sets up the handler.
func (s *Sandbox) Provision(ctx caddy.Context) error {
	key, err := json.Marshal(s)
	if err != nil {
		return err
	}
	shared, _, err := sandboxes.LoadOrNew(string(key), func() (caddy.Destructor, error) {
		return sharedSandbox{sandbox.New(s.config())}, nil
	})
	if err != nil {
		return err
	}
	s.key, s.Sandbox = string(key), shared.(sharedSandbox).Sandbox
	ctx.Logger().Warn("the sandbox is for trying things out; it is no issuer for production", zap.String("directive", sandboxName))
	return nil
}

// Cleanup lets go of the sandbox.
func (s *Sandbox) Cleanup() error {
	if s.key == "" {
		return nil
	}
	_, err := sandboxes.Delete(s.key)
	s.key = ""
	return err
}

func (s *Sandbox) config() sandbox.Config {
	return sandbox.Config{
		AccessLifetime:     time.Duration(s.AccessLifetime),
		RefreshLifetime:    time.Duration(s.RefreshLifetime),
		Username:           s.Username,
		Password:           s.Password,
		AcceptExpired:      s.AcceptExpired,
		KeepRefreshToken:   s.KeepRefreshToken,
		OmitRefreshToken:   s.OmitRefreshToken,
		ReuseInterval:      time.Duration(s.ReuseInterval),
		ReuseSame:          s.ReuseSame,
		KeepPreviousAccess: s.KeepPreviousAccess,
	}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (s *Sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	if !(clientList{local: true}).admits(r.RemoteAddr) {
		return caddyhttp.Error(http.StatusForbidden, errSandboxLocal)
	}
	s.Sandbox.ServeHTTP(w, r)
	return nil
}

// parseSandbox reads the directive.
//
//	token_refresh_sandbox [<matcher>] {
//		access_lifetime <duration>
//		refresh_lifetime <duration>
//		username <name>
//		password <password>
//		accept_expired
//		keep_refresh_token
//		omit_refresh_token
//		reuse_interval <duration> [same|new]
//		keep_previous_access
//	}
func parseSandbox(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	s := new(Sandbox)
	return s, s.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile reads the directive; see parseSandbox for its syntax.
func (s *Sandbox) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if err := noArg(d); err != nil {
		return err
	}
	flags := map[string]*bool{
		"accept_expired": &s.AcceptExpired, "keep_refresh_token": &s.KeepRefreshToken,
		"omit_refresh_token": &s.OmitRefreshToken, "keep_previous_access": &s.KeepPreviousAccess,
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch option := d.Val(); option {
		case "access_lifetime":
			err = duration(d, &s.AccessLifetime)
		case "refresh_lifetime":
			err = duration(d, &s.RefreshLifetime)
		case "username":
			err = oneArg(d, &s.Username)
		case "password":
			err = oneArg(d, &s.Password)
		case "reuse_interval":
			var reuse IssuerOptions
			if err = reuse.unmarshalReuse(d); err == nil {
				err = wrapErr(d, reuse.check())
			}
			s.ReuseInterval, s.ReuseSame = reuse.ReuseInterval, reuse.ReuseAnswer != "new"
		default:
			flag, ok := flags[option]
			if !ok {
				return d.Errf("unrecognized option %q of %s", option, sandboxName)
			}
			*flag = true
			err = noArg(d)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Sandbox)(nil)
	_ caddy.CleanerUpper          = (*Sandbox)(nil)
	_ caddyhttp.MiddlewareHandler = (*Sandbox)(nil)
	_ caddyfile.Unmarshaler       = (*Sandbox)(nil)
)
