package refresher

import (
	"flag"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "run this one seed of the simulation and print its history")
	simSeeds = flag.Int("sim.seeds", 400, "how many seeds the simulation runs")
	simFirst = flag.Uint64("sim.first", 1, "the first of them")
	simFor   = flag.Duration("sim.for", 0, "go on with further seeds for so long")
)

// simulate runs one seed: two minutes of virtual time with faults, then calm.
func simulate(number uint64, mut mutation) *world {
	w := &world{rng: rand.New(rand.NewPCG(number, 1)), later: rand.New(rand.NewPCG(number, 2)), variants: rand.New(rand.NewPCG(number, 3)), mut: mut}
	w.now = Instant{Wall: time.Unix(1_800_000_000, 0), Boot: time.Hour}
	w.issuer.w = w
	w.populate()
	w.swarm()
	if mut.inFleets() && len(w.sidecars) < 2 {
		return w // there is nothing to see
	}
	for _, s := range w.sidecars {
		s.skew = w.between(-100*time.Millisecond, 100*time.Millisecond)
		if w.faults.skew > 0 {
			s.skew = w.between(-w.faults.skew, w.faults.skew)
		}
		s.boot()
	}
	first := w.issuer.login()
	everywhere := w.rng.IntN(2) == 0
	for i, s := range w.sidecars {
		if i == 0 || everywhere {
			s.step(evSeed{seed{pair: first, source: "file"}})
		}
	}
	gap := w.between(5*time.Millisecond, 500*time.Millisecond)
	var arrivals func()
	arrivals = func() {
		w.arrive()
		w.after(w.between(0, 2*gap), arrivals)
	}
	w.after(2*time.Second, arrivals)
	var second func()
	second = func() {
		w.everySecond()
		w.after(time.Second, second)
	}
	w.after(time.Second, second)

	w.run(w.now.Boot + 2*time.Minute)
	w.calm = true
	w.note("calm")
	over := w.now.Boot
	for _, s := range w.sidecars {
		over = max(over, s.stopUntil, s.cutUntil)
	}
	w.run(over + 2*w.issuer.life + time.Minute)
	w.wantFresh()
	return w
}

// populate chooses the issuer, and whether it is a fleet.
func (w *world) populate() {
	w.issuer.life = w.between(6*time.Second, 60*time.Second)
	n := 1
	if w.rng.IntN(3) != 0 {
		n = 1 + w.rng.IntN(5)
		w.store = &simStore{w: w, entries: map[string]*record{}, push: w.rng.IntN(2) == 0}
		w.issuer.life = w.between(10*time.Second, 60*time.Second)
		if w.rng.IntN(2) == 0 {
			w.issuer.kind = issuerKind(w.rng.IntN(len(issuerNames)))
		}
	}
	for id := range n {
		w.sidecars = append(w.sidecars, &simSidecar{w: w, id: id})
	}
	i := &w.issuer
	if w.variants.IntN(5) == 0 {
		i.kind = sameIssuer + issuerKind(w.variants.IntN(2))
		i.dated, i.wantsLive = w.variants.IntN(2) == 0, w.variants.IntN(2) == 0
	}
	w.note("%d processes, issuer %s (dated %v, wants a live token %v), life %v", n, issuerNames[i.kind], i.dated, i.wantsLive, i.life)
}

// wantFresh: once the faults are over, everybody is well again by himself.
func (w *world) wantFresh() {
	for _, s := range w.sidecars {
		switch p := s.phase(); {
		case w.failure != "":
		case p != PhaseFresh && p != PhaseExchanging:
			w.fail("%s is not fresh again after the faults ended: %s (%s)", s, p, s.state.fleet.err)
		case s.state.rec.Epoch != w.sidecars[0].state.rec.Epoch:
			w.fail("%s has not heard of the others' login", s)
		}
	}
}

