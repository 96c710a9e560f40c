package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"
)

func mustLoad(t *testing.T, d *simDisk) *Journal {
	t.Helper()
	j, err := load("", "s", d.open)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func mustWrite(t *testing.T, j *Journal, body string) {
	t.Helper()
	if err := j.Write([]byte(body)); err != nil {
		t.Fatal(err)
	}
}

func wantBody(t *testing.T, j *Journal, allowed ...string) {
	t.Helper()
	body, ok, err := j.Read()
	if err != nil || !ok {
		t.Fatalf("read: ok %v, error %v; want one of %q", ok, err, allowed)
	}
	for _, one := range allowed {
		if string(body) == one {
			return
		}
	}
	t.Fatalf("read %.40q, want one of %q", body, allowed)
}

func TestReadReturnsTheLastBodyAcrossRestarts(t *testing.T) {
	d := newSimDisk(t, 1)
	for i := range 10 {
		j := mustLoad(t, d)
		if i == 0 {
			if _, ok, err := j.Read(); ok || err != nil {
				t.Fatalf("a new journal: ok %v, error %v", ok, err)
			}
		}
		for k := range i % 4 {
			mustWrite(t, j, fmt.Sprint("body ", i, k))
			wantBody(t, j, fmt.Sprint("body ", i, k))
		}
		if i%4 > 0 {
			wantBody(t, mustLoad(t, d), fmt.Sprint("body ", i, i%4-1))
		}
	}
}

func TestReadOfSlotsAsFound(t *testing.T) {
	rec := func(seq uint64, body string) []byte { return encodeSlot(seq, []byte(body)) }
	foreign := rec(9, "")
	foreign[9] = 2
	sum := slotSum(foreign[:headerSize])
	foreign[28], foreign[29], foreign[30], foreign[31] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
	junk := []byte("junk")
	for _, c := range []struct {
		name string
		a, b []byte
		body string // "" is none
		torn bool
		err  error
	}{
		{"two blank slots are a new journal", nil, nil, "", false, nil},
		{"a blank slot beside the genesis is a new journal", nil, rec(0, ""), "", false, nil},
		{"a torn first write is a new journal", junk, rec(0, ""), "", true, nil},
		{"a torn genesis is a new journal", nil, []byte("ctrjrn"), "", false, nil},
		{"the higher number wins in the first slot", rec(8, "new"), rec(7, "old"), "new", false, nil},
		{"the higher number wins in the second slot", rec(8, "old"), rec(9, "new"), "new", false, nil},
		{"numbers are compared as unsigned", rec(1<<63, "new"), rec(1<<63-1, "old"), "new", false, nil},
		{"a torn slot falls back to the other", junk, rec(7, "old"), "old", true, nil},
		{"a blank slot falls back to the other", rec(7, "old"), nil, "old", false, nil},
		{"two torn slots are damage", junk, junk, "", true, ErrDamaged},
		{"a torn slot beside a blank one is damage", junk, nil, "", true, ErrDamaged},
		{"a slot of another version is an error even if older", foreign, rec(12, "new"), "", false, ErrVersion},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newSimDisk(t, 1)
			d.set(0, c.a)
			d.set(1, c.b)
			j := mustLoad(t, d)
			body, ok, err := j.Read()
			if string(body) != c.body || ok != (c.body != "") || !errors.Is(err, c.err) || j.Torn() != c.torn {
				t.Fatalf("got %q, ok %v, torn %v, error %v", body, ok, j.Torn(), err)
			}
			if c.err == nil {
				mustWrite(t, j, "next")
				wantBody(t, mustLoad(t, d), "next")
				return
			}
			if !strings.Contains(err.Error(), "s.j0") || !strings.Contains(err.Error(), "aside") {
				t.Errorf("the error names neither path nor remedy: %v", err)
			}
			before := bytes.Clone(d.image(0))
			if err := j.Write([]byte("next")); !errors.Is(err, c.err) {
				t.Errorf("write: %v", err)
			}
			if !bytes.Equal(before, d.image(0)) {
				t.Error("a write changed a journal that cannot be read")
			}
		})
	}
}

func TestAfterTheFirstAcknowledgedWriteDamageIsNeverTakenForANewJournal(t *testing.T) {
	for damaged := range 2 {
		d := newSimDisk(t, 1)
		mustWrite(t, mustLoad(t, d), "seed")
		d.set(damaged, []byte("junk"))
		wantBody(t, mustLoad(t, d), "seed")
		d.set(1-damaged, []byte("junk"))
		if _, _, err := mustLoad(t, d).Read(); !errors.Is(err, ErrDamaged) {
			t.Errorf("both slots damaged: error %v", err)
		}
	}
}

