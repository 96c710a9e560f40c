package journal

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/windows"
)

type lockedFile struct{ f *os.File }

// held keeps every lock reachable: the collector would close the file of a lock
// that its holder only forgot, and so release it.
var held sync.Map

// lockFile locks f and keeps it unless it returns an error.
func lockFile(f *os.File) (lockedFile, error) {
	const how = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	err := windows.LockFileEx(windows.Handle(f.Fd()), how, 0, 1, 0, new(windows.Overlapped))
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return lockedFile{}, ErrLocked
	}
	if err != nil {
		return lockedFile{}, err
	}
	held.Store(f, nil)
	return lockedFile{f}, nil
}

func (l lockedFile) unlock() error {
	held.Delete(l.f)
	return l.f.Close()
}
