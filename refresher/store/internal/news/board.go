// Package news hands what one connection of a store hears to the watchers of
// its sessions.
package news

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// Fresh is how long a sign of life is good for.
const Fresh = 10 * time.Second

// Board knows the watchers of a store and whether its connection lives. The zero
// value is ready; all methods may be called at once.
type Board struct {
	mu       sync.Mutex
	watchers map[string]map[*watcher]struct{} // session -> its watchers
	heard    time.Time                        // last sign of life; zero: there is no connection
}

type watcher struct{ wake func() }

// Watch registers a watcher and returns what removes it again. A wake that is
// under way when it is removed may still come.
func (b *Board) Watch(session string, wake func()) (cancel func()) {
	w := &watcher{wake}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.watchers == nil {
		b.watchers = map[string]map[*watcher]struct{}{}
	}
	if b.watchers[session] == nil {
		b.watchers[session] = map[*watcher]struct{}{}
	}
	b.watchers[session][w] = struct{}{}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.watchers[session], w)
		if len(b.watchers[session]) == 0 {
			delete(b.watchers, session)
		}
	}
}

// Wake wakes the watchers of a session. No lock is held meanwhile, so a watcher
// may take its own.
func (b *Board) Wake(session string) {
	b.mu.Lock()
	ws := slices.Collect(maps.Keys(b.watchers[session]))
	b.mu.Unlock()
	for _, w := range ws {
		w.wake()
	}
}

// WakeAll wakes all watchers: news may have been missed.
func (b *Board) WakeAll() {
	b.mu.Lock()
	var ws []*watcher
	for _, of := range b.watchers {
		ws = slices.AppendSeq(ws, maps.Keys(of))
	}
	b.mu.Unlock()
	for _, w := range ws {
		w.wake()
	}
}

// Heard notes a sign of life of the connection.
func (b *Board) Heard() {
	b.mu.Lock()
	b.heard = time.Now()
	b.mu.Unlock()
}

// Lost notes that there is no connection.
func (b *Board) Lost() {
	b.mu.Lock()
	b.heard = time.Time{}
	b.mu.Unlock()
}

// Live reports whether the connection has given a sign of life lately.
func (b *Board) Live() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.heard.IsZero() && time.Since(b.heard) < Fresh
}
