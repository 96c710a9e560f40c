package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
)

func init() {
	caddy.RegisterModule(new(EnvSource))
	caddy.RegisterModule(new(FileSource))
	caddy.RegisterModule(new(LoginSource))
	caddy.RegisterModule(new(ImportSource))
}

// EnvSource takes the first pair from two environment variables.
type EnvSource struct {
	// The names of the variables that hold the tokens.
	Access  string `json:"access,omitempty"`
	Refresh string `json:"refresh,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*EnvSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "token_refresh.sources.env", New: func() caddy.Module { return new(EnvSource) }}
}

// Validate sees to it that both variables are named and that not just one is
// set.
func (s *EnvSource) Validate() error {
	if s.Access == "" || s.Refresh == "" {
		return errors.New("tokens env: want the names of two variables, the access token's and the refresh token's")
	}
	if _, err := s.Fetch(context.Background()); err != nil && !errors.Is(err, refresher.ErrNoPair) {
		return err
	}
	return nil
}

// Fetch implements refresher.Source.
func (s *EnvSource) Fetch(context.Context) (refresher.Pair, error) {
	access, refresh := os.Getenv(s.Access), os.Getenv(s.Refresh)
	switch {
	case access == "" && refresh == "":
		return refresher.Pair{}, refresher.ErrNoPair
	case access == "":
		return refresher.Pair{}, fmt.Errorf("tokens env: %s is set, but not %s", s.Refresh, s.Access)
	case refresh == "":
		return refresher.Pair{}, fmt.Errorf("tokens env: %s is set, but not %s", s.Access, s.Refresh)
	}
	body, err := json.Marshal(map[string]string{"accessToken": access, "refreshToken": refresh})
	if err != nil {
		return refresher.Pair{}, errors.New("tokens env: not valid UTF-8")
	}
	pair, err := refresher.ParsePair(body, refresher.DefaultFields())
	if err != nil {
		return refresher.Pair{}, fmt.Errorf("tokens env %s %s: %w", s.Access, s.Refresh, err)
	}
	return pair, nil
}

// SignsIn implements refresher.Source.
func (*EnvSource) SignsIn() bool { return false }

// String implements refresher.Source.
func (s *EnvSource) String() string { return "env " + s.Access }

// FileSource takes the first pair from a JSON file with
// `accessToken`/`refreshToken`, `access_token`/`refresh_token` or
// `token`/`refreshToken`. The file is watched: a new pair put there starts the
// session anew. A file that is not there yet is no error.
type FileSource struct {
	// The file's path.
	Path string `json:"path,omitempty"`

	path string
}

// CaddyModule returns the Caddy module information.
func (*FileSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "token_refresh.sources.file", New: func() caddy.Module { return new(FileSource) }}
}

// Provision resolves the path.
func (s *FileSource) Provision(caddy.Context) (err error) {
	s.path, err = resolve(caddy.NewReplacer(), "tokens file", s.Path)
	return err
}

// Validate sees to it that a file that is there can be used.
func (s *FileSource) Validate() error {
	if s.path == "" {
		return errors.New("tokens file: the path is missing")
	}
	if _, err := s.Fetch(context.Background()); err != nil && !errors.Is(err, refresher.ErrNoPair) {
		return err
	}
	return nil
}

// Fetch implements refresher.Source.
func (s *FileSource) Fetch(context.Context) (refresher.Pair, error) {
	body, err := readBounded(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return refresher.Pair{}, refresher.ErrNoPair
	}
	if err != nil {
		return refresher.Pair{}, fmt.Errorf("tokens file: %w", err)
	}
	pair, err := refresher.ParsePair(body, refresher.DefaultFields())
	if err == nil && pair.Refresh.IsZero() {
		err = refresher.ErrNoRefresh
	}
	if err != nil {
		return refresher.Pair{}, fmt.Errorf("tokens file %s: %w", s.path, err)
	}
	return pair, nil
}

// readBounded reads a file that should be small.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, refresher.MaxAnswer+1))
}

// SignsIn implements refresher.Source.
func (*FileSource) SignsIn() bool { return false }

// String implements refresher.Source.
func (s *FileSource) String() string { return "file " + s.path }

// LoginSource gets a pair by signing in: a POST whose JSON answer holds one
// (7G's `POST /User/Login`). It is asked when there is no pair, and again when
// the session is lost.
type LoginSource struct {
	// The endpoint: https, or http on this machine.
	URL string `json:"url,omitempty"`

	// What is sent as `{"username": …, "password": …}`. Placeholders are
	// resolved when the configuration is provisioned.
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`

	// What is sent in place of them: any JSON. Placeholders are resolved inside
	// its string values, after it was read as JSON.
	Body json.RawMessage `json:"body,omitempty"`

	// Header fields of the request. Default: `Version: 2.0` where the session's
	// issuer is `bearer`.
	Header http.Header `json:"header,omitempty"`

	// As the issuer's options of the same names.
	Timeout      caddy.Duration `json:"timeout,omitempty"`
	InsecureHTTP bool           `json:"insecure_http,omitempty"`
	TLS          *TLSOptions    `json:"tls,omitempty"`
	Fields       *FieldNames    `json:"fields,omitempty"`

	login *issuer.Login
	cfg   issuer.LoginConfig
}

