package caddymodule

import (
	"strconv"
	"strings"
	"sync"
	"time"
)

// eventHub keeps the last events of the process for those who follow them, and
// wakes these. It never waits for anybody: who is slow finds in the ring what is
// still there.
type eventHub struct {
	run string // tells this process's ids from an earlier one's

	mu    sync.Mutex
	ring  [hubSize]happening
	count uint64 // events so far; the last one's number
	wakes map[chan struct{}]bool

	recent lately // for the status page
}

const hubSize = 512

// hub is the process's: sessions outlive configurations, and so do those who
// follow them.
var hub = newEventHub()

func newEventHub() *eventHub {
	return &eventHub{run: strconv.FormatInt(time.Now().UnixMilli(), 36), wakes: map[chan struct{}]bool{}}
}

// publish is called on the sessions' own goroutines.
func (h *eventHub) publish(events ...happening) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range events {
		h.count++
		h.ring[h.count%hubSize] = e
		h.recent.add(e, h.count)
	}
	for wake := range h.wakes {
		select {
		case wake <- struct{}{}:
		default: // it will look anyway
		}
	}
}

// follow returns a channel that is sent to after something has happened.
func (h *eventHub) follow() (wake <-chan struct{}, leave func()) {
	ch := make(chan struct{}, 1)
	h.mu.Lock()
	h.wakes[ch] = true
	h.mu.Unlock()
	return ch, func() {
		h.mu.Lock()
		delete(h.wakes, ch)
		h.mu.Unlock()
	}
}

// after returns the events behind a number, oldest first, the number of the last
// one, and how many are not there any more.
func (h *eventHub) after(number uint64) (events []happening, last, missed uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := number + 1
	if h.count >= hubSize && first <= h.count-hubSize {
		missed = h.count - hubSize + 1 - first
		first += missed
	}
	for n := first; n <= h.count; n++ {
		events = append(events, h.ring[n%hubSize])
	}
	return events, h.count, missed
}

// id names an event for somebody who comes back.
func (h *eventHub) id(number uint64) string { return h.run + "-" + strconv.FormatUint(number, 10) }

// number is where somebody who has seen the event with that id goes on: where the
// id is of another process, or nonsense, with all that is there; without one,
// with what happens next.
func (h *eventHub) number(id string) uint64 {
	h.mu.Lock()
	count := h.count
	h.mu.Unlock()
	if id == "" {
		return count
	}
	run, text, _ := strings.Cut(id, "-")
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || run != h.run || n > count {
		return 0
	}
	return n
}
