// Package journal keeps one small body (the sealed state of a session) on a
// local disk so that kill -9, a full disk, a failed fsync or a power cut leaves
// the last acknowledged body or the one being written, never another and never
// none. It also holds the keyring that seals bodies and the lock that keeps a
// journal to one process.
//
// The promise rests on a local file system that writes in place and on a disk
// that keeps what it acknowledged. Copy-on-write file systems allocate on every
// write and may still report a full disk; that is an error of [Journal.Write]
// like any other.
package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
)

var (
	// ErrDamaged says that stored bytes are not what was written: a journal
	// without a valid slot, or a sealed text that does not authenticate.
	ErrDamaged = errors.New("damaged")
	// ErrVersion says that a slot is whole but was written in another format.
	ErrVersion = errors.New("written in another journal format")
	// ErrTooLarge says that a body is longer than [MaxBody]; nothing was written.
	ErrTooLarge = errors.New("body too large for a journal slot")
)

// file is what a slot needs of an open file; tests put failing ones in its place.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
}

type opener func(path string) (file, error)

type slot struct {
	f file // nil while it is not needed, or after a failed reopening
	// doubt marks a slot whose last write failed. What a read of it returns may
	// be in the page cache only, so it is not read until a write succeeded.
	doubt bool
}

// Journal is a two-slot journal, made by [Open]. Its methods are meant for one
// goroutine at a time; a mutex guards against mistakes.
type Journal struct {
	mu        sync.Mutex
	open      opener
	dir, name string // of the slots, see slotPaths: not joined, as thousands have the first in common
	slots     [2]slot
	seq       uint64 // the number of the newest record; 0 is the genesis: nothing was ever acknowledged
	fault     error  // why the journal can be neither read nor written
	newest    int8   // index of the slot with the newest record
	both      bool   // both slots were valid when last read
	torn      bool
	// settled: the newest record is known to be on the disk and not only in the
	// page cache, where a failed fsync of an earlier process may have left it.
	settled bool
	closed  bool
}

// load opens the slot files and reads them.
func load(dir, name string, open opener) (*Journal, error) {
	j := &Journal{open: open, dir: dir, name: name}
	if _, err := j.scan(); err != nil {
		_ = j.Close()
		return nil, err
	}
	// An error is left to the next Write, which settles again: on a failing disk
	// the body can still be read and used.
	_ = j.settle()
	return j, nil
}

// Read returns the newest whole body; a torn newest slot falls back to the other
// (see [Journal.Torn]). ok is false for a new journal, to which no write was ever
// acknowledged. The error wraps [ErrDamaged] when something is there but no slot
// is valid, [ErrVersion] when a slot has another format. After a failed Write it
// returns the last body that is known to be on the disk.
func (j *Journal) Read() (body []byte, ok bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil, false, fmt.Errorf("reading journal %s: %w", j.path(0), fs.ErrClosed)
	}
	body, err = j.scan()
	if err == nil {
		err = j.fault
	}
	if err != nil || j.seq == 0 {
		return nil, false, err
	}
	return body, true, nil
}

// Last returns the body that was written or read last. It changes nothing: with
// damage found here, which [ErrDamaged] says, Write can still replace it.
func (j *Journal) Last() ([]byte, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil, fmt.Errorf("reading journal %s: %w", j.path(0), fs.ErrClosed)
	}
	image, err := j.load(int(j.newest))
	if err != nil {
		return nil, err
	}
	if state, seq, body := decodeSlot(image); state == slotValid && seq == j.seq && seq > 0 {
		return body, nil
	}
	return nil, fmt.Errorf("journal slot %s: %w", j.path(int(j.newest)), ErrDamaged)
}

// Torn reports whether the last reading ([Open] or [Journal.Read]) met a slot
// that was neither blank nor whole: a write was cut off, or the disk is failing.
func (j *Journal) Torn() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.torn
}

// Write makes body, of at most [MaxBody] bytes, the newest record and returns
// when it is on the disk. It overwrites the other slot than the newest valid one,
// in place. After an error the body may or may not be what the next process
// reads; the journal stays usable, and the next Write goes to the same slot
// through a new descriptor, because fsync may report a lost page only once.
func (j *Journal) Write(body []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		return fmt.Errorf("writing journal %s: %w", j.path(0), fs.ErrClosed)
	case len(body) > MaxBody:
		return fmt.Errorf("%w: %d bytes, at most %d fit", ErrTooLarge, len(body), MaxBody)
	case j.fault != nil:
		return j.fault // the slots may be all that is left to recover from
	}
	if err := j.settle(); err != nil {
		return err
	}
	// Both: the next write must not fail for want of a descriptor.
	for i := range j.slots {
		if err := j.reopen(i); err != nil {
			return err
		}
	}
	// The first body is written to both slots: from its acknowledgement on no
	// genesis is left to which damage could fall back.
	for first := j.seq == 0; ; first = false {
		target := 1 - int(j.newest)
		j.slots[target].doubt = true
		if err := j.store(target, j.seq+1, body); err != nil {
			return err
		}
		j.slots[target].doubt = false
		j.newest, j.seq = int8(target), j.seq+1
		if !first {
			return nil
		}
	}
}

