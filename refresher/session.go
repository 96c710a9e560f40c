package refresher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// Session is one login at one issuer: a line of pairs, each replacing the one
// before. It is made by [New], begins its work with the first
// [Session.Attach], and ends with [Session.Close]. All methods may be called at
// once.
//
// The actor alone, one event after the other, owns the session's state; requests
// read a published snapshot and take no lock.
type Session struct {
	name  string // as configured
	dir   string
	clock Clock

	cur     atomic.Pointer[snapshot]
	known   atomic.Pointer[packed] // the state as the last event left it
	owner   uint64                 // see environment
	waiting atomic.Int64
	pooled  *pooled              // nil: it stands by itself
	last    atomic.Pointer[Pair] // the last pair of an end, until somebody has it; see End

	actor actor
	queue queue
	news  atomic.Bool // the store may have changed, and the actor has yet to see
	done  event       // the actor has ended

	attached struct {
		sync.Mutex
		list   []*attachment // the newest is in force
		opened bool          // the journal was opened, or is being waited for
		closed bool          // by Close
	}
}

// Options are what a session is made with.
type Options struct {
	// Dir is where the journal is kept; it is made if need be (0700). Required.
	Dir string
	// Clock defaults to one made by [NewClock].
	Clock Clock
}

// Config is what a running configuration wants of a session. Several may be
// attached while one replaces another; the newest is in force.
type Config struct {
	Policy  Policy
	Issuer  Issuer
	Sources []Source // in order of preference
	Keys    *journal.Keyring

	// Store, if set, is shared with other instances of the same session.
	Store Store

	// Logger defaults to none.
	Logger *zap.Logger
	// Observe, if set, gets each note, mostly on the session's own goroutine: it
	// must not block.
	Observe func(Note)
	// Limiter, if set, bounds the exchanges with the issuer.
	Limiter Limiter
	// Announcer, if set, is told of each rotation.
	Announcer Announcer
}

// attachment is a Config, of which all but a session's own is kept once for many.
type attachment struct {
	*common
	Sources []Source
	Observe func(Note)
}

type common struct {
	Policy    Policy
	Issuer    Issuer
	Keys      *journal.Keyring
	Store     Store
	Logger    *zap.Logger
	Limiter   Limiter
	Announcer Announcer
}

// newest is what the last attachment had in common with others. Sessions are
// attached one after the other, so that it nearly always serves the next, too.
var newest atomic.Pointer[weak.Pointer[common]]

func (cfg Config) attachment() *attachment {
	c := &common{cfg.Policy, cfg.Issuer, cfg.Keys, cfg.Store, cfg.Logger, cfg.Limiter, cfg.Announcer}
	if c.Logger == nil {
		c.Logger = silent
	}
	if !reflect.ValueOf(*c).Comparable() {
		return &attachment{c, cfg.Sources, cfg.Observe}
	}
	if last := newest.Load(); last != nil {
		if known := last.Value(); known != nil && *known == *c {
			return &attachment{known, cfg.Sources, cfg.Observe}
		}
	}
	w := weak.Make(c)
	newest.Store(&w)
	return &attachment{c, cfg.Sources, cfg.Observe}
}

// New makes a session. Nothing is read or started yet.
func New(name string, opts Options) *Session {
	s := &Session{name: name, dir: opts.Dir, clock: opts.Clock, owner: newOwner()}
	if s.clock == nil {
		s.clock = systemClock()
	}
	s.cur.Store(newSnapshot(view{mode: modeComing, wait: Policy{}.wait()}, Secret{}))
	s.known.Store(new(state).pack())
	s.actor.session = s
	s.actor.timer = time.AfterFunc(time.Hour, func() { s.post(evTick{}) })
	s.actor.timer.Stop()
	return s
}

// What all sessions share that are given none.
var (
	systemClock = sync.OnceValue(NewClock)
	silent      = zap.NewNop()
)

// key is the name as in file names.
func (s *Session) key() string { return strings.ToLower(s.name) }

// Name returns the session's name as configured.
func (s *Session) Name() string { return s.name }

// Attach puts a configuration into force until detach is called, which may be
// done more than once. The first one opens the journal: an error says that it
// cannot be used. Where another process holds the session, Attach succeeds and
// the session waits for its turn.
func (s *Session) Attach(cfg Config) (detach func(), err error) {
	a := cfg.attachment()
	s.attached.Lock()
	defer s.attached.Unlock()
	if s.attached.closed {
		return nil, fmt.Errorf("session %q has ended", s.name)
	}
	var opened any
	if !s.attached.opened {
		opened, err = s.openJournal(a)
		if err != nil {
			return nil, err
		}
		s.attached.opened = true
	}
	s.attached.list = append(s.attached.list, a)
	s.post(s.configured())
	if opened != nil {
		s.post(opened)
	}
	return func() { s.detach(a) }, nil
}

func (s *Session) detach(a *attachment) {
	s.attached.Lock()
	defer s.attached.Unlock()
	list := s.attached.list
	if i := slices.Index(list, a); i >= 0 {
		s.attached.list = append(list[:i:i], list[i+1:]...)
		s.post(s.configured())
	}
}

// configured is the event for the configuration in force; the lock is held.
func (s *Session) configured() any {
	list := s.attached.list
	if len(list) == 0 {
		return evDetached{}
	}
	return evAttached{list[len(list)-1]}
}

