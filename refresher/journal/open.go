package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Open opens the journal called name in the directory dir and creates what is
// missing: dir with mode 0700, <name>.j0 and <name>.j1 (name in lower case) with
// mode 0600, each [SlotSize] bytes of written zeros, so that no later write needs
// room on the disk. name matches [A-Za-z0-9][A-Za-z0-9._-]{0,63}. It is an error
// if dir or a file is not ours or open to others. A damaged journal opens; Read
// tells. The caller holds the lock of the name (see [TryLock]).
func Open(dir, name string) (*Journal, error) {
	base, err := basePath(dir, name)
	if err != nil {
		return nil, err
	}
	if err := prepareDir(dir); err != nil {
		return nil, err
	}
	for _, path := range slotPaths(base) {
		if err := allocate(path); err != nil {
			return nil, fmt.Errorf("preparing journal slot %s: %w", path, err)
		}
	}
	if err := syncDir(dir); err != nil {
		return nil, fmt.Errorf("syncing directory %s: %w", dir, err)
	}
	return load(dir, strings.ToLower(name), openSlot)
}

func basePath(dir, name string) (string, error) {
	if !nameForm.MatchString(name) {
		return "", fmt.Errorf("journal name %.80q: want 1 to 64 of A-Z a-z 0-9 . _ - and a letter or digit first", name)
	}
	return filepath.Join(dir, strings.ToLower(name)), nil
}

func slotPaths(base string) [2]string { return [2]string{base + ".j0", base + ".j1"} }

// prepareDir creates dir if missing and checks that nobody else can change it.
func prepareDir(dir string) error {
	dir = filepath.Clean(dir)
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeDir(dir, 0o700); err == nil {
			info, err = os.Stat(dir)
		}
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return checkDir(dir, info, os.Geteuid())
}

// makeDir creates dir and its parents and makes each entry durable.
func makeDir(dir string, mode fs.FileMode) error {
	err := os.Mkdir(dir, mode)
	if parent := filepath.Dir(dir); errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err = makeDir(parent, 0o755); err == nil {
			err = os.Mkdir(dir, mode)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func checkDir(path string, info fs.FileInfo, uid int) error {
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory: name another state directory", path)
	}
	return checkAccess(path, info, uid, 0o022, 0o700)
}

func checkFile(path string, info fs.FileInfo, uid int) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: move it away", path)
	}
	return checkAccess(path, info, uid, 0o077, 0o600)
}

func checkAccess(path string, info fs.FileInfo, uid int, forbidden, want fs.FileMode) error {
	if !posix {
		return nil
	}
	if owner := ownerOf(info); owner != uid {
		return fmt.Errorf("%s belongs to uid %d, not to us: chown %d %s", path, owner, uid, path)
	}
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		return fmt.Errorf("%s is open to others (mode %04o): chmod %o %s", path, mode, want, path)
	}
	return nil
}

// openPrivate opens an existing file that is ours alone. It follows no symbolic
// link and does not wait at a pipe.
func openPrivate(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|carefulFlags, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = checkFile(path, info, os.Geteuid())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// createPrivate is openPrivate for a file that may not exist yet.
func createPrivate(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|carefulFlags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return openPrivate(path, os.O_RDWR)
	}
	return f, err
}

// allocate creates the slot file or completes one whose creation was cut off.
// What is there stays.
func allocate(path string) (err error) {
	f, err := createPrivate(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if size := info.Size(); size < SlotSize {
		if _, err := f.WriteAt(make([]byte, SlotSize-size), size); err != nil {
			return err
		}
	}
	return f.Sync()
}

// slotFile replaces the fsync of os.File by the platform's cheapest one that
// still waits for the data.
type slotFile struct{ *os.File }

func (f slotFile) Sync() error { return dataSync(f.File) }

func openSlot(path string) (file, error) {
	f, err := openPrivate(path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	return slotFile{f}, nil
}
