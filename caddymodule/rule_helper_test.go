package caddymodule

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// ruleConfig is what a test's Caddyfile has beyond the usual.
type ruleConfig struct {
	Global  string // global options
	App     string // inside token_refresh { … }
	Site    string // inside the site
	LogFile string // DEBUG log as JSON; default: none
}

// ruleCaddy is the Caddy of this process with one site.
type ruleCaddy struct {
	t           *testing.T
	Addr, Admin string
	Dir         string // for everything on disk
	client      *http.Client
}

// ruleFreeAddr is an address that nobody listens on, below the range from which
// the system takes ports for outgoing connections.
func ruleFreeAddr(t testing.TB) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

// ruleStart loads a configuration and stops Caddy at the test's end.
func ruleStart(t *testing.T, cfg ruleConfig) *ruleCaddy {
	t.Helper()
	c := ruleNew(t)
	if err := c.load(cfg); err != nil {
		t.Fatalf("loading the configuration: %v", err)
	}
	if strings.Contains(cfg.App, "tokens file") {
		ruleEventually(t, "the sessions have their pairs", func() bool {
			app, err := activeApp()
			if err != nil {
				return false
			}
			for _, s := range app.Sessions {
				if st := s.shared.Status().State; st == refresher.PhaseEmpty || st == refresher.PhaseHolding {
					return false
				}
			}
			return true
		})
	}
	return c
}

func ruleNew(t *testing.T) *ruleCaddy {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", filepath.Join(dir, "data"))
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	transport := AfterLoad{&http.Transport{DisableCompression: true}}
	c := &ruleCaddy{
		t: t, Addr: ruleFreeAddr(t), Admin: ruleFreeAddr(t), Dir: dir,
		client: &http.Client{Transport: transport, Timeout: 20 * time.Second},
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping Caddy: %v", err)
		}
	})
	return c
}

func (c *ruleCaddy) caddyfile(cfg ruleConfig) string {
	output := "output discard"
	if cfg.LogFile != "" {
		output = "output file " + cfg.LogFile + " {\n roll_disabled\n mode 0600\n}"
	}
	return fmt.Sprintf(`{
	admin %s
	persist_config off
	storage_clean_interval off
	storage file_system %s
	auto_https off
	grace_period 2s
	log default {
		%s
		level DEBUG
		format json
	}
	%s
	token_refresh {
		state_dir %s
		%s
	}
}
http://:%s {
	bind 127.0.0.1
	%s
}
`, c.Admin, filepath.Join(c.Dir, "storage"), output, cfg.Global, filepath.Join(c.Dir, "state"), cfg.App, rulePort(c.Addr), cfg.Site)
}

func rulePort(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

func (c *ruleCaddy) load(cfg ruleConfig) error {
	text, err := adaptText(c.caddyfile(cfg))
	if err != nil {
		return err
	}
	return LoadJSON(text)
}

func adaptText(caddyfile string) ([]byte, error) {
	text, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	return text, err
}

// do sends a request and returns the answer's status and body.
func (c *ruleCaddy) do(method, path string, body io.Reader, header ...string) (int, string, http.Header) {
	c.t.Helper()
	return c.send(method, "http://"+c.Addr+path, body, header...)
}

func (c *ruleCaddy) get(path string) (int, string) {
	c.t.Helper()
	status, body, _ := c.do("GET", path, nil)
	return status, body
}

func (c *ruleCaddy) admin(method, path string, body string, header ...string) (int, string) {
	c.t.Helper()
	status, answer, _ := c.send(method, "http://"+c.Admin+path, strings.NewReader(body), header...)
	return status, answer
}

func (c *ruleCaddy) send(method, url string, body io.Reader, header ...string) (int, string, http.Header) {
	c.t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := c.client.Do(req)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("%s %s: reading the answer: %v", method, url, err)
	}
	return resp.StatusCode, string(text), resp.Header
}

