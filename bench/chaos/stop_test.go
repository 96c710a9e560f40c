//go:build chaos && unix

package chaos

import (
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// freeze is a rotating instance that stands still at a point for some time.
type freeze struct {
	point string
	time  time.Duration
	lossy bool // may cost a strict issuer's session
}

// The hold-off is 3 s, an exchange may take 1 s.
var freezes = []freeze{
	{point: "W0", time: 1500 * time.Millisecond},
	{point: "W0", time: 5 * time.Second},
	{point: "W2", time: 1500 * time.Millisecond},
	{point: "W2", time: 5 * time.Second},
	{point: "W3", time: 500 * time.Millisecond},
	{point: "W3", time: 1500 * time.Millisecond, lossy: true}, // its own time is over when it goes on
	{point: "W3", time: 5 * time.Second, lossy: true},
	{point: "W4", time: 1500 * time.Millisecond},
	{point: "W4", time: 5 * time.Second, lossy: true},
}

// stops has the rotating instance stand still, below and beyond the hold-off.
func stops(list ...freeze) func(*testing.T, *fleet) {
	return func(t *testing.T, f *fleet) {
		for n := range (*rounds + 9) / 10 {
			for m, z := range list {
				f.freeze(t, f.members[(n+m)%len(f.members)], z)
			}
		}
	}
}

func (f *fleet) freeze(t *testing.T, i *instance, z freeze) {
	t.Helper()
	f.fault("stop at " + z.point)
	i.terminate(t)
	i.start(t, z.point+":stop@1")
	f.settle(i)
	losses := f.losses()
	if z.point == "W3" {
		f.sandbox.SetFault(sandbox.Fault{DelayBefore: 200 * time.Millisecond, Commit: true})
	}
	f.drive(t, i, func(limit time.Duration) bool {
		return within(t.Context(), limit, func() bool { return i.reached() != "" })
	})
	f.history.Add(Event{Who: i.name, Op: OpPause, Run: i.runs(), Result: z.point})
	i.setUp(false)
	pause(t, z.time)
	i.resume()
	i.setUp(true)
	f.sandbox.ClearFaults()
	took := f.recover()
	lost := f.losses() - losses
	if lost > 0 && !z.lossy || lost > 1 {
		t.Errorf("after %v of standing still at %s %d sessions were lost", z.time, z.point, lost)
	}
	f.awaitGeneration(f.generation()+1, f.params.rules.Recovery)
	t.Logf("%s, %v of standing still at %s: %d lost, fresh again after %v", f.params.store, z.time, z.point, lost, took.Round(10*time.Millisecond))
}
