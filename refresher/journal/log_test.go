package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func testKeys(t testing.TB, n byte) *Keyring {
	t.Helper()
	keys, err := NewKeyring(bytes.Repeat([]byte{n}, keySize))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// replayed opens the log of a folder and returns its records.
func replayed(t testing.TB, dir string, keys *Keyring) (*Log, []string, Replay) {
	t.Helper()
	var records []string
	l, replay, err := OpenLog(dir, "Pool", keys, func(r []byte) error {
		records = append(records, string(r))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return l, records, replay
}

func privateDir(t testing.TB) string {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mustAppend(t testing.TB, l *Log, records ...string) {
	t.Helper()
	for _, r := range records {
		if err := l.Append([]byte(r)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALogReplaysWhatWasAppendedInItsOrder(t *testing.T) {
	dir, keys := privateDir(t), testKeys(t, 1)
	l, _, _ := replayed(t, dir, keys)
	mustAppend(t, l, "a", "", "b")
	l.Enqueue([]byte("later"))
	mustAppend(t, l, "c")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, got, replay := replayed(t, dir, keys)
	mustAppend(t, l, "d")
	if want := []string{"a", "", "b", "later", "c"}; !slices.Equal(got, want) || !replay.Clean || replay.Damaged != nil {
		t.Errorf("%q, %+v, want %q", got, replay, want)
	}
	// This one is not closed: its process died.
	_, got, replay = replayed(t, dir, keys)
	if want := []string{"a", "", "b", "later", "c", "d"}; !slices.Equal(got, want) || replay.Clean {
		t.Errorf("%q, %+v, want %q", got, replay, want)
	}
}

func TestALogCutAnywhereKeepsWhatStandsBefore(t *testing.T) {
	dir, keys := privateDir(t), testKeys(t, 1)
	l, _, _ := replayed(t, dir, keys)
	path := l.path(kindLog, 1)
	var ends []int64
	all := []string{"first", "second", "third"}
	for _, r := range all {
		mustAppend(t, l, r)
		info, _ := os.Stat(path)
		ends = append(ends, info.Size())
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) + 1 {
		dir := privateDir(t)
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		n := 0
		for n < len(ends) && ends[n] <= int64(cut) {
			n++
		}
		_, got, replay := replayed(t, dir, keys)
		if !slices.Equal(got, all[:n]) || replay.Damaged != nil {
			t.Fatalf("cut at %d of %d: %q (%+v), want %q", cut, len(whole), got, replay, all[:n])
		}
	}
}

func TestADamagedByteCostsItsBatchAlone(t *testing.T) {
	dir, keys := privateDir(t), testKeys(t, 1)
	l, _, _ := replayed(t, dir, keys)
	all := []string{"first", "second", "third"}
	mustAppend(t, l, all...)
	path := l.path(kindLog, 1)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	start := bytes.Index(whole, []byte(batchMagic))
	for at := start; at < len(whole); at++ {
		broken := bytes.Clone(whole)
		broken[at] ^= 0x41
		dir := privateDir(t)
		name := filepath.Base(path)
		if err := os.WriteFile(filepath.Join(dir, name), broken, 0o600); err != nil {
			t.Fatal(err)
		}
		l, got, replay := replayed(t, dir, keys)
		last := at >= bytes.LastIndex(whole, []byte(batchMagic))
		if len(got) != 2 || replay.Damaged == nil && !last {
			t.Fatalf("byte %d: %q, %+v", at, got, replay)
		}
		if replay.Damaged == nil {
			continue // it looks like a batch that is cut off
		}
		if err := l.Compact(slices.Values([][]byte{[]byte("kept")})); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, name+".damaged")); err != nil {
			t.Fatalf("byte %d: the damaged file is not kept: %v", at, err)
		}
	}
}

func TestCompactingKeepsTheNewestAndGoesOnMeanwhile(t *testing.T) {
	dir, keys := privateDir(t), testKeys(t, 1)
	l, _, _ := replayed(t, dir, keys)
	state := map[string]string{}
	put := func(k, v string) {
		state[k] = v
		mustAppend(t, l, k+"="+v)
	}
	for i := range 100 {
		put(fmt.Sprint("k", i%10), fmt.Sprint(i))
	}
	before := l.Written()
	err := l.Compact(func(yield func([]byte) bool) {
		for i, k := range slices.Sorted(maps.Keys(state)) {
			if !yield([]byte(k + "=" + state[k])) {
				return
			}
			put(fmt.Sprint("k", 9-i), "meanwhile") // before or after its turn
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if l.Written() >= before {
		t.Errorf("%d bytes in the logs, %d before", l.Written(), before)
	}
	put("k0", "after")
	_, got, _ := replayed(t, dir, keys)
	final := map[string]string{}
	for _, r := range got {
		k, v, _ := strings.Cut(r, "=")
		final[k] = v
	}
	if !maps.Equal(final, state) {
		t.Errorf("%v, want %v", final, state)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "pool.*")); len(files) > 3 { // base, log, and the one just opened
		t.Errorf("files were left: %q", files)
	}
}

func TestCompactingThatFailsLosesNothing(t *testing.T) {
	dir, keys := privateDir(t), testKeys(t, 1)
	l, _, _ := replayed(t, dir, keys)
	mustAppend(t, l, "a")
	broken := errors.New("disk full")
	create := l.create
	l.create = func(path string) (appendFile, error) {
		if strings.Contains(path, ".base.") {
			return nil, broken
		}
		return create(path)
	}
	if err := l.Compact(slices.Values([][]byte{[]byte("a")})); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	mustAppend(t, l, "b")
	if _, got, _ := replayed(t, dir, keys); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%q", got)
	}
}

// failing is a file that fails from the n-th write or sync on.
type failing struct {
	appendFile
	writes, syncs *atomic.Int64
}

var errDisk = errors.New("input/output error")

func (f failing) Write(p []byte) (int, error) {
	if f.writes.Add(-1) < 0 {
		n, _ := f.appendFile.Write(p[:len(p)/2])
		return n, errDisk
	}
	return f.appendFile.Write(p)
}

func (f failing) Sync() error {
	if f.syncs.Add(-1) < 0 {
		return errDisk
	}
	return f.appendFile.Sync()
}

func TestAFailingDiskIsToldAndRecoversByItself(t *testing.T) {
	for _, kind := range []string{"write", "sync"} {
		t.Run(kind, func(t *testing.T) {
			dir, keys := privateDir(t), testKeys(t, 1)
			l, _, _ := replayed(t, dir, keys)
			var writes, syncs atomic.Int64
			writes.Store(1 << 30)
			syncs.Store(1 << 30)
			create := l.create
			l.create = func(path string) (appendFile, error) {
				f, err := create(path)
				return failing{f, &writes, &syncs}, err
			}
			if err := l.Compact(slices.Values([][]byte{[]byte("a")})); err != nil {
				t.Fatal(err)
			}
			if kind == "write" {
				writes.Store(0)
			} else {
				syncs.Store(0)
			}
			for range 3 {
				if err := l.Append([]byte("lost")); !errors.Is(err, errDisk) {
					t.Errorf("error %v", err)
				}
			}
			writes.Store(1 << 30)
			syncs.Store(1 << 30)
			mustAppend(t, l, "b")
			_, got, _ := replayed(t, dir, keys)
			got = slices.DeleteFunc(got, func(r string) bool { return r == "lost" }) // what failed may be there
			if !slices.Equal(got, []string{"a", "b"}) {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestKeysOfALog(t *testing.T) {
	dir := privateDir(t)
	old, fresh := testKeys(t, 1), testKeys(t, 2)
	both, err := NewKeyring(bytes.Repeat([]byte{2}, keySize), bytes.Repeat([]byte{1}, keySize))
	if err != nil {
		t.Fatal(err)
	}
	l, _, _ := replayed(t, dir, old)
	mustAppend(t, l, "secret-text")
	if _, _, err := OpenLog(dir, "Pool", fresh, func([]byte) error { return nil }); !errors.Is(err, ErrWrongKey) {
		t.Errorf("another key: error %v", err)
	}
	l, got, _ := replayed(t, dir, both)
	if !slices.Equal(got, []string{"secret-text"}) {
		t.Errorf("%q", got)
	}
	l.Rekey(fresh)
	if err := l.Compact(slices.Values([][]byte{[]byte("secret-text")})); err != nil {
		t.Fatal(err)
	}
	if _, got, _ := replayed(t, dir, fresh); !slices.Equal(got, []string{"secret-text"}) {
		t.Errorf("with the new key alone: %q", got)
	}
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error {
		if text, _ := os.ReadFile(path); bytes.Contains(text, []byte("secret-text")) {
			t.Errorf("%s holds the text in the clear", path)
		}
		return nil
	})
}

func TestWhatIsAppendedAtOnceSharesItsSync(t *testing.T) {
	l, _, _ := replayed(t, privateDir(t), testKeys(t, 1))
	var writes, syncs atomic.Int64
	writes.Store(1 << 30)
	syncs.Store(1 << 30)
	create := l.create
	l.create = func(path string) (appendFile, error) {
		f, err := create(path)
		return failing{f, &writes, &syncs}, err
	}
	if err := l.Compact(slices.Values([][]byte(nil))); err != nil {
		t.Fatal(err)
	}
	before := syncs.Load()
	l.turn <- struct{}{} // the disk is busy
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if err := l.Append([]byte(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	for { // until all have added theirs
		l.mu.Lock()
		n := len(l.next.records)
		l.mu.Unlock()
		if n >= 290 {
			break
		}
	}
	<-l.turn
	wg.Wait()
	if n := before - syncs.Load(); n != 1 {
		t.Errorf("%d syncs for 100 records", n)
	}
}

// FuzzLog: whatever stands in a file, opening it neither fails nor hangs, and
// what was sealed is never changed.
func FuzzLog(f *testing.F) {
	dir, keys := privateDir(f), testKeys(f, 1)
	l, _, _ := replayed(f, dir, keys)
	mustAppend(f, l, "first", "second", "third")
	whole, err := os.ReadFile(l.path(kindLog, 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(0), []byte{})
	f.Add(uint16(150), []byte("TRB1\x00\x00"))
	f.Fuzz(func(t *testing.T, at uint16, patch []byte) {
		dir := privateDir(t)
		text := bytes.Clone(whole)
		text = append(text[:min(int(at), len(text))], patch...)
		if rest := int(at) + len(patch); rest < len(whole) {
			text = append(text, whole[rest:]...)
		}
		if err := os.WriteFile(filepath.Join(dir, "pool.log.1"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		l, _, err := OpenLog(dir, "Pool", keys, func(r []byte) error {
			if s := string(r); s != "first" && s != "second" && s != "third" {
				t.Errorf("nobody wrote %q", r)
			}
			return nil
		})
		if err != nil {
			if errors.Is(err, ErrWrongKey) {
				return
			}
			t.Fatal(err)
		}
		_ = l.Close()
	})
}

func BenchmarkLogAppend(b *testing.B) {
	l, _, err := OpenLog(privateDir(b), "pool", testKeys(b, 1), func([]byte) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	record := bytes.Repeat([]byte("x"), 1000)
	b.SetParallelism(500)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Append(record); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
}
