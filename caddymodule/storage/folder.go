package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// folder is a store in the folder of a [certmagic.FileStorage], in files that
// this reads, too.
type folder struct {
	base string // <folder>/token_refresh/store

	mu    sync.Mutex
	locks map[*journal.Lock]struct{} // held
}

func newFolder(path string) *folder {
	return &folder{base: filepath.Join(path, root), locks: map[*journal.Lock]struct{}{}}
}

// temporary begins the names of files that are being written; no value's name
// begins so.
const temporary = "~"

// List implements [refresher.Store].
func (f *folder) List(ctx context.Context, session string) ([]string, error) {
	err := errors.Join(ctx.Err(), valid(session))
	var entries []os.DirEntry
	if err == nil {
		entries, err = os.ReadDir(filepath.Join(f.base, session))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("storage: listing %s: %w", session, err)
	}
	var names []string
	for _, entry := range entries {
		if entry.Type().IsRegular() && isName(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// Get implements [refresher.Store].
func (f *folder) Get(ctx context.Context, session, name string) ([]byte, error) {
	err := errors.Join(ctx.Err(), valid(session, name))
	var value []byte
	if err == nil {
		value, err = os.ReadFile(filepath.Join(f.base, session, name))
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = refresher.ErrNotStored
	}
	if err != nil {
		return nil, fmt.Errorf("storage: reading %s/%s: %w", session, name, err)
	}
	return value, nil
}

// Create implements [refresher.Store].
func (f *folder) Create(ctx context.Context, session, name string, value []byte) error {
	err := errors.Join(ctx.Err(), valid(session, name))
	if err == nil {
		err = f.create(filepath.Join(f.base, session), name, value)
	}
	if err != nil {
		return fmt.Errorf("storage: creating %s/%s: %w", session, name, err)
	}
	return nil
}

// create writes the value beside its name and links it there. A link, unlike a
// rename, replaces nothing, and what can be seen is complete.
func (f *folder) create(dir, name string, value []byte) (err error) {
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path); err == nil {
		return refresher.ErrStored // also where the disk is full
	}
	if err := makeDir(dir); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, temporary) // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(file.Name())) }()
	_, err = file.Write(value)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	err = os.Link(file.Name(), path)
	if errors.Is(err, fs.ErrExist) {
		return refresher.ErrStored
	}
	if err != nil {
		return fmt.Errorf("%w; name another store if this file system has no hard links", err)
	}
	return syncDir(dir)
}

// Delete implements [refresher.Store].
func (f *folder) Delete(ctx context.Context, session string, names ...string) error {
	err := errors.Join(ctx.Err(), valid(session, names...))
	for _, name := range names {
		if err == nil {
			if err = os.Remove(filepath.Join(f.base, session, name)); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		}
	}
	if err != nil {
		return fmt.Errorf("storage: deleting from %s: %w", session, err)
	}
	return nil
}

// Lock implements [refresher.Store] with a lock of the kernel, which a process
// loses when it ends and not before. The folder has a name that no session has.
func (f *folder) Lock(ctx context.Context, session string) (unlock func(), err error) {
	err = valid(session)
	for err == nil {
		if err = ctx.Err(); err != nil {
			break
		}
		var lock *journal.Lock
		if lock, err = journal.TryLock(filepath.Join(f.base, ".locks"), session); err == nil {
			f.keep(lock)
			return func() { f.release(lock) }, nil
		}
		if errors.Is(err, journal.ErrLocked) {
			err = pause(ctx, 50*time.Millisecond)
		}
	}
	return nil, fmt.Errorf("storage: locking %s: %w", session, err)
}

func (f *folder) keep(lock *journal.Lock) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.locks[lock] = struct{}{}
}

func (f *folder) release(lock *journal.Lock) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.locks, lock)
	_ = lock.Unlock() // it closes a file to which nothing was written
}

// Watch implements [refresher.Store]: files bring no news.
func (*folder) Watch(string, func()) (cancel func()) { return func() {} }

// Pushes implements [refresher.Store].
func (*folder) Pushes() bool { return false }

// Close implements [refresher.Store]: it releases what locks are held.
func (f *folder) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for lock := range f.locks {
		_ = lock.Unlock()
	}
	clear(f.locks)
	return nil
}

// makeDir creates dir and its parents and makes each entry durable.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if parent := filepath.Dir(dir); errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err = makeDir(parent); err == nil {
			err = os.Mkdir(dir, 0o700)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// syncDir makes the entries of a directory durable, which Windows does by itself
// and offers no way to ask for.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// pause waits about d.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
