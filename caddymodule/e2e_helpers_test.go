package caddymodule_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/tokenrefresh/caddy-token-refresh/caddymodule"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// bench is one Caddy, of this process or a child, with any number of sites: each
// has a session of its own at a sandbox of its own, which runs here, outside
// Caddy, where a test can look into it.
type bench struct {
	dir    string       // everything on disk
	admin  string       // address of Caddy's admin endpoint
	client *http.Client // for it
	sites  []*site
	app    string // further lines of the app's

	// reloads says that the admin endpoint's listener is replaced now and then:
	// the kernel resets what the old one had not accepted, and a call is made
	// again.
	reloads bool
}

// site is a session, the site that uses it and the sandbox behind both.
type site struct {
	bench   *bench
	name    string
	addr    string
	sandbox *sandbox.Sandbox
	server  *httptest.Server
	extra   *http.ServeMux // what the upstream has beside the sandbox

	// Lines of the Caddyfile: inside the session, its issuer and the directive.
	tokens, session, issuer, handler string
	before                           string // of the site, before the directive
	issuerURL                        string // default: the sandbox
}

func newBench(t testing.TB) *bench {
	return &bench{dir: t.TempDir(), admin: freeAddr(t), client: newClient(t, 0)}
}

// site adds a session whose first pair lies in a file.
func (b *bench) site(t testing.TB, name string, cfg sandbox.Config) *site {
	s := b.emptySite(t, name, cfg)
	s.tokens = "tokens file " + s.tokensFile()
	access, refresh := s.sandbox.Login()
	s.writeTokens(t, access, refresh)
	return s
}

// emptySite adds a session without a source.
func (b *bench) emptySite(t testing.TB, name string, cfg sandbox.Config) *site {
	t.Helper()
	s := &site{bench: b, name: name, addr: freeAddr(t), sandbox: sandbox.New(cfg), extra: http.NewServeMux()}
	s.extra.Handle("/", s.sandbox)
	s.server = httptest.NewServer(s.extra)
	t.Cleanup(func() {
		s.server.CloseClientConnections() // some faults hang until their caller does
		s.server.Close()
	})
	s.issuerURL = s.server.URL
	b.sites = append(b.sites, s)
	return s
}

// loginSite adds a session that signs in by itself.
func (b *bench) loginSite(t testing.TB, name string, cfg sandbox.Config) *site {
	s := b.emptySite(t, name, cfg)
	s.tokens = "tokens login " + s.server.URL + "/User/Login {\nusername demo\npassword demo\n}"
	return s
}

func (s *site) tokensFile() string { return filepath.Join(s.bench.dir, s.name+".json") }

// writeTokens puts a pair into the tokens file, in one step.
func (s *site) writeTokens(t testing.TB, access, refresh string) {
	t.Helper()
	writePair(t, s.tokensFile()+".new", access, refresh)
	if err := os.Rename(s.tokensFile()+".new", s.tokensFile()); err != nil {
		t.Fatal(err)
	}
}

func writePair(t testing.TB, path, access, refresh string) {
	t.Helper()
	if err := os.WriteFile(path, pairJSON(access, refresh), 0o600); err != nil {
		t.Fatal(err)
	}
}

func pairJSON(access, refresh string) []byte {
	return fmt.Appendf(nil, `{"accessToken":%q,"refreshToken":%q}`, access, refresh)
}

func (b *bench) logFile() string { return filepath.Join(b.dir, "caddy.log") }

// caddyfile has full duplex on, without which Caddy takes what is left of a
// request's body away from the proxy once the answer begins.
func (b *bench) caddyfile() string {
	var text strings.Builder
	fmt.Fprintf(&text, `{
	admin %s
	persist_config off
	auto_https off
	storage_clean_interval off
	servers {
		enable_full_duplex
	}
	storage file_system %s
	log {
		output file %s {
			roll_disabled
		}
	}
	token_refresh {
		state_dir %s
`, b.admin, filepath.Join(b.dir, "storage"), b.logFile(), filepath.Join(b.dir, "state"))
	for _, s := range b.sites {
		fmt.Fprintf(&text, "session %s {\nissuer bearer %s/User/RefreshToken {\n%s\n}\n%s\n%s\n}\n",
			s.name, s.issuerURL, s.issuer, s.tokens, s.session)
	}
	text.WriteString(b.app + "\n}\n}\n")
	for _, s := range b.sites {
		fmt.Fprintf(&text, `http://%s {
	bind 127.0.0.1
	%s
	token_refresh %s {
		%s
	}
	reverse_proxy %s {
		transport http {
			keepalive_idle_conns_per_host 256
		}
	}
	handle_errors {
		respond "{err.message}" {err.status_code}
	}
}
`, s.addr, s.before, s.name, s.handler, s.server.URL)
	}
	return text.String()
}

// json is the configuration as Caddy loads it.
func (b *bench) json(t testing.TB) []byte {
	t.Helper()
	text, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(b.caddyfile()), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatalf("adapting the Caddyfile: %v", err)
	}
	return text
}

