package caddymodule_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// loadTime is how long the load tests run.
func loadTime() time.Duration {
	if os.Getenv("E2E_LONG") != "" {
		return 30 * time.Second
	}
	return 8 * time.Second
}

func TestNoCallerNoticesARotationUnderLoad(t *testing.T) {
	b := newBench(t)
	s := b.site(t, "load", sandbox.Config{AccessLifetime: 4 * time.Second})
	b.start(t)

	l := newLoad(t, s, 64)
	l.run(t, loadTime())

	// The API served each request once: none was sent again that had been served.
	s.wantStats(t, map[string]int{"served": int(l.ok.Load())})
	s.wantCleanRotations(t, loadTime())
	l.report(t)
}

func TestNoCallerNoticesReloadsAndHangUpsUnderLoad(t *testing.T) {
	b := newBench(t)
	s := b.site(t, "load", sandbox.Config{AccessLifetime: 4 * time.Second})
	b.start(t)

	l := newLoad(t, s, 64)
	l.hangUps = true
	done := make(chan struct{})
	reloads := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			reloads++
			s.session = fmt.Sprintf("wait %ds", 10+reloads%2)
			l.reloading.Store(true)
			b.load(t)
			l.reloaded.Store(time.Now().UnixNano())
			l.reloading.Store(false)
		}
	})
	l.run(t, loadTime())
	close(done)
	wg.Wait()

	if reloads < int(loadTime()/time.Second)/2 {
		t.Errorf("only %d reloads", reloads)
	}
	t.Logf("%d reloads", reloads)
	s.wantCleanRotations(t, loadTime())
	l.report(t)
}

// wantCleanRotations asserts that under load each generation was exchanged by
// exactly one attempt whose answer arrived, that the session was never in doubt,
// and that the only 401s were of tokens that were superseded on their way.
func (s *site) wantCleanRotations(t *testing.T, d time.Duration) {
	t.Helper()
	st := s.sandbox.Stats()
	n := s.checkLedger(t)
	if n < int(d/(4*time.Second)) {
		t.Errorf("%d rotations in %v", n, d)
	}
	s.wantStats(t, map[string]int{"logins": 1, "attempts": n, "exchanges": n, "unauthorized": st.StaleAccess})
	for i, e := range s.sandbox.Ledger() {
		if e.Generation != i+1 || e.Status != http.StatusOK || !e.Delivered {
			t.Errorf("attempt %d: %+v", i, e)
		}
	}
	if now := s.status(t); now.Epoch != 1 || now.Generation < n+1 || now.LastError != "" {
		t.Errorf("after %d rotations the admin API says %+v", n, now)
	}
	t.Logf("%d rotations, %d requests sent again", n, st.StaleAccess)
}

// load is a number of connections that call a site as fast as they can.
type load struct {
	site    *site
	client  *http.Client
	workers int
	hangUps bool // every fifth caller leaves midway

	reloading                 atomic.Bool
	reloaded                  atomic.Int64 // when, in Unix nanoseconds
	ok, left, closed, crossed atomic.Int64

	mu       sync.Mutex
	failures []string
	failed   int
	slowest  time.Duration
}

func newLoad(t *testing.T, s *site, workers int) *load {
	return &load{site: s, client: newClient(t, workers), workers: workers}
}

func (l *load) run(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var wg sync.WaitGroup
	for i := range l.workers {
		rng := rand.New(rand.NewPCG(1, uint64(i)))
		wg.Go(func() {
			for n := 1; ctx.Err() == nil; n++ {
				call := newCall(rng)
				if l.hangUps && n%5 == 0 {
					l.hangUp(call, time.Duration(rng.Int64N(int64(5*time.Millisecond))))
					continue
				}
				l.stay(call)
			}
		})
	}
	wg.Wait()
}

// stay makes a call that has to succeed.
func (l *load) stay(c *call) {
	a, unanswered, err := l.try(c)
	for err != nil && unanswered && l.duringReload() {
		l.closed.Add(1)
		a, unanswered, err = l.try(c)
	}
	switch {
	case err != nil:
	case l.hangUps && a.status == statusCrossed:
		l.crossed.Add(1)
		return
	default:
		if err = c.check(a); err == nil {
			l.ok.Add(1)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slowest = max(l.slowest, a.took)
	if err != nil {
		if l.failed++; len(l.failures) < 5 {
			l.failures = append(l.failures, fmt.Sprintf("%s %s (%d bytes, chunked %v): %v", c.method, c.path, len(c.body), c.chunked, err))
		}
	}
}

// try makes a call once. With unanswered, the connection ended before a byte of
// an answer came.
func (l *load) try(c *call) (a answer, unanswered bool, err error) {
	var answered atomic.Bool
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GotFirstResponseByte: func() { answered.Store(true) },
	})
	a, err = send(l.client, c.request(ctx, l.site, nil))
	return a, !answered.Load(), err
}

// duringReload reports whether Caddy closes connections just now that it has not
// answered: idle ones, with a request on its way, and those that the old
// listener had not accepted yet (each configuration has its own, SO_REUSEPORT).
// A site without token_refresh shows the same under this load: 9 of 26,695
// calls, measured on a unix socket.
func (l *load) duringReload() bool {
	return l.reloading.Load() || time.Since(time.Unix(0, l.reloaded.Load())) < time.Second
}

