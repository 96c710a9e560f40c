package webhook

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// Defaults of a [Config].
const (
	DefaultMaxEvents = 10_000
	DefaultMaxBytes  = 32 << 20
)

// keptUnconfigured is how long events are kept for a hook that is not configured
// any more: a line that was commented out by mistake comes back within it.
const keptUnconfigured = 7 * 24 * time.Hour

// ErrFull is wrapped by an error of [Outbox.Announce] that says which hooks'
// bounds refused an event.
var ErrFull = errors.New("the outbox is full")

// Config is what an [Outbox] is made of.
type Config struct {
	// Dir is the directory of the file, made with mode 0700 if it is missing. One
	// process at a time uses it.
	Dir string

	// Keyring seals what is on the disk.
	Keyring *journal.Keyring

	// MaxEvents and MaxBytes bound what waits for one hook, in memory and on the
	// disk; 0 is [DefaultMaxEvents] and [DefaultMaxBytes]. Past them new events
	// are refused, except those of hooks that are required: they bound
	// themselves, as no session goes on before its event was delivered.
	MaxEvents int
	MaxBytes  int64

	// Logger defaults to none. What it gets holds no token.
	Logger *zap.Logger
}

// Outbox holds events until they were delivered. It is safe for concurrent use.
// No lock is held while it writes, sends or waits.
type Outbox struct {
	cfg     Config
	log     *zap.Logger
	disk    *disk
	lock    *journal.Lock
	commits chan commit
	wake    chan struct{} // something may be sent
	cancel  context.CancelFunc
	users   sync.WaitGroup // callers and deliveries, which need the writer
	loop    sync.WaitGroup // dispatch
	writing sync.WaitGroup // write

	mu        sync.Mutex
	ring      *journal.Keyring
	closed    bool
	seq       uint64
	receivers map[string]*receiver // by Hook.key
	waiters   map[string]*waiter   // by event id
	delivered memory
}

// waiter is an event that pairs wait for.
type waiter struct {
	left map[string]bool // hooks that have not answered yet
	done []func()
}

// Open opens the outbox in a directory and reads what is pending. Nothing is
// delivered before [Outbox.Configure] names the hooks. The error wraps
// [journal.ErrLocked] while another process, or another outbox of this one, has
// the directory.
//
// What cannot be read, or does not open, is said in the log: an entry that is
// damaged is set aside with the file, as outbox.damaged, and given up; one that
// was sealed with a key that is missing stays, and holds up its session, until
// the key is back or the event is announced anew.
func Open(cfg Config) (*Outbox, error) {
	if cfg.Keyring == nil {
		return nil, errors.New("outbox: no keyring given")
	}
	if cfg.MaxEvents <= 0 {
		cfg.MaxEvents = DefaultMaxEvents
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	lock, err := journal.TryLock(cfg.Dir, lockName)
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	o := &Outbox{
		cfg:       cfg,
		log:       cfg.Logger,
		disk:      &disk{dir: cfg.Dir, open: openPlain},
		lock:      lock,
		commits:   make(chan commit),
		wake:      make(chan struct{}, 1),
		ring:      cfg.Keyring,
		receivers: map[string]*receiver{},
		waiters:   map[string]*waiter{},
	}
	if err := o.load(); err != nil {
		o.disk.close()
		return nil, errors.Join(err, lock.Unlock())
	}
	ctx, cancel := context.WithCancel(context.Background())
	o.cancel = cancel
	o.writing.Go(o.write)
	o.loop.Go(func() { o.dispatch(ctx) })
	return o, nil
}

// Close stops delivering. Deliveries under way may end until ctx does; then they
// are interrupted, and sent again, under the same id, by the next process. What
// was announced is safe either way. Functions given to [Outbox.Announce] that
// were not called yet are not called any more.
func (o *Outbox) Close(ctx context.Context) error {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return nil
	}
	o.closed = true
	o.mu.Unlock()
	o.nudge() // dispatch sees it and ends

	stop := context.AfterFunc(ctx, o.cancel)
	o.loop.Wait()
	o.users.Wait()
	stop()
	o.cancel()
	close(o.commits)
	o.writing.Wait()
	for _, r := range o.receivers { // nobody else is left
		if r.hook != nil {
			r.hook.rest()
		}
	}
	return o.lock.Unlock()
}

