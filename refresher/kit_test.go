package refresher_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/refreshertest"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// stateDir is a directory in memory where there is one: a bubble waits in real
// time for the disk.
func stateDir(t *testing.T) string {
	t.Helper()
	base := "/dev/shm"
	if i, err := os.Stat(base); err != nil || !i.IsDir() {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(base, "refresher-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func keyring(t *testing.T, names ...string) *journal.Keyring {
	t.Helper()
	var keys [][]byte
	for _, name := range names {
		sum := sha256.Sum256([]byte(name))
		keys = append(keys, sum[:])
	}
	ring, err := journal.NewKeyring(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// notes collects what a session tells.
type notes struct {
	mu   sync.Mutex
	list []refresher.Note
}

func (n *notes) add(note refresher.Note) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, note)
}

func (n *notes) count(kind refresher.NoteKind) (c int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, note := range n.list {
		if note.Kind == kind {
			c++
		}
	}
	return c
}

// fixed is a source with a pair lying there; without one it has none yet.
type fixed struct {
	mu   sync.Mutex
	pair refresher.Pair
	err  error
}

func (*fixed) String() string { return "fixed" }
func (*fixed) SignsIn() bool  { return false }
func (f *fixed) Fetch(context.Context) (refresher.Pair, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return refresher.Pair{}, f.err
	}
	if f.pair.Access.IsZero() {
		return refresher.Pair{}, refresher.ErrNoPair
	}
	return f.pair, nil
}

func pairOf(access, refresh string) refresher.Pair {
	return refresher.Pair{Access: refresher.NewSecret(access), Refresh: refresher.NewSecret(refresh)}
}

// kit is a session, the real bearer issuer and the sandbox, in one bubble.
type kit struct {
	t       *testing.T
	dir     string
	network *refreshertest.Network
	clock   *refreshertest.Clock
	box     *sandbox.Sandbox
	stop    func() // the sandbox's server
	cfg     refresher.Config
	notes   *notes
	session *refresher.Session
	detach  func()
}

const address = "127.0.0.1:80"

func newKit(t *testing.T, box sandbox.Config, change ...func(*kit)) *kit {
	t.Helper()
	k := &kit{
		t: t, dir: stateDir(t), network: refreshertest.NewNetwork(), clock: refreshertest.NewClock(),
		box: sandbox.New(box), notes: &notes{},
	}
	bearer, err := issuer.NewBearer(issuer.BearerConfig{
		URL: "http://127.0.0.1/User/RefreshToken", Dial: k.network.Dial,
		Profile: refresher.Profile{RevokesPrevious: true, ReuseInterval: box.ReuseInterval, AcceptsExpired: box.AcceptExpired},
	})
	if err != nil {
		t.Fatal(err)
	}
	k.cfg = refresher.Config{Issuer: skewed{bearer, k.clock}, Keys: keyring(t, "key"), Observe: k.notes.add}
	for _, f := range change {
		f(k)
	}
	k.serve()
	return k
}

func (k *kit) serve() {
	k.stop = k.network.Serve(address, k.box)
}

// login is the source that signs in at the sandbox.
func (k *kit) login() refresher.Source {
	k.t.Helper()
	l, err := issuer.NewLogin(issuer.LoginConfig{
		URL: "http://127.0.0.1/User/Login", Username: refresher.NewSecret("demo"), Password: refresher.NewSecret("demo"),
		Header: http.Header{"Version": {"2.0"}}, Dial: k.network.Dial,
	})
	if err != nil {
		k.t.Fatal(err)
	}
	return l
}

// seeded has the sandbox's first pair lying in a source.
func seeded(k *kit) { k.cfg.Sources = []refresher.Source{&fixed{pair: pairOf(k.box.Login())}} }

func signingIn(k *kit) { k.cfg.Sources = []refresher.Source{k.login()} }

// start makes the session and attaches the configuration.
func (k *kit) start() {
	k.t.Helper()
	k.session = refresher.New("Billing", refresher.Options{Dir: k.dir, Clock: k.clock})
	var err error
	if k.detach, err = k.session.Attach(k.cfg); err != nil {
		k.t.Fatal(err)
	}
}

// end closes the session, as the end of a process does.
func (k *kit) end() {
	k.t.Helper()
	if k.session == nil {
		return
	}
	if err := k.session.Close(context.Background()); err != nil {
		k.t.Error(err)
	}
	k.session = nil
}

// finish ends all that runs in the bubble.
func (k *kit) finish() {
	k.end()
	k.stop()
}

func (k *kit) await(d time.Duration) { time.Sleep(d) }

// get is what the handler does with one request; it returns the status that the
// caller sees.
func (k *kit) get(path string) int {
	k.t.Helper()
	status, err := k.tryGet(path)
	if err != nil {
		k.t.Fatalf("GET %s: %v", path, err)
	}
	return status
}

func (k *kit) tryGet(path string) (int, error) {
	ctx := context.Background()
	p, err := k.session.Enter(ctx, true)
	if err != nil {
		return 503, err
	}
	status := k.send(path, p)
	if status != 401 {
		k.session.Accepted(p)
		return status, nil
	}
	next, again, err := k.session.Unauthorized(ctx, p, refresher.Route("GET", path))
	if err != nil || !again {
		return status, err
	}
	defer next.Settle()
	if status = k.send(path, next); status == 401 {
		k.session.NoteUnauthorized(context.Background(), next, refresher.Route("GET", path), true)
	}
	return status, nil
}

func (k *kit) send(path string, p refresher.Pass) int {
	req, err := http.NewRequest(http.MethodGet, "http://127.0.0.1"+path, nil)
	if err != nil {
		k.t.Fatal(err)
	}
	req.Header.Set("Authorization", p.Bearer())
	transport := &http.Transport{DialContext: k.network.Dial, DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		k.t.Fatalf("GET %s: %v", path, err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func (k *kit) wantState(want refresher.Phase, reason refresher.Reason) refresher.Status {
	k.t.Helper()
	st := k.session.Status()
	if st.State != want || st.Reason != reason {
		k.t.Fatalf("state %s(%s), want %s(%s): %s", st.State, st.Reason, want, reason, st.LastError)
	}
	return st
}

func (k *kit) wantUnharmed() {
	k.t.Helper()
	if s := k.box.Stats(); s.Reuses != 0 || s.SessionsKilled != 0 {
		k.t.Errorf("the issuer saw %+v", s)
	}
}

// double is an issuer and an upstream that accepts nothing but the current
// token, in memory.
type double struct {
	profile refresher.Profile
	delay   time.Duration // of the exchange, before and after its commit
	life    time.Duration

	mu      sync.Mutex
	n       int
	commits int
	refuse  error
	reuses  int
	under   int // exchanges under way
	most    int
}

func (d *double) Profile() refresher.Profile { return d.profile }
func (d *double) Prepare(context.Context) (refresher.Exchange, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d, d.refuse
}
func (d *double) Close() {}

func (d *double) Send(_ context.Context, p refresher.Pair) refresher.Answer {
	d.mu.Lock()
	d.under++
	d.most = max(d.most, d.under)
	d.mu.Unlock()
	defer func() { d.mu.Lock(); d.under--; d.mu.Unlock() }()
	time.Sleep(d.delay)
	d.mu.Lock()
	current := p.Refresh.Reveal() == fmt.Sprintf("refresh-%d", d.n)
	if current {
		d.n++
		d.commits++
	} else {
		d.reuses++
	}
	next := d.pairLocked()
	d.mu.Unlock()
	time.Sleep(d.delay)
	if !current {
		return refresher.Answer{Class: refresher.ClassRejected, Status: 400, Err: errors.New("spent")}
	}
	return refresher.Answer{Class: refresher.ClassOK, Status: 200, Pair: next}
}

func (d *double) pairLocked() refresher.Pair {
	p := pairOf(fmt.Sprintf("access-%d", d.n), fmt.Sprintf("refresh-%d", d.n))
	p.ExpiresIn = d.life
	return p
}

func (d *double) source() refresher.Source {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &fixed{pair: d.pairLocked()}
}

// accepts is the upstream's check.
func (d *double) accepts(p refresher.Pass) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return p.Token() == fmt.Sprintf("access-%d", d.n)
}

func (d *double) committed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.commits
}

// attach makes a session at the double.
func (d *double) attach(t *testing.T, change ...func(*refresher.Config)) *refresher.Session {
	t.Helper()
	s := refresher.New("double", refresher.Options{Dir: stateDir(t), Clock: refreshertest.NewClock()})
	cfg := refresher.Config{Issuer: d, Sources: []refresher.Source{d.source()}, Keys: keyring(t, "key")}
	for _, f := range change {
		f(&cfg)
	}
	if _, err := s.Attach(cfg); err != nil {
		t.Fatal(err)
	}
	return s
}

func closeSession(t *testing.T, s *refresher.Session) {
	t.Helper()
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// skewed has the issuer client see the turned wall clock: it compares the
// server's Date with time.Now, which in a bubble nobody turns.
type skewed struct {
	refresher.Issuer
	clock *refreshertest.Clock
}

func (s skewed) Prepare(ctx context.Context) (refresher.Exchange, error) {
	conn, err := s.Issuer.Prepare(ctx)
	return skewedExchange{conn, s.clock}, err
}

type skewedExchange struct {
	refresher.Exchange
	clock *refreshertest.Clock
}

func (s skewedExchange) Send(ctx context.Context, p refresher.Pair) refresher.Answer {
	a := s.Exchange.Send(ctx, p)
	if a.OffsetError > 0 {
		a.Offset -= time.Until(s.clock.Now().Wall)
	}
	return a
}

// files returns the names in a directory.
func files(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}
