package refresher

import (
	"container/heap"
	"flag"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "run this one seed of the simulation and print its history")
	simSeeds = flag.Int("sim.seeds", 400, "how many seeds the simulation runs")
	simFirst = flag.Uint64("sim.first", 1, "the first of them")
)

// simulate runs one seed: two minutes of virtual time with faults, then calm.
func simulate(number uint64, mut mutation) *world {
	w := &world{rng: rand.New(rand.NewPCG(number, 1)), mut: mut}
	w.now = Instant{Wall: time.Unix(1_800_000_000, 0), Boot: time.Hour}
	w.issuer.w, w.sidecar.w = w, w
	w.issuer.life = w.between(6*time.Second, 60*time.Second)
	w.swarm()
	w.sidecar.boot()
	w.sidecar.step(evSeed{seed{pair: w.issuer.login(), source: "file"}})
	gap := w.between(5*time.Millisecond, 500*time.Millisecond)
	var arrivals func()
	arrivals = func() {
		w.arrive()
		w.after(w.between(0, 2*gap), arrivals)
	}
	w.after(50*time.Millisecond, arrivals)
	var second func()
	second = func() {
		w.everySecond()
		w.after(time.Second, second)
	}
	w.after(time.Second, second)

	w.run(w.now.Boot + 2*time.Minute)
	w.calm = true
	w.note("calm")
	w.run(w.now.Boot + 2*w.issuer.life + 30*time.Second)
	if p := w.machinePhase(); p != PhaseFresh && p != PhaseExchanging && w.failure == "" {
		w.fail("not fresh again after the faults ended: %s", p)
	}
	return w
}

// swarm chooses which faults this run has: few of them at a time find more than
// all at once.
func (w *world) swarm() {
	pick := func(p float64) float64 {
		if w.rng.IntN(3) == 0 {
			return p * w.rng.Float64()
		}
		return 0
	}
	w.faults.slowRequests = w.rng.IntN(2) == 0
	if w.rng.IntN(5) == 0 {
		return // nothing goes wrong
	}
	w.faults.lostRequest = pick(0.5)
	w.faults.lingering = pick(0.5)
	w.faults.refused = pick(0.6)
	w.faults.gateway = pick(0.4)
	w.faults.gatewayCommitted = pick(0.2)
	w.faults.lostAnswer = pick(0.3)
	w.faults.garbage = pick(0.2)
	w.faults.noConnection = pick(0.6)
	w.faults.saveError = pick(0.4)
	w.faults.crash = pick(0.1)
	w.faults.crashAtSend = pick(0.4)
	w.faults.suspend = pick(0.05)
	w.faults.clockStep = pick(0.05)
}

// everySecond crashes the process, suspends the machine, sets its clock.
func (w *world) everySecond() {
	if w.chance(w.faults.crash) {
		w.sidecar.crash("at random")
	}
	if w.chance(w.faults.suspend) {
		d := w.between(time.Second, 90*time.Second)
		w.note("the machine sleeps for %v", d)
		w.issuer.trouble = true
		w.advance(w.now.Boot + d)
	}
	if w.chance(w.faults.clockStep) {
		d := w.between(-time.Hour, time.Hour)
		w.note("the clock is set by %v", d)
		w.now.Wall = w.now.Wall.Add(d)
	}
}

func (w *world) run(until time.Duration) {
	for len(w.queue) > 0 && w.failure == "" && w.queue[0].at <= until {
		m := heap.Pop(&w.queue).(moment)
		w.advance(m.at)
		m.do()
	}
	w.advance(until)
}

func (w *world) machinePhase() Phase {
	m := machine{state: w.sidecar.state, now: w.now}
	return m.phase()
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
	var requests, ok, replayed, rotations int
	for n := range *simSeeds {
		seed := *simFirst + uint64(n)
		w := simulate(seed, mutation{})
		if w.failure != "" {
			t.Errorf("seed %d: %s (-sim.seed %d shows its history)", seed, w.failure, seed)
		}
		requests, ok, replayed, rotations = requests+w.requests, ok+w.ok, replayed+w.replayed, rotations+w.issuer.commits
	}
	t.Logf("%d seeds: %d requests, %d answered, %d of them sent again, %d rotations", *simSeeds, requests, ok, replayed, rotations)
}

// TestSimulationSeesEachRuleMissing takes one rule out at a time: a simulation
// that passes all the same would prove nothing.
func TestSimulationSeesEachRuleMissing(t *testing.T) {
	for name, mut := range map[string]mutation{
		"without the gate a request that cannot be repeated is refused": {noGate: true},
		"without the replay a request in flight is refused":             {noReplay: true},
		"without the intent a restart presents a spent token":           {noIntent: true},
		"without the hold-off a lingering request is overtaken by ours": {noHoldOff: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(1); seed <= 2000; seed++ {
				if w := simulate(seed, mut); w.failure != "" {
					t.Logf("seen with seed %d: %s", seed, w.failure)
					return
				}
			}
			t.Fatal("the simulation did not notice")
		})
	}
}
