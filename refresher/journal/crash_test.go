package journal

import (
	"encoding/binary"
	"testing"
)

// TestRandomCrashesNeverGoBack drives a journal through random writes, faults,
// kills, power cuts and evictions. Bodies carry their number. What is read has at
// least the number of the last body that was acknowledged, or that an earlier
// reader got from a settled journal, and it is whole.
func TestRandomCrashesNeverGoBack(t *testing.T) {
	seeds := uint64(400)
	if testing.Short() {
		seeds = 100
	}
	seen := map[string]int{}
	for seed := range seeds {
		runCrashes(t, seed, seen)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	for _, what := range []string{"acknowledged", "failed", "killed", "power cut", "in doubt adopted", "load failed", "unsettled", "torn"} {
		if seen[what] == 0 {
			t.Errorf("no run met %q; the test proves less than it says", what)
		}
	}
}

func runCrashes(t *testing.T, seed uint64, seen map[string]int) {
	d := newSimDisk(t, seed)
	var floor, last uint64 // 0: nothing
	var j *Journal
	for range 40 {
		d.heal()
		randomFault(d)
		switch what := d.rng.IntN(10); {
		case j == nil:
			j = loadOrCrash(d)
			if j == nil {
				seen["load failed"]++
				continue
			}
			floor = checkRead(t, d, j, floor, last, seen)
		case what < 7:
			last++
			switch writeOrCrash(j, numbered(d, last)) {
			case "":
				seen["acknowledged"]++
				floor = last
			case errCrashed.Error():
				seen["killed"]++
				j = nil
				if d.rng.IntN(2) == 0 {
					seen["power cut"]++
					d.powerCut()
				}
			default:
				seen["failed"]++
				d.heal()
				floor = checkRead(t, d, j, floor, last, seen)
			}
		case what < 8:
			d.evict()
		case what < 9:
			j = nil // kill -9 between writes
		default:
			j = nil
			seen["power cut"]++
			d.powerCut()
		}
	}
}

// numbered makes a body whose every 8 bytes are n.
func numbered(d *simDisk, n uint64) []byte {
	body := make([]byte, 8*(1+d.rng.IntN(1+d.rng.IntN(1200))))
	for at := 0; at < len(body); at += 8 {
		binary.BigEndian.PutUint64(body[at:], n)
	}
	return body
}

func randomFault(d *simDisk) {
	err := errorsOfDisks[d.rng.IntN(len(errorsOfDisks))]
	if d.rng.IntN(3) == 0 {
		err = errCrashed
	}
	nth := 1 + d.rng.IntN(2)
	switch d.rng.IntN(6) {
	case 0:
		d.onWrite = shortOnce(nth, d.rng.IntN(10000), err)
	case 1:
		d.onSync = once(nth, err)
	case 2:
		d.onSync = once(nth, errorsOfDisks[0])
		d.onOpen = once(nth, errorsOfDisks[0])
	}
}

func loadOrCrash(d *simDisk) (j *Journal) {
	defer func() {
		if got := recover(); got != nil && got != errCrashed {
			panic(got)
		}
	}()
	loaded, err := load("", "s", d.open)
	if err != nil {
		return nil
	}
	return loaded
}

func writeOrCrash(j *Journal, body []byte) (failure string) {
	defer func() {
		if got := recover(); got == errCrashed {
			failure = errCrashed.Error()
		} else if got != nil {
			panic(got)
		}
	}()
	if err := j.Write(body); err != nil {
		return "error: " + err.Error()
	}
	return ""
}

// checkRead reads and returns the new floor.
func checkRead(t *testing.T, d *simDisk, j *Journal, floor, last uint64, seen map[string]int) uint64 {
	t.Helper()
	d.heal()
	body, ok, err := j.Read()
	if err != nil || !ok && floor > 0 {
		t.Errorf("number %d lost: ok %v, error %v", floor, ok, err)
		return floor
	}
	if j.Torn() {
		seen["torn"]++
	}
	if !ok {
		return floor
	}
	n := binary.BigEndian.Uint64(body)
	for at := 0; at < len(body); at += 8 {
		if binary.BigEndian.Uint64(body[at:]) != n {
			t.Fatal("a mixture of bodies was read")
		}
	}
	if n < floor || n > last {
		t.Errorf("read number %d; %d was safe and %d the last one tried", n, floor, last)
	}
	if !j.settled {
		seen["unsettled"]++
		return floor
	}
	if n > floor {
		seen["in doubt adopted"]++
	}
	return n
}
