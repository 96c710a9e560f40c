package refresher

import (
	"context"
	"errors"
)

// Errors of a [Store].
var (
	// ErrNotStored says that nothing is stored under a name.
	ErrNotStored = errors.New("nothing is stored under this name")
	// ErrStored says that something is stored under a name already; it stays.
	ErrStored = errors.New("something is stored under this name already")
)

// Store is what the instances of a fleet share: for each session a small flat
// set of named values, each written once. Session names match
// [a-z0-9][a-z0-9._-]{0,63}, names [a-z0-9.]{1,120}; values are sealed and at
// most 96 KiB long.
//
// The safety of a fleet rests on List, Get and Create being linearizable: what
// one instance has written, every instance that asks later sees. Reads from
// replicas are therefore not allowed. It rests on nothing else: not on Lock, not
// on Watch, not on clocks (rotation.md 4.1, 4.4).
//
// All methods may be called at once. An error other than those above leaves open
// whether a write took place.
type Store interface {
	// List returns the names stored for a session, in any order; none is no
	// error.
	List(ctx context.Context, session string) ([]string, error)

	// Get returns the value under a name, or an error that wraps
	// [ErrNotStored].
	Get(ctx context.Context, session, name string) ([]byte, error)

	// Create writes a value under a name, or returns an error that wraps
	// [ErrStored] and writes nothing where there is one. It is durable when
	// Create returns, as far as the store is.
	Create(ctx context.Context, session, name string, value []byte) error

	// Delete removes names; absent ones are no error.
	Delete(ctx context.Context, session string, names ...string) error

	// Lock waits for a session's lock until ctx ends, which ends the wait only.
	// It is advisory: it spares work, and two may hold it at once when things go
	// wrong. unlock releases it and does not wait long; a holder that dies loses
	// it within half a minute.
	Lock(ctx context.Context, session string) (unlock func(), err error)

	// Watch calls wake, which returns at once, soon after a change of the
	// session's values, and whenever news may have been missed, until cancel is
	// called. A wake without a change does no harm. A store that cannot tell
	// does nothing.
	Watch(session string, wake func()) (cancel func())

	// Pushes reports whether Watch can be relied upon at present. Otherwise the
	// store is asked now and then.
	Pushes() bool

	// Close ends connections and watches.
	Close() error
}
