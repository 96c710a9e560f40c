package webhook

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// Bounds of the pause after a failed delivery. It doubles from the first to the
// second; a hook that pairs wait for is asked more often.
const (
	firstPause       = time.Second
	longestPause     = 5 * time.Minute
	longestRequired  = time.Minute
	longestAskedFor  = 15 * time.Minute // by Retry-After
	doublingsAtMost  = 20
	remembered       = 4096 // delivered ids
	rememberedWeight = 160  // bytes of one on the disk, about
	entryOverhead    = 256  // bytes of an entry on the disk beside its text, about
)

// entry is one event on its way to one hook.
type entry struct {
	id, session string
	at          time.Time
	sealed      []byte // replaced as a whole, never changed in place
	seq         uint64 // order of arrival
}

// weight is about what an entry takes on the disk.
func (e *entry) weight() int64 { return int64(len(e.sealed))*4/3 + entryOverhead }

// lane is the row of one session's events to one hook. It is in one place as long
// as the receiver knows it: ready, waiting for its time, or under way.
type lane struct {
	session  string
	row      []*entry // the first one is, or will be, on its way
	failures int
	due      time.Time
}

// receiver is a hook's state. It outlives the hook: what was written for it waits
// until it is configured again, or becomes too old.
type receiver struct {
	key     string
	hook    *Hook // nil: not configured
	lanes   map[string]*lane
	entries map[string]*entry // by event id
	weight  int64

	ready    []*lane  // may be sent, the longest waiting first
	later    laneHeap // wait for their time
	inFlight int
	paused   time.Time // nothing is sent before
	failures int       // in a row, over all sessions
	failedAt time.Time // the last of them
	lastErr  string

	delivered, refused uint64
	refusalLog         throttle
}

func newReceiver(key string) *receiver {
	return &receiver{key: key, lanes: map[string]*lane{}, entries: map[string]*entry{}}
}

func (r *receiver) add(e *entry) {
	r.entries[e.id] = e
	r.weight += e.weight()
	l := r.lanes[e.session]
	if l == nil {
		l = &lane{session: e.session}
		r.lanes[e.session] = l
		r.ready = append(r.ready, l)
	}
	l.row = append(l.row, e)
}

// drop forgets an entry; ok is false if it was not there.
func (r *receiver) drop(id string) (e *entry, ok bool) {
	e, ok = r.entries[id]
	if !ok {
		return nil, false
	}
	delete(r.entries, id)
	r.weight -= e.weight()
	l := r.lanes[e.session]
	for i := range l.row {
		if l.row[i] == e {
			l.row = append(l.row[:i:i], l.row[i+1:]...)
			break
		}
	}
	return e, true
}

// reseal replaces an entry's text.
func (r *receiver) reseal(e *entry, sealed []byte) {
	r.weight -= e.weight()
	e.sealed = sealed
	r.weight += e.weight()
}

// limit is how many deliveries may be under way: a hook that has just failed is
// asked with one, lest all that waits falls upon it at once.
func (r *receiver) limit() int {
	if r.failures > 0 {
		return 1
	}
	return r.hook.cfg.Parallel
}

// take returns the lane whose turn it is; nil if none may be sent now. Then next
// is when one may, zero if that is for somebody else to say.
func (r *receiver) take(now time.Time) (l *lane, next time.Time) {
	if r.hook == nil {
		return nil, time.Time{}
	}
	for len(r.later) > 0 && !r.later[0].due.After(now) {
		r.ready = append(r.ready, heap.Pop(&r.later).(*lane))
	}
	if r.inFlight >= r.limit() {
		return nil, time.Time{}
	}
	for len(r.ready) > 0 && len(r.ready[0].row) == 0 { // given up while it waited
		r.forget(r.ready[0])
		r.ready = r.ready[1:]
	}
	if len(r.ready) == 0 {
		if len(r.later) == 0 {
			return nil, time.Time{}
		}
		return nil, latest(r.later[0].due, r.paused)
	}
	if r.paused.After(now) {
		return nil, r.paused
	}
	l = r.ready[0]
	r.ready = r.ready[1:]
	r.inFlight++
	return l, time.Time{}
}

// back puts a lane that was taken where it belongs.
func (r *receiver) back(l *lane, now time.Time) {
	r.inFlight--
	switch {
	case len(l.row) == 0:
		r.forget(l)
	case l.due.After(now):
		heap.Push(&r.later, l)
	default:
		r.ready = append(r.ready, l)
	}
}

func (r *receiver) forget(l *lane) {
	if r.lanes[l.session] == l {
		delete(r.lanes, l.session)
	}
}

// succeeded notes a 2xx. It reports how many failures it ended.
func (r *receiver) succeeded(l *lane) (ended int) {
	ended = r.failures
	l.failures, l.due = 0, time.Time{}
	r.failures, r.paused, r.lastErr = 0, time.Time{}, ""
	r.delivered++
	return ended
}

// failed notes that a delivery begun at the given time was not answered 2xx. The
// session waits, and the whole hook for a shorter time where it is the only one
// that fails. It reports whether this is news: of deliveries that failed
// together one counts.
func (r *receiver) failed(l *lane, begun, now time.Time, asked time.Duration, text string) (news bool) {
	l.failures++
	l.due = now.Add(pause(l.failures, r.longest()))
	r.lastErr = text
	if r.failures == 0 || !begun.Before(r.failedAt) {
		r.failures++
		r.failedAt = now
		r.paused = now.Add(max(pause(r.failures, r.longest()), min(asked, longestAskedFor)))
		news = true
	}
	return news
}

func (r *receiver) longest() time.Duration {
	if r.hook != nil && r.hook.cfg.Required {
		return longestRequired
	}
	return longestPause
}

// pause is the time to wait after the nth failure: between half and all of it, so
// that those who failed together do not come back together.
func pause(n int, longest time.Duration) time.Duration {
	d := min(firstPause<<min(n-1, doublingsAtMost), longest)
	return d/2 + rand.N(d/2)
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// laneHeap implements [heap.Interface]: the lane that is due first is first.
type laneHeap []*lane

func (h laneHeap) Len() int           { return len(h) }
func (h laneHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h laneHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements [heap.Interface].
func (h *laneHeap) Push(x any) { *h = append(*h, x.(*lane)) }

// Pop implements [heap.Interface].
func (h *laneHeap) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return l
}

// throttle lets something through once a minute.
type throttle struct {
	last    time.Time
	skipped int
}

func (t *throttle) allow(now time.Time) (skipped int, ok bool) {
	if !t.last.IsZero() && now.Sub(t.last) < time.Minute {
		t.skipped++
		return 0, false
	}
	skipped = t.skipped
	t.last, t.skipped = now, 0
	return skipped, true
}
