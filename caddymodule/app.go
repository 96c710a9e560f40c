package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

func init() { caddy.RegisterModule(new(App)) }

const appName = "token_refresh"

// App keeps token pairs fresh: each session is one login at one issuer, whose
// pair is exchanged before its access token expires, and which the
// `token_refresh` handler gives to requests.
//
// Sessions live as long as the process, not as a configuration: a reload goes on
// with the pair in use and ends no exchange.
type App struct {
	// The directory in which the pairs are kept, sealed. Default:
	// `token_refresh` in Caddy's data directory. Placeholders are resolved when
	// the configuration is provisioned.
	StateDir string `json:"state_dir,omitempty"`

	// The keys that seal the stored pairs, each 32 bytes in base64; the first
	// seals, all open. Use placeholders such as `{file./run/secrets/key}`.
	// Default: a key made in `state_dir`, which protects only copies of what is
	// stored elsewhere.
	EncryptionKeys []string `json:"encryption_keys,omitempty"`

	// Where the instances of a fleet share their sessions; each keeps its own
	// `state_dir` beside it. `encryption_keys` is then required, the same in all.
	// Default: nowhere, there is one instance.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=token_refresh.stores inline_key=kind"`

	// The sessions by name. A name is a letter or digit followed by at most 63
	// letters, digits, `.`, `_` or `-`, and unique ignoring case.
	Sessions map[string]*Session `json:"sessions,omitempty"`

	// Whether the process makes itself undumpable and writes no core files
	// (Linux), so that nobody gets at the tokens in its memory. It cannot be taken
	// back before the process ends. Default: true.
	Harden *bool `json:"harden,omitempty"`

	// Who is told of each rotation.
	Webhooks []*Webhook `json:"webhooks,omitempty"`

	// Where a request came from that caused an exchange, for webhooks. Default:
	// nothing is said.
	Location *Place `json:"location,omitempty"`

	// The pools by name; sessions and pools share their names.
	Pools map[string]*Pool `json:"pools,omitempty"`

	ctx      caddy.Context
	logger   *zap.Logger
	stateDir string
	keys     *journal.Keyring // nil: made by Start
	store    StoreModule      // nil: none
	shared   *sharedStore     // the same, opened by Start
	outbox   *sharedOutbox    // nil: there are no webhooks
	held     []releaser
	detach   []func()
	watchers *watchers
	emitter  *emitter
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: appName, New: func() caddy.Module { return new(App) }}
}

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Provision sets up the app. It reads what the configuration refers to, but
// neither the state directory nor the network.
func (a *App) Provision(ctx caddy.Context) (err error) {
	a.ctx, a.logger = ctx, ctx.Logger()
	if err = a.provisionState(); err != nil {
		return err
	}
	if err := a.provisionStore(ctx); err != nil {
		return err
	}
	if err := a.checkNames(); err != nil {
		return err
	}
	if err := a.provisionWebhooks(ctx); err != nil {
		return err
	}
	for name, cfg := range a.Sessions {
		if cfg == nil {
			return fmt.Errorf("session %q: no configuration", name)
		}
		if err := cfg.provision(ctx, name); err != nil {
			return fmt.Errorf("session %q: %w", name, err)
		}
		shared, err := holdSession(a.stateDir, name)
		if err != nil {
			return fmt.Errorf("session %q: %w", name, err)
		}
		a.held = append(a.held, shared)
		cfg.shared = shared
	}
	for name, cfg := range a.Pools {
		if cfg == nil {
			return fmt.Errorf("pool %q: no configuration", name)
		}
		if err := cfg.provision(ctx, name); err != nil {
			return fmt.Errorf("pool %q: %w", name, err)
		}
		shared, err := holdPool(a.stateDir, name)
		if err != nil {
			return fmt.Errorf("pool %q: %w", name, err)
		}
		a.held = append(a.held, shared)
		cfg.shared = shared
	}
	if a.emitter, err = newEmitter(ctx, a.logger); err != nil {
		return err
	}
	return registerMetrics(ctx.GetMetricsRegistry())
}

