package refresher

import (
	"testing"
	"time"
)

// While another instance exchanges, an end waits: the pair that it would hand
// over may be about to be replaced by one that nobody revokes.
func TestAnEndWaitsForAnotherInstancesExchange(t *testing.T) {
	for name, tt := range map[string]struct {
		then func(r *rig)
		want uint64 // the generation whose pair is handed over
	}{
		"which succeeds": {func(r *rig) {
			next := r.successor()
			r.lists(next.position().name())
			r.step(evRead{name: next.position().name(), rec: next})
		}, 2},
		"which is withdrawn": {func(r *rig) { r.lists() }, 1},
		"but not for ever":   {func(r *rig) { r.pass(11 * time.Second) }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := fleetRig(t, strict, time.Hour)
			first := r.state.rec.pair()
			var handed *Pair
			look := func() {
				if e, ok := effect[effEnded](r); ok {
					handed = &e.last
				}
			}
			r.pass(2 * time.Second)
			r.step(evEnd{reply: make(chan error, 1)})
			r.lists(r.foreign())
			look()
			if handed != nil || r.state.rec.Lost != "" {
				t.Fatal("it did not wait")
			}
			tt.then(r)
			look()
			if handed == nil || r.state.rec.Lost != ReasonLoggedOut {
				t.Fatalf("it goes on: %s", r.phase())
			}
			if same := handed.Refresh.Equal(first.Refresh); same != (tt.want == 1) {
				t.Errorf("the pair of the first generation: %v", same)
			}
		})
	}
}
