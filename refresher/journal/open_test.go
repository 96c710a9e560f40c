package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func mustOpen(t *testing.T, dir, name string) *Journal {
	t.Helper()
	j, err := Open(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func TestOpenCreatesPrivateFilesOfFullSize(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b", "state") + "/"
	j := mustOpen(t, dir, "Session-1")
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, error %v", info.Mode(), err)
	}
	for _, slot := range []string{"session-1.j0", "session-1.j1"} {
		info, err := os.Stat(filepath.Join(dir, slot))
		if err != nil || info.Mode() != 0o600 || info.Size() != SlotSize {
			t.Errorf("%s: %v, error %v", slot, info, err)
		}
	}
	for i := range 5 {
		body := strings.Repeat(fmt.Sprint(i), MaxBody)
		mustWrite(t, j, body)
		wantBody(t, j, body)
		wantBody(t, mustOpen(t, dir, "SESSION-1"), body)
	}
	for _, slot := range []string{"session-1.j0", "session-1.j1"} {
		if info, err := os.Stat(filepath.Join(dir, slot)); err != nil || info.Size() != SlotSize {
			t.Errorf("%s has grown: %v, error %v", slot, info.Size(), err)
		}
	}
}

func TestOpenNeedsAProperName(t *testing.T) {
	for name, good := range map[string]bool{
		"a": true, "A9": true, "a.b_c-d": true, "a..b": true, strings.Repeat("x", 64): true,
		"": false, ".": false, "..": false, ".a": false, "-a": false, "_a": false, "a/b": false, `a\b`: false,
		"../a": false, "a\x00": false, "a\n": false, "ä": false, "a b": false, strings.Repeat("x", 65): false,
	} {
		dir := t.TempDir()
		j, err := Open(dir, name)
		if (err == nil) != good {
			t.Errorf("name %q: error %v", name, err)
		}
		if j != nil {
			_ = j.Close()
		}
		if lock, err := TryLock(dir, name); (err == nil) != good {
			t.Errorf("lock name %q: error %v", name, err)
		} else if err == nil {
			_ = lock.Unlock()
		}
		if entries, _ := os.ReadDir(dir); !good && len(entries) > 0 {
			t.Errorf("name %q: files were made", name)
		}
	}
}

func TestOpenRefusesWhatOthersCouldChange(t *testing.T) {
	for _, c := range []struct {
		name    string
		arrange func(dir string) error
		says    string
	}{
		{"a directory the group can write to", func(dir string) error { return os.Chmod(dir, 0o770) }, "chmod 700"},
		{"a directory everybody can write to", func(dir string) error { return os.Chmod(dir, 0o702|fs.ModeSticky) }, "chmod 700"},
		{"a file in place of the directory", func(dir string) error {
			return errors.Join(os.Remove(dir), os.WriteFile(dir, nil, 0o600))
		}, "not a directory"},
		{"a slot the group can read", func(dir string) error { return writeMode(filepath.Join(dir, "s.j1"), 0o640) }, "chmod 600"},
		{"a slot everybody can read", func(dir string) error { return writeMode(filepath.Join(dir, "s.j0"), 0o604) }, "chmod 600"},
		{"a directory in place of a slot", func(dir string) error { return os.Mkdir(filepath.Join(dir, "s.j0"), 0o700) }, "s.j0"},
		{"a symbolic link in place of a slot", func(dir string) error {
			target := filepath.Join(dir, "elsewhere")
			return errors.Join(writeMode(target, 0o600), os.Symlink(target, filepath.Join(dir, "s.j0")))
		}, "s.j0"},
		{"a dangling link in place of a slot", func(dir string) error {
			return os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "s.j0"))
		}, "s.j0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			if err := errors.Join(os.Mkdir(dir, 0o700), c.arrange(dir)); err != nil {
				t.Fatal(err)
			}
			j, err := Open(dir, "s")
			if err == nil {
				_ = j.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q does not say %q", err, c.says)
			}
		})
	}
}

func writeMode(path string, mode fs.FileMode) error {
	return errors.Join(os.WriteFile(path, nil, mode), os.Chmod(path, mode))
}

// The owner is compared with a given uid, so the test needs no second user and
// no privilege.
func TestOwnersOtherThanUsAreRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := errors.Join(os.Chmod(dir, 0o700), writeMode(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	dirInfo, err1 := os.Stat(dir)
	fileInfo, err2 := os.Stat(path)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	us := os.Geteuid()
	if err := errors.Join(checkDir(dir, dirInfo, us), checkFile(path, fileInfo, us)); err != nil {
		t.Errorf("our own: %v", err)
	}
	for _, err := range []error{checkDir(dir, dirInfo, us+1), checkFile(path, fileInfo, us+1)} {
		if err == nil || !strings.Contains(err.Error(), "chown") {
			t.Errorf("someone else's: %v", err)
		}
	}
}

func TestOpenThroughALinkedDirectoryWorks(t *testing.T) {
	// systemd's DynamicUser makes the state directory a link.
	root := t.TempDir()
	real, link := filepath.Join(root, "private"), filepath.Join(root, "state")
	if err := errors.Join(os.Mkdir(real, 0o700), os.Symlink(real, link)); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, mustOpen(t, link, "s"), "x")
	wantBody(t, mustOpen(t, real, "s"), "x")
}

func TestOpenCompletesACreationThatWasCutOff(t *testing.T) {
	for _, c := range []struct {
		name   string
		first  int // sizes; -1 is no file
		second int
	}{
		{"only the first file exists, empty", 0, -1},
		{"only the first file exists, in part", 5000, -1},
		{"only the second file exists", -1, SlotSize},
		{"the second file is cut", SlotSize, SlotSize - 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for i, size := range []int{c.first, c.second} {
				if size >= 0 {
					if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("s.j", i)), make([]byte, size), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			j := mustOpen(t, dir, "s")
			if _, ok, err := j.Read(); ok || err != nil {
				t.Errorf("ok %v, error %v", ok, err)
			}
			mustWrite(t, j, strings.Repeat("x", MaxBody))
		})
	}
}

func TestOpenKeepsTheRecordOfAFileThatLostItsEnd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	mustWrite(t, mustOpen(t, dir, "s"), "x")
	for _, slot := range []string{"s.j0", "s.j1"} {
		if err := os.Truncate(filepath.Join(dir, slot), 100); err != nil {
			t.Fatal(err)
		}
	}
	wantBody(t, mustOpen(t, dir, "s"), "x")
}

func TestASlotThatDisappearsIsNotCreatedAgainWhileTheJournalIsOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	mustWrite(t, mustOpen(t, dir, "s"), "x")
	if _, err := openSlot(filepath.Join(dir, "t.j0")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reopening a missing slot: %v", err)
	}
}