// statusCrossed is what Caddy answers where its own transport says that the
// caller has left. net/http says so to one who stayed, too: where the answer to a
// caller who leaves has no body, its connection may already have been given to
// the next call, which then ends with the first one's error (as golang/go#9496;
// with Go 1.26 25 of 160,000 calls of a plain http.Transport, a fifth of whose
// neighbours left).
const statusCrossed = 499

// hangUp makes a call and leaves before its end: half of its body is sent, if it
// has one.
func (l *load) hangUp(c *call, after time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), after)
	defer cancel()
	_, _ = send(l.client, c.request(ctx, l.site, ctx.Done()))
	l.left.Add(1)
}

func (l *load) report(t *testing.T) {
	t.Helper()
	for _, f := range l.failures {
		t.Error(f)
	}
	if l.failed > 0 {
		t.Errorf("%d of %d calls failed", l.failed, int64(l.failed)+l.ok.Load())
	}
	if l.crossed.Load()*1000 > l.ok.Load() {
		t.Errorf("%d calls were told that their caller had left", l.crossed.Load())
	}
	t.Logf("%d calls answered 200, slowest %v; %d hung up; %d made again as a reload closed their connection; %d got the end of one that hung up",
		l.ok.Load(), l.slowest.Round(time.Millisecond), l.left.Load(), l.closed.Load(), l.crossed.Load())
}

// blob is where the bodies come from.
var blob = func() []byte {
	b := make([]byte, 128<<10)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(b)
	return b
}()

// call is one request of the load, and what its answer has to be.
type call struct {
	method, path string
	body         []byte
	chunked      bool
	check        func(answer) error
}

func newCall(rng *rand.Rand) *call {
	from := rng.IntN(64 << 10)
	body := blob[from : from+rng.IntN(64<<10+1)]
	if rng.IntN(8) == 0 {
		body = nil
	}
	chunked := rng.IntN(3) == 0
	switch n := rng.IntN(20); {
	case n < 9:
		return &call{method: http.MethodGet, path: "/whoami", check: func(a answer) error {
			return a.want(`"session":"s1"`)
		}}
	case n < 11:
		size := len(body)
		return &call{method: http.MethodGet, path: "/download?bytes=" + strconv.Itoa(size), check: func(a answer) error {
			want, _ := io.ReadAll(sandbox.Pattern(int64(size)))
			return a.wantBody(want)
		}}
	case n < 16:
		return &call{method: http.MethodPost, path: "/upload", body: body, chunked: chunked, check: func(a answer) error {
			return a.wantUpload(body)
		}}
	case n < 19:
		return &call{method: http.MethodPost, path: "/echo", body: body, chunked: chunked, check: func(a answer) error {
			return a.wantBody(body)
		}}
	default: // the token is checked at the end: some rotations come in between
		delay := time.Duration(rng.IntN(300)) * time.Millisecond
		return &call{method: http.MethodGet, path: "/late?delay=" + delay.String(), check: func(a answer) error {
			return a.want(`"session":"s1"`)
		}}
	}
}

// request makes the call's request. With stuck, only half of the body comes
// before that channel is closed.
func (c *call) request(ctx context.Context, s *site, stuck <-chan struct{}) *http.Request {
	req := request(ctx, c.method, s.url(c.path), nil)
	if c.method != http.MethodPost {
		return req
	}
	var body io.Reader = bytes.NewReader(c.body)
	if stuck != nil {
		body = io.MultiReader(bytes.NewReader(c.body[:len(c.body)/2]), waiting(stuck))
	}
	req.Body, req.ContentLength = io.NopCloser(body), int64(len(c.body))
	if c.chunked {
		req.ContentLength = -1
	} else if len(c.body) == 0 {
		req.Body = http.NoBody
	}
	return req
}

// waiting is a body that does not go on.
type waiting <-chan struct{}

func (w waiting) Read([]byte) (int, error) {
	<-w
	return 0, errors.New("the caller has left")
}

func (a answer) wantStatus(status int) error {
	if a.status != status {
		return fmt.Errorf("%v", a)
	}
	return nil
}

func (a answer) want(part string) error {
	if err := a.wantStatus(http.StatusOK); err != nil {
		return err
	}
	if !strings.Contains(a.body, part) {
		return fmt.Errorf("the answer lacks %s: %v", part, a)
	}
	return nil
}

func (a answer) wantBody(want []byte) error {
	if err := a.wantStatus(http.StatusOK); err != nil {
		return err
	}
	if a.body != string(want) {
		return fmt.Errorf("the body is not what it should be: %d bytes of %d", len(a.body), len(want))
	}
	return nil
}

// wantUpload compares what the upstream says it received.
func (a answer) wantUpload(sent []byte) error {
	if err := a.wantStatus(http.StatusOK); err != nil {
		return err
	}
	var got struct {
		Bytes  int    `json:"bytes"`
		SHA256 string `json:"sha256"`
	}
	sum := sha256.Sum256(sent)
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || got.Bytes != len(sent) || got.SHA256 != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("%d bytes were sent, and the upstream has: %v", len(sent), a)
	}
	return nil
}
