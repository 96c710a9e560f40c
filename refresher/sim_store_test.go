package refresher

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"
)

// simStore is what the fleet shares: linearizable, but slow, at times away, and
// forgetful when its restart kept nothing.
type simStore struct {
	w         *world
	entries   map[string]*record // intents and the like have none
	old       map[string]*record // as a replica has it
	push      bool
	downUntil time.Duration
	wiped     bool // once

	holder    *simSidecar
	heldUntil time.Duration
}

func (st *simStore) holds(refresh string) bool {
	for _, rec := range st.entries {
		if rec != nil && rec.Refresh == refresh {
			return true
		}
	}
	return false
}

// goDown has the store answer nobody for a while.
func (st *simStore) goDown(d time.Duration) {
	w := st.w
	st.downUntil = max(st.downUntil, w.now.Boot+d)
	w.troubled()
	for _, s := range w.sidecars {
		w.after(st.downUntil-w.now.Boot, s.hear)
	}
	w.note("the store is down until %.3f", st.downUntil.Seconds())
}

func (st *simStore) wipe() {
	w := st.w
	w.note("the store restarts and has forgotten everything")
	st.wiped = true
	w.troubled()
	for _, n := range w.issuer.flying {
		if n > 0 {
			w.issuer.forgot = true
		}
	}
	away := true // all who could restore it
	for _, s := range w.sidecars {
		if s.up && w.now.Boot >= s.cutUntil && w.now.Boot >= s.stopUntil && s.state.rec.Refresh == w.issuer.current {
			away = false
		}
	}
	w.issuer.forgot = w.issuer.forgot || away
	clear(st.entries)
	st.changed()
}

func (st *simStore) changed() {
	if w := st.w; w.mut.staleReads {
		now := maps.Clone(st.entries)
		w.after(w.between(10*time.Millisecond, 3*time.Second), func() { st.old = now })
	}
	if !st.push {
		return
	}
	for _, s := range st.w.sidecars {
		if st.w.now.Boot >= s.cutUntil {
			s.later(st.w.between(0, 10*time.Millisecond), func() { s.step(evNews{}) })
		}
	}
}

// hear is what a store that pushes does when its connection is back: news may
// have been missed.
func (s *simSidecar) hear() {
	if s.w.store.push {
		s.later(0, func() { s.step(evNews{}) })
	}
}

func (st *simStore) create(name string, rec *record) error {
	w := st.w
	if w.mut.noFleetIntent && strings.HasPrefix(name, "i.") {
		return nil
	}
	if w.mut.overwrite && strings.HasPrefix(name, "r.") {
		for other := range st.entries {
			if strings.HasPrefix(other, "r.") {
				delete(st.entries, other)
			}
		}
	}
	if _, ok := st.entries[name]; ok {
		return ErrStored
	}
	st.entries[name] = rec
	st.changed()
	return nil
}

func (st *simStore) names() []string {
	if st.w.mut.staleReads {
		return slices.Sorted(maps.Keys(st.old))
	}
	return slices.Sorted(maps.Keys(st.entries)) // sorted: the order must not depend on the map
}

var errStoreGone = errors.New("the store does not answer")

// call is one call to the store: effect happens there, done here.
func (s *simSidecar) call(write bool, effect func() error, done func(error)) {
	w, st := s.w, s.w.store
	life := s.life
	if w.chance(w.faults.crashAtStore) {
		s.later(w.between(0, 20*time.Millisecond), func() { s.crash("while it waits for the store") })
	}
	if w.now.Boot < s.cutUntil || w.now.Boot < st.downUntil || w.chance(w.faults.storeError) {
		w.troubled()
		if s.busy() {
			w.issuer.parted = true
			w.issuer.alone = w.issuer.alone || w.now.Boot < s.cutUntil || w.now.Boot >= st.downUntil
		}
		s.laterIn(life, storeTimeout, func() { done(errStoreGone) })
		return
	}
	replyLost := w.chance(w.faults.replyLost)
	if write && w.chance(w.faults.lateWrite) { // and once more, much later
		w.after(w.between(time.Second, 20*time.Second), func() { _ = effect() })
	}
	w.after(w.between(200*time.Microsecond, 5*time.Millisecond), func() {
		err := effect()
		if replyLost {
			w.troubled()
			s.laterIn(life, storeTimeout, func() { done(errStoreGone) })
			return
		}
		s.laterIn(life, w.between(200*time.Microsecond, 5*time.Millisecond), func() { done(err) })
	})
}