// status is the session's, of the configuration in force.
func ruleStatus(t *testing.T, name string) refresher.Status {
	t.Helper()
	app, err := activeApp()
	if err != nil {
		t.Fatal(err)
	}
	cfg, ok := app.session(name)
	if !ok {
		t.Fatalf("no session %q", name)
	}
	return cfg.shared.Status()
}

// ruleEventually waits for what happens soon.
func ruleEventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("in vain waited for: %s", what)
		}
	}
}

// ruleIssuer is a sandbox with access tokens that live for an hour unless the
// test says otherwise.
func ruleIssuer(t *testing.T, cfg sandbox.Config) (*sandbox.Sandbox, string) {
	t.Helper()
	if cfg.AccessLifetime == 0 {
		cfg.AccessLifetime = time.Hour
	}
	sb := sandbox.New(cfg)
	srv := httptest.NewServer(sb)
	t.Cleanup(srv.Close)
	return sb, srv.URL
}

// rulePair writes a pair as a tokens file.
func rulePair(t *testing.T, access, refresh string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pair.json")
	ruleWritePair(t, path, access, refresh)
	return path
}

func ruleWritePair(t *testing.T, path, access, refresh string) {
	t.Helper()
	text, err := json.Marshal(map[string]string{"accessToken": access, "refreshToken": refresh})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// ruleSession is the App part for a session "s" with a pair in a file.
func ruleSession(issuerURL, path string, more ...string) string {
	return fmt.Sprintf("session s {\n issuer bearer %s/User/RefreshToken\n tokens file %s\n %s\n}", issuerURL, path, strings.Join(more, "\n"))
}

// ruleUpstream answers 401 to the access tokens it is told are dead, and passes
// the others on to a handler. It keeps what came.
type ruleUpstream struct {
	URL string

	mu     sync.Mutex
	dead   map[string]bool
	seen   []ruleSeen
	refuse http.HandlerFunc
	serve  http.HandlerFunc
}

type ruleSeen struct {
	Method, Path, Token string
	Header              http.Header
	Status              int
}

func newRuleUpstream(t *testing.T, serve http.HandlerFunc, dead ...string) *ruleUpstream {
	t.Helper()
	u := &ruleUpstream{dead: map[string]bool{}, serve: serve, refuse: func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "no")
	}}
	for _, token := range dead {
		u.dead[token] = true
	}
	if u.serve == nil {
		u.serve = func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "fine") }
	}
	srv := httptest.NewServer(http.HandlerFunc(u.handle))
	t.Cleanup(srv.Close)
	u.URL = srv.URL
	return u
}

func (u *ruleUpstream) handle(w http.ResponseWriter, r *http.Request) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	u.mu.Lock()
	dead := u.dead[token] || u.dead["*"]
	u.seen = append(u.seen, ruleSeen{Method: r.Method, Path: r.URL.Path, Token: token, Header: r.Header.Clone(), Status: map[bool]int{true: 401, false: 200}[dead]})
	u.mu.Unlock()
	if dead {
		u.refuse(w, r)
		return
	}
	u.serve(w, r)
}

func (u *ruleUpstream) requests() []ruleSeen {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.seen)
}

func (u *ruleUpstream) statuses() (list []int) {
	for _, s := range u.requests() {
		list = append(list, s.Status)
	}
	return list
}

// ruleReplay is a Caddy whose first token the upstream refuses: the first
// request leads to an exchange and is sent again.
func ruleReplay(t *testing.T, serve http.HandlerFunc, site func(upstream string) string, session ...string) (*ruleCaddy, *ruleUpstream, *sandbox.Sandbox) {
	t.Helper()
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	up := newRuleUpstream(t, serve, access)
	if site == nil {
		site = func(upstream string) string { return "token_refresh s\nreverse_proxy " + upstream }
	}
	c := ruleStart(t, ruleConfig{App: ruleSession(issuer, rulePair(t, access, refresh), session...), Site: site(up.URL)})
	return c, up, sb
}

