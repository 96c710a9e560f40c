package refresher

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// actor runs step for one session, one event at a time: nobody else touches
// these fields. What takes long is done by workers, each of which posts one event
// when it is done.
type actor struct {
	session  *Session
	state    *state      // nil at rest: then Session.known is all of it
	gates    lineage     // the last is Session.cur
	config   *attachment // the newest that was in force
	timer    *time.Timer
	closing  bool
	retiring bool          // its pool would have it an entry again
	instance int8          // of those on this machine, see journalDir
	giveUp   time.Duration // Instant.Boot: when closing is no longer held up by the journal

	busy int       // workers that have yet to post
	life *lifetime // of those who may be told to stop when the session closes; nil: there are none

	lock    *journal.Lock
	journal store
	store   Store  // shared with other instances; nil: there are none
	stores  uint64 // so many were used
	watched func() // ends the watch of it
	locked  func() // releases its lock
	retry   bool   // to reopen the journal when no worker is busy
	aside   bool   // the journal on disk cannot be read and must not be overwritten
}

// lifetime is a context and what ends it.
type lifetime struct {
	ctx context.Context
	end context.CancelFunc
}

// store keeps one instance's own sealed record: the local journal. It is all that the
// actor wants of it.
type store interface {
	Read() (sealed []byte, ok bool, err error)
	Last() (sealed []byte, err error)
	Write(sealed []byte) error
	Rest() error // until the next one
	Close() error
}

// Events that are about the actor rather than the protocol.
type (
	evAttached struct{ config *attachment }
	evDetached struct{}
	evLocked   struct{ config *attachment }
	evJournal  struct {
		instance int // on this machine
		lock     *journal.Lock
		journal  *journal.Journal
		record   *record
		damaged  error

		borrowed bool // the record is from another instance's
	}
	evWorked  struct{ event any } // a worker is done
	evClosing struct{}
)

// run takes events until there are none left; post starts it again. An idle
// session so has no goroutine.
func (a *actor) run() {
	s := a.session
	for {
		events := s.queue.take()
		if events == nil {
			return
		}
		a.wake()
		for _, ev := range events {
			a.handle(ev)
		}
		if (a.closing && a.idle() || a.mayRetire()) && s.queue.end() {
			a.timer.Stop()
			a.release()
			if !a.closing {
				s.pooled.retired(s, a.state.sched)
			}
			s.done.happen()
			return
		}
		a.rest() // before the next take: after it another goroutine may run
	}
}

// wake unpacks the state.
func (a *actor) wake() {
	if a.state != nil {
		return
	}
	a.state, _ = states.Get().(*state)
	a.session.known.Load().unpack(a.state, a.session.environment())
	if a.config != nil && len(a.state.rec.HashKey) == 0 {
		a.freshKey()
	}
}

// rest gives the state up for what it packs into, unless an attempt is under way.
func (a *actor) rest() {
	if a.state.whole() {
		*a.state = state{}
		states.Put(a.state)
		a.state = nil
	}
}

func (a *actor) freshKey() {
	fresh := a.config.Keys.Subkey(a.session.key(), "session")
	a.state.env.fresh = fresh[:]
}

// idle reports whether a closing session has nothing left to wait for.
func (a *actor) idle() bool {
	if a.busy > 0 || a.state.stage != stageIdle {
		return false
	}
	m := machine{state: *a.state}
	return m.settled() || a.journal == nil || a.session.clock.Now().Boot >= a.giveUp
}

func (a *actor) close() {
	a.closing = true
	if a.life != nil {
		a.life.end()
	}
	grace := closeGrace
	if a.store != nil {
		grace = closeGraceShared
	}
	a.giveUp = a.session.clock.Now().Boot + grace
	a.step(evClose{})
}

// closeGrace is how long a closing session tries to write what its journal has
// refused, closeGraceShared the same of a store that others share.
const (
	closeGrace       = 3 * time.Second
	closeGraceShared = 10 * time.Second
)

