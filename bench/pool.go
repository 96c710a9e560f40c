package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// The benchmark of learned sessions: BENCH_SESSIONS of them (1,000,000) in one
// process, each with an access token of 800 bytes and a refresh token of 52.

// benchPool prints what a pool costs.
func benchPool() error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	n := 1_000_000
	if text := os.Getenv("BENCH_SESSIONS"); text != "" {
		if n, err = strconv.Atoi(text); err != nil {
			return err
		}
	}
	keys, err := journal.NewKeyring([]byte("the-benchmarks-key-of-32-bytes!!"))
	if err != nil {
		return err
	}
	b := &poolBench{dir: dir, n: n, cfg: refresher.PoolConfig{
		Config:      refresher.Config{Issuer: quickIssuer{}, Keys: keys, Logger: zap.NewNop()},
		MaxSessions: 2 * n,
	}}
	b.cfg.Observe = b.observe
	return b.run()
}

type poolBench struct {
	dir     string
	n       int
	cfg     refresher.PoolConfig
	pool    *refresher.Pool
	rotated atomic.Int64
	whole   struct {
		sync.Mutex
		took []time.Duration
	}
}

func (b *poolBench) observe(n refresher.Note) {
	if n.Kind == refresher.NoteRotated {
		b.rotated.Add(1)
		b.whole.Lock()
		b.whole.took = append(b.whole.took, n.Whole)
		b.whole.Unlock()
	}
}

func (b *poolBench) run() error {
	before := heapAndStacks()
	if err := b.start(); err != nil {
		return err
	}
	if err := b.learn(); err != nil {
		return err
	}
	c := b.pool.Counts()
	after := heapAndStacks()
	fmt.Printf("%d sessions: %.0f bytes each in all (heap and stacks), %.0f of them in the entries; 852 are the tokens\n",
		c.Sessions, float64(after-before)/float64(c.Sessions), float64(c.Bytes)/float64(c.Sessions))
	b.profile()
	b.lookups()
	collect := time.Now()
	runtime.GC()
	fmt.Printf("a whole garbage collection: %s\n", time.Since(collect).Round(time.Microsecond))
	if err := b.rotations(); err != nil {
		return err
	}
	closing := time.Now()
	if err := b.pool.Close(context.Background()); err != nil {
		return err
	}
	fmt.Printf("closed in %s\n", time.Since(closing).Round(time.Millisecond))
	b.pool = nil
	runtime.GC()
	began := time.Now()
	if err := b.start(); err != nil {
		return err
	}
	took := time.Since(began)
	if got := b.pool.Counts().Sessions; got != c.Sessions {
		return fmt.Errorf("%d sessions are there again, of %d", got, c.Sessions)
	}
	fmt.Printf("restored and ready in %s\n", took.Round(time.Millisecond))
	return b.pool.Close(context.Background())
}

func (b *poolBench) start() error {
	b.pool = refresher.NewPool("bench", refresher.Options{Dir: b.dir + "/state"})
	if _, err := b.pool.Attach(b.cfg); err != nil {
		return err
	}
	for range 60 {
		err := b.pool.Ready(context.Background())
		var unavailable *refresher.Unavailable
		if !errors.As(err, &unavailable) {
			return err
		}
	}
	return errors.New("the pool is not ready")
}

// learn opens the sessions, many at a time, each durable before the next.
func (b *poolBench) learn() error {
	const callers = 512
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	began := time.Now()
	for c := range callers {
		wg.Go(func() {
			for i := c; i < b.n; i += callers {
				if _, _, err := b.pool.Learn(context.Background(), pairOf(i, 1, time.Hour), refresher.Pair{}); err != nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	took := time.Since(began)
	fmt.Printf("learned, each one durable: %.0f a second\n", float64(b.n)/took.Seconds())
	return nil
}

// lookups times the search for a presented token.
func (b *poolBench) lookups() {
	tokens := make([]string, 4096)
	for i := range tokens {
		p := pairOf(rand.IntN(b.n), 1, time.Hour)
		tokens[i] = p.Access.Reveal()
	}
	for name, list := range map[string][]string{"known": tokens, "unknown": strangers(tokens)} {
		r := testing.Benchmark(func(tb *testing.B) {
			tb.ReportAllocs()
			for i := 0; tb.Loop(); i++ {
				if _, _, ok, _ := b.pool.Find(list[i%len(list)], 0); ok != (name == "known") {
					panic("the wrong token was found")
				}
			}
		})
		fmt.Printf("looking up %s token of 800 bytes: %d ns, %d allocations\n", map[string]string{"known": "a known", "unknown": "an unknown"}[name], r.NsPerOp(), r.AllocsPerOp())
	}
}

func strangers(tokens []string) []string {
	out := slices.Clone(tokens)
	for i := range out {
		out[i] = strings.ToUpper(out[i])
	}
	return out
}

// rotations exchanges some of the sessions at once, through the whole engine and
// an issuer in memory.
func (b *poolBench) rotations() error {
	const callers = 256
	n := min(b.n, 50_000)
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	began := time.Now()
	for c := range callers {
		wg.Go(func() {
			for i := c; i < n; i += callers {
				m, _, ok, err := b.pool.Find(pairOf(i, 1, time.Hour).Access.Reveal(), 0)
				if !ok || err != nil {
					err = errors.Join(err, errors.New("a session is not found"))
				} else {
					err = m.Refresh(context.Background())
				}
				if err != nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	took := time.Since(began)
	b.whole.Lock()
	defer b.whole.Unlock()
	slices.Sort(b.whole.took)
	fmt.Printf("rotations, journalled before and after each exchange: %.0f a second (p50 %s, p99 %s)\n", float64(n)/took.Seconds(),
		b.whole.took[len(b.whole.took)/2].Round(time.Microsecond), b.whole.took[len(b.whole.took)*99/100].Round(time.Microsecond))
	return nil
}

func (b *poolBench) profile() {
	path := os.Getenv("BENCH_HEAP")
	if path == "" {
		return
	}
	if f, err := os.Create(path); err == nil {
		_ = pprof.Lookup("heap").WriteTo(f, 0)
		_ = f.Close()
	}
}

func heapAndStacks() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// pairOf is session i's pair of a generation: always the same.
func pairOf(i, generation int, life time.Duration) refresher.Pair {
	payload, _ := json.Marshal(map[string]any{"sub": i, "gen": generation, "exp": benchEpoch + int64(life.Seconds())})
	fill := rand.New(rand.NewPCG(uint64(i), uint64(generation)))
	text := "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9." + base64.RawURLEncoding.EncodeToString(payload) + "."
	var b strings.Builder
	b.WriteString(text)
	for b.Len() < 800 {
		b.WriteByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[fill.IntN(64)])
	}
	refresh := fmt.Sprintf("%052d", i*1000+generation)
	return refresher.Pair{Access: refresher.NewSecret(b.String()), Refresh: refresher.NewSecret(refresh)}
}

var benchEpoch = time.Now().Unix()

// quickIssuer answers from memory.
type quickIssuer struct{}

func (quickIssuer) Profile() refresher.Profile {
	return refresher.Profile{RevokesPrevious: true, NeedsAccess: true}
}
func (quickIssuer) Prepare(context.Context) (refresher.Exchange, error) { return quickIssuer{}, nil }
func (quickIssuer) Close()                                              {}
func (quickIssuer) Send(_ context.Context, p refresher.Pair) refresher.Answer {
	i, _ := strconv.Atoi(p.Refresh.Reveal())
	return refresher.Answer{Class: refresher.ClassOK, Status: 200, Pair: pairOf(i/1000, i%1000+1, time.Hour)}
}
