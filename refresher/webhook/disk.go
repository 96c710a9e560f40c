package webhook

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

const (
	logName     = "outbox.log"
	tmpName     = "outbox.tmp"
	damagedName = "outbox.damaged"
	lockName    = "outbox"
)

// logFile is what a [disk] needs of an open file; tests put failing ones in its
// place.
type logFile interface {
	io.Writer
	io.Closer
	Sync() error
}

// disk is the outbox's file. It belongs to one goroutine.
type disk struct {
	dir  string
	open func(path string, flag int) (logFile, error)

	f    logFile // nil: it has to be written anew before anything is appended
	size int64
}

func openPlain(path string, flag int) (logFile, error) { return os.OpenFile(path, flag, 0o600) }

func (d *disk) path(name string) string { return filepath.Join(d.dir, name) }

// load returns what the file holds; nothing if there is none.
func (d *disk) load() ([]byte, error) {
	path := d.path(logName)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("outbox: %s is not a regular file: move it away", path)
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return nil, fmt.Errorf("outbox: %s is open to others (mode %04o): chmod 600 %s", path, mode, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	return data, nil
}

// rewrite replaces the file by content as a whole and goes on appending to that.
// A crash leaves the old file or the new one.
func (d *disk) rewrite(content []byte) error {
	d.close()
	tmp := d.path(tmpName)
	if err := d.create(tmp, content); err != nil {
		return fmt.Errorf("writing the outbox anew: %w", err)
	}
	if err := os.Rename(tmp, d.path(logName)); err != nil {
		return fmt.Errorf("writing the outbox anew: %w", err)
	}
	if err := syncDir(d.dir); err != nil {
		return fmt.Errorf("writing the outbox anew: %w", err)
	}
	f, err := d.open(d.path(logName), os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return fmt.Errorf("opening the outbox: %w", err)
	}
	d.f, d.size = f, int64(len(content))
	return nil
}

// create writes a whole file and waits for the disk.
func (d *disk) create(path string, content []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.open(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// append writes frames and waits for the disk. After an error the descriptor is
// given up: fsync may report a lost page only once, and half a frame would stand
// before the next one. Then only [disk.rewrite] helps.
func (d *disk) append(frames []byte) error {
	_, err := d.f.Write(frames)
	if err == nil {
		err = d.f.Sync()
	}
	if err != nil {
		d.close()
		return fmt.Errorf("writing the outbox: %w", err)
	}
	d.size += int64(len(frames))
	return nil
}

func (d *disk) close() {
	if d.f != nil {
		_ = d.f.Close() // everything that counts was synced
		d.f = nil
	}
}

// syncDir makes the entries of a directory durable, where a system can.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
