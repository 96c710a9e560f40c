package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// TestMain lets the test binary be started again as a process that announces
// events until it is killed, and looks for goroutines that outlived their outbox.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir))
	}
	goleak.VerifyTestMain(m)
}

// Tokens as the tests send them. They are odd enough that finding one in a text
// is no accident.
const (
	oldAccess  = "canary-old-access-Zk3"
	oldRefresh = "canary-old-refresh+Qp7/x="
	newAccess  = "canary-new-access-Xw9"
)

func testRing(t testing.TB, fill ...byte) *journal.Keyring {
	t.Helper()
	var keys [][]byte
	if len(fill) == 0 {
		fill = []byte{7}
	}
	for _, b := range fill {
		key := make([]byte, 32)
		key[0] = b
		keys = append(keys, key)
	}
	ring, err := journal.NewKeyring(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func testEvent(session string) Event {
	return Event{
		Session: session, ID: NewID(), CreateInstant: time.Now(),
		Original:     refresher.NewSecret(oldAccess),
		RefreshToken: refresher.NewSecret(oldRefresh),
		Token:        refresher.NewSecret(newAccess),
	}
}

// openTest opens an outbox that is closed at the test's end.
func openTest(t *testing.T, cfg Config, hooks ...*Hook) *Outbox {
	t.Helper()
	if cfg.Keyring == nil {
		cfg.Keyring = testRing(t)
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	o, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNow(t, o) })
	if err := o.Configure(hooks...); err != nil {
		t.Fatal(err)
	}
	return o
}

// closeNow closes without patience.
func closeNow(t *testing.T, o *Outbox) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := o.Close(ctx); err != nil {
		t.Error(err)
	}
}

func announce(t *testing.T, o *Outbox, ev Event, done func()) (pending bool) {
	t.Helper()
	pending, err := o.Announce(t.Context(), ev, done)
	if err != nil {
		t.Fatal(err)
	}
	return pending
}

func testHook(t testing.TB, cfg HookConfig) *Hook {
	t.Helper()
	h, err := NewHook(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// arrived is a request that a receiver got.
type arrived struct {
	header http.Header
	body   []byte
	event  wireEvent
}

// inbox is a receiver's handler. It records what it answers 2xx.
type inbox struct {
	// answer is asked for the status; nil is 204. It may wait.
	answer func(r *http.Request, ev wireEvent) int

	mu   sync.Mutex
	all  []arrived // whatever was answered
	took []arrived // answered 2xx
}

func (b *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // killed on its way
	}
	var doc struct{ Event wireEvent }
	if err := json.Unmarshal(body, &doc); err != nil {
		http.Error(w, "not JSON", http.StatusBadRequest)
		return
	}
	a := arrived{header: r.Header.Clone(), body: body, event: doc.Event}
	b.mu.Lock()
	b.all = append(b.all, a)
	answer := b.answer
	b.mu.Unlock()
	status := http.StatusNoContent
	if answer != nil {
		status = answer(r, doc.Event)
	}
	if status/100 == 2 {
		b.mu.Lock()
		b.took = append(b.took, a)
		b.mu.Unlock()
	}
	w.WriteHeader(status)
}

func (b *inbox) seen() (all, took []arrived) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]arrived{}, b.all...), append([]arrived{}, b.took...)
}

// wait returns what the inbox took once there are n.
func (b *inbox) wait(t *testing.T, n int) []arrived {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if _, took := b.seen(); len(took) >= n {
			return took
		}
		time.Sleep(2 * time.Millisecond) // a real network: there is nothing to wait on
	}
	_, took := b.seen()
	t.Fatalf("took %d events, want %d", len(took), n)
	return nil
}

func serve(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

// pipes is a network inside the process, which testing/synctest can wait for.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

// servePipes serves h in the bubble until stop.
func servePipes(h http.Handler) (p *pipes, stop func()) {
	p = &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := &http.Server{Handler: h}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(p) })
	return p, func() {
		_ = srv.Close()
		wg.Wait()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
	return nil
}

func (*pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, &net.OpError{Op: "dial", Err: fmt.Errorf("refused")}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dialTo reaches a server whatever the URL says.
func dialTo(address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
}
