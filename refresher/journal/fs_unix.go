//go:build unix

package journal

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

const (
	posix        = true
	carefulFlags = syscall.O_NOFOLLOW | syscall.O_NONBLOCK
)

func ownerOf(info fs.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}

// syncDir makes the entries of a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
