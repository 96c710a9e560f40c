package refresher

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/failpoint"
)

// storeTimeout bounds each call to a shared store.
const storeTimeout = 2 * time.Second

var errTooLate = errors.New("the process stood still between the intent and the exchange; nothing was sent")

// evLockedAsk is evAsked with the lock that was taken for it.
type evLockedAsk struct {
	evAsked
	unlock func()
}

// useStore goes over to the store of a new configuration.
func (a *actor) useStore(store Store) {
	if a.store == store {
		return
	}
	if a.watched != nil {
		a.watched()
		a.watched = nil
	}
	a.keepLock(nil)
	if a.store = store; store == nil {
		return
	}
	a.stores++
	s := a.session
	a.watched = store.Watch(s.key(), func() {
		if !s.news.Swap(true) {
			s.post(evNews{})
		}
	})
}

// storeID numbers the stores that were used; 0 is none.
func (a *actor) storeID() uint64 {
	if a.store == nil {
		return 0
	}
	return a.stores
}

// keepLock keeps what releases the store's lock; one that is held is released.
func (a *actor) keepLock(unlock func()) {
	if old := a.locked; old != nil {
		a.work(func() any { old(); return nil })
	}
	a.locked = unlock
}

// evStored is an event from the store that was the numbered one.
type evStored struct {
	store uint64
	event any
}

// atStore is work whose event counts only as long as the store is the same.
func (a *actor) atStore(f func() any) {
	id := a.storeID()
	a.work(func() any { return evStored{id, f()} })
}

// fromStore takes what a store has answered.
func (a *actor) fromStore(ev evStored) {
	if ev.store == a.storeID() {
		a.handle(ev.event)
		return
	}
	if locked, ok := ev.event.(evLockedAsk); ok {
		a.work(func() any { locked.unlock(); return nil })
	}
}

// performShared carries out what a state wants of the shared store.
func (a *actor) performShared(effect any) {
	s, store, cfg := a.session, a.store, a.config
	if store == nil {
		return // it was taken away in between
	}
	switch eff := effect.(type) {
	case effAsk:
		a.atStore(func() any { return s.askStore(store, eff) })
	case effIntend:
		a.atStore(func() any {
			failpoint.Reach("W1")
			err := stored(func(ctx context.Context) error { return store.Create(ctx, s.key(), eff.name, []byte{}) })
			ev := evIntended{name: eff.name, err: err}
			failpoint.Reach("W2")
			if err == nil {
				ev.at, ev.names, ev.pushes, ev.err = s.list(store)
			}
			return ev
		})
	case effPlan:
		a.atStore(func() any {
			if err := stored(func(ctx context.Context) error { return store.Create(ctx, s.key(), eff.name, []byte{}) }); err != nil {
				cfg.Logger.Warn("announcing an exchange failed (continuing)", zap.String("session", s.name), zap.Error(err))
			}
			return nil
		})
	case effErase:
		a.atStore(func() any {
			failpoint.Reach("W8")
			erase := func(ctx context.Context) error { return store.Delete(ctx, s.key(), eff.names...) }
			if stored(erase) != nil {
				_ = stored(erase) // what stays is ignored, or waited for
			}
			return nil
		})
	case effRead:
		a.atStore(func() any { return s.readEntry(store, cfg, eff.name) })
	case effShare:
		a.atStore(func() any {
			failpoint.Reach("W5")
			for _, name := range eff.before {
				err := stored(func(ctx context.Context) error { return store.Create(ctx, s.key(), name, []byte{}) })
				if err != nil && !errors.Is(err, ErrStored) {
					return evShared{at: eff.at, err: err}
				}
			}
			sealed, err := vault{ring: cfg.Keys, name: s.key(), entry: eff.at.name()}.seal(&eff.rec)
			if err == nil {
				err = stored(func(ctx context.Context) error { return store.Create(ctx, s.key(), eff.at.name(), sealed) })
			}
			if err == nil {
				failpoint.Reach("W6")
			}
			return evShared{at: eff.at, err: err}
		})
	case effUnlock:
		a.keepLock(nil)
	case effBar:
		s.cur.Load().bar()
	}
}

// stored makes one call with a deadline of its own.
func stored(call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	return call(ctx)
}

func (s *Session) list(store Store) (at Instant, names []string, pushes bool, err error) {
	at = s.clock.Now()
	err = stored(func(ctx context.Context) (err error) {
		names, err = store.List(ctx, s.key())
		return err
	})
	return at, names, store.Pushes(), err
}

// askStore lists the names, with the lock if that can be had in time.
func (s *Session) askStore(store Store, eff effAsk) any {
	ev := evLockedAsk{evAsked: evAsked{id: eff.id}}
	if eff.lock > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), eff.lock)
		defer cancel()
		if unlock, err := store.Lock(ctx, s.key()); err == nil {
			ev.unlock, ev.locked = unlock, true
		}
	}
	ev.at, ev.names, ev.pushes, ev.err = s.list(store)
	if !ev.locked {
		return ev.evAsked
	}
	return ev
}

func (s *Session) readEntry(store Store, cfg *attachment, name string) any {
	ev := evRead{name: name}
	var sealed []byte
	ev.err = stored(func(ctx context.Context) (err error) {
		sealed, err = store.Get(ctx, s.key(), name)
		return err
	})
	if ev.err != nil {
		return ev
	}
	ev.rec, ev.err = vault{ring: cfg.Keys, name: s.key(), entry: name}.open(sealed)
	ev.unusable = ev.err != nil
	return ev
}