func TestATooLargeBodyIsRefusedAndWritesNothing(t *testing.T) {
	d := newSimDisk(t, 1)
	j := mustLoad(t, d)
	mustWrite(t, j, "small")
	d.onWrite = func(string, int) (int, error) { t.Error("wrote"); return 0, nil }
	if err := j.Write(make([]byte, MaxBody+1)); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("got %v", err)
	}
	d.heal()
	wantBody(t, j, "small")
	mustWrite(t, j, "next")
}

func TestAClosedJournalRefuses(t *testing.T) {
	j := mustLoad(t, newSimDisk(t, 1))
	if err := errors.Join(j.Close(), j.Close()); err != nil {
		t.Error(err)
	}
	if _, _, err := j.Read(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if err := j.Write(nil); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("write: %v", err)
	}
}

// Every fault at every step of a write, for the writes 1 to 4 of a journal; then
// life goes on, or the process restarts, or the power fails.
func TestAFaultInAWriteLeavesTheLastBodyOrTheNewOne(t *testing.T) {
	type fault struct {
		name   string
		inject func(d *simDisk)
	}
	var faults []fault
	for _, e := range errorsOfDisks {
		for _, keep := range []int{0, 1, 20, 31, 32, 40, 511, 512, 4095, 4096} {
			faults = append(faults, fault{fmt.Sprintf("%v after %d bytes", e, keep), func(d *simDisk) { d.onWrite = shortOnce(1, keep, e) }})
		}
		faults = append(faults,
			fault{fmt.Sprint(e, " in fsync"), func(d *simDisk) { d.onSync = once(1, e) }},
			fault{fmt.Sprint(e, " in fsync and in reopening"), func(d *simDisk) { d.onSync = once(1, e); d.onOpen = once(1, e) }},
			fault{fmt.Sprint(e, " in fsync and twice in reopening"), func(d *simDisk) {
				d.onSync = once(1, e)
				left := 2
				d.onOpen = func(string) error {
					if left--; left >= 0 {
						return e
					}
					return nil
				}
			}})
	}
	faults = append(faults, fault{"a short write without an error", func(d *simDisk) { d.onWrite = shortOnce(1, 40, nil) }})
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			for nth := 1; nth <= 4; nth++ {
				for seed := range uint64(4) {
					setup := func() (*simDisk, *Journal, []string) {
						d := newSimDisk(t, seed)
						j := mustLoad(t, d)
						allowed := []string{"new"}
						for i := 1; i < nth; i++ {
							mustWrite(t, j, fmt.Sprint("old ", i))
							allowed = []string{fmt.Sprint("old ", i), "new"}
						}
						f.inject(d)
						if err := j.Write([]byte("new")); err == nil || !strings.Contains(err.Error(), "s.j") {
							t.Fatalf("write %d: error %v", nth, err)
						}
						return d, j, allowed
					}
					check := func(j *Journal, allowed []string) {
						if body, ok, err := j.Read(); nth > 1 || ok || err != nil {
							if body == nil {
								t.Errorf("write %d: lost: ok %v, error %v", nth, ok, err)
							}
							wantBody(t, j, allowed...)
						}
					}
					_, j, allowed := setup()
					check(j, allowed)

					d, _, allowed := setup()
					d.heal()
					check(mustLoad(t, d), allowed)
					d.powerCut()
					check(mustLoad(t, d), allowed)

					d, j, _ = setup()
					if j.Write([]byte("again")) != nil { // the second failure of reopening
						if err := j.Write([]byte("again")); err != nil {
							t.Fatal(err)
						}
					}
					wantBody(t, j, "again")
					d.powerCut()
					wantBody(t, mustLoad(t, d), "again")
				}
			}
		})
	}
}

func TestAfterAFailedWriteTheNextOneSparesTheGoodSlot(t *testing.T) {
	d := newSimDisk(t, 1)
	j := mustLoad(t, d)
	mustWrite(t, j, "good")
	good, bad := testPaths[j.newest], testPaths[1-j.newest]
	for range 5 {
		d.onWrite = func(path string, size int) (int, error) {
			if path == good {
				t.Error("the only good slot was written to")
			}
			return size / 2, nil
		}
		if err := j.Write([]byte("next")); err == nil || !strings.Contains(err.Error(), bad) {
			t.Fatalf("error %v", err)
		}
		wantBody(t, j, "good")
	}
	d.heal()
	mustWrite(t, j, "next")
	wantBody(t, mustLoad(t, d), "next")
}

