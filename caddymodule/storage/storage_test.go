package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/goleak"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/store/storetest"
)

const writerEnv = "STORAGE_TEST_FOLDER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		write(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func open(dir string) refresher.Store { return New(&certmagic.FileStorage{Path: dir}, nil) }

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	storetest.Run(t, func(*testing.T) refresher.Store { return open(dir) }, storetest.Silent(), storetest.Lease(time.Second))
}

func TestAnyStorage(t *testing.T) {
	m := &memory{values: map[string][]byte{}, locks: map[string]chan struct{}{}}
	storetest.Run(t, func(*testing.T) refresher.Store { return &closing{keys: New(m, nil).(*keys), m: m} },
		storetest.Silent(), storetest.Unconditional(), storetest.Lease(time.Second))
}

func TestFilesAreThoseOfTheStorage(t *testing.T) {
	dir := t.TempDir()
	files := &certmagic.FileStorage{Path: dir}
	s, ctx := New(files, nil), t.Context()
	if err := s.Create(ctx, "a.b", "1.c", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if value, err := files.Load(ctx, "token_refresh/store/a.b/1.c"); err != nil || string(value) != "x" {
		t.Errorf("the storage loads %q, %v", value, err)
	}
	path := filepath.Join(dir, "token_refresh", "store", "a.b")
	if info, err := os.Stat(filepath.Join(path, "1.c")); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}
	entries, err := os.ReadDir(path)
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

func TestStrangersInTheFolderAreNotListed(t *testing.T) {
	dir := t.TempDir()
	s := open(dir)
	if err := s.Create(t.Context(), "s", "a", nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "token_refresh", "store", "s")
	for _, name := range []string{"~123", "Upper", "a-b", ".hidden~"} {
		if err := os.WriteFile(filepath.Join(path, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(path, "sub"), 0o700), os.Symlink("a", filepath.Join(path, "link"))); err != nil {
		t.Fatal(err)
	}
	if names, err := s.List(t.Context(), "s"); err != nil || !slices.Equal(names, []string{"a"}) {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := s.Lock(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestNamesDoNotLeadOutOfTheFolder(t *testing.T) {
	dir := t.TempDir()
	for _, s := range []refresher.Store{open(dir), New(&memory{}, nil)} {
		for _, of := range []struct{ session, name string }{
			{"s", "."}, {"s", ".."}, {"s", "..."}, {"s", ""}, {"s", "a/b"}, {"s", "~1"}, {"s", "A"},
			{"..", "a"}, {".locks", "a"}, {"", "a"}, {"a/b", "a"}, {"S", "a"},
		} {
			_, errGet := s.Get(t.Context(), of.session, of.name)
			for what, err := range map[string]error{
				"Get": errGet, "Create": s.Create(t.Context(), of.session, of.name, nil),
				"Delete": s.Delete(t.Context(), of.session, of.name),
			} {
				if err == nil || errors.Is(err, refresher.ErrNotStored) {
					t.Errorf("%s %q %q: %v", what, of.session, of.name, err)
				}
			}
		}
		_, errList := s.List(t.Context(), "..")
		_, errLock := s.Lock(t.Context(), "..")
		if errList == nil || errLock == nil {
			t.Errorf("List: %v, Lock: %v", errList, errLock)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

const contested = 300

// write is the second process: it creates the names in the folder and prints
// which it won.
func write(dir string) {
	s := open(dir)
	for i := range contested {
		value := strings.Repeat(fmt.Sprint(os.Getpid(), " "), 200)
		switch err := s.Create(context.Background(), "s", fmt.Sprint(i), []byte(value)); {
		case err == nil:
			fmt.Println(i)
		case !errors.Is(err, refresher.ErrStored):
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

func TestOfTwoProcessesOneWinsEachName(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	var mu sync.Mutex
	winner := map[string]int{}
	for range 2 {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), writerEnv+"="+dir)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, out)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for name := range strings.FieldsSeq(string(out)) {
				if winner[name] != 0 {
					t.Errorf("two win %s", name)
				}
				winner[name] = cmd.Process.Pid
			}
		})
	}
	wg.Wait()
	s, won := open(dir), map[int]int{}
	for i := range contested {
		name := fmt.Sprint(i)
		won[winner[name]]++
		want := strings.Repeat(fmt.Sprint(winner[name], " "), 200)
		if value, err := s.Get(t.Context(), "s", name); err != nil || string(value) != want {
			t.Errorf("%s: %.20q, %v; want %.20q", name, value, err, want)
		}
	}
	t.Logf("won: %v", slices.Collect(maps.Values(won)))
}

func TestALockWaitThatEndsReleasesALockThatComesLate(t *testing.T) {
	m := &memory{locks: map[string]chan struct{}{}, deaf: true}
	s := New(m, nil)
	unlock, err := s.Lock(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Lock(ctx, "s"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v, want that the deadline is exceeded", err)
	}
	unlock() // now the storage gives the lock to a wait that is over
	third, err := s.Lock(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	third()
}

// memory is a storage as a module may have it: no conditional write, and a lock
// that ends with the context that it was taken with.
type memory struct {
	mu     sync.Mutex
	values map[string][]byte
	locks  map[string]chan struct{}
	deaf   bool // Lock heeds no context
}

// closing is a client whose process ends with Close, and with it its locks.
type closing struct {
	*keys
	m *memory

	mu      sync.Mutex
	unlocks []func()
}

func (c *closing) Lock(ctx context.Context, session string) (func(), error) {
	unlock, err := c.keys.Lock(ctx, session)
	if err == nil {
		c.mu.Lock()
		c.unlocks = append(c.unlocks, unlock)
		c.mu.Unlock()
	}
	return unlock, err
}

func (c *closing) Close() error {
	for _, unlock := range c.unlocks {
		unlock()
	}
	return c.keys.Close()
}

func (m *memory) Store(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.values[key] = slices.Clone(value)
	return nil
}

func (m *memory) Load(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	value, ok := m.values[key]
	if !ok {
		return nil, fmt.Errorf("%s: %w", key, fs.ErrNotExist)
	}
	return slices.Clone(value), nil
}

func (m *memory) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.values[key]; !ok {
		return fs.ErrNotExist
	}
	delete(m.values, key)
	return nil
}

func (m *memory) Exists(context.Context, string) bool { panic("Exists says nothing reliable") }

func (m *memory) List(_ context.Context, prefix string, _ bool) (all []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.values {
		if path.Dir(key) == prefix {
			all = append(all, key)
		}
	}
	if all == nil {
		return nil, fs.ErrNotExist
	}
	return append(all, prefix+"/sub/folder", prefix+"/~temporary"), nil
}

func (m *memory) Stat(context.Context, string) (certmagic.KeyInfo, error) {
	return certmagic.KeyInfo{}, errors.ErrUnsupported
}

func (m *memory) Lock(ctx context.Context, name string) error {
	m.mu.Lock()
	lock := m.locks[name]
	if lock == nil {
		lock = make(chan struct{}, 1)
		m.locks[name] = lock
	}
	m.mu.Unlock()
	done := ctx.Done()
	if m.deaf {
		done = nil
	}
	select {
	case lock <- struct{}{}:
		return nil
	case <-done:
		return ctx.Err()
	}
}

func (m *memory) Unlock(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	<-m.locks[name]
	return nil
}