// Configure names the hooks to deliver to, in place of those before. A hook keeps
// what waits for it by its URL. A pair does not wait any more for a hook that is
// gone, or not required any more: its function is called. Events for a hook that
// is gone are kept for 7 days, lest a mistake in a configuration loses them.
func (o *Outbox) Configure(hooks ...*Hook) error {
	byKey := map[string]*Hook{}
	for _, h := range hooks {
		if byKey[h.key] != nil {
			return fmt.Errorf("two webhooks have the URL %s: give one", h.name)
		}
		byKey[h.key] = h
	}
	var release []func()
	var resting []*Hook
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return ErrClosed
	}
	now := time.Now()
	for key, h := range byKey {
		r := o.receivers[key]
		if r == nil {
			r = newReceiver(key)
			o.receivers[key] = r
		}
		if r.hook == nil && len(r.entries) > 0 {
			// What waited is not sent at the same moment by all who restart.
			r.paused = latest(r.paused, now.Add(pause(1, firstPause)))
			o.log.Info("events wait for a webhook", zap.String("webhook", h.name), zap.Int("pending", len(r.entries)))
		}
		if r.hook != nil && r.hook != h {
			resting = append(resting, r.hook)
		}
		r.hook = h
	}
	for key, r := range o.receivers {
		if byKey[key] == nil && r.hook != nil {
			resting = append(resting, r.hook)
			r.hook = nil
		}
		o.age(r, now)
		if r.hook == nil && len(r.entries) == 0 && r.inFlight == 0 {
			delete(o.receivers, key)
		} else if r.hook == nil && len(r.entries) > 0 {
			o.log.Warn("events wait for a webhook that is not configured; they are kept for 7 days",
				zap.String("webhook_id", key), zap.Int("pending", len(r.entries)))
		}
	}
	for id, w := range o.waiters {
		for key := range w.left {
			if h := byKey[key]; h == nil || !h.cfg.Required {
				delete(w.left, key)
			}
		}
		if len(w.left) == 0 {
			release = append(release, w.done...)
			delete(o.waiters, id)
		}
	}
	o.mu.Unlock()
	for _, h := range resting {
		h.rest()
	}
	for _, done := range release {
		done()
	}
	o.nudge()
	return nil
}

// age gives up what has waited too long for a hook that is not configured. It is
// gone from the disk when the file is written anew. The caller has the lock.
func (o *Outbox) age(r *receiver, now time.Time) {
	if r.hook != nil {
		return
	}
	for id, e := range r.entries {
		if now.Sub(e.at) > keptUnconfigured {
			r.drop(id)
			o.log.Warn("an event for a webhook that is not configured is given up after 7 days",
				zap.String("webhook_id", r.key), zap.String("event", id), zap.String("session", e.session))
		}
	}
}

// Reseal takes another keyring and seals anew what is pending, so that a former
// key is not needed here any longer. What neither ring opens stays as it is.
func (o *Outbox) Reseal(ctx context.Context, ring *journal.Keyring) error {
	if err := o.enter(); err != nil {
		return err
	}
	defer o.users.Done()
	return o.commit(ctx, nil, true, func() {
		former := o.ring
		o.ring = ring
		for key, r := range o.receivers {
			for _, e := range r.entries {
				plain, err := openEntry(ring, key, e)
				if err != nil {
					plain, err = openEntry(former, key, e)
				}
				if err == nil {
					r.reseal(e, sealEntry(ring, key, e.session, e.id, plain))
					clear(plain)
				}
			}
		}
	})
}

// nudge makes dispatch look again.
func (o *Outbox) nudge() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// configured lists the receivers that have a hook for a type of event, in a
// fixed order. The caller has the lock.
func (o *Outbox) configured(kind string) []*receiver {
	var list []*receiver
	for _, key := range slices.Sorted(maps.Keys(o.receivers)) {
		if r := o.receivers[key]; r.hook != nil && r.hook.takes(kind) {
			list = append(list, r)
		}
	}
	return list
}

// aad binds a sealed event to the place it is kept in.
func aad(hook, session, id string) []byte {
	return journal.AAD("caddy-refresh/1", "webhook", session, hook, id)
}

func sealEntry(ring *journal.Keyring, hook, session, id string, plain []byte) []byte {
	return ring.Seal(aad(hook, session, id), session, plain)
}

func openEntry(ring *journal.Keyring, hook string, e *entry) ([]byte, error) {
	return ring.Open(aad(hook, e.session, e.id), e.session, e.sealed)
}
