package journal

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func listDir(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func closedJournal(t *testing.T, bodies ...string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "state")
	j := mustOpen(t, dir, "S")
	for _, body := range bodies {
		mustWrite(t, j, body)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestSetAsideKeepsBothSlotsUnderTheSuffix(t *testing.T) {
	dir := closedJournal(t, "x")
	lock, err := TryLock(dir, "S")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Unlock() }()
	if err := SetAside(dir, "S", "wrong-key.1"); err != nil {
		t.Fatal(err)
	}
	if got := listDir(t, dir); !slices.Equal(got, []string{"s.j0.wrong-key.1", "s.j1.wrong-key.1", "s.lock"}) {
		t.Fatalf("files %q", got)
	}
	if _, ok, err := mustOpen(t, dir, "S").Read(); ok || err != nil {
		t.Errorf("after it: ok %v, error %v", ok, err)
	}
	if err := SetAside(dir, "S", "wrong-key.1"); err == nil || !strings.Contains(err.Error(), "another suffix") {
		t.Errorf("a suffix in use: %v", err)
	}
	image, err := os.ReadFile(filepath.Join(dir, "s.j1.wrong-key.1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, body := decodeSlot(image); string(body) != "x" {
		t.Errorf("the slot set aside holds %q", body)
	}
}

func TestSetAsideNeedsAProperSuffix(t *testing.T) {
	dir := closedJournal(t, "x")
	for _, suffix := range []string{"", ".", "../x", "a/b", "j0", "j1", "lock", "a\n"} {
		if err := SetAside(dir, "S", suffix); err == nil {
			t.Errorf("suffix %q was taken", suffix)
		}
	}
	if err := errors.Join(SetAside(dir, "../s", "x"), Remove(dir, "../s")); err == nil {
		t.Error("a name with a path was taken")
	}
	if got := listDir(t, dir); !slices.Equal(got, []string{"s.j0", "s.j1"}) {
		t.Errorf("files %q", got)
	}
}

func TestRemoveDeletesTheSlotsAndLeavesTheRest(t *testing.T) {
	dir := closedJournal(t, "x")
	lock, err := TryLock(dir, "S")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Unlock() }()
	mustOpen(t, dir, "other")
	for range 2 { // the second time there is nothing left
		if err := Remove(dir, "S"); err != nil {
			t.Fatal(err)
		}
	}
	if got := listDir(t, dir); !slices.Equal(got, []string{"other.j0", "other.j1", "s.lock"}) {
		t.Errorf("files %q", got)
	}
}

func TestRetiringTakesTheOlderSlotFirst(t *testing.T) {
	for _, bodies := range [][]string{{"a"}, {"a", "b"}} {
		dir := closedJournal(t, bodies...)
		crash := errors.New("crash")
		calls := 0
		err := oldestFirst(filepath.Join(dir, "s"), func(path string) error {
			if calls++; calls == 2 {
				return crash
			}
			return os.Remove(path)
		})
		if !errors.Is(err, crash) {
			t.Fatal(err)
		}
		wantBody(t, mustOpen(t, dir, "S"), bodies[len(bodies)-1])
	}
}

func TestAnInterruptedSetAsideCanBeRepeated(t *testing.T) {
	dir := closedJournal(t, "x")
	if err := os.Rename(filepath.Join(dir, "s.j0"), filepath.Join(dir, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	if err := SetAside(dir, "S", "again"); err != nil {
		t.Fatal(err)
	}
	if got := listDir(t, dir); !slices.Equal(got, []string{"elsewhere", "s.j1.again"}) {
		t.Errorf("files %q", got)
	}
}
