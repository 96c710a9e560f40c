package refreshertest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// Store is a [refresher.Store] in memory, which all instances of a fleet in one
// test share. It is linearizable. The zero value does not work; use [NewStore].
type Store struct {
	mu       sync.Mutex
	sessions map[string]map[string][]byte
	watchers map[int]watcher
	nextID   int
	locks    map[string]chan struct{}
	push     bool
	fault    func(op, name string) error
	delay    time.Duration
	calls    map[string]int
}

type watcher struct {
	session string
	wake    func()
}

// NewStore returns an empty store. push says whether it tells of changes.
func NewStore(push bool) *Store {
	return &Store{
		sessions: map[string]map[string][]byte{}, watchers: map[int]watcher{},
		locks: map[string]chan struct{}{}, push: push, calls: map[string]int{},
	}
}

// Fault has f decide before each operation whether it fails; nil: none does. op
// is the method's name.
func (s *Store) Fault(f func(op, name string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Delay has every operation take that long before it takes effect.
func (s *Store) Delay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

// Wipe forgets all that is stored, as a restart without persistence does.
func (s *Store) Wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sessions)
	s.tell("")
}

// Dump returns a copy of what is stored for a session.
func (s *Store) Dump(session string) map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.sessions[session])
}

// Put writes without any of the checks, as somebody with access to the store may.
func (s *Store) Put(session, name string, value []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(session, name, value)
}

// Calls returns how often each method was called.
func (s *Store) Calls() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.calls)
}

func (s *Store) put(session, name string, value []byte) {
	if s.sessions[session] == nil {
		s.sessions[session] = map[string][]byte{}
	}
	s.sessions[session][name] = slices.Clone(value)
	s.tell(session)
}

func (s *Store) tell(session string) {
	for _, w := range s.watchers {
		if s.push && (session == "" || w.session == session) {
			w.wake()
		}
	}
}

// begin takes the lock unless the operation is to fail.
func (s *Store) begin(ctx context.Context, op, name string) error {
	s.mu.Lock()
	s.calls[op]++
	fault, delay := s.fault, s.delay
	s.mu.Unlock()
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if fault != nil {
		if err := fault(op, name); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	return nil
}

// List implements [refresher.Store].
func (s *Store) List(ctx context.Context, session string) ([]string, error) {
	if err := s.begin(ctx, "List", ""); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.sessions[session])), nil
}

// Get implements [refresher.Store].
func (s *Store) Get(ctx context.Context, session, name string) ([]byte, error) {
	if err := s.begin(ctx, "Get", name); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	value, ok := s.sessions[session][name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, refresher.ErrNotStored)
	}
	return slices.Clone(value), nil
}

// Create implements [refresher.Store].
func (s *Store) Create(ctx context.Context, session, name string, value []byte) error {
	if err := s.begin(ctx, "Create", name); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if _, ok := s.sessions[session][name]; ok {
		return fmt.Errorf("%s: %w", name, refresher.ErrStored)
	}
	s.put(session, name, value)
	return nil
}

// Delete implements [refresher.Store].
func (s *Store) Delete(ctx context.Context, session string, names ...string) error {
	if err := s.begin(ctx, "Delete", ""); err != nil {
		return err
	}
	defer s.mu.Unlock()
	for _, name := range names {
		delete(s.sessions[session], name)
	}
	s.tell(session)
	return nil
}

// Lock implements [refresher.Store].
func (s *Store) Lock(ctx context.Context, session string) (func(), error) {
	if err := s.begin(ctx, "Lock", ""); err != nil {
		return nil, err
	}
	lock := s.locks[session]
	if lock == nil {
		lock = make(chan struct{}, 1)
		s.locks[session] = lock
	}
	s.mu.Unlock()
	select {
	case lock <- struct{}{}:
		return sync.OnceFunc(func() { <-lock }), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Watch implements [refresher.Store].
func (s *Store) Watch(session string, wake func()) (cancel func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.nextID
	s.nextID++
	s.watchers[id] = watcher{session, wake}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, id)
	}
}

// Pushes implements [refresher.Store].
func (s *Store) Pushes() bool { return s.push }

// Close implements [refresher.Store]; the store goes on for the others.
func (s *Store) Close() error { return nil }

// Interface guard
var _ refresher.Store = (*Store)(nil)