// post hands an event to the actor, which takes it unless it has ended.
func (s *Session) post(event any) (ok bool) {
	start, ok := s.queue.put(event)
	if start {
		go s.actor.run()
	}
	return ok
}

// Close ends the session: an exchange under way is waited for and its outcome
// written, whatever ctx says; ctx bounds the wait of this caller only. Passes
// stay good.
func (s *Session) Close(ctx context.Context) error {
	s.attached.Lock() // an Attach under way has posted its journal when this is over
	if !s.attached.closed {
		s.attached.closed = true
		s.post(evClosing{})
	}
	s.attached.Unlock()
	select {
	case <-s.done.happened():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("session %q is still ending: %w", s.name, context.Cause(ctx))
	}
}

// Import gives the session a pair from outside, which starts a new epoch; source
// says in its history where from. A refresh token that was used in this session
// before is refused with [ErrSpent]; the pair in use is accepted and changes
// nothing.
func (s *Session) Import(ctx context.Context, p Pair, source string) error {
	return s.call(ctx, func(reply chan<- error) any {
		return evSeed{seed{pair: p, source: source, reply: reply}}
	})
}

// Offer gives the session a pair that a source has found, which starts a new
// epoch unless its refresh token was ever used in this session.
func (s *Session) Offer(p Pair, source string) {
	s.post(evSeed{seed{pair: p, source: source}})
}

// Look asks the sources again for a pair lying there, in their order: one of them
// has changed. A pair that was used in this session before is no news.
func (s *Session) Look() { s.post(evLook{}) }

// Refresh exchanges the pair now and returns when the next one is in force.
func (s *Session) Refresh(ctx context.Context) error {
	return s.call(ctx, func(reply chan<- error) any { return evRefresh{reply: reply} })
}

func (s *Session) call(ctx context.Context, event func(chan<- error) any) error {
	reply := make(chan error, 1)
	if !s.post(event(reply)) {
		return fmt.Errorf("session %q has ended", s.name)
	}
	select {
	case err := <-reply:
		if err != nil {
			return fmt.Errorf("session %q: %w", s.name, err)
		}
		return nil
	case <-s.done.happened():
		return fmt.Errorf("session %q has ended", s.name)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// openJournal opens the session's journal for an attachment. Where another
// process has it, it returns evLocked, and the actor waits.
func (s *Session) openJournal(a *attachment) (any, error) {
	ev, err := s.tryOpen(a)
	if errors.Is(err, journal.ErrLocked) {
		a.Logger.Warn("another process holds this session; waiting for it to end",
			zap.String("session", s.name), zap.String("state_dir", s.dir))
		return evLocked{a}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("session %q: %w", s.name, err)
	}
	return ev, nil
}

// tryOpen opens the journal. Instances of a fleet may share a state directory:
// each takes the first journal that nobody holds, and the newest pair of all
// those that nobody holds counts.
func (s *Session) tryOpen(a *attachment) (any, error) {
	if a.Store == nil {
		return s.openIn(0, a.Keys)
	}
	var mine *evJournal
	for i := range maxInstances {
		if _, err := os.Stat(s.journalDir(i)); mine != nil && err != nil {
			break // nobody ever needed more
		}
		ev, err := s.openIn(i, a.Keys)
		switch {
		case errors.Is(err, journal.ErrLocked):
			continue
		case err != nil && mine == nil:
			return nil, err
		case err != nil:
			continue
		case mine == nil:
			mine = &ev
			continue
		}
		// One's own that cannot be read is never overwritten for another's sake.
		if ev.record != nil && mine.damaged == nil && (mine.record == nil || mine.record.position().before(ev.record.position())) {
			mine.record, mine.borrowed = ev.record, true
		}
		_ = ev.journal.Close()
		_ = ev.lock.Unlock()
	}
	if mine == nil {
		return nil, fmt.Errorf("%w: more than %d instances share %s", journal.ErrLocked, maxInstances, s.dir)
	}
	return *mine, nil
}

const maxInstances = 16

// journalDir is where the n-th instance on a machine has its journal.
func (s *Session) journalDir(n int) string {
	if n == 0 {
		return s.dir
	}
	return filepath.Join(s.dir, fmt.Sprintf("instance-%d", n+1))
}

func (s *Session) openIn(instance int, keys *journal.Keyring) (ev evJournal, err error) {
	dir := s.journalDir(instance)
	ev.instance = instance
	if ev.lock, err = journal.TryLock(dir, s.key()); err != nil {
		return ev, err
	}
	if ev.journal, err = journal.Open(dir, s.key()); err != nil {
		_ = ev.lock.Unlock()
		return ev, err
	}
	sealed, ok, err := ev.journal.Read()
	switch {
	case errors.Is(err, journal.ErrDamaged):
		ev.damaged = err
	case err != nil:
		_ = ev.journal.Close()
		_ = ev.lock.Unlock()
		return ev, err
	case ok:
		ev.record, ev.damaged = vault{ring: keys, name: s.key()}.open(sealed)
	}
	_ = ev.journal.Rest()
	return ev, nil
}

// lockPoll is how often a session that another process holds is tried for.
const lockPoll = 200 * time.Millisecond
