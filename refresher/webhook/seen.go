package webhook

import (
	"container/list"
	"sync"
	"time"
)

// Defaults of a [SeenConfig].
const (
	DefaultWindow   = 5 * time.Minute
	DefaultCapacity = 65_536
)

// SeenConfig says what a [Seen] remembers.
type SeenConfig struct {
	// Window is how far an event's instant may lie from now, in the past and in
	// the future; 0 is [DefaultWindow]. A longer one takes events that the sender
	// delivers again late, after a failure of ours, and remembers ids for longer.
	Window time.Duration

	// Capacity is how many ids are remembered; 0 is [DefaultCapacity].
	Capacity int
}

// Verdict is what [Seen.Admit] says about an event. All of them are to be
// answered 2xx: an answer that is not makes the sender send it again, or fail the
// operation that it tells of.
type Verdict string

// The verdicts.
const (
	VerdictNew      Verdict = "new"      // act on it
	VerdictRepeated Verdict = "repeated" // its id was here before
	VerdictStale    Verdict = "stale"    // its instant is outside the window: the clocks differ, or it is a replay
)

// Seen lets each event through once. FusionAuth sends an event again under the
// same id when it got no answer; somebody who recorded one could send it again,
// too, as a signature tells no time.
//
// Ids are remembered in memory as long as their event's instant is within the
// window, so that no id passes twice however late it comes: later it is stale.
// Where there are more ids than the capacity, the oldest are forgotten and
// events at least as old as those are stale. A restart forgets: what an event
// asks for must do no harm when it is done twice within the window. Nothing is
// kept on disk for that reason, and none of the kinds here does.
//
// It is safe for concurrent use.
type Seen struct {
	window   time.Duration
	capacity int

	mu    sync.Mutex
	ids   map[string]*list.Element
	row   *list.List // of sight, the one that arrived first is first
	floor time.Time  // events up to this instant may have been forgotten
}

type sight struct {
	id      string
	instant time.Time
	until   time.Time
}

// NewSeen makes a memory of events.
func NewSeen(cfg SeenConfig) *Seen {
	if cfg.Window <= 0 {
		cfg.Window = DefaultWindow
	}
	if cfg.Capacity <= 0 {
		cfg.Capacity = DefaultCapacity
	}
	return &Seen{window: cfg.Window, capacity: cfg.Capacity, ids: map[string]*list.Element{}, row: list.New()}
}

// Admit says whether to act on an event, and remembers it if so. An event of
// [KindIgnored] is never new: there is nothing to act on.
func (s *Seen) Admit(ev Received) Verdict {
	if ev.Kind == KindIgnored {
		return VerdictRepeated
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetOld(now)
	if _, ok := s.ids[ev.ID]; ok {
		return VerdictRepeated
	}
	distance := now.Sub(ev.CreateInstant).Abs()
	if distance > s.window || !ev.CreateInstant.After(s.floor) {
		return VerdictStale
	}
	if s.row.Len() >= s.capacity {
		oldest := s.remove(s.row.Front())
		if oldest.instant.After(s.floor) {
			s.floor = oldest.instant
		}
		if !ev.CreateInstant.After(s.floor) {
			return VerdictStale
		}
	}
	s.ids[ev.ID] = s.row.PushBack(sight{id: ev.ID, instant: ev.CreateInstant, until: ev.CreateInstant.Add(s.window)})
	return VerdictNew
}

// Forget takes an id back: what the event asks for could not be done, and is to
// be done when it comes again.
func (s *Seen) Forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if el, ok := s.ids[id]; ok {
		s.remove(el)
	}
}

// forgetOld takes away what would be stale if it came again. An event from the
// near future may keep older ones that arrived after it for up to a window more.
func (s *Seen) forgetOld(now time.Time) {
	for el := s.row.Front(); el != nil && el.Value.(sight).until.Before(now); el = s.row.Front() {
		s.remove(el)
	}
}

func (s *Seen) remove(el *list.Element) sight {
	old := s.row.Remove(el).(sight)
	delete(s.ids, old.id)
	return old
}
