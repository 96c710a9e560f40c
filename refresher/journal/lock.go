package journal

import (
	"errors"
	"fmt"
	"sync"
)

// ErrLocked says that someone else holds the lock.
var ErrLocked = errors.New("locked by another process")

// Lock is an exclusive lock on a name. The kernel releases it when the process
// ends, however it ends; the collector does not, should its holder forget it.
type Lock struct {
	once sync.Once
	file lockedFile
	err  error
}

// TryLock takes the lock <name>.lock in dir without waiting; dir is created and
// checked and name has the form as in [Open]. The error wraps [ErrLocked] when
// another process, or another Lock of this one, holds it.
func TryLock(dir, name string) (*Lock, error) {
	base, err := basePath(dir, name)
	if err != nil {
		return nil, err
	}
	if err := prepareDir(dir); err != nil {
		return nil, err
	}
	path := base + ".lock"
	f, err := createPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("opening lock file: %w", err)
	}
	locked, err := lockFile(f)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &Lock{file: locked}, nil
}

// Unlock releases the lock. Later calls return the same error again.
func (l *Lock) Unlock() error {
	l.once.Do(func() { l.err = l.file.unlock() })
	return l.err
}
