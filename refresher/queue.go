package refresher

import "sync"

// queue is what a session's actor has yet to take. Whoever puts something in
// while the actor is at rest has to start it.
type queue struct {
	mu     sync.Mutex
	events []any
	busy   bool // the actor runs
	ended  bool
}

// put adds an event; start says that the actor has to be started. It is taken
// unless the session has ended.
func (q *queue) put(event any) (start, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return false, false
	}
	q.events = append(q.events, event)
	start = !q.busy
	q.busy = true
	return start, true
}

// full reports whether more wait than is good.
func (q *queue) full() bool {
	const enough = 64
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.events) >= enough
}

// take returns what waits. With nothing it returns nil, and the actor rests.
func (q *queue) take() []any {
	q.mu.Lock()
	defer q.mu.Unlock()
	events := q.events
	q.events = nil
	q.busy = events != nil
	return events
}

// end closes the queue if nothing waits.
func (q *queue) end() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = len(q.events) == 0
	return q.ended
}
