package webhook

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
)

// failingFile fails as it is told.
type failingFile struct {
	logFile
	write, sync *atomic.Pointer[error]
}

func (f failingFile) Write(p []byte) (int, error) {
	if err := f.write.Load(); err != nil {
		n, _ := f.logFile.Write(p[:len(p)/2]) // a short write is what a full disk does
		return n, *err
	}
	return f.logFile.Write(p)
}

func (f failingFile) Sync() error {
	if err := f.sync.Load(); err != nil {
		return *err
	}
	return f.logFile.Sync()
}

func TestAFailingDiskIsToldAndMended(t *testing.T) {
	for name, fault := range map[string]error{"full": syscall.ENOSPC, "broken": syscall.EIO} {
		for _, where := range []string{"write", "sync"} {
			t.Run(name+" at "+where, func(t *testing.T) {
				var write, sync atomic.Pointer[error]
				dir := t.TempDir()
				o := openTest(t, Config{Dir: dir}, deadHook(t, HookConfig{Required: true}))
				hook := o.receivers[onlyKey(o)].hook
				o.disk.open = func(path string, flag int) (logFile, error) {
					f, err := openPlain(path, flag)
					return failingFile{f, &write, &sync}, err
				}
				if err := o.Reseal(t.Context(), testRing(t)); err != nil { // opens the file anew
					t.Fatal(err)
				}
				before, after, refused := testEvent("s"), testEvent("s"), testEvent("s")
				announce(t, o, before, nil)

				to := &write
				if where == "sync" {
					to = &sync
				}
				to.Store(&fault)
				for range 3 {
					if _, err := o.Announce(t.Context(), refused, nil); !errors.Is(err, fault) {
						t.Fatalf("got %v", err)
					}
				}
				to.Store(nil)
				announce(t, o, after, nil)
				closeNow(t, o)

				again := openTest(t, Config{Dir: dir}, hook)
				if s := again.Status(); s[0].Pending != 2 {
					t.Errorf("%d events wait, want the two that were acknowledged", s[0].Pending)
				}
				if _, err := os.Stat(filepath.Join(dir, damagedName)); err == nil {
					t.Error("taken for damage")
				}
			})
		}
	}
}

func TestTheFileShrinksWhenMostIsDelivered(t *testing.T) {
	dir := t.TempDir()
	box := new(inbox)
	o := openTest(t, Config{Dir: dir}, testHook(t, HookConfig{URL: serve(t, box).URL}))
	const many = 700
	for range many {
		ev := testEvent("s")
		ev.Info = &Info{Data: []byte(`{"pad":"` + string(make4k()) + `"}`)}
		announce(t, o, ev, nil)
	}
	box.wait(t, many)
	announce(t, o, testEvent("s"), nil) // the next commit finds it wasteful
	box.wait(t, many+1)
	info, err := os.Stat(filepath.Join(dir, logName))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 2*compactMinimum {
		t.Errorf("%d bytes are left", info.Size())
	}
}

func make4k() []byte {
	pad := make([]byte, 3<<10)
	for i := range pad {
		pad[i] = 'x'
	}
	return pad
}

func TestAFileThatOthersCanReadIsRefused(t *testing.T) {
	dir := t.TempDir()
	closeNow(t, openTest(t, Config{Dir: dir}))
	if err := os.Chmod(filepath.Join(dir, logName), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir, Keyring: testRing(t)}); err == nil {
		t.Error("it was opened")
	}
}

func TestAFileOfAnotherVersionIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	closeNow(t, openTest(t, Config{Dir: dir}))
	path := filepath.Join(dir, logName)
	if err := os.WriteFile(path, []byte("cwo2whatever"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir, Keyring: testRing(t)}); !errors.Is(err, errForeignLog) {
		t.Errorf("got %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "cwo2whatever" {
		t.Error("it was changed")
	}
}