// TestSimulation runs the step function through faults of every kind. A failing
// seed is reproduced, with its history, by
//
//	go test ./refresher -run TestSimulation -sim.seed N -v
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		w := simulate(*simSeed, mutation{})
		t.Logf("%+v\n%s", w.faults, strings.Join(w.log, "\n"))
		if w.failure != "" {
			t.Fatal(w.failure)
		}
		return
	}
	var sum tally
	for _, seed := range failedSeeds(t) {
		sum.add(t, seed)
	}
	count := uint64(*simSeeds)
	if RaceDetector {
		count /= 8 // it looks at the same code, slowly
	}
	until := time.Now().Add(*simFor)
	var next atomic.Uint64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for n := next.Add(1); n <= count || *simFor > 0 && time.Now().Before(until); n = next.Add(1) {
				sum.add(t, *simFirst+n-1)
			}
		})
	}
	wg.Wait()
	t.Logf("%d seeds, %d of them fleets: %d requests, %d answered, %d of them sent again, %d rotations, %d losses that nobody could prevent",
		sum.seeds, sum.fleets, sum.requests, sum.ok, sum.replayed, sum.rotations, sum.losses)
}

// tally adds up runs.
type tally struct {
	mu                                                       sync.Mutex
	seeds, fleets, requests, ok, replayed, rotations, losses int
}

func (sum *tally) add(t *testing.T, seed uint64) {
	w := simulate(seed, mutation{})
	if w.failure != "" {
		t.Errorf("seed %d: %s (-sim.seed %d shows its history)", seed, w.failure, seed)
	}
	sum.mu.Lock()
	defer sum.mu.Unlock()
	sum.seeds++
	sum.requests, sum.ok, sum.replayed = sum.requests+w.requests, sum.ok+w.ok, sum.replayed+w.replayed
	sum.rotations, sum.losses = sum.rotations+w.issuer.commits, sum.losses+w.losses
	if len(w.sidecars) > 1 {
		sum.fleets++
	}
}

// failedSeeds are those that failed once.
func failedSeeds(t *testing.T) (seeds []uint64) {
	t.Helper()
	text, err := os.ReadFile("testdata/seeds.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		for _, word := range strings.Fields(line) {
			n, err := strconv.ParseUint(word, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			seeds = append(seeds, n)
		}
	}
	return seeds
}

// TestSimulationSeesEachRuleMissing takes one rule out at a time: a simulation
// that passes all the same would prove nothing.
func TestSimulationSeesEachRuleMissing(t *testing.T) {
	if RaceDetector {
		t.Skip("run without the race detector: it takes too long")
	}
	for name, mut := range map[string]mutation{
		"without the gate a request that cannot be repeated is refused": {noGate: true},
		"without the replay a request in flight is refused":             {noReplay: true},
		"without the intent a restart presents a spent token":           {noIntent: true},
		"without the hold-off a lingering request is overtaken by ours": {noHoldOff: true},
		// Rotation.md 4.4, in a fleet.
		"without intents two instances exchange one generation":                                     {noFleetIntent: true},
		"without a second list two instances that met exchange one generation":                      {noRelist: true},
		"without a limit on the way to the exchange a process that stood still sends a spent token": {noSendLimit: true},
		"with one record that is overwritten a late write brings back a spent token":                {overwrite: true},
		"without the witness a retry ends a session whose next pair another instance holds":         {blindRetry: true},
		"with reads from a replica two instances exchange one generation":                           {staleReads: true},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			var next atomic.Uint64
			var seen atomic.Bool
			var workers sync.WaitGroup
			for range runtime.GOMAXPROCS(0) {
				workers.Go(func() {
					for !seen.Load() && time.Since(began) < time.Minute {
						seed := next.Add(1)
						if w := simulate(seed, mut); w.failure != "" && seen.CompareAndSwap(false, true) {
							t.Logf("seen with seed %d after %v: %s", seed, time.Since(began).Round(time.Millisecond), w.failure)
						}
					}
				})
			}
			workers.Wait()
			if !seen.Load() {
				t.Fatal("the simulation did not notice within a minute")
			}
		})
	}
}