// CaddyModule returns the Caddy module information.
func (*LoginSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "token_refresh.sources.login", New: func() caddy.Module { return new(LoginSource) }}
}

// Provision sets up the source; nothing is sent.
func (s *LoginSource) Provision(ctx caddy.Context) (err error) {
	if s.cfg, err = s.config(caddy.NewReplacer()); err == nil {
		s.login, err = issuer.NewLogin(s.cfg)
	}
	if err != nil {
		return fmt.Errorf("tokens login: %w", err)
	}
	warnOfSecret(ctx.Logger(), "the login's password", s.Password, s.URL)
	return nil
}

func onThisMachine(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
}

// bindIssuer takes the defaults that go with the session's issuer.
func (s *LoginSource) bindIssuer(of refresher.Issuer) {
	if _, ok := of.(*BearerIssuer); !ok || len(s.cfg.Header.Values("Version")) > 0 {
		return
	}
	header := s.cfg.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	header.Set("Version", "2.0")
	s.cfg.Header = header
	s.login, _ = issuer.NewLogin(s.cfg) // was valid without it
}

// config resolves the placeholders; repl nil leaves them.
func (s *LoginSource) config(repl *caddy.Replacer) (cfg issuer.LoginConfig, err error) {
	cfg = issuer.LoginConfig{URL: s.URL, InsecureHTTP: s.InsecureHTTP, Fields: s.Fields.fields()}
	if (s.Username != "" || s.Password != "") == (len(s.Body) > 0) {
		return cfg, errors.New("want either username and password, or body")
	}
	if len(s.Body) == 0 && (s.Username == "" || s.Password == "") {
		return cfg, errors.New("username and password belong together")
	}
	if s.Timeout < 0 {
		return cfg, errors.New("timeout: must not be negative")
	}
	cfg.Timeout = time.Duration(s.Timeout)
	if cfg.Header, err = resolveHeader(repl, s.Header); err != nil {
		return cfg, err
	}
	username, password, body := s.Username, s.Password, []byte(s.Body)
	if repl != nil { // a Caddyfile is adapted without its secrets
		if username, err = resolve(repl, "username", username); err != nil {
			return cfg, err
		}
		if password, err = resolve(repl, "password", password); err != nil {
			return cfg, err
		}
		if body, err = resolveJSON(repl, body); err != nil {
			return cfg, err
		}
		if cfg.TLS, err = s.TLS.config(); err != nil {
			return cfg, err
		}
	}
	cfg.Username, cfg.Password = refresher.NewSecret(username), refresher.NewSecret(password)
	cfg.Body = refresher.NewSecret(string(body))
	return cfg, nil
}

// Fetch implements refresher.Source.
func (s *LoginSource) Fetch(ctx context.Context) (refresher.Pair, error) { return s.login.Fetch(ctx) }

// SignsIn implements refresher.Source.
func (*LoginSource) SignsIn() bool { return true }

// String implements refresher.Source.
func (s *LoginSource) String() string { return s.login.String() }

// ImportSource says that the first pair is given later: with
// `caddy token-refresh import` or the admin API.
type ImportSource struct{}

// CaddyModule returns the Caddy module information.
func (*ImportSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "token_refresh.sources.import", New: func() caddy.Module { return new(ImportSource) }}
}

// Fetch implements refresher.Source.
func (*ImportSource) Fetch(context.Context) (refresher.Pair, error) {
	return refresher.Pair{}, refresher.ErrNoPair
}

// SignsIn implements refresher.Source.
func (*ImportSource) SignsIn() bool { return false }

// String implements refresher.Source.
func (*ImportSource) String() string { return "import" }

// Interface guards
var (
	_ caddy.Validator   = (*EnvSource)(nil)
	_ caddy.Provisioner = (*FileSource)(nil)
	_ caddy.Validator   = (*FileSource)(nil)
	_ caddy.Provisioner = (*LoginSource)(nil)
	_ issuerBound       = (*LoginSource)(nil)
	_ refresher.Source  = (*EnvSource)(nil)
	_ refresher.Source  = (*FileSource)(nil)
	_ refresher.Source  = (*LoginSource)(nil)
	_ refresher.Source  = (*ImportSource)(nil)
)
