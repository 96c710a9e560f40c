package caddymodule

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// watch is what the process remembers of a session, or of all of a pool's,
// beside what the core does: for metrics, traces and the status page. It lives as
// long as they do.
type watch struct {
	metrics *counts
	waits   waits
	traces  traces
	store   atomic.Pointer[trouble] // with what is shared; nil: none
}

// trouble is something that goes on until it is over.
type trouble struct {
	since time.Time
	text  string
}

// note takes what happens to the session.
func (w *watch) note(n refresher.Note) {
	w.metrics.note(n)
	w.traces.note(n)
	switch n.Kind {
	case refresher.NoteStoreFailed, refresher.NoteStoreRegressed, refresher.NoteForked:
		since := n.At
		if before := w.store.Load(); before != nil {
			since = before.since
		}
		w.store.Store(&trouble{since: since, text: n.Err})
	case refresher.NoteStoreBack, refresher.NoteRotated, refresher.NoteJoined:
		w.store.Store(nil)
	}
}

// waits remembers how many requests were held back for the latest tokens, and
// how long at most. Only requests that did wait come here.
type waits struct {
	mu   sync.Mutex
	list []heldBack // the newest last
}

// heldBack is how requests waited for one generation's token.
type heldBack struct {
	Epoch      uint64  `json:"epoch"`
	Generation uint64  `json:"generation"`
	Requests   uint64  `json:"requests"`
	Longest    float64 `json:"longest_seconds"`
}

const maxWaits = 16 // as many as a session's history has rotations

func (w *waits) add(epoch, generation uint64, waited time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := len(w.list) - 1; i >= 0; i-- {
		if h := &w.list[i]; h.Epoch == epoch && h.Generation == generation {
			h.Requests++
			h.Longest = max(h.Longest, waited.Seconds())
			return
		}
	}
	if len(w.list) == maxWaits {
		w.list = append(w.list[:0], w.list[1:]...)
	}
	w.list = append(w.list, heldBack{Epoch: epoch, Generation: generation, Requests: 1, Longest: waited.Seconds()})
}

func (w *waits) all() []heldBack {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]heldBack{}, w.list...)
}