func (a *actor) release() {
	if a.watched != nil {
		a.watched()
	}
	if a.locked != nil {
		a.locked()
	}
	if a.journal != nil {
		_ = a.journal.Close()
	}
	if a.lock != nil {
		_ = a.lock.Unlock()
	}
}

func (a *actor) handle(event any) {
	if worked, ok := event.(evWorked); ok {
		a.busy--
		event = worked.event
		if a.busy == 0 && a.life != nil {
			a.life.end()
			a.life = nil
		}
		if a.retry && a.busy == 0 {
			a.reopen()
		}
	}
	switch ev := event.(type) {
	case nil:
	case evClosing:
		a.close()
	case evRetire:
		a.retiring = true
	case evNews:
		a.session.news.Store(false)
		a.step(ev)
	case evStored:
		a.fromStore(ev)
	case evLockedAsk:
		a.keepLock(ev.unlock)
		a.step(ev.evAsked)
	case evAttached:
		before := a.config
		if before != nil && !before.Keys.SameFirst(ev.config.Keys) {
			a.recall(a.state) // with the keys that it was written with
		}
		a.config = ev.config
		a.useStore(ev.config.Store)
		a.freshKey()
		configured := a.configured(true)
		configured.reseal = before != nil && !before.Keys.SameFirst(ev.config.Keys)
		a.step(configured)
		a.reopen()
	case evDetached:
		if a.config != nil { // a pool's session may have begun without one
			a.step(a.configured(false))
		}
	case evLocked:
		ctx := a.context()
		a.work(func() any { return a.session.waitForJournal(ctx, ev.config) })
	case evJournal:
		a.opened(ev)
	default:
		a.step(ev)
	}
}

func (a *actor) configured(running bool) evConfigured {
	ev := evConfigured{policy: a.config.Policy, profile: a.config.Issuer.Profile(), running: running, store: a.storeID()}
	if to := a.config.Announcer; to != nil {
		ev.announces, ev.required = true, to.Required()
	}
	for _, src := range a.config.Sources {
		ev.signsIn = ev.signsIn || src.SignsIn()
	}
	return ev
}

// waitForJournal tries until the other process has ended or this session is
// closed.
func (s *Session) waitForJournal(ctx context.Context, cfg *attachment) any {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		ev, err := s.tryOpen(cfg)
		if err == nil {
			return ev
		}
		if !errors.Is(err, journal.ErrLocked) {
			cfg.Logger.Error("opening the journal (retrying)", zap.String("session", s.name), zap.Error(err))
		}
	}
}

func (a *actor) opened(ev evJournal) {
	a.instance, a.lock, a.journal = int8(ev.instance), ev.lock, ev.journal
	if ev.damaged != nil {
		a.aside = true
		a.step(evUnusable{reason: ReasonUndecryptable, detail: ev.damaged.Error()})
		a.reopen() // a newer configuration may have the key
		return
	}
	a.step(evOpened{rec: ev.record, borrowed: ev.borrowed})
}

// reopen tries the keys of a new configuration on a journal that those before
// did not open.
func (a *actor) reopen() {
	if !a.aside || a.journal == nil || a.state.rec.Lost != ReasonUndecryptable {
		return
	}
	if a.retry = a.busy > 0; a.retry {
		return // a worker may be writing; when it is done
	}
	sealed, ok, err := a.journal.Read()
	if err != nil || !ok {
		return
	}
	rec, err := vault{ring: a.config.Keys, name: a.session.key()}.open(sealed)
	if err != nil {
		return
	}
	a.aside = false
	a.step(evOpened{rec: rec})
}

func (a *actor) step(event any) {
	var effects []any
	*a.state, effects = recalling(*a.state, a.session.clock.Now(), event, a.recall)
	a.session.known.Store(a.pack()) // before anybody gets a reply
	for _, eff := range effects {
		a.perform(eff)
	}
}

// pack shares one copy of the access token with what requests see.
func (a *actor) pack() *packed {
	p := a.state.pack()
	if token := a.session.cur.Load().token(); token == p.access {
		p.access = token
	}
	return p
}
