//go:build chaos && unix

package chaos

import (
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// blow is a failpoint with what the issuer does meanwhile.
type blow struct {
	point string
	fault *sandbox.Fault
	fatal bool // a strict issuer's session is lost
}

const uncommitted = 400 * time.Millisecond // enough for the process to be gone

var (
	beforeSending = []blow{{point: "W0"}, {point: "W1"}, {point: "W2"}}
	// The request is written: the issuer never acts on it, or does so later.
	whileAway = []blow{
		{point: "W3", fault: &sandbox.Fault{DelayBefore: uncommitted, Commit: true}},
		{point: "W3", fault: &sandbox.Fault{DelayBefore: uncommitted, Commit: true, Outlive: true}, fatal: true},
		{point: "W4", fatal: true},
	}
	afterwards = []blow{{point: "W5"}, {point: "W6"}, {point: "W7"}, {point: "W8"}}
)

// kills ends the rotating instance at each point, and starts it again a second
// later.
func kills(blows ...blow) func(*testing.T, *fleet) {
	return func(t *testing.T, f *fleet) {
		for n := range *rounds {
			for m, b := range blows {
				f.strike(t, f.members[(n+m)%len(f.members)], b)
			}
		}
	}
}

// strike restarts an instance with a failpoint armed, has it rotate until that
// ends it, and sees what becomes of the fleet.
func (f *fleet) strike(t *testing.T, i *instance, b blow) {
	t.Helper()
	f.fault(b.point)
	i.terminate(t)
	i.start(t, b.point+":kill")
	f.settle(i)
	losses := f.losses()
	if b.fault != nil {
		f.sandbox.SetFault(*b.fault)
	}
	f.drive(t, i, func(limit time.Duration) bool { return i.died(limit) })
	f.sandbox.ClearFaults()
	pause(t, time.Second)
	i.start(t, "")
	took := f.recover()
	lost := f.losses() - losses
	if want := b.fatal && !f.params.rules.Forgiving; lost > 0 && !want || lost > 1 || lost == 0 && want {
		t.Errorf("after a kill at %s (fault %+v) %d sessions were lost", b.point, b.fault, lost)
	}
	f.awaitGeneration(f.generation()+1, f.params.rules.Recovery)
	t.Logf("%s, kill at %s: %d lost, fresh again %v after the restart", f.params.store, b.point, lost, took.Round(10*time.Millisecond))
}

// settle waits until an instance that was just started is fresh.
func (f *fleet) settle(i *instance) {
	f.t.Helper()
	ok := within(f.t.Context(), 20*time.Second, func() bool {
		st, err := i.status(f.t.Context())
		return err == nil && st.State == "fresh" || !i.alive()
	})
	if !ok {
		f.t.Fatalf("%s is not fresh: %s", i.name, f.describe())
	}
}

// drive has an instance rotate until its failpoint is reached.
func (f *fleet) drive(t *testing.T, i *instance, reached func(time.Duration) bool) {
	t.Helper()
	for range 12 {
		go i.exchange()
		if reached(3 * time.Second) {
			return
		}
	}
	t.Fatalf("%s does not reach its failpoint: %s", i.name, f.describe())
}

func (i *instance) alive() bool {
	select {
	case <-i.ended:
		return false
	default:
		return true
	}
}

// pause lets time pass in which nothing is expected of anybody.
func pause(t testing.TB, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}