// ruleRecorder is an upstream that keeps the lines of each request's header as
// they came.
type ruleRecorder struct {
	Addr string
	mu   sync.Mutex
	got  [][]string
}

func newRuleRecorder(t *testing.T) *ruleRecorder {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rec := &ruleRecorder{Addr: ln.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { rec.serve(conn) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return rec
}

func (rec *ruleRecorder) serve(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	var lines []string
	in := bufio.NewScanner(conn)
	for in.Scan() && in.Text() != "" {
		lines = append(lines, in.Text())
	}
	if len(lines) == 0 {
		return
	}
	rec.mu.Lock()
	rec.got = append(rec.got, lines)
	rec.mu.Unlock()
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
}

// take returns the requests since the last call.
func (rec *ruleRecorder) take() [][]string {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	got := rec.got
	rec.got = nil
	return got
}

// ruleRaw sends bytes and returns the answer as it came.
func ruleRaw(t *testing.T, addr, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	var raw bytes.Buffer
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &raw)), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("no answer: %v; got %q", err, raw.String())
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatalf("the answer broke off: %v; got %q", err, raw.String())
	}
	return raw.String()
}

// ruleGoroutines counts the goroutines that run in a package of ours.
func ruleGoroutines(what string) int {
	buf := make([]byte, 8<<20)
	n := 0
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, what) && !strings.Contains(g, "testing.tRunner") {
			n++
		}
	}
	return n
}

// ruleTimeout is a context for one step of a test.
func ruleTimeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func ruleEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func ruleLoadText(t *testing.T, caddyfile string) {
	t.Helper()
	text, err := adaptText(caddyfile)
	if err != nil {
		t.Fatal(err)
	}
	if err := LoadJSON(text); err != nil {
		t.Fatal(err)
	}
}

// LoadJSON is caddy.Load.
func LoadJSON(config []byte) error {
	defer func() { lastLoad.Store(time.Now().UnixNano()) }()
	return caddy.Load(config, true)
}

var lastLoad atomic.Int64 // in Unix nanoseconds

// AfterLoad makes a request again whose connection was ended within a second of
// a load: Caddy gives each configuration listeners of its own, and the kernel
// resets what those before had not accepted yet, with or without this module.
type AfterLoad struct{ *http.Transport }

func (t AfterLoad) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.Transport.RoundTrip(req)
	for (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF)) && time.Since(time.Unix(0, lastLoad.Load())) < time.Second {
		if req.Body != nil && req.Body != http.NoBody {
			if req.GetBody == nil {
				break
			}
			req = req.Clone(req.Context())
			req.Body, _ = req.GetBody()
		}
		resp, err = t.Transport.RoundTrip(req)
	}
	return resp, err
}

func ruleUnixClient(t *testing.T, socket string) *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func mapsKeys(h http.Header) func(func(string) bool) {
	return func(yield func(string) bool) {
		for name := range h {
			if !yield(name) {
				return
			}
		}
	}
}

// rulePass is a pass of a session that has a pair.
func rulePass(t testing.TB, sb *sandbox.Sandbox) refresher.Pass {
	t.Helper()
	access, refresh := sb.Login()
	iss, err := issuer.NewBearer(issuer.BearerConfig{URL: "https://127.0.0.1:1/x", Profile: refresher.Profile{RevokesPrevious: true}})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := journal.NewKeyring(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	s := refresher.New("s", refresher.Options{Dir: t.TempDir()})
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	detach, err := s.Attach(refresher.Config{Issuer: iss, Sources: []refresher.Source{new(ImportSource)}, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(detach)
	if err := s.Import(context.Background(), refresher.Pair{Access: refresher.NewSecret(access), Refresh: refresher.NewSecret(refresh)}, "import"); err != nil {
		t.Fatal(err)
	}
	pass, err := s.Enter(context.Background(), true)
	if err != nil {
		t.Fatal(err)
	}
	return pass
}