// start runs Caddy in this process until the test ends.
func (b *bench) start(t testing.TB) *bench {
	t.Helper()
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping Caddy: %v", err)
		}
		b.checkLog(t)
	})
	b.load(t)
	return b
}

func (b *bench) load(t testing.TB) {
	t.Helper()
	if err := caddymodule.LoadJSON(b.json(t)); err != nil {
		t.Fatalf("loading the configuration: %v", err)
	}
}

// tokenLike matches the sandbox's access tokens, whole or cut, and its refresh
// tokens.
var tokenLike = regexp.MustCompile(`eyJ[\w-]{16}|\b[0-9A-Za-z]{52}\b`)

// checkLog sees to it that no token is in the log, and shows its end after a
// failure.
func (b *bench) checkLog(t testing.TB) {
	t.Helper()
	log, err := os.ReadFile(b.logFile())
	if err != nil {
		t.Errorf("reading Caddy's log: %v", err)
	}
	if token := tokenLike.Find(log); token != nil {
		t.Errorf("a token is in the log: %.12s…", token)
	}
	if t.Failed() {
		lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
		t.Logf("the end of Caddy's log:\n%s", bytes.Join(lines[max(0, len(lines)-25):], []byte("\n")))
	}
}

// newClient makes a client with at most so many connections to a host; 0 is no
// bound.
func newClient(t testing.TB, conns int) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 64, MaxConnsPerHost: conns, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport:     caddymodule.AfterLoad{Transport: transport},
		Timeout:       30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   string
	took   time.Duration
}

func (a answer) String() string {
	return fmt.Sprintf("%d %.200q after %v", a.status, a.body, a.took.Round(time.Millisecond))
}

func send(client *http.Client, req *http.Request) (answer, error) {
	began := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(body), time.Since(began)}, err
}

func request(ctx context.Context, method, url string, body io.Reader) *http.Request {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		panic(err) // a URL of this file
	}
	return req
}

// do makes one request to the site.
func (s *site) do(t testing.TB, method, path string, body io.Reader) answer {
	t.Helper()
	a, err := send(newClient(t, 1), request(t.Context(), method, s.url(path), body))
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func (s *site) get(t testing.TB, path string) answer {
	t.Helper()
	return s.do(t, http.MethodGet, path, nil)
}

func (s *site) url(path string) string { return "http://" + s.addr + path }

// whoami is what the sandbox says of the token that came with the request.
type whoami struct {
	Session    string `json:"session"`
	Generation int    `json:"generation"`
}

func (s *site) whoami(t testing.TB) whoami {
	t.Helper()
	a := s.get(t, "/whoami")
	var who whoami
	if err := json.Unmarshal([]byte(a.body), &who); a.status != http.StatusOK || err != nil {
		t.Fatalf("GET /whoami: %v", a)
	}
	return who
}

// status is what the admin API shows of a session.
type status struct {
	Name        string    `json:"name"`
	State       string    `json:"state"`
	Reason      string    `json:"reason"`
	Epoch       int       `json:"epoch"`
	Generation  int       `json:"generation"`
	NextAttempt time.Time `json:"next_attempt"`
	RefreshAt   time.Time `json:"refresh_at"`
	ExpiresAt   time.Time `json:"expires_at"`
	LastError   string    `json:"last_error"`
	IntentOpen  bool      `json:"intent_open"`
}

// api calls the admin API.
func (b *bench) api(ctx context.Context, method, path string, body []byte) (answer, error) {
	var a answer
	var err error
	for try := 0; try == 0 || b.reloads && try < 5 && err != nil; try++ {
		a, err = send(b.client, request(ctx, method, "http://"+b.admin+"/token_refresh/sessions"+path, bytes.NewReader(body)))
	}
	if err == nil && tokenLike.MatchString(a.body) {
		err = errors.New("a token is in the admin API's answer")
	}
	return a, err
}

func (s *site) tryStatus(ctx context.Context) (status, error) {
	a, err := s.bench.api(ctx, http.MethodGet, "/"+s.name, nil)
	if err != nil {
		return status{}, err
	}
	var st status
	if err := json.Unmarshal([]byte(a.body), &st); err != nil || a.status != http.StatusOK {
		return status{}, fmt.Errorf("admin API: %v", a)
	}
	return st, nil
}

func (s *site) status(t testing.TB) status {
	t.Helper()
	st, err := s.tryStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// refresh has the pair exchanged now.
func (s *site) refresh(t testing.TB) {
	t.Helper()
	eventually(t, 10*time.Second, "there is a pair", func() bool { return s.status(t).Generation > 0 })
	a, err := s.bench.api(t.Context(), http.MethodPost, "/"+s.name+"/refresh", nil)
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("POST /%s/refresh: %v %v", s.name, a, err)
	}
}

// put imports a pair.
func (s *site) put(t testing.TB, access, refresh string) {
	t.Helper()
	a, err := s.bench.api(t.Context(), http.MethodPut, "/"+s.name, pairJSON(access, refresh))
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("PUT /%s: %v %v", s.name, a, err)
	}
}

