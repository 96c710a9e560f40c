//go:build chaos && unix

package chaos

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// mix does this and that at random. What is lost is looked at by the checker.
func mix(t *testing.T, f *fleet) {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("-chaos.seed %d", s)
	rng := rand.New(rand.NewPCG(s, 0))
	upTo := func(d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }
	faults := map[string]func(){
		"kill": func() {
			i := f.members[rng.IntN(members)]
			i.kill()
			pause(t, upTo(2*time.Second))
			i.start(t, "")
		},
		"failpoint": func() {
			i := f.members[rng.IntN(members)]
			blows := slices.Concat(beforeSending, whileAway, afterwards)
			i.kill()
			i.start(t, blows[rng.IntN(len(blows))].point+":kill")
			go i.exchange()
			if !i.died(3 * time.Second) {
				i.kill()
			}
			pause(t, upTo(2*time.Second))
			i.start(t, "")
		},
		"stop": func() {
			i := f.members[rng.IntN(members)]
			i.setUp(false)
			i.pause()
			pause(t, upTo(5*time.Second))
			i.resume()
			i.setUp(true)
		},
		"store paused": func() {
			f.history.Add(Event{Op: OpCut, Result: "store"})
			f.storeProcess().Pause()
			pause(t, upTo(3*time.Second))
			f.storeProcess().Resume()
			f.history.Add(Event{Op: OpHeal, Result: "store"})
		},
		"store killed": func() {
			f.history.Add(Event{Op: OpCut, Result: "store"})
			f.storeProcess().Kill()
			if f.params.forgets && f.etcd != nil {
				f.etcd.Wipe()
			}
			pause(t, upTo(time.Second))
			f.storeProcess().Start()
			f.history.Add(Event{Op: OpHeal, Result: "store"})
		},
		"cut": func() {
			i := f.members[rng.IntN(members)]
			what := []string{"store", "issuer"}[rng.IntN(2)]
			i.cut(t, what, rng.IntN(2) == 0)
			pause(t, upTo(4*time.Second))
			i.mend(t, what)
		},
		"issuer": func() {
			list := []sandbox.Fault{
				{Status: 500}, {Status: 503}, {Status: 429}, {Drop: true}, {Reset: true}, {DelayBefore: 1200 * time.Millisecond},
				{Commit: true, DelayAfter: 700 * time.Millisecond}, {Commit: true, Drop: true}, {Commit: true, Truncate: true},
				{Commit: true, DelayBefore: 1500 * time.Millisecond, Outlive: true},
			}
			f.sandbox.Fault(list[rng.IntN(len(list))], 1)
			pause(t, upTo(3*time.Second))
		},
	}
	names := []string{"kill", "failpoint", "failpoint", "stop", "store paused", "store killed", "cut", "cut", "issuer", "issuer"}
	end := time.Now().Add(*mixTime)
	for time.Now().Before(end) {
		batch := 1 + rng.IntN(4)
		f.fault("random")
		for range batch {
			faults[names[rng.IntN(len(names))]]()
		}
		f.sandbox.ClearFaults()
		f.recover()
		f.awaitGeneration(f.generation()+1, f.params.rules.Recovery)
	}
}
