package refresher

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// Stored is what is kept of a session, without its secrets.
type Stored struct {
	Pair     bool      // there is one to go on with, unless Lost
	Received time.Time // when the pair was
	Lost     Reason
}

func (r *record) stored() Stored {
	return Stored{Pair: r.hasPair(), Received: r.Received, Lost: r.Lost}
}

// ReadStored looks into a session's journal without touching it, so also while
// another process writes it: what is read is a copy. ok is false where nothing
// was ever written. The error wraps [journal.ErrWrongKey] where keys are not
// those that sealed it.
func ReadStored(dir, name string, keys *journal.Keyring) (st Stored, ok bool, err error) {
	sealed, ok, err := copied(dir, strings.ToLower(name))
	if errors.Is(err, journal.ErrDamaged) {
		// A write was under way, perhaps while either slot was copied.
		sealed, ok, err = copied(dir, strings.ToLower(name))
	}
	if err != nil || !ok {
		return st, false, err
	}
	rec, err := vault{ring: keys, name: strings.ToLower(name)}.open(sealed)
	if err != nil {
		return st, false, err
	}
	return rec.stored(), true, nil
}

// copied reads a copy of a journal: opening one writes to it.
func copied(from, base string) (sealed []byte, ok bool, err error) {
	dir, err := os.MkdirTemp("", "token-refresh-")
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	found := false
	for _, slot := range []string{base + ".j0", base + ".j1"} {
		image, err := os.ReadFile(filepath.Join(from, slot))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, false, err
		}
		found = true
		if err := os.WriteFile(filepath.Join(dir, slot), image, 0o600); err != nil {
			return nil, false, err
		}
	}
	if !found {
		return nil, false, nil
	}
	j, err := journal.Open(dir, base)
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	sealed, ok, err = j.Read()
	return sealed, ok, err
}

// ReadShared is ReadStored for what a fleet's store holds. It writes nothing.
func ReadShared(ctx context.Context, store Store, name string, keys *journal.Keyring) (st Stored, ok bool, err error) {
	session := strings.ToLower(name)
	names, err := store.List(ctx, session)
	if err != nil {
		return st, false, err
	}
	newest, at := "", position{}
	for _, name := range names {
		e, known := parseName(name)
		if known && (e.kind == kindRecord || e.kind == kindTomb) && at.before(e.at) {
			newest, at = name, e.at
		}
	}
	if newest == "" {
		return st, false, nil
	}
	sealed, err := store.Get(ctx, session, newest)
	if errors.Is(err, ErrNotStored) { // replaced in between
		return st, false, nil
	}
	if err != nil {
		return st, false, err
	}
	rec, err := vault{ring: keys, name: session, entry: newest}.open(sealed)
	if err != nil {
		return st, false, err
	}
	return rec.stored(), true, nil
}
