package refresher

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func readySnapshot() *snapshot {
	return newSnapshot(view{mode: modeReady, epoch: 1, generation: 1}, NewSecret("a"))
}

func isClosed(e *event) bool {
	select {
	case <-e.happened():
		return true
	default:
		return false
	}
}

func TestTheGateIsDrainedWhenThoseWhoPassedAreDone(t *testing.T) {
	s := readySnapshot()
	for range 2 {
		if !s.enter(oneOther) {
			t.Fatal("an open gate holds back")
		}
	}
	s.closeGate()
	if s.enter(oneOther) || isClosed(&s.drained) {
		t.Fatal("a closed gate lets through, or is drained with two inside")
	}
	s.leave(oneOther)
	if isClosed(&s.drained) {
		t.Fatal("drained with one inside")
	}
	s.leave(oneOther)
	if !isClosed(&s.drained) || s.enter(oneOther) {
		t.Fatal("not drained, or open again")
	}
	s.uncount2(t)

	empty := readySnapshot()
	empty.closeGate()
	if !isClosed(&empty.drained) {
		t.Fatal("an empty one is not drained at once")
	}
}

// uncount2 counts in and out once more, which must not close drained again.
func (s *snapshot) uncount2(t *testing.T) {
	t.Helper()
	for range 3 {
		if s.enter(oneOther) {
			t.Fatal("passed")
		}
	}
}

// Real goroutines, for the race detector: nobody is inside after the gate was
// drained, and it always is.
func TestTheGateUnderRaces(t *testing.T) {
	for range 3000 {
		s := readySnapshot()
		var inside atomic.Int64
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range 8 {
			wg.Go(func() {
				<-start
				for range 20 {
					if !s.enter(oneOther) {
						continue
					}
					inside.Add(1)
					inside.Add(-1)
					s.leave(oneOther)
				}
			})
		}
		wg.Go(func() {
			<-start
			s.closeGate()
			<-s.drained.happened()
			if n := inside.Load(); n != 0 {
				t.Errorf("%d inside a drained gate", n)
			}
		})
		close(start)
		wg.Wait()
	}
}

func TestARequestWithoutAnAnswerCountsForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := readySnapshot()
		p, ok := s.pass(false)
		if !ok {
			t.Fatal("held back")
		}
		s.closeGate()
		time.Sleep(settleAfter - 1)
		synctest.Wait()
		if isClosed(&s.drained) {
			t.Fatal("drained too early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if !isClosed(&s.drained) {
			t.Fatal("not drained")
		}
		p.Settle() // late, and twice
		p.Settle()
		if s.word.Load() != gateClosed {
			t.Errorf("word %x", s.word.Load())
		}
	})
}

// A hold that nobody settles is released by its timer, on another goroutine.
func TestAHoldReleasedByItsTimerUnderRaces(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second of real time")
	}
	s := readySnapshot()
	for range 100 {
		s.pass(false)
	}
	s.closeGate()
	<-s.drained.happened()
}

func TestAPassTellsWhatItIs(t *testing.T) {
	s := readySnapshot()
	p, ok := s.pass(true)
	if !ok || p.Token() != "a" || p.Bearer() != "Bearer a" || p.Epoch() != 1 || p.Generation() != 1 {
		t.Errorf("%v %+v", ok, p)
	}
	p.Settle()
	new(Pass).Settle()
	for _, u := range []*Unavailable{{Session: "x"}, {Session: "x", Busy: true}, {Session: "x", Lost: ReasonRejected}} {
		if u.Error() == "" {
			t.Errorf("%+v says nothing", u)
		}
	}
}