// Rest gives the file descriptors back until the next Read or Write: thousands of
// journals that are seldom written need not hold them.
func (j *Journal) Rest() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.rest()
}

// Close closes the files. Later calls return nil.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	return j.rest()
}

func (j *Journal) rest() error {
	var errs []error
	for i := range j.slots {
		if s := &j.slots[i]; s.f != nil {
			errs = append(errs, s.f.Close())
			s.f = nil
		}
	}
	return errors.Join(errs...)
}

// scan reads the slots that are not in doubt and sets newest, seq, both, torn
// and fault from them.
func (j *Journal) scan() (newest []byte, err error) {
	var valid, blanks int
	var foreign bool
	j.torn = false
	for i := range j.slots {
		if j.slots[i].doubt {
			continue
		}
		image, err := j.load(i)
		if err != nil {
			return nil, err
		}
		state, seq, body := decodeSlot(image)
		switch state {
		case slotBlank:
			blanks++
		case slotForeign:
			foreign = true
		case slotTorn:
			j.torn = true
		case slotValid:
			if valid++; valid == 1 || seq > j.seq {
				j.newest, j.seq, newest = int8(i), seq, body
			}
		}
	}
	j.both, j.fault = valid == 2, nil
	switch {
	case foreign:
		// Falling back to the other slot would bring back an older state.
		j.fault = fmt.Errorf("journal %s: %w: run the version that wrote it, or set the journal aside",
			j.path(0), ErrVersion)
	case blanks == len(j.slots):
		j.newest, j.seq = 1, 0 // the genesis, which settle writes
	case valid == 0:
		j.fault = fmt.Errorf("journal %s and its twin: %w: no slot is valid; restore the files or set them aside",
			j.path(0), ErrDamaged)
	}
	return newest, nil
}

// settle writes the newest record once more in place, byte for byte, when it may
// be in the page cache only. Where the other slot is not valid, a write to it had
// begun, hence the newest record was settled: the only good slot is not touched.
//
// A new journal gets its genesis record here. It tells a first write that was
// torn (the genesis is whole: nothing was acknowledged) from damage (no slot is).
func (j *Journal) settle() error {
	if j.settled {
		return nil
	}
	body, err := j.scan()
	if err == nil {
		err = j.fault
	}
	if err == nil && (j.both || j.seq == 0) {
		err = j.store(int(j.newest), j.seq, body)
	}
	j.settled = err == nil
	return err
}

// load returns what slot i holds, at most SlotSize bytes; behind a whole record
// it may leave out the rest.
func (j *Journal) load(i int) ([]byte, error) {
	image, err := j.loadUpTo(i, pageSize)
	if size := recordSize(image); err == nil && size > pageSize {
		image, err = j.loadUpTo(i, size)
	}
	if err != nil {
		return nil, err
	}
	if state, _, _ := decodeSlot(image); state != slotValid {
		return j.loadUpTo(i, SlotSize)
	}
	return image, nil
}

func (j *Journal) loadUpTo(i, size int) ([]byte, error) {
	if err := j.reopen(i); err != nil {
		return nil, err
	}
	image := make([]byte, size)
	n, err := j.slots[i].f.ReadAt(image, 0)
	if errors.Is(err, syscall.EIO) {
		// A sector torn by a power cut can be unreadable: a torn slot, not an end.
		return []byte{1}, nil
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading journal slot %s: %w", j.path(i), err)
	}
	return image[:n], nil
}

// store writes a record to slot i and waits for the disk. On failure the
// descriptor is given up at once; reopening is tried now and, should that fail
// too, at the next use.
func (j *Journal) store(i int, seq uint64, body []byte) error {
	if err := j.reopen(i); err != nil {
		return err
	}
	s := &j.slots[i]
	image := encodeSlot(seq, body)
	n, err := s.f.WriteAt(image, 0)
	if err == nil && n < len(image) {
		err = io.ErrShortWrite
	}
	if err == nil {
		err = s.f.Sync()
	}
	if err == nil {
		return nil
	}
	_ = s.f.Close() // the write has failed already; closing adds nothing to it
	s.f = nil
	err = fmt.Errorf("writing journal slot %s: %w", j.path(i), err)
	return errors.Join(err, j.reopen(i))
}

func (j *Journal) path(i int) string { return slotPaths(filepath.Join(j.dir, j.name))[i] }

func (j *Journal) reopen(i int) error {
	s := &j.slots[i]
	if s.f != nil {
		return nil
	}
	f, err := j.open(j.path(i))
	if err != nil {
		return fmt.Errorf("opening journal slot %s: %w", j.path(i), err)
	}
	s.f = f
	return nil
}
