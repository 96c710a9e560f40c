package refresher

import (
	"testing"
	"time"
)

// There are thousands of sessions, and many have nothing to do: each tick costs.
func TestASessionWithNothingToDoWakesSeldom(t *testing.T) {
	for name, make := range map[string]func(*testing.T) *rig{
		"without a pair":                  func(t *testing.T) *rig { return newRig(t, strict, time.Hour) },
		"of a fleet, without a pair":      func(t *testing.T) *rig { return emptyFleetRig(t) },
		"with a pair of an hour":          func(t *testing.T) *rig { return seededRig(t, strict, time.Hour) },
		"with a pair that does not end":   func(t *testing.T) *rig { return seededRig(t, lenient, 0) },
		"that is lost, and cannot return": lostRig,
	} {
		t.Run(name, func(t *testing.T) {
			r := make(t)
			r.pass(time.Minute)
			if r.state.fleet.on {
				r.step(evAsked{at: r.now, pushes: true})
			}
			r.pass(time.Second)
			at := need[effWake](r).at
			if next := at.Sub(r.now); next < 5*time.Second {
				t.Errorf("wakes again after %v", next)
			}
		})
	}
}

func emptyFleetRig(t *testing.T) *rig {
	r := unopenedRig(t, strict, time.Hour, inFleet)
	r.step(evOpened{})
	r.step(evAsked{at: r.now, pushes: true})
	r.step(evNoSeed{err: ErrNoPair})
	return r
}

func lostRig(t *testing.T) *rig {
	r := seededRig(t, strict, time.Hour)
	r.exchange(failure(ClassRejected, 400))
	r.saved(nil)
	r.wantLost(ReasonRejected)
	return r
}
