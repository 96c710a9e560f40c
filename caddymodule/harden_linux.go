package caddymodule

import (
	"errors"

	"golang.org/x/sys/unix"
)

// harden keeps others of the same user, and crashes, from getting at the
// process's memory. It holds until the process ends.
func harden() error {
	return errors.Join(
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
	)
}
