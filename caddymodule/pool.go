package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/webhook"
)

// Pool is many sessions of one issuer that belong to the callers. They are
// learned from traffic: a login's answer that passes through opens one. From
// then on its caller may go on with the tokens it was given for as long as the
// session lives; whatever it presents is swapped for the current one.
type Pool struct {
	Rotation

	// Requests whose 2xx answer, if it holds a token pair in JSON or cookies,
	// opens a session.
	Learn []Endpoint `json:"learn,omitempty"`

	// Requests whose 2xx answer ends the caller's session.
	Forget []Endpoint `json:"forget,omitempty"`

	// The callers' own refresh calls, which are answered here with the current
	// pair. Default: POST to the path of the issuer's URL.
	Exchange []Endpoint `json:"exchange,omitempty"`

	// Whether callers get an opaque handle in place of the refresh token. An
	// answer in which that is not possible is not passed on (502). Default: false.
	WithholdRefreshToken *bool `json:"withhold_refresh_token,omitempty"`

	// The most sessions; past it the least recently used is forgotten. Default:
	// 100000.
	MaxSessions int `json:"max_sessions,omitempty"`

	// How long a session is kept that nobody uses. Default: 24h.
	IdleTimeout caddy.Duration `json:"idle_timeout,omitempty"`

	// How long a session is kept at most. Default: 30d.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// The cookies that carry tokens. Default: `access_token` and
	// `refresh_token`.
	Cookies *CookieNames `json:"cookies,omitempty"`

	// The URL of the issuer's public keys (JWKS). A login is learned only if its
	// access token was signed by one of them: an addition, as a token that was
	// not learned is good for nothing here anyway. Default: not looked at.
	VerifyJWKS string `json:"verify_jwks,omitempty"`

	shared *sharedPool
	jwks   *webhook.JWKS
	names  answerNames      // of the answers to callers
	fields refresher.Fields // of those to read

	refreshMember *regexp.Regexp
}

// Endpoint is a kind of request. Paths are compared without regard to case and
// to a slash at the end, as many servers do.
type Endpoint struct {
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
}

// CookieNames are the cookies that carry a pair.
type CookieNames struct {
	Access  string `json:"access,omitempty"`
	Refresh string `json:"refresh,omitempty"`
}

func (e Endpoint) matches(method, cleaned string) bool {
	return strings.EqualFold(e.Method, method) && strings.EqualFold(cleanPath(e.Path), cleaned)
}

func (e Endpoint) check() error {
	if e.Method == "" || !strings.HasPrefix(e.Path, "/") {
		return fmt.Errorf("want a method and a path such as POST /login, not %q %q", e.Method, e.Path)
	}
	return nil
}

// cleanPath is a path as servers may take it, the most lenient of them: a
// backslash for a slash, and nothing behind a semicolon.
func cleanPath(p string) string {
	if strings.Contains(p, `\`) {
		p = strings.ReplaceAll(p, `\`, "/")
	}
	if strings.Contains(p, ";") {
		parts := strings.Split(p, "/")
		for i, part := range parts {
			parts[i], _, _ = strings.Cut(part, ";")
		}
		p = strings.Join(parts, "/")
	}
	return path.Clean("/" + p)
}

func matchesAny(list []Endpoint, method, cleaned string) bool {
	for _, e := range list {
		if e.matches(method, cleaned) {
			return true
		}
	}
	return false
}

// answerNames are the JSON names of the answer to a caller's own refresh call.
type answerNames struct{ access, refresh, expiresIn string }

// addressed is an issuer whose URL callers may call, too.
type addressed interface {
	exchangeURL() string
	answerNames() answerNames
}

func (p *Pool) provision(ctx caddy.Context, name string) error {
	if err := p.Rotation.provision(ctx, p, name); err != nil {
		return err
	}
	for option, list := range map[string][]Endpoint{"learn": p.Learn, "forget": p.Forget, "exchange": p.Exchange} {
		for _, e := range list {
			if err := e.check(); err != nil {
				return fmt.Errorf("%s: %w", option, err)
			}
		}
	}
	if p.MaxSessions < 0 || p.IdleTimeout < 0 || p.MaxAge < 0 {
		return errors.New("max_sessions, idle_timeout and max_age must not be negative")
	}
	if p.VerifyJWKS != "" {
		keys, err := webhook.NewJWKS(webhook.JWKSConfig{URL: p.VerifyJWKS})
		if err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		p.jwks = keys
	}
	if p.Cookies == nil {
		p.Cookies = &CookieNames{Access: "access_token", Refresh: "refresh_token"}
	}
	p.fields = refresher.DefaultFields()
	p.names = answerNames{access: "access_token", refresh: "refresh_token", expiresIn: "expires_in"}
	if a, ok := p.issuer.(addressed); ok {
		p.names = a.answerNames()
		p.fields.Access = append([]string{p.names.access}, p.fields.Access...)
		p.fields.Refresh = append([]string{p.names.refresh}, p.fields.Refresh...)
		if u, err := url.Parse(a.exchangeURL()); len(p.Exchange) == 0 && err == nil && u.Path != "" {
			p.Exchange = []Endpoint{{Method: http.MethodPost, Path: u.Path}}
		}
	}
	p.refreshMember = refreshMember(p.fields.Refresh)
	return nil
}

func (p *Pool) config(a *App, announcer refresher.Announcer) refresher.PoolConfig {
	rate := 0.0
	if l, ok := p.limiter.(*issuerLimiter); ok {
		rate = float64(l.rate.Limit())
	}
	return refresher.PoolConfig{
		Config: refresher.Config{
			Policy: p.policy(), Issuer: p.issuer, Keys: a.keys, Logger: a.logger,
			Observe: a.observer(&p.shared.watch), Limiter: p.limiter, Announcer: announcer,
		},
		MaxSessions: p.MaxSessions,
		IdleTimeout: time.Duration(p.IdleTimeout),
		MaxAge:      time.Duration(p.MaxAge),
		Withhold:    p.withholds(),
		Rate:        rate,
	}
}

// sharedPool is a pool of the process, held by every configuration that names
// it.
type sharedPool struct {
	*refresher.Pool
	key     string
	metrics *counts
	watch   watch
	seen    seenEvents
	cookies cookieForms
}

var sharedPools = caddy.NewUsagePool()

func holdPool(dir, name string) (*sharedPool, error) {
	key := dir + string(os.PathSeparator) + strings.ToLower(name)
	v, _, err := sharedPools.LoadOrNew(key, func() (caddy.Destructor, error) {
		s := &sharedPool{
			Pool:    refresher.NewPool(name, refresher.Options{Dir: dir}),
			key:     key,
			metrics: countsOf(name),
		}
		s.watch.metrics = s.metrics
		return s, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*sharedPool), nil
}

func (s *sharedPool) release() error {
	_, err := sharedPools.Delete(s.key)
	return err
}

// Destruct ends the pool when nobody holds it any more.
func (s *sharedPool) Destruct() error { return s.Close(context.Background()) }
