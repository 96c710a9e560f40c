package news

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestAWatcherHearsOfItsSessionOnlyAndUntilItIsCancelled(t *testing.T) {
	var b Board
	var a, other int
	cancel := b.Watch("a", func() { a++ })
	defer b.Watch("ab", func() { other++ })()
	b.Wake("a")
	b.WakeAll()
	cancel()
	cancel()
	b.Wake("a")
	b.WakeAll()
	if a != 2 || other != 2 {
		t.Errorf("woken %d and %d times, want 2 and 2", a, other)
	}
	if len(b.watchers) != 1 {
		t.Errorf("%d sessions kept, want 1", len(b.watchers))
	}
}

func TestAWatcherMayCancelItselfWhileItIsWoken(t *testing.T) {
	var b Board
	var cancel func()
	cancel = b.Watch("a", func() { cancel() })
	b.Wake("a")
}

func TestASignOfLifeWearsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Board
		if b.Live() {
			t.Error("there was no connection yet")
		}
		b.Heard()
		time.Sleep(Fresh - time.Millisecond)
		if !b.Live() {
			t.Error("not live although heard lately")
		}
		time.Sleep(time.Millisecond)
		if b.Live() {
			t.Error("live although not heard lately")
		}
		b.Heard()
		if b.Lost(); b.Live() {
			t.Error("live although the connection is lost")
		}
	})
}
