// Package storetest checks that a store keeps the promises of
// [refresher.Store]. A store's test calls [Run].
package storetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// Option says what a store does otherwise.
type Option func(*suite)

// Unconditional is for a store whose Create reads first and writes then: of
// several writers at once more than one may win.
func Unconditional() Option { return func(s *suite) { s.unconditional = true } }

// Silent is for a store whose Watch does nothing.
func Silent() Option { return func(s *suite) { s.silent = true } }

// Lease is how long the lock of a dead client is held; without it half a minute,
// the most that is allowed.
func Lease(d time.Duration) Option { return func(s *suite) { s.lease = d } }

// Rounds bounds the tests that repeat something to find a race, in number and
// time; without it 2000 rounds in three seconds.
func Rounds(n int, limit time.Duration) Option {
	return func(s *suite) { s.rounds, s.limit = n, limit }
}

type suite struct {
	open          func(*testing.T) refresher.Store
	unconditional bool
	silent        bool
	lease         time.Duration
	rounds        int
	limit         time.Duration
}

// patience is how long something may take that should happen at once.
const patience = 10 * time.Second

// Run runs all tests as subtests. open returns a new client of one and the same
// store each time; Run closes them.
func Run(t *testing.T, open func(*testing.T) refresher.Store, options ...Option) {
	s := &suite{open: open, lease: 30 * time.Second, rounds: 2000, limit: 3 * time.Second}
	for _, o := range options {
		o(s)
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"what was created is listed and read", s.created},
		{"what is absent is no error but to Get", s.absent},
		{"a second Create changes nothing", s.writtenOnce},
		{"of many Creates at once one wins", s.oneWins},
		{"what one client wrote the others see at once", s.readYourWrites},
		{"of two that write and then list one sees the other", s.writeThenList},
		{"sessions are separate", s.separate},
		{"values are kept byte for byte up to 96 KiB", s.values},
		{"the longest names are kept", s.longest},
		{"a context that has ended is honoured", s.ended},
		{"a lock excludes until it is released", s.lock},
		{"a lock's wait ends with the context", s.lockWait},
		{"locks of sessions are separate and no values", s.lockSeparate},
		{"the lock of a closed client comes free", s.lockOfTheDead},
		{"a watcher is woken after changes by others", s.watch},
		{"a closed client leaves nothing behind", s.closing},
	} {
		t.Run(test.name, test.run)
	}
}

// client opens a client that is closed when the test ends.
func (s *suite) client(t *testing.T) refresher.Store {
	t.Helper()
	c := s.open(t)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return c
}

// session returns a name that no other test uses, also of another run on the
// same store.
func session() string { return "s" + strings.ToLower(rand.Text()) }

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func create(t *testing.T, c refresher.Store, session, name, value string) {
	t.Helper()
	if err := c.Create(t.Context(), session, name, []byte(value)); err != nil {
		t.Fatalf("Create %s/%s: %v", session, name, err)
	}
}

func list(t *testing.T, c refresher.Store, session string) []string {
	t.Helper()
	names, err := c.List(t.Context(), session)
	if err != nil {
		t.Fatalf("List %s: %v", session, err)
	}
	slices.Sort(names)
	return names
}

func wantList(t *testing.T, c refresher.Store, session string, want ...string) {
	t.Helper()
	if got := list(t, c, session); !slices.Equal(got, want) {
		t.Fatalf("List %s: %q, want %q", session, got, want)
	}
}

func wantValue(t *testing.T, c refresher.Store, session, name, want string) {
	t.Helper()
	if got, err := c.Get(t.Context(), session, name); err != nil || string(got) != want {
		t.Fatalf("Get %s/%s: %.50q (%d bytes), error %v; want %.50q (%d bytes)", session, name, got, len(got), err, want, len(want))
	}
}

func wantAbsent(t *testing.T, c refresher.Store, session, name string) {
	t.Helper()
	if got, err := c.Get(t.Context(), session, name); !errors.Is(err, refresher.ErrNotStored) || got != nil {
		t.Fatalf("Get %s/%s: %.50q, error %v; want ErrNotStored", session, name, got, err)
	}
}

func remove(t *testing.T, c refresher.Store, session string, names ...string) {
	t.Helper()
	if err := c.Delete(t.Context(), session, names...); err != nil {
		t.Fatalf("Delete %s %q: %v", session, names, err)
	}
}

