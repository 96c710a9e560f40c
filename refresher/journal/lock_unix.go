//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package journal

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lockedFile is a descriptor: an os.File would cost each of thousands of sessions
// some hundred bytes more, and the collector would close one that its holder only
// forgot.
type lockedFile int

// lockFile locks f, and closes it unless it returns an error: the lock hangs on
// all duplicates of the descriptor.
func lockFile(f *os.File) (lockedFile, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return 0, ErrLocked
	}
	if err != nil {
		return 0, err
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	return lockedFile(fd), f.Close()
}

func (l lockedFile) unlock() error { return unix.Close(int(l)) }