// checkNames: sessions and pools share one namespace.
func (a *App) checkNames() error {
	seen := map[string]string{}
	for _, name := range slices.Concat(slices.Collect(maps.Keys(a.Sessions)), slices.Collect(maps.Keys(a.Pools))) {
		if !validName.MatchString(name) {
			return fmt.Errorf("session name %q: want a letter or digit, then at most 63 of A-Z a-z 0-9 . _ -", name)
		}
		if other, ok := seen[strings.ToLower(name)]; ok {
			return fmt.Errorf("sessions %q and %q: names must differ in more than case", other, name)
		}
		seen[strings.ToLower(name)] = name
	}
	return nil
}

// releaser is what the process holds across configurations.
type releaser interface{ release() error }

func (a *App) provisionState() error {
	repl := caddy.NewReplacer()
	dir := a.StateDir
	if dir == "" {
		dir = filepath.Join(caddy.AppDataDir(), appName)
	}
	dir, err := resolve(repl, "state_dir", dir)
	if err != nil {
		return err
	}
	if a.stateDir, err = filepath.Abs(dir); err != nil {
		return fmt.Errorf("state_dir: %w", err)
	}
	var keys [][]byte
	for i, text := range a.EncryptionKeys {
		text, err := resolve(repl, "encryption_key", text)
		if err != nil {
			return err
		}
		key, err := journal.ParseKey(text)
		if err != nil {
			return fmt.Errorf("encryption_key %d: %w", i+1, err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil
	}
	if a.keys, err = journal.NewKeyring(keys...); err != nil {
		return fmt.Errorf("encryption_key: %w", err)
	}
	return nil
}

func (a *App) provisionStore(ctx caddy.Context) error {
	if len(a.StoreRaw) == 0 {
		return nil
	}
	if err := checkInlineKey(a.StoreRaw, "store", "kind"); err != nil {
		return err
	}
	mod, err := ctx.LoadModule(a, "StoreRaw")
	if err != nil {
		return fmt.Errorf("loading the store: %w", err)
	}
	store, ok := mod.(StoreModule)
	if !ok {
		return fmt.Errorf("module %T is not a store", mod)
	}
	if a.keys == nil {
		return errors.New("store: an encryption_key is required, the same in all instances: make one with `openssl rand -base64 32` and give it as {file./path} or {env.NAME}")
	}
	a.store = store
	return nil
}

// resolve replaces placeholders in a value of the configuration. One that is
// unknown or empty is an error; the error shows the value as configured only if
// it is nothing but a placeholder.
func resolve(repl *caddy.Replacer, option, value string) (string, error) {
	if !strings.Contains(value, "{") {
		return value, nil
	}
	out, err := repl.ReplaceOrErr(value, true, true)
	if err != nil {
		return "", fmt.Errorf("%s: a placeholder is unknown or empty: %s", option, placeholders(value))
	}
	return out, nil
}

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

func placeholders(value string) string {
	return strings.Join(placeholder.FindAllString(value, -1), " ")
}

// Start puts the configuration into force.
func (a *App) Start() error {
	if err := a.start(); err != nil {
		_ = a.Stop() // Caddy does not stop an app that failed to start
		return err
	}
	return nil
}

func (a *App) start() error {
	if len(a.Sessions)+len(a.Pools) == 0 {
		return nil
	}
	if a.Harden == nil || *a.Harden {
		if err := harden(); err != nil {
			a.logger.Warn("the process could not be hardened (continuing)", zap.Error(err))
		}
	}
	if a.keys == nil {
		if err := a.makeKey(); err != nil {
			return err
		}
	}
	store, err := a.openStore()
	if err != nil {
		return err
	}
	announcer, err := a.startWebhooks()
	if err != nil {
		return err
	}
	a.emitter.start()
	a.watchers = newWatchers()
	for _, cfg := range a.Sessions {
		detach, err := cfg.shared.Attach(refresher.Config{
			Policy: cfg.policy(), Issuer: cfg.issuer, Sources: cfg.sources,
			Keys: a.keys, Store: store, Logger: a.logger,
			Observe: a.observer(&cfg.shared.watch),
			Limiter: cfg.limiter, Announcer: announcer,
		})
		if err != nil {
			return err
		}
		a.detach = append(a.detach, detach)
		for _, src := range cfg.sources {
			if w, ok := src.(watched); ok {
				a.watchers.watch(cfg.shared.Session, w)
			}
		}
	}
	for name, cfg := range a.Pools {
		if store != nil {
			a.logger.Warn("a pool's sessions are not shared through the store: its callers must come to the same instance", zap.String("pool", name))
		}
		detach, err := cfg.shared.Attach(cfg.config(a, announcer))
		if err != nil {
			return err
		}
		a.detach = append(a.detach, detach)
	}
	return nil
}

// openStore opens the store, or goes on with the one of the configuration before.
func (a *App) openStore() (refresher.Store, error) {
	if a.store == nil {
		return nil, nil
	}
	shared, err := holdStore(a.store)
	if err != nil {
		return nil, err
	}
	a.shared = shared
	a.detach = append(a.detach, shared.logger.attach(a.logger))
	return shared, nil
}

// makeKey takes the key of the state directory, making it the first time.
func (a *App) makeKey() error {
	key, created, err := journal.LoadOrCreateKey(a.stateDir)
	if err != nil {
		return fmt.Errorf("no encryption_key is configured: %w", err)
	}
	if created {
		a.logger.Info("no encryption_key is configured; made one beside the pairs, which protects only copies of them stored elsewhere",
			zap.String("state_dir", a.stateDir))
	}
	a.keys, err = journal.NewKeyring(key)
	return err
}

// Stop takes the configuration out of force. Another one that is in force goes
// on; requests that are under way keep their tokens.
func (a *App) Stop() error {
	for _, detach := range a.detach {
		detach()
	}
	a.detach = nil
	a.watchers.stop()
	a.watchers = nil
	a.emitter.end()
	return nil
}

// Cleanup lets go of the sessions, then of the store that they may be writing
// to. The last configuration to do so waits for their exchanges.
func (a *App) Cleanup() error {
	var errs []error
	for _, shared := range a.held {
		errs = append(errs, shared.release())
	}
	a.held = nil
	for _, cfg := range a.Pools {
		if cfg != nil && cfg.jwks != nil {
			cfg.jwks.Close()
		}
	}
	if a.outbox != nil {
		errs = append(errs, a.outbox.release()) // the sessions tell it until their end
		a.outbox = nil
	}
	if a.shared != nil {
		errs = append(errs, a.shared.release())
		a.shared = nil
	}
	return errors.Join(errs...)
}

// session returns a configured session by its name, ignoring case.
func (a *App) session(name string) (*Session, bool) {
	_, cfg, ok := lookup(a.Sessions, name)
	return cfg, ok
}

// pool is the same for pools.
func (a *App) pool(name string) (*Pool, bool) {
	_, cfg, ok := lookup(a.Pools, name)
	return cfg, ok
}

func lookup[T any](in map[string]*T, name string) (string, *T, bool) {
	for n, cfg := range in {
		if strings.EqualFold(n, name) {
			return n, cfg, true
		}
	}
	return "", nil, false
}

// sharedSession is a session of the process, held by every configuration that
// names it.
type sharedSession struct {
	*refresher.Session
	key     string
	metrics *counts
	watch   watch
	seen    seenEvents
}

var sharedSessions = caddy.NewUsagePool()

func holdSession(dir, name string) (*sharedSession, error) {
	key := dir + string(os.PathSeparator) + strings.ToLower(name)
	v, _, err := sharedSessions.LoadOrNew(key, func() (caddy.Destructor, error) {
		s := &sharedSession{
			Session: refresher.New(name, refresher.Options{Dir: dir}),
			key:     key,
			metrics: countsOf(name),
		}
		s.watch.metrics = s.metrics
		return s, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*sharedSession), nil
}

func (s *sharedSession) release() error {
	_, err := sharedSessions.Delete(s.key)
	return err
}

// Destruct ends the session when nobody holds it any more.
func (s *sharedSession) Destruct() error { return s.Close(context.Background()) }

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
	_ caddy.Destructor   = (*sharedSession)(nil)
)
