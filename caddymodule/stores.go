package caddymodule

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tokenrefresh/caddy-token-refresh/caddymodule/storage"
	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	etcdstore "github.com/tokenrefresh/caddy-token-refresh/refresher/store/etcd"
	redisstore "github.com/tokenrefresh/caddy-token-refresh/refresher/store/redis"
)

func init() {
	caddy.RegisterModule(new(RedisStore))
	caddy.RegisterModule(new(EtcdStore))
	caddy.RegisterModule(new(CaddyStore))
}

// StoreModule is a module of the namespace `token_refresh.stores`: where the
// instances of a fleet share their sessions.
type StoreModule interface {
	caddy.Module

	// StoreSettings identifies what OpenStore returns: a configuration with
	// equal settings goes on with the store of the one before. They may hold
	// secrets; only a hash of them is kept.
	StoreSettings() string

	// OpenStore opens the store without waiting for it: one that is down is no
	// error. The store outlives the module, the logger goes with it.
	OpenStore(*zap.Logger) (refresher.Store, error)
}

// RedisStore shares sessions through Redis or Valkey: a single server, Sentinel
// or a cluster.
type RedisStore struct {
	// Where it is: `redis://host:port/0`, `rediss://` for TLS,
	// `unix:///path/to/socket?db=0`,
	// `redis+sentinel://host:port,host:port/0?master=name` or
	// `redis+cluster://host:port,host:port`. Required. Placeholders are resolved
	// when the configuration is provisioned, here and in user names and
	// passwords.
	URL string `json:"url,omitempty"`

	// Who signs in, in place of the URL's.
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`

	// Who signs in at Sentinel itself.
	SentinelUsername string `json:"sentinel_username,omitempty"`
	SentinelPassword string `json:"sentinel_password,omitempty"`

	// What all keys begin with: fleets that share a server use different ones.
	// Default: `token_refresh`.
	Prefix string `json:"prefix,omitempty"`

	// Bounds each command, with the connecting. Default: 2s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How the connection is secured; given, it is, whatever the URL begins with.
	TLS *TLSOptions `json:"tls,omitempty"`

	cfg      redisstore.Config
	settings string
}

// CaddyModule returns the Caddy module information.
func (*RedisStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "token_refresh.stores.redis", New: func() caddy.Module { return new(RedisStore) }}
}

// Provision sets up the store; nothing is dialled.
func (s *RedisStore) Provision(ctx caddy.Context) (err error) {
	if err := s.check(); err != nil {
		return err
	}
	s.cfg = redisstore.Config{Prefix: s.Prefix, Timeout: time.Duration(s.Timeout)}
	repl := caddy.NewReplacer()
	for _, v := range []struct {
		option, value string
		to            *string
	}{
		{"url", s.URL, &s.cfg.URL},
		{"username", s.Username, &s.cfg.Username},
		{"password", s.Password, &s.cfg.Password},
		{"sentinel_username", s.SentinelUsername, &s.cfg.SentinelUsername},
		{"sentinel_password", s.SentinelPassword, &s.cfg.SentinelPassword},
	} {
		if *v.to, err = resolve(repl, "store redis: "+v.option, v.value); err != nil {
			return err
		}
	}
	if err := checkRedisURL(s.cfg.URL); err != nil {
		return err
	}
	if s.cfg.TLS, err = s.TLS.config(); err != nil {
		return fmt.Errorf("store redis: %w", err)
	}
	files, err := s.TLS.files()
	if err != nil {
		return fmt.Errorf("store redis: %w", err)
	}
	s.settings = joinSettings(append(files, s.cfg.URL, s.cfg.Username, s.cfg.Password,
		s.cfg.SentinelUsername, s.cfg.SentinelPassword, s.Prefix, time.Duration(s.Timeout).String())...)

	secret, hosts := redisURL(s.cfg.URL)
	local := !slices.ContainsFunc(hosts, func(host string) bool { return !onThisMachine("x://" + host) })
	literal, _ := redisURL(s.URL)
	warnOfSecrets(ctx.Logger(), local, literal, s.Password, s.SentinelPassword)
	if plain := s.cfg.TLS == nil && !isRediss(s.cfg.URL); plain && !local && (secret != "" || s.Password != "" || s.SentinelPassword != "") {
		ctx.Logger().Warn("the password of the store goes over the network in the clear; use rediss:// (the pairs themselves are sealed)")
	}
	return nil
}

func (s *RedisStore) check() error {
	switch {
	case s.URL == "":
		return errors.New("store redis: the URL is missing")
	case s.Timeout < 0:
		return errors.New("store redis: timeout: must not be negative")
	}
	if placeholder.MatchString(s.URL) {
		return nil // what it begins with may be in there
	}
	return checkRedisURL(s.URL)
}

// StoreSettings implements [StoreModule].
func (s *RedisStore) StoreSettings() string { return s.settings }

// OpenStore implements [StoreModule].
func (s *RedisStore) OpenStore(logger *zap.Logger) (refresher.Store, error) {
	cfg := s.cfg
	cfg.Logger = logger
	return redisstore.Open(cfg)
}

// EtcdStore shares sessions through etcd.
type EtcdStore struct {
	// The members: `https://host:port`, or `http://` or just `host:port` for a
	// plain connection. Required. Placeholders are resolved when the
	// configuration is provisioned, here and in user name and password.
	Endpoints []string `json:"endpoints,omitempty"`

	// Who signs in.
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`

	// What all keys begin with: fleets that share an etcd use different ones.
	// Default: `token_refresh/`.
	Prefix string `json:"prefix,omitempty"`

	// Bounds each request, with the connecting. Default: 2s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How the connection is secured, where it is.
	TLS *TLSOptions `json:"tls,omitempty"`

	cfg      etcdstore.Config
	settings string
}

// CaddyModule returns the Caddy module information.
func (*EtcdStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "token_refresh.stores.etcd", New: func() caddy.Module { return new(EtcdStore) }}
}

// Provision sets up the store; nothing is dialled.
func (s *EtcdStore) Provision(ctx caddy.Context) (err error) {
	if err := s.check(); err != nil {
		return err
	}
	s.cfg = etcdstore.Config{Prefix: s.Prefix, Timeout: time.Duration(s.Timeout)}
	repl := caddy.NewReplacer()
	local, plain := true, false
	for _, endpoint := range s.Endpoints {
		if endpoint, err = resolve(repl, "store etcd: endpoint", endpoint); err != nil {
			return err
		}
		s.cfg.Endpoints = append(s.cfg.Endpoints, endpoint)
		local = local && onThisMachine(withScheme(endpoint))
		plain = plain || isPlain(endpoint, s.TLS != nil)
	}
	if s.cfg.Username, err = resolve(repl, "store etcd: username", s.Username); err != nil {
		return err
	}
	if s.cfg.Password, err = resolve(repl, "store etcd: password", s.Password); err != nil {
		return err
	}
	if s.cfg.TLS, err = s.TLS.config(); err != nil {
		return fmt.Errorf("store etcd: %w", err)
	}
	files, err := s.TLS.files()
	if err != nil {
		return fmt.Errorf("store etcd: %w", err)
	}
	s.settings = joinSettings(append(append(files, s.cfg.Endpoints...), s.cfg.Username, s.cfg.Password, s.Prefix, time.Duration(s.Timeout).String())...)
	warnOfSecrets(ctx.Logger(), local, s.Password)
	if plain && !local && s.Password != "" {
		ctx.Logger().Warn("the password of the store goes over the network in the clear; use https:// (the pairs themselves are sealed)")
	}
	return nil
}

func (s *EtcdStore) check() error {
	switch {
	case len(s.Endpoints) == 0:
		return errors.New("store etcd: the endpoints are missing")
	case (s.Username == "") != (s.Password == ""):
		return errors.New("store etcd: username and password belong together")
	case s.Timeout < 0:
		return errors.New("store etcd: timeout: must not be negative")
	}
	return nil
}

// StoreSettings implements [StoreModule].
func (s *EtcdStore) StoreSettings() string { return s.settings }

// OpenStore implements [StoreModule].
func (s *EtcdStore) OpenStore(logger *zap.Logger) (refresher.Store, error) {
	cfg := s.cfg
	cfg.Logger = logger
	return etcdstore.Open(cfg)
}

// CaddyStore shares sessions through Caddy's own `storage`, whatever module that
// is.
type CaddyStore struct {
	storage  certmagic.Storage
	settings string
}

// CaddyModule returns the Caddy module information.
func (*CaddyStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "token_refresh.stores.caddy", New: func() caddy.Module { return new(CaddyStore) }}
}

var storages atomic.Uint64

// Provision takes the configuration's storage. But for files, Caddy closes it
// with the configuration, so that the next one cannot go on with it.
func (s *CaddyStore) Provision(ctx caddy.Context) error {
	s.storage = ctx.Storage()
	s.settings = strconv.FormatUint(storages.Add(1), 10)
	if files, ok := s.storage.(*certmagic.FileStorage); ok {
		s.settings = "file " + files.Path
	}
	return nil
}

// StoreSettings implements [StoreModule].
func (s *CaddyStore) StoreSettings() string { return s.settings }

// OpenStore implements [StoreModule].
func (s *CaddyStore) OpenStore(logger *zap.Logger) (refresher.Store, error) {
	return storage.New(s.storage, logger), nil
}

func joinSettings(parts ...string) string {
	text, _ := json.Marshal(parts) // strings can always be encoded
	return string(text)
}

// files returns what the files named hold; another certificate needs another
// connection.
func (t *TLSOptions) files() (list []string, err error) {
	if t == nil {
		return nil, nil
	}
	for _, path := range []string{t.CA, t.ClientCertificate, t.ClientKey} {
		var text []byte
		if path != "" {
			if text, err = os.ReadFile(path); err != nil {
				return nil, fmt.Errorf("tls: %w", err)
			}
		}
		list = append(list, string(text))
	}
	return list, nil
}

// warnOfSecrets says that a secret is no placeholder, unless it is of no use but
// on this machine.
func warnOfSecrets(logger *zap.Logger, local bool, secrets ...string) {
	for _, secret := range secrets {
		if !local && secret != "" && !placeholder.MatchString(secret) {
			logger.Warn("the store's password stands in the configuration itself, which Caddy shows and saves; put {env.…} or {file.…} there")
			return
		}
	}
}

// sharedStore is a store of the process, held by every configuration that has
// it.
type sharedStore struct {
	refresher.Store
	key    string
	logger *lastLogger
}

var sharedStores = caddy.NewUsagePool()

func holdStore(mod StoreModule) (*sharedStore, error) {
	settings := sha256.Sum256([]byte(mod.StoreSettings()))
	key := string(mod.CaddyModule().ID) + " " + hex.EncodeToString(settings[:])
	v, _, err := sharedStores.LoadOrNew(key, func() (caddy.Destructor, error) {
		logger := new(lastLogger)
		store, err := mod.OpenStore(zap.New(logCore{logger: logger}).Named(appName))
		if err != nil {
			return nil, err
		}
		return &sharedStore{Store: store, key: key, logger: logger}, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*sharedStore), nil
}

func (s *sharedStore) release() error {
	_, err := sharedStores.Delete(s.key)
	return err
}

// Destruct closes the store when nobody holds it any more.
func (s *sharedStore) Destruct() error { return s.Close() }

// lastLogger is the logger of the configuration in force. Each has its own, and
// the file behind an older one may be closed.
type lastLogger struct {
	mu   sync.Mutex
	list []*zap.Logger // of the configurations that are not over; the newest counts
}

func (l *lastLogger) attach(logger *zap.Logger) (detach func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, logger)
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if i := slices.Index(l.list, logger); i >= 0 {
			l.list = slices.Delete(l.list, i, i+1)
		}
	})
}

func (l *lastLogger) core() zapcore.Core {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) == 0 {
		return zapcore.NewNopCore()
	}
	return l.list[len(l.list)-1].Core()
}

// logCore passes on to whatever logger is in force.
type logCore struct {
	logger *lastLogger
	fields []zapcore.Field
}

// Enabled implements [zapcore.Core].
func (c logCore) Enabled(level zapcore.Level) bool { return c.logger.core().Enabled(level) }

// With implements [zapcore.Core].
func (c logCore) With(fields []zapcore.Field) zapcore.Core {
	return logCore{logger: c.logger, fields: slices.Concat(c.fields, fields)}
}

// Check implements [zapcore.Core].
func (c logCore) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return to.AddCore(e, c)
	}
	return to
}

// Write implements [zapcore.Core].
func (c logCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if checked := c.logger.core().Check(e, nil); checked != nil {
		checked.Write(slices.Concat(c.fields, fields)...)
	}
	return nil
}

// Sync implements [zapcore.Core].
func (c logCore) Sync() error { return c.logger.core().Sync() }

// Interface guards
var (
	_ StoreModule       = (*RedisStore)(nil)
	_ StoreModule       = (*EtcdStore)(nil)
	_ StoreModule       = (*CaddyStore)(nil)
	_ caddy.Provisioner = (*RedisStore)(nil)
	_ caddy.Provisioner = (*EtcdStore)(nil)
	_ caddy.Provisioner = (*CaddyStore)(nil)
	_ caddy.Destructor  = (*sharedStore)(nil)
	_ zapcore.Core      = logCore{}
)
