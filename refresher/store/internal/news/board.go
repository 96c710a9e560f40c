// Package news hands what one connection of a store hears to the watchers of
// its sessions.
package news

import (
	"sync"
	"time"
)

// Fresh is how long a sign of life is good for.
const Fresh = 10 * time.Second

// Board knows the watchers of a store and whether its connection lives. The zero
// value is ready; all methods may be called at once.
type Board struct {
	mu       sync.Mutex
	watchers map[string]*watcher // session -> its watchers; nearly always one
	heard    time.Time           // last sign of life; zero: there is no connection
}

// watcher is one of a session's, in a list. Only its link changes.
type watcher struct {
	wake func()
	next *watcher
}

// Watch registers a watcher and returns what removes it again. A wake that is
// under way when it is removed may still come.
func (b *Board) Watch(session string, wake func()) (cancel func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.watchers == nil {
		b.watchers = map[string]*watcher{}
	}
	w := &watcher{wake, b.watchers[session]}
	b.watchers[session] = w
	return func() { b.remove(session, w) }
}

func (b *Board) remove(session string, w *watcher) {
	b.mu.Lock()
	defer b.mu.Unlock()
	first := b.watchers[session]
	for at := &first; *at != nil; at = &(*at).next {
		if *at == w {
			*at = w.next
			break
		}
	}
	if b.watchers[session] = first; first == nil {
		delete(b.watchers, session)
	}
}

// Wake wakes the watchers of a session. No lock is held meanwhile, so a watcher
// may take its own.
func (b *Board) Wake(session string) {
	b.mu.Lock()
	all := wakes(nil, b.watchers[session])
	b.mu.Unlock()
	for _, wake := range all {
		wake()
	}
}

// WakeAll wakes all watchers: news may have been missed.
func (b *Board) WakeAll() {
	b.mu.Lock()
	var all []func()
	for _, first := range b.watchers {
		all = wakes(all, first)
	}
	b.mu.Unlock()
	for _, wake := range all {
		wake()
	}
}

func wakes(all []func(), first *watcher) []func() {
	for w := first; w != nil; w = w.next {
		all = append(all, w.wake)
	}
	return all
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
