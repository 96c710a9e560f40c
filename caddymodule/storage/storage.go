// Package storage keeps what a fleet shares in Caddy's storage, whatever module
// that is. The value under a name of a session is the key
// token_refresh/store/<session>/<name>: sessions' own journals may lie beside it.
//
// In files on one machine, or on a file system that machines share, everything
// [refresher.Store] asks for holds as far as the file system gives it. Other
// modules know no conditional write and promise little about reads; see [New].
package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

const (
	root       = "token_refresh/store"
	lockPrefix = "token_refresh_"
)

// unlockWait is how long an Unlock may take before it is left alone.
const unlockWait = 2 * time.Second

// New returns a store on a storage of Caddy's; a nil logger drops what it says.
// Where it is a [certmagic.FileStorage], the store uses its folder but not its
// methods: those lock by the clock, and know no conditional write.
//
// With any other storage, Create looks first and writes then. That a value is
// written once rests on the protocol, in which each name has one writer: an
// intent's is unique, and a record's is the one whose exchange succeeded. Reads
// must not come from replicas or caches.
func New(s certmagic.Storage, logger *zap.Logger) refresher.Store {
	if logger == nil {
		logger = zap.NewNop()
	}
	if files, ok := s.(*certmagic.FileStorage); ok {
		return newFolder(files.Path)
	}
	return &keys{storage: s, logger: logger}
}

var (
	sessionForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	nameForm    = regexp.MustCompile(`^[a-z0-9.]{1,120}$`)
)

// valid keeps a session and names inside their folder. "." and ".." have the
// form of a name.
func valid(session string, names ...string) error {
	if !sessionForm.MatchString(session) {
		return fmt.Errorf("%.80q is not the name of a session", session)
	}
	for _, name := range names {
		if !isName(name) {
			return fmt.Errorf("%.80q cannot be the name of a value", name)
		}
	}
	return nil
}

func isName(name string) bool { return nameForm.MatchString(name) && strings.Trim(name, ".") != "" }

// keys is a store on any storage.
type keys struct {
	storage certmagic.Storage
	logger  *zap.Logger
}

func key(session, name string) string { return root + "/" + session + "/" + name }

// List implements [refresher.Store].
func (k *keys) List(ctx context.Context, session string) ([]string, error) {
	found, err := k.list(ctx, session)
	if err != nil {
		return nil, fmt.Errorf("storage: listing %s: %w", session, err)
	}
	var names []string
	for _, one := range found {
		name, ok := strings.CutPrefix(strings.TrimPrefix(one, "/"), key(session, ""))
		if ok && isName(name) { // others are temporary files and folders
			names = append(names, name)
		}
	}
	return names, nil
}

func (k *keys) list(ctx context.Context, session string) ([]string, error) {
	if err := errors.Join(ctx.Err(), valid(session)); err != nil {
		return nil, err
	}
	found, err := k.storage.List(ctx, root+"/"+session, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return found, err
}

// Get implements [refresher.Store].
func (k *keys) Get(ctx context.Context, session, name string) ([]byte, error) {
	value, err := k.load(ctx, session, name)
	if err != nil {
		return nil, fmt.Errorf("storage: reading %s/%s: %w", session, name, err)
	}
	return value, nil
}

func (k *keys) load(ctx context.Context, session, name string) ([]byte, error) {
	if err := errors.Join(ctx.Err(), valid(session, name)); err != nil {
		return nil, err
	}
	// Not Exists: of what it cannot find out, some storages say yes and some no.
	value, err := k.storage.Load(ctx, key(session, name))
	if errors.Is(err, fs.ErrNotExist) {
		err = refresher.ErrNotStored
	}
	return value, err
}

// Create implements [refresher.Store], but for the condition: see [New].
func (k *keys) Create(ctx context.Context, session, name string, value []byte) error {
	_, err := k.load(ctx, session, name)
	switch {
	case err == nil:
		err = refresher.ErrStored
	case errors.Is(err, refresher.ErrNotStored):
		err = k.storage.Store(ctx, key(session, name), value)
	}
	if err != nil {
		return fmt.Errorf("storage: creating %s/%s: %w", session, name, err)
	}
	return nil
}

// Delete implements [refresher.Store].
func (k *keys) Delete(ctx context.Context, session string, names ...string) error {
	err := errors.Join(ctx.Err(), valid(session, names...))
	for _, name := range names {
		if err == nil {
			if err = k.storage.Delete(ctx, key(session, name)); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		}
	}
	if err != nil {
		return fmt.Errorf("storage: deleting from %s: %w", session, err)
	}
	return nil
}

// Lock implements [refresher.Store]. Some storages keep a lock only while the
// context given to Lock lives, so that one lives until after Unlock.
func (k *keys) Lock(ctx context.Context, session string) (unlock func(), err error) {
	if err := errors.Join(ctx.Err(), valid(session)); err != nil {
		return nil, fmt.Errorf("storage: locking %s: %w", session, err)
	}
	held, end := context.WithCancel(context.WithoutCancel(ctx))
	locked := make(chan error, 1)
	go func() { locked <- k.storage.Lock(held, lockPrefix+session) }()
	select {
	case err := <-locked:
		if err != nil {
			end()
			return nil, fmt.Errorf("storage: locking %s: %w", session, err)
		}
		return sync.OnceFunc(func() {
			defer end()
			k.unlock(held, session)
		}), nil
	case <-ctx.Done():
		end()
		go func() {
			if <-locked == nil { // too late for anybody
				k.unlock(held, session)
			}
		}()
		return nil, fmt.Errorf("storage: locking %s: %w", session, ctx.Err())
	}
}

// unlock releases a lock with a context of its own, and does not wait long for
// a storage that heeds none.
func (k *keys) unlock(ctx context.Context, session string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockWait)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		if err := k.storage.Unlock(ctx, lockPrefix+session); err != nil {
			k.logger.Warn("a lock in Caddy's storage was lost or could not be released", zap.String("session", session), zap.Error(err))
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Watch implements [refresher.Store]: a storage brings no news.
func (*keys) Watch(string, func()) (cancel func()) { return func() {} }

// Pushes implements [refresher.Store].
func (*keys) Pushes() bool { return false }

// Close implements [refresher.Store]; the storage is Caddy's.
func (*keys) Close() error { return nil }

// Interface guards
var (
	_ refresher.Store = (*keys)(nil)
	_ refresher.Store = (*folder)(nil)
)
