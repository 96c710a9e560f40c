package refresher

import (
	"testing"
	"time"
)

// Another instance exchanged, then the store was away for all. Who finds it again
// first must not give the session up before the other could write what it got.
func TestALossWaitsForThoseWhoFindTheStoreLater(t *testing.T) {
	after := func(t *testing.T) (r *rig, foreign string) {
		r = fleetRig(t, strict, time.Hour)
		foreign = r.foreign()
		r.pass(6 * time.Second)
		r.lists(foreign)
		r.pass(time.Second)
		for range 10 { // the hold-off is over long before
			r.step(evAsked{at: r.now, err: errTest})
			r.pass(6 * time.Second)
		}
		r.lists(foreign)
		if v := r.refused("GET /", false); v != verdictWait {
			t.Fatalf("verdict %v, want to wait for the store", v)
		}
		r.pass(100 * time.Millisecond)
		r.lists(foreign)
		r.refused("GET /", false)
		if !r.state.fleet.doomed() {
			t.Fatal("a refused access token after the hold-off does not count")
		}
		r.pass(100 * time.Millisecond)
		r.lists(foreign)
		if r.state.rec.Lost != "" {
			t.Fatalf("given up (%s) at once", r.state.rec.Lost)
		}
		return r, foreign
	}
	t.Run("and goes on with what they got", func(t *testing.T) {
		r, _ := after(t)
		next := r.successor()
		r.pass(6 * time.Second)
		r.step(evAsked{at: r.now, names: []string{next.position().name()}})
		r.step(evRead{name: next.position().name(), rec: next})
		r.wantGeneration(2)
		r.wantPhase(PhaseFresh)
	})
	t.Run("and is one when nothing came", func(t *testing.T) {
		r, foreign := after(t)
		for range 4 {
			r.pass(2 * time.Second)
			r.lists(foreign)
		}
		if r.state.rec.Lost != ReasonTwoGenerals {
			t.Errorf("lost: %q, want %q", r.state.rec.Lost, ReasonTwoGenerals)
		}
	})
}

func TestWhoeverFindsTheStoreAgainWritesAtOnceWhatItGot(t *testing.T) {
	r := fleetRig(t, strict, time.Hour)
	r.reachInFleet(stageCommitting)
	r.saved(nil)
	for range 8 {
		r.shares(errTest)
		r.step(evAsked{at: r.now, err: errTest})
		r.pass(6 * time.Second)
	}
	r.shares(errTest)
	none[effShare](r)
	r.step(evAsked{at: r.now, err: errTest})
	r.lists()
	need[effShare](r)
}
