package caddymodule

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// kept is what is stored, by session. What could not be looked at is missing
// from it, and then nothing is concluded from that.
type kept struct {
	sessions map[string]refresher.Stored
	unknown  map[string]bool
}

func (k *kept) take(name string, st refresher.Stored) {
	if old, ok := k.sessions[name]; !ok || old.Received.Before(st.Received) {
		k.sessions[name] = st
	}
}

// storage looks at state_dir, the key, what is sealed with it, and the store.
func (d *doctor) storage(ctx context.Context, app *App) *kept {
	k := &kept{sessions: map[string]refresher.Stored{}, unknown: map[string]bool{}}
	keys := app.keys
	if d.stateDir(app.stateDir) {
		if keys == nil {
			keys = d.madeKey(app)
		}
		if keys != nil {
			for _, name := range sortedKeys(app.Sessions) {
				d.journal(app.stateDir, name, keys, k)
			}
		}
	}
	if app.store != nil {
		d.store(ctx, app, k)
	}
	return k
}

// stateDir reports whether there is one to look into.
func (d *doctor) stateDir(dir string) bool {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		d.newStateDir(dir)
		return false
	}
	// The lock of a name that no session has: it takes what a session's lock
	// does, and its errors say what to do.
	mark := make([]byte, 16)
	_, _ = rand.Read(mark) // never fails
	name := "doctor-" + hex.EncodeToString(mark)
	lock, err := journal.TryLock(dir, name)
	if err == nil {
		err = errors.Join(lock.Unlock(), os.Remove(filepath.Join(dir, name+".lock")))
	}
	if err != nil {
		d.problem("state-dir", "", "Pairs cannot be kept in state_dir %s: %v. It must belong to the user that Caddy runs as, and to nobody else; run this as that user, too.", dir, err)
		return false
	}
	d.ok("state-dir", "", "state_dir %s can be written.", dir)
	return true
}

// newStateDir looks at where the directory will be made.
func (d *doctor) newStateDir(dir string) {
	parent := filepath.Dir(dir)
	for parent != filepath.Dir(parent) {
		if _, err := os.Stat(parent); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		parent = filepath.Dir(parent)
	}
	probe, err := os.MkdirTemp(parent, ".token-refresh-doctor-")
	if err == nil {
		err = os.Remove(probe)
	}
	if err != nil {
		d.problem("state-dir", "", "state_dir %s is not there and cannot be made: %v. Make it for the user that Caddy runs as, with mode 0700.", dir, err)
		return
	}
	d.ok("state-dir", "", "state_dir %s is not there yet and will be made.", dir)
}

// madeKey is the key that was made in state_dir. It makes none.
func (d *doctor) madeKey(app *App) *journal.Keyring {
	path := filepath.Join(app.stateDir, "encryption.key")
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		for _, name := range sortedKeys(app.Sessions) {
			if _, err := os.Stat(filepath.Join(app.stateDir, strings.ToLower(name)+".j0")); err == nil {
				d.problem("encryption-key", name, "There is a stored pair, but neither an encryption_key in the configuration nor %s. Put back the key that sealed it.", path)
				return nil
			}
		}
		return nil // the first start makes one
	}
	key, _, err := journal.LoadOrCreateKey(app.stateDir)
	if err == nil {
		var ring *journal.Keyring
		if ring, err = journal.NewKeyring(key); err == nil {
			return ring
		}
	}
	d.problem("encryption-key", "", "The key made in state_dir cannot be used: %v.", err)
	return nil
}

// journal looks at a copy of what a session keeps on disk.
func (d *doctor) journal(dir, name string, keys *journal.Keyring, k *kept) {
	for _, slot := range []string{".j0", ".j1"} {
		path := filepath.Join(dir, strings.ToLower(name)+slot)
		info, err := os.Lstat(path)
		if err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
			d.problem("state-dir", name, "The session will not start, as %s is open to others (mode %04o): chmod 600 it.", path, info.Mode().Perm())
		}
	}
	st, ok, err := refresher.ReadStored(dir, name, keys)
	switch {
	case errors.Is(err, journal.ErrWrongKey):
		d.problem("encryption-key", name, "The stored pair was sealed with another key than the configuration has. Add the former key below the new one (`encryption_key`), or the session needs a new login.")
	case errors.Is(err, journal.ErrDamaged):
		d.problem("journal", name, "The stored pair is damaged. Restore %s.j0 and .j1 in %s from a backup only if nothing was exchanged since; otherwise move them away and give the session a new pair.", strings.ToLower(name), dir)
	case errors.Is(err, journal.ErrVersion):
		d.problem("journal", name, "The stored pair was written by another version of token_refresh. Run that version, or move %s.j0 and .j1 in %s away.", strings.ToLower(name), dir)
	case err != nil:
		d.problem("journal", name, "The stored pair cannot be read: %v.", err)
	case ok:
		k.take(name, st)
		d.ok("encryption-key", name, "The stored pair opens with the key.")
	}
	if err != nil {
		k.unknown[name] = true
	}
}

// store asks the shared store, and writes nothing to it.
func (d *doctor) store(ctx context.Context, app *App, k *kept) {
	kind := strings.TrimPrefix(string(app.store.CaddyModule().ID), "token_refresh.stores.")
	said := new(storeWords)
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(io.Discard), zapcore.WarnLevel)
	store, err := app.store.OpenStore(zap.New(zapcore.RegisterHooks(core, said.take)))
	if err == nil {
		defer func() { _ = store.Close() }()
		_, err = store.List(ctx, "doctor")
	}
	if err != nil {
		for name := range app.Sessions {
			k.unknown[name] = true
		}
		d.problem("store", "", "The shared store (%s) cannot be used: %v. Check its address, credentials and network; until it answers, sessions use what this machine has.", kind, err)
		return
	}
	d.ok("store", "", "The shared store (%s) answers.", kind)
	for _, name := range sortedKeys(app.Sessions) {
		st, ok, err := refresher.ReadShared(ctx, store, name, app.keys)
		switch {
		case errors.Is(err, journal.ErrWrongKey):
			d.problem("encryption-key", name, "The pair in the shared store was sealed with another key than the configuration has. All instances need the same encryption_key; put the one that sealed it first.")
		case err != nil:
			d.problem("store", name, "The pair in the shared store cannot be read: %v.", err)
		case ok:
			k.take(name, st)
		}
		if err != nil {
			k.unknown[name] = true
		}
	}
	if _, ok := app.store.(*RedisStore); ok {
		said.await(ctx, store)
	}
	for _, text := range said.all() {
		d.warn("store", "", "The shared store (%s): %s.", kind, text)
	}
}

// storeWords are what a store says about its server when it has connected.
type storeWords struct {
	mu   sync.Mutex
	list []string
}

func (s *storeWords) take(e zapcore.Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, e.Message)
	return nil
}

func (s *storeWords) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list
}

// await gives the store time to connect in its own background and to look at how
// the server keeps its data, which nothing else tells the end of.
func (s *storeWords) await(ctx context.Context, store refresher.Store) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	live := 0
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		if store.Pushes() {
			live++
		}
		if live > 10 || len(s.all()) > 0 {
			tick.Stop()
			return
		}
	}
}
