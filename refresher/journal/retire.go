package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// SetAside renames both slots of a journal that nobody can open to
// <slot>.<suffix>, for the operator to look at; suffix has the form of a name.
// An existing target is an error, a missing slot is not, so that an interrupted
// call can be repeated. The caller holds the lock and has closed the journal.
func SetAside(dir, name, suffix string) error {
	base, err := basePath(dir, name)
	if err != nil {
		return err
	}
	if !nameForm.MatchString(suffix) || suffix == "j0" || suffix == "j1" || suffix == "lock" {
		return fmt.Errorf("suffix %.80q: want the form of a name, and none of j0, j1 and lock", suffix)
	}
	for _, path := range slotPaths(base) {
		if _, err := os.Lstat(path + "." + suffix); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("setting aside %s: %s.%s exists; choose another suffix", path, path, suffix), err)
		}
	}
	return oldestFirst(base, func(path string) error { return os.Rename(path, path+"."+suffix) })
}

// Remove deletes both slots. A missing slot is no error, and the lock file stays,
// because deleting it would let two processes hold the lock. The caller holds the
// lock and has closed the journal.
func Remove(dir, name string) error {
	base, err := basePath(dir, name)
	if err != nil {
		return err
	}
	return oldestFirst(base, os.Remove)
}

// oldestFirst does something to each slot and makes it durable before the next
// one: a crash between the two must not leave the older state as the only one.
func oldestFirst(base string, do func(path string) error) error {
	paths := slotPaths(base)
	if peek(paths[0]) > peek(paths[1]) {
		paths[0], paths[1] = paths[1], paths[0]
	}
	for _, path := range paths {
		err := do(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = syncDir(filepath.Dir(path))
		}
		if err != nil {
			return fmt.Errorf("retiring journal slot %s: %w", path, err)
		}
	}
	return nil
}

// peek returns the number of the record in a slot file, 0 if none can be read.
func peek(path string) uint64 {
	f, err := openPrivate(path, os.O_RDONLY)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	image := make([]byte, SlotSize)
	n, _ := f.ReadAt(image, 0) // what cannot be read does not decode either
	_, seq, _ := decodeSlot(image[:n])
	return seq
}