func (s *suite) created(t *testing.T) {
	a, b, n := s.client(t), s.client(t), session()
	create(t, a, n, "1.2", "x")
	create(t, b, n, "1.2.i", "y")
	for _, c := range []refresher.Store{a, b} {
		wantList(t, c, n, "1.2", "1.2.i")
		wantValue(t, c, n, "1.2", "x")
		wantValue(t, c, n, "1.2.i", "y")
	}
	remove(t, b, n, "1.2")
	for _, c := range []refresher.Store{a, b} {
		wantList(t, c, n, "1.2.i")
		wantAbsent(t, c, n, "1.2")
		wantValue(t, c, n, "1.2.i", "y")
	}
	create(t, a, n, "1.2", "z")
	wantValue(t, b, n, "1.2", "z")
}

func (s *suite) absent(t *testing.T) {
	c, n := s.client(t), session()
	wantList(t, c, n)
	wantAbsent(t, c, n, "a")
	remove(t, c, n)
	remove(t, c, n, "a", "b")
	create(t, c, n, "b", "x")
	remove(t, c, n, "a", "b", "c", "b")
	wantList(t, c, n)
	var many []string
	for i := range 300 {
		many = append(many, fmt.Sprint(i))
	}
	create(t, c, n, "299", "x")
	remove(t, c, n, many...)
	wantList(t, c, n)
}

func (s *suite) writtenOnce(t *testing.T) {
	a, b, n := s.client(t), s.client(t), session()
	create(t, a, n, "a", "first")
	for _, c := range []refresher.Store{a, b} {
		if err := c.Create(t.Context(), n, "a", []byte("second")); !errors.Is(err, refresher.ErrStored) {
			t.Errorf("a second Create: %v, want ErrStored", err)
		}
		if err := c.Create(t.Context(), n, "a", []byte("first")); !errors.Is(err, refresher.ErrStored) {
			t.Errorf("a second Create of the same value: %v, want ErrStored", err)
		}
	}
	wantValue(t, a, n, "a", "first")
	wantValue(t, b, n, "a", "first")
	wantList(t, a, n, "a")
}