// performShared carries out what a state wants of the store.
func (s *simSidecar) performShared(effect any) {
	st := s.w.store
	switch eff := effect.(type) {
	case effAsk:
		s.lock(eff)
	case effIntend:
		s.call(true, func() error { return st.create(eff.name, nil) }, func(err error) {
			ev := evIntended{name: eff.name, err: err}
			if err != nil {
				s.step(ev)
				return
			}
			s.list(func(at Instant, names []string, err error) {
				ev.at, ev.names, ev.pushes, ev.err = at, names, st.push, err
				if s.w.mut.noRelist {
					ev.names = slices.DeleteFunc(ev.names, func(n string) bool { return !strings.HasPrefix(n, "r.") })
				}
				if s.w.mut.noSendLimit {
					s.state.attempt.posted = s.clock()
				}
				s.step(ev)
			})
		})
	case effPlan:
		s.call(true, func() error { return st.create(eff.name, nil) }, func(error) {})
	case effErase:
		erase := func() error {
			for _, name := range eff.names {
				delete(st.entries, name)
			}
			st.changed()
			return nil
		}
		s.call(false, erase, func(error) {})
	case effRead:
		var rec *record
		s.call(false, func() error {
			if rec = st.entries[eff.name]; rec == nil {
				return ErrNotStored
			}
			return nil
		}, func(err error) {
			ev := evRead{name: eff.name, err: err}
			if err == nil {
				copied := *rec
				ev.rec = &copied
			}
			s.step(ev)
		})
	case effShare:
		rec := eff.rec
		s.call(true, func() error {
			for _, name := range eff.before {
				_ = st.create(name, nil)
			}
			return st.create(eff.at.name(), &rec)
		}, func(err error) { s.step(evShared{at: eff.at, err: err}) })
	case effUnlock:
		s.call(false, func() error {
			if st.holder == s {
				st.holder = nil
			}
			return nil
		}, func(error) {})
	case effBar:
		s.snap.bar()
	}
}

// list lists the names; at is when it was asked.
func (s *simSidecar) list(done func(at Instant, names []string, err error)) {
	at := s.clock()
	var names []string
	s.call(false, func() error { names = s.w.store.names(); return nil }, func(err error) { done(at, names, err) })
}

// lock waits for the lock as long as it may, then lists. The lock is a lease that
// runs out under a holder that stands still.
func (s *simSidecar) lock(eff effAsk) {
	w, st := s.w, s.w.store
	locked := false
	ask := func() {
		s.list(func(at Instant, names []string, err error) {
			s.step(evAsked{id: eff.id, at: at, names: names, pushes: st.push, locked: locked, err: err})
		})
	}
	if eff.lock == 0 {
		ask()
		return
	}
	limit := w.now.Boot + eff.lock
	var try func()
	try = func() {
		if st.holder == nil || w.now.Boot >= st.heldUntil || w.chance(w.faults.staleLease) {
			st.holder, st.heldUntil, locked = s, w.now.Boot+3*time.Second, true
			ask()
			return
		}
		if w.now.Boot >= limit {
			ask()
			return
		}
		s.later(20*time.Millisecond, try)
	}
	s.call(false, func() error { return nil }, func(err error) {
		if err != nil {
			ask()
			return
		}
		try()
	})
}
