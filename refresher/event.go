package refresher

import "sync/atomic"

// event is something that happens once. The zero value is one that has not
// happened: thousands of sessions have some, and only few are waited for, so its
// channel is made for the first who does.
type event struct{ ch atomic.Pointer[chan struct{}] }

// past is the channel of all events that happened before anybody waited.
var past = func() *chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return &ch
}()

// happen makes the event happen; later calls do nothing.
func (e *event) happen() {
	if ch := e.ch.Swap(past); ch != nil && ch != past {
		close(*ch)
	}
}

// over reports whether the event has happened.
func (e *event) over() bool { return e.ch.Load() == past }

// happened returns a channel that is closed once the event has happened.
func (e *event) happened() <-chan struct{} {
	if ch := e.ch.Load(); ch != nil {
		return *ch
	}
	fresh := make(chan struct{})
	if e.ch.CompareAndSwap(nil, &fresh) {
		return fresh
	}
	return *e.ch.Load() // somebody was faster
}