// at reports whether the session is where it should be.
func (s *site) at(t testing.TB, epoch, generation int) func() bool {
	return func() bool {
		st := s.status(t)
		return st.Epoch == epoch && st.Generation == generation
	}
}

// wantStats compares the sandbox's counters with what the test is about.
func (s *site) wantStats(t testing.TB, want map[string]int) {
	t.Helper()
	st := s.sandbox.Stats()
	got := map[string]int{
		"logins": st.Logins, "attempts": st.Attempts, "exchanges": st.Exchanges, "reuses": st.Reuses,
		"killed": st.SessionsKilled, "unauthorized": st.Unauthorized, "stale": st.StaleAccess, "served": st.Served,
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s: the sandbox counted %d %s, want %d", s.name, got[name], name, want[name])
		}
	}
}

// checkLedger sees to it that no refresh token was presented again once spent,
// and that each generation of a session was exchanged once, in order. It returns
// the number of exchanges.
func (s *site) checkLedger(t testing.TB) int {
	t.Helper()
	s.wantStats(t, map[string]int{"reuses": 0, "killed": 0})
	last := map[string]int{}
	n := 0
	for i, e := range s.sandbox.Ledger() {
		if e.Reuse {
			t.Errorf("%s: attempt %d presented the spent refresh token of generation %d", s.name, i, e.Generation)
		}
		if e.Issued == 0 {
			continue
		}
		n++
		if want := max(last[e.Session], 1); e.Generation != want || e.Issued != want+1 {
			t.Errorf("%s: attempt %d exchanged generation %d for %d; the last one was %d", s.name, i, e.Generation, e.Issued, want)
		}
		last[e.Session] = e.Issued
	}
	return n
}

// usedPorts keeps one test's freed ports from becoming another's.
var usedPorts sync.Map

// freeAddr is an address that nobody listens on. It lies below the range from
// which the system takes ports for outgoing connections: one of those could take
// it before Caddy does.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		if _, used := usedPorts.LoadOrStore(addr, true); used {
			continue
		}
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

const poll = 50 * time.Millisecond

// eventually waits until a condition holds.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	if !within(t.Context(), limit, ok) {
		t.Fatalf("not within %v: %s", limit, what)
	}
}

// never sees to it that a condition does not hold for some time.
func never(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	if within(t.Context(), limit, ok) {
		t.Fatalf("must not happen: %s", what)
	}
}

func within(ctx context.Context, limit time.Duration, ok func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		if ok() {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

// pause lets time pass in which nothing is expected of anybody.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// traffic is a steady stream of requests to one site, each on its own, so that
// one which waits does not hold up the next.
type traffic struct {
	stop func()

	mu      sync.Mutex
	answers []answer
	errs    []error
}

// traffic sends GET /whoami every 50 ms until stopped; where answers are slow, no
// more than a hundred wait.
func (s *site) traffic(t testing.TB) *traffic {
	tr := &traffic{}
	client := newClient(t, 0)
	ctx, cancel := context.WithCancel(context.Background())
	room := make(chan struct{}, 100)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case room <- struct{}{}:
			default:
				continue
			}
			wg.Go(func() {
				tr.add(send(client, request(context.Background(), http.MethodGet, s.url("/whoami"), nil)))
				<-room
			})
		}
	})
	tr.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(tr.stop)
	return tr
}

func (tr *traffic) add(a answer, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if err != nil {
		tr.errs = append(tr.errs, err)
		return
	}
	tr.answers = append(tr.answers, a)
}

// count is how many answers had a status.
func (tr *traffic) count(status int) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	n := 0
	for _, a := range tr.answers {
		if a.status == status {
			n++
		}
	}
	return n
}

// wantOnly stops the traffic; every answer must have had the status. It returns
// how many there were, and the slowest.
func (tr *traffic) wantOnly(t testing.TB, status int) (n int, slowest time.Duration) {
	t.Helper()
	tr.stop()
	shown := 0
	for _, a := range tr.answers {
		slowest = max(slowest, a.took)
		if a.status != status {
			if shown++; shown <= 3 {
				t.Errorf("a caller got %v, want %d", a, status)
			}
		}
	}
	if shown > 3 {
		t.Errorf("and %d more such answers", shown-3)
	}
	if len(tr.errs) > 0 {
		t.Errorf("%d requests failed, the first with: %v", len(tr.errs), tr.errs[0])
	}
	if len(tr.answers) == 0 {
		t.Error("no request was answered")
	}
	return len(tr.answers), slowest
}

// serve runs a server until the test ends and returns its URL.
func serve(t testing.TB, h http.Handler) string {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

// serveAt is serve at a given address.
func serveAt(t testing.TB, addr string, h http.Handler) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	t.Cleanup(srv.Close)
}

// atOnce runs subtests that mostly wait, all at the same time: t.Parallel would
// run no more of them than there are processors.
func atOnce(t *testing.T, tests map[string]func(*testing.T)) {
	var wg sync.WaitGroup
	for name, test := range tests {
		wg.Go(func() { t.Run(name, test) })
	}
	wg.Wait()
}