func TestATornWriteAtEveryByteFallsBack(t *testing.T) {
	for nth := 1; nth <= 3; nth++ {
		base := newSimDisk(t, 1)
		j := mustLoad(t, base)
		allowed := []string{"NEW STATE"}
		for i := 1; i < nth; i++ {
			mustWrite(t, j, fmt.Sprint("old body, which is longer ", i))
			allowed = []string{fmt.Sprint("old body, which is longer ", i), "NEW STATE"}
		}
		target, image := 1-int(j.newest), encodeSlot(j.seq+1, []byte("NEW STATE"))
		before := bytes.Clone(base.image(target))
		for cut := range headerSize + 60 {
			torn := bytes.Clone(before)
			copy(torn, image[:cut])
			base.set(target, torn)
			j := mustLoad(t, base)
			body, ok, err := j.Read()
			whole := cut >= headerSize+len("NEW STATE")
			switch {
			case err != nil:
				t.Fatalf("write %d cut at %d: %v", nth, cut, err)
			case whole && string(body) != "NEW STATE", !whole && ok && string(body) != allowed[0]:
				t.Fatalf("write %d cut at %d: read %q", nth, cut, body)
			case !ok && nth > 1:
				t.Fatalf("write %d cut at %d: nothing left", nth, cut)
			}
		}
	}
}

func TestAnUnreadableSectorCountsAsTorn(t *testing.T) {
	d := newSimDisk(t, 1)
	mustWrite(t, mustLoad(t, d), "a")
	d.onRead = func(path string) error {
		if path == testPaths[1] {
			return syscall.EIO
		}
		return nil
	}
	j := mustLoad(t, d)
	wantBody(t, j, "a")
	if !j.Torn() {
		t.Error("the log would not tell")
	}
	d.onRead = func(string) error { return syscall.EACCES }
	if _, err := load("", "s", d.open); !errors.Is(err, syscall.EACCES) || errors.Is(err, ErrDamaged) {
		t.Errorf("another read error: %v", err)
	}
}

func TestALoadThatCannotOpenASlotFails(t *testing.T) {
	for name, inject := range map[string]func(d *simDisk){
		"first slot":  func(d *simDisk) { d.onOpen = once(1, syscall.EMFILE) },
		"second slot": func(d *simDisk) { d.onOpen = once(2, syscall.EMFILE) },
	} {
		d := newSimDisk(t, 1)
		inject(d)
		if j, err := load("", "s", d.open); err == nil || j != nil {
			t.Errorf("%s: error %v", name, err)
		}
		d.heal()
		if _, ok, err := mustLoad(t, d).Read(); ok || err != nil {
			t.Errorf("%s, repeated: ok %v, error %v", name, ok, err)
		}
	}
}

func TestANewJournalOnAFailingDiskWritesNoBodyBeforeItsGenesis(t *testing.T) {
	for name, inject := range map[string]func(d *simDisk){
		"write": func(d *simDisk) { d.onWrite = func(string, int) (int, error) { return 9, syscall.EIO } },
		"fsync": func(d *simDisk) { d.onSync = func(string) error { return syscall.EIO } },
	} {
		d := newSimDisk(t, 1)
		inject(d)
		j := mustLoad(t, d)
		for range 3 {
			if err := j.Write([]byte("x")); !errors.Is(err, syscall.EIO) {
				t.Errorf("%s: error %v", name, err)
			}
			d.evict()
			if _, ok, err := j.Read(); ok || err != nil {
				t.Errorf("%s: ok %v, error %v", name, ok, err)
			}
		}
		if state, _, _ := decodeSlot(d.image(0)); state != slotBlank {
			t.Errorf("%s: the first slot was written to", name)
		}
		d.heal()
		mustWrite(t, j, "x")
		d.powerCut()
		wantBody(t, mustLoad(t, d), "x")
	}
}

func TestAJournalThatWasSeenDamagedWhileOpenIsNotOverwritten(t *testing.T) {
	d := newSimDisk(t, 1)
	j := mustLoad(t, d)
	mustWrite(t, j, "x")
	d.set(0, []byte("junk"))
	d.set(1, []byte("junk"))
	_, _, err := j.Read()
	if err2 := j.Write([]byte("y")); !errors.Is(err, ErrDamaged) || !errors.Is(err2, ErrDamaged) {
		t.Errorf("read: %v, write: %v", err, err2)
	}
}