func (s *suite) oneWins(t *testing.T) {
	if s.unconditional {
		t.Skip("this store does not write conditionally")
	}
	clients, n := []refresher.Store{s.client(t), s.client(t)}, session()
	for round := range 20 {
		name := fmt.Sprint(round)
		var wg sync.WaitGroup
		var won atomic.Pointer[string]
		start := make(chan struct{})
		for i := range 32 {
			wg.Go(func() {
				value := strings.Repeat(fmt.Sprint(i, " "), 100+i)
				<-start
				err := clients[i%2].Create(t.Context(), n, name, []byte(value))
				switch {
				case err == nil && !won.CompareAndSwap(nil, &value):
					t.Errorf("round %d: two win", round)
				case err != nil && !errors.Is(err, refresher.ErrStored):
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		close(start)
		wg.Wait()
		if won.Load() == nil {
			t.Fatalf("round %d: nobody wins", round)
		}
		for _, c := range clients {
			wantValue(t, c, n, name, *won.Load())
		}
	}
}

// each calls round until there were enough or the time is over.
func (s *suite) each(t *testing.T, most int, round func(i int)) {
	t.Helper()
	begin := time.Now()
	for i := range min(most, s.rounds) {
		if time.Since(begin) > s.limit {
			t.Logf("%d rounds", i)
			return
		}
		round(i)
	}
}

func (s *suite) readYourWrites(t *testing.T) {
	a, b, n := s.client(t), s.client(t), session()
	s.each(t, 300, func(i int) {
		name := fmt.Sprint(i)
		create(t, a, n, name, name)
		if names := list(t, b, n); !slices.Contains(names, name) {
			t.Fatalf("round %d: what was created is not listed", i)
		}
		wantValue(t, b, n, name, name)
		remove(t, b, n, name)
		wantAbsent(t, a, n, name)
		if names := list(t, a, n); slices.Contains(names, name) {
			t.Fatalf("round %d: what was deleted is listed", i)
		}
		a, b = b, a
	})
}

// writeThenList is what rotation.md 4.4 rests on, steps 4 and 6.
func (s *suite) writeThenList(t *testing.T) {
	a, b, n := s.client(t), s.client(t), session()
	type turn struct {
		mine, other string
		start       <-chan struct{}
	}
	type result struct {
		saw bool
		err error
	}
	run := func(c refresher.Store, turns <-chan turn, results chan<- result) {
		for at := range turns {
			<-at.start
			err := c.Create(t.Context(), n, at.mine, []byte("x"))
			var names []string
			if err == nil {
				names, err = c.List(t.Context(), n)
			}
			results <- result{slices.Contains(names, at.other), err}
		}
	}
	results := make(chan result)
	turnsA, turnsB := make(chan turn), make(chan turn)
	defer close(turnsA)
	defer close(turnsB)
	go run(a, turnsA, results)
	go run(b, turnsB, results)
	var old []string
	s.each(t, s.rounds, func(i int) {
		mine, other := fmt.Sprintf("%d.a", i), fmt.Sprintf("%d.b", i)
		start := make(chan struct{})
		turnsA <- turn{mine, other, start}
		turnsB <- turn{other, mine, start}
		close(start)
		x, y := <-results, <-results
		if err := errors.Join(x.err, y.err); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if !x.saw && !y.saw {
			t.Fatalf("round %d: neither sees the other", i)
		}
		if old = append(old, mine, other); len(old) >= 64 {
			remove(t, a, n, old...)
			old = nil
		}
	})
}

func (s *suite) separate(t *testing.T) {
	c, n := s.client(t), session()
	sessions := []string{n, n + ".b", n + "b", n + "-b", n + "_b", n + ".", n + ".lock", n + ".a"}
	for _, of := range sessions {
		create(t, c, of, "a", of)
	}
	create(t, c, n, "b.a", "x")
	for _, of := range sessions[1:] {
		wantList(t, c, of, "a")
		wantValue(t, c, of, "a", of)
	}
	wantList(t, c, n, "a", "b.a")
	remove(t, c, n, "a")
	for _, of := range sessions[1:] {
		wantList(t, c, of, "a")
	}
}

func (s *suite) values(t *testing.T) {
	a, b, n := s.client(t), s.client(t), session()
	random := make([]byte, 96<<10)
	_, _ = rand.Read(random)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for name, value := range map[string][]byte{
		"empty": {}, "zero": {0}, "all": all, "lines": []byte("a\r\nb\n\r"), "random": random,
		"zeros": make([]byte, 96<<10), "ff": bytes.Repeat([]byte{0xff}, 96<<10),
	} {
		kept := bytes.Clone(value)
		create(t, a, n, name, string(value))
		wantValue(t, b, n, name, string(kept))
		wantValue(t, a, n, name, string(kept))
	}
}

func (s *suite) longest(t *testing.T) {
	c := s.client(t)
	n := session()
	n += strings.Repeat("-", 64-len(n))
	name := strings.Repeat("a.9", 40)
	create(t, c, n, name, "x")
	wantList(t, c, n, name)
	wantValue(t, c, n, name, "x")
	unlock, err := c.Lock(within(t, patience), n)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	remove(t, c, n, name)
	wantList(t, c, n)
}

func (s *suite) ended(t *testing.T) {
	c, n := s.client(t), session()
	create(t, c, n, "a", "x")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	begin := time.Now()
	_, errList := c.List(ctx, n)
	_, errGet := c.Get(ctx, n, "a")
	_, errNone := c.Get(ctx, n, "b")
	unlock, errLock := c.Lock(ctx, n)
	if errLock == nil {
		unlock()
	}
	for what, err := range map[string]error{
		"List": errList, "Get": errGet, "Get of what is absent": errNone, "Lock": errLock,
		"Create": c.Create(ctx, n, "b", []byte("x")), "Delete": c.Delete(ctx, n, "a"),
	} {
		if !errors.Is(err, context.Canceled) || errors.Is(err, refresher.ErrNotStored) || errors.Is(err, refresher.ErrStored) {
			t.Errorf("%s: %v, want that the context was canceled", what, err)
		}
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("it took %v", d)
	}
	wantValue(t, c, n, "a", "x")
}

func (s *suite) lock(t *testing.T) {
	clients, n := []refresher.Store{s.client(t), s.client(t)}, session()
	var holders, times atomic.Int32
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for range 2 {
				unlock, err := clients[i%2].Lock(within(t, 2*patience), n)
				if err != nil {
					t.Error(err)
					return
				}
				if holders.Add(1) > 1 {
					t.Error("two hold the lock")
				}
				times.Add(1)
				time.Sleep(5 * time.Millisecond) // long enough for another to get in
				holders.Add(-1)
				unlock()
				unlock()
			}
		})
	}
	wg.Wait()
	if times.Load() != 12 {
		t.Errorf("held %d times, want 12", times.Load())
	}
}

func (s *suite) lockWait(t *testing.T) {
	a, b, n := s.client(t), s.client(t), session()
	held, stop := context.WithCancel(context.Background())
	unlock, err := a.Lock(held, n)
	if err != nil {
		t.Fatal(err)
	}
	stop() // it ends the wait only, and that is over
	begin := time.Now()
	if second, err := b.Lock(within(t, 300*time.Millisecond), n); !errors.Is(err, context.DeadlineExceeded) {
		if err == nil {
			second()
		}
		t.Errorf("while another holds it: %v, want that the deadline is exceeded", err)
	}
	if d := time.Since(begin); d < 250*time.Millisecond || d > 2*time.Second {
		t.Errorf("the wait of 300ms took %v", d)
	}
	unlock()
	begin = time.Now()
	third, err := b.Lock(within(t, patience), n)
	if err != nil {
		t.Fatalf("after it was released: %v", err)
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("a released lock came after %v", d)
	}
	unlock() // a second time, while another holds it
	if fourth, err := a.Lock(within(t, 200*time.Millisecond), n); err == nil {
		fourth()
		t.Error("unlocking twice released the lock of another")
	}
	third()
}

func (s *suite) lockSeparate(t *testing.T) {
	a, b, n := s.client(t), s.client(t), session()
	create(t, a, n, "a", "x")
	for _, of := range []string{n, n + ".lock", n + "b"} {
		unlock, err := a.Lock(within(t, patience), of)
		if err != nil {
			t.Fatal(err)
		}
		defer unlock()
	}
	wantList(t, b, n, "a")
	wantList(t, b, n+".lock")
	create(t, b, n, "b", "x") // a lock stops nobody from writing
	remove(t, b, n, "a", "b")
}

func (s *suite) lockOfTheDead(t *testing.T) {
	a, b, n := s.open(t), s.client(t), session()
	if _, err := a.Lock(within(t, patience), n); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	unlock, err := b.Lock(within(t, s.lease+patience), n)
	if err != nil {
		t.Fatalf("after %v: %v", time.Since(begin), err)
	}
	if d := time.Since(begin); d > s.lease+5*time.Second {
		t.Errorf("it came free after %v", d)
	}
	unlock()
}

func (s *suite) watch(t *testing.T) {
	a, b, n := s.client(t), s.client(t), session()
	if s.silent {
		a.Watch(n, func() { t.Error("a silent store wakes") })()
		if a.Pushes() {
			t.Error("a silent store says that it pushes")
		}
		return
	}
	woken := make(chan struct{}, 1)
	var gone atomic.Int32
	cancel := a.Watch(n, func() {
		select {
		case woken <- struct{}{}:
		default:
		}
	})
	other := a.Watch(n, func() { gone.Add(1) })
	for deadline := time.Now().Add(patience); !a.Pushes(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not push")
		}
	}
	await := func(change string) {
		t.Helper()
		select {
		case <-woken:
		case <-time.After(patience):
			t.Fatalf("no wake after %s", change)
		}
	}
	// The wake of a new subscription may come late; a round takes each wake
	// for the change's, and a lost one shows in a later round.
	for i := range 20 {
		create(t, b, n, fmt.Sprint(i), "x")
		await("Create")
		remove(t, b, n, fmt.Sprint(i))
		await("Delete")
	}
	create(t, a, n, "own", "x")
	await("a change of one's own")

	other()
	other()
	before := gone.Load()
	if before == 0 {
		t.Error("the second watcher was never woken")
	}
	create(t, b, n, "later", "x")
	await("Create with one watcher less")
	if gone.Load() > before+1 { // one may have been under way
		t.Error("a cancelled watcher is woken")
	}
	cancel()
}

func (s *suite) closing(t *testing.T) {
	already := goleak.IgnoreCurrent()
	c, n := s.open(t), session()
	cancel := c.Watch(n, func() {})
	create(t, c, n, "a", "x")
	unlock, err := c.Lock(within(t, patience), n)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	cancel()
	unlock()
	if c.Pushes() {
		t.Error("a closed client pushes")
	}
	goleak.VerifyNone(t, already)
}
