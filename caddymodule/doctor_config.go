package caddymodule

import (
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// doctorConfig is what the doctor reads of a configuration's text. Provisioned
// modules do not tell their order, and it can be read where they cannot be
// provisioned.
type doctorConfig struct {
	Admin struct {
		Disabled bool `json:"disabled"`
	} `json:"admin"`
	Apps struct {
		HTTP struct {
			Servers map[string]*doctorServer `json:"servers"`
		} `json:"http"`
		Ours struct {
			Sessions map[string]doctorIssuer `json:"sessions"`
			Pools    map[string]doctorIssuer `json:"pools"`
		} `json:"token_refresh"`
	} `json:"apps"`
}

// doctorIssuer tells which sessions have the same issuer.
type doctorIssuer struct {
	Issuer json.RawMessage `json:"issuer"`
}

type doctorServer struct {
	Listen []string      `json:"listen"`
	Routes []doctorRoute `json:"routes"`
	Logs   struct {
		Credentials bool `json:"should_log_credentials"`
	} `json:"logs"`
}

type doctorRoute struct {
	Match  json.RawMessage   `json:"match"`
	Handle []json.RawMessage `json:"handle"`
}

type doctorHandler struct {
	Handler  string          `json:"handler"`
	Routes   []doctorRoute   `json:"routes"`          // of a subroute
	Response json.RawMessage `json:"handle_response"` // of a reverse_proxy, as forward_auth has it
	Session  string          `json:"session"`
	Clients  []string        `json:"clients"`
	Mode     string          `json:"mode"`
}

func readDoctorConfig(input []byte) (cfg doctorConfig, err error) {
	if json.Unmarshal(input, &cfg) != nil { // what is wrong may stand beside a secret
		return cfg, errors.New("it is JSON, but a member is not of the kind that Caddy wants; `caddy validate` names it")
	}
	return cfg, nil
}

// provisionForDoctor sets the modules up as `caddy validate` does; nothing is
// dialled or opened by that. The configuration's logs are not: their files may
// belong to somebody else. Nothing is taken down again, as the process ends with
// the command. The app is nil where none is configured.
func provisionForDoctor(input []byte) (*App, error) {
	var cfg *caddy.Config
	if err := caddy.StrictUnmarshalJSON(caddy.RemoveMetaFields(input), &cfg); err != nil {
		return nil, err
	}
	if cfg == nil {
		return nil, nil
	}
	cfg.Logging = &caddy.Logging{Logs: map[string]*caddy.CustomLog{
		"default": {BaseLog: caddy.BaseLog{WriterRaw: json.RawMessage(`{"output":"discard"}`)}},
	}}
	ctx, err := caddy.ProvisionContext(cfg)
	if err != nil {
		return nil, err
	}
	mod, err := ctx.AppIfConfigured(appName)
	if errors.Is(err, caddy.ErrNotConfigured) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return mod.(*App), nil
}

var (
	// on the way to an error of ours Caddy says which modules it came through
	wrapping = regexp.MustCompile(`(adapting config using \w+|parsing caddyfile tokens for '[^']*'|loading (module '[^']*'|[\w ]*modules?|the [\w ]+)|provision [\w.]+|setting up [\w ]+|server \w+|route \d+|position \d+|[\w.]+: invalid configuration): `)
	about    = regexp.MustCompile(`session "([^"]+)": `)
)

// refusals are what errors say, the finding that each is, and what to do.
var refusals = []struct{ says, check, advice string }{
	{"a placeholder is unknown or empty", "placeholder", "The environment variable is not set, or the file is not there, for who runs this; set it as Caddy has it."},
	{"encryption_key", "encryption-key", "All instances of a fleet need the same."},
	{"tokens file", "tokens-file", "It must be readable for this user and hold a JSON object with accessToken and refreshToken."},
	{"tokens env", "tokens-env", ""},
	{"plain http", "plain-http", "Write https://, or add insecure_http in a network that you trust."},
	{"unrecognized option", "config", "Check how it is spelt and in which block it stands; docs/configuration.md has all options."},
}

// refused says why a configuration cannot be read or provisioned, under the id of
// what is at fault where its error tells.
func (d *doctor) refused(what string, err error) {
	text, check, session, advice := err.Error(), "config", "", ""
	if strings.Contains(text, appName) {
		text = wrapping.ReplaceAllString(text, "")
	}
	if m := about.FindStringSubmatch(text); m != nil {
		session = m[1]
	}
	for _, r := range refusals {
		if strings.Contains(text, r.says) {
			check, advice = r.check, r.advice+" "
			break
		}
	}
	d.problem(check, session, "%s: %s. %sThe checks of issuers, storage and sessions were left out; run this again when it loads.",
		what, strings.TrimSuffix(text, "."), strings.TrimLeft(advice, " "))
}

// unused tells of sessions that no handler gives to requests.
func (d *doctor) unused(input []byte, cfg doctorConfig) {
	var all any
	if json.Unmarshal(input, &all) != nil {
		return // was said
	}
	used := map[string]bool{}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			if h, _ := v["handler"].(string); h == appName || h == endpointDirective {
				name, _ := v["session"].(string)
				used[strings.ToLower(name)] = true
			}
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(all)
	for _, name := range append(sortedKeys(cfg.Apps.Ours.Sessions), sortedKeys(cfg.Apps.Ours.Pools)...) {
		if !used[strings.ToLower(name)] {
			d.warn("no-handler", name, "No site uses %s, so that no request gets a token of it: put `token_refresh %s` into the site or the handle block that proxies.", name, name)
		}
	}
}

// routes looks at where the handlers stand.
func (d *doctor) routes(cfg doctorConfig) {
	for _, name := range sortedKeys(cfg.Apps.HTTP.Servers) {
		srv := cfg.Apps.HTTP.Servers[name]
		if srv == nil {
			continue
		}
		w := &routeWalk{d: d}
		w.routes(srv.Routes, false)
		for _, h := range w.last {
			d.problem("handler-order", h.Session, "Nothing comes after token_refresh that would send requests on. Where handle blocks proxy, put it into each of them, before reverse_proxy: those that stand outside see no request that a handle block takes.")
		}
		listen := srv.Listen
		if len(listen) == 0 {
			listen = []string{":443"} // Caddy's default
		}
		open := strings.Join(openListeners(listen), ", ")
		for _, h := range w.found {
			if open != "" {
				d.openTo(cfg, h, open, w.guarded)
			}
			if srv.Logs.Credentials {
				d.warn("log-credentials", h.Session, "log_credentials is on, so that Caddy's logs show access tokens: remove it from the global option `servers`.")
			}
		}
	}
}

// openTo judges a handler that other machines can reach. A pool, and `swap`, ask
// callers for a token of their own.
func (d *doctor) openTo(cfg doctorConfig, h doctorHandler, open string, guarded bool) {
	if _, _, pool := lookup(pointers(cfg.Apps.Ours.Pools), h.Session); pool || h.Mode == modeSwap {
		return
	}
	switch {
	case !slices.Contains(h.Clients, "any"):
		d.warn("open-listener", h.Session, "Other machines can reach the listener %s with this session behind it; only `clients` keeps them out. If only programs on this machine use it, add `bind 127.0.0.1` to the site.", open)
	case guarded:
		d.warn("open-listener", h.Session, "Everybody who can reach %s and passes the site's authentication can use this session. See that every route to it asks for that.", open)
	default:
		d.problem("open-listener", h.Session, "Everybody who can reach %s can use this session, as `clients` is any. Name the callers' addresses in `clients`, put authentication before it, or add `bind 127.0.0.1` to the site.", open)
	}
}

// routeWalk goes through routes in the order in which requests do.
type routeWalk struct {
	d       *doctor
	found   []doctorHandler // that give a session's token
	last    []doctorHandler // those of them that nothing has come after so far
	guarded bool            // by authentication of some kind
}

// routes reports whether every request that comes in is proxied; gone, whether it
// was before.
func (w *routeWalk) routes(list []doctorRoute, gone bool) bool {
	proxied := map[string]bool{} // by matcher; "" is all requests
	for _, r := range list {
		before := gone || proxied[""] || proxied[string(r.Match)]
		if w.handlers(r.Handle, before) {
			proxied[string(r.Match)] = true
		}
	}
	return gone || proxied[""]
}

func (w *routeWalk) handlers(list []json.RawMessage, gone bool) bool {
	for _, raw := range list {
		var h doctorHandler
		if json.Unmarshal(raw, &h) != nil {
			w.last = nil
			continue // another module's member of the same name
		}
		if h.Handler != "subroute" {
			w.last = nil
		}
		switch h.Handler {
		case "token_refresh":
			w.found = append(w.found, h)
			if gone {
				w.d.problem("handler-order", h.Session, "token_refresh stands after reverse_proxy in the same route, so that requests leave without a token. Put it before.")
			} else {
				w.last = append(w.last, h)
			}
		case "token_refresh_endpoint":
			w.found = append(w.found, h)
		case "authentication":
			w.guarded = true
		case "reverse_proxy":
			if len(h.Response) > 0 { // forward_auth: requests may come back from it
				w.guarded = true
				continue
			}
			gone = true
		default:
			gone = w.routes(h.Routes, gone)
		}
	}
	return gone
}

func pointers[T any](in map[string]T) map[string]*T {
	out := make(map[string]*T, len(in))
	for name, v := range in {
		out[name] = &v
	}
	return out
}
