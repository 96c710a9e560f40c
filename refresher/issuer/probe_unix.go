//go:build unix

package issuer

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// readNow reads what has arrived without waiting; with nothing there it returns
// errNothingYet. The runtime keeps its sockets non-blocking, so a bare read
// suffices. A connection without a file descriptor (a pipe in a test) is taken
// to have nothing.
func readNow(conn net.Conn, p []byte) (n int, err error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, errNothingYet
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := rc.Read(func(fd uintptr) bool {
		for {
			n, err = syscall.Read(int(fd), p)
			if !errors.Is(err, syscall.EINTR) {
				return true // true: do not wait for more
			}
		}
	})
	switch {
	case controlErr != nil:
		return 0, controlErr
	case errors.Is(err, syscall.EAGAIN):
		return 0, errNothingYet
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n <= 0:
		return 0, io.EOF
	}
	return n, nil
}
