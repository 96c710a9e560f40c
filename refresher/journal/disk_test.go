package journal

import (
	"errors"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"
)

const (
	sector = 512
	// simSize is less than SlotSize, which only makes the tests faster.
	simSize = 16 << 10
)

var (
	testPaths  = slotPaths("s")
	errCrashed = errors.New("crashed") // panicked with, to leave a call in its middle
)

// simDisk models a disk below a page cache, with the habit that makes a second
// fsync worthless: a failed one leaves pages that are clean but not on the disk.
type simDisk struct {
	t     *testing.T
	rng   *rand.Rand
	files map[string]*simFile

	// Faults; nil is none. onWrite returns how many bytes arrive.
	onOpen  func(path string) error
	onWrite func(path string, size int) (int, error)
	onSync  func(path string) error
	onRead  func(path string) error
}

type simFile struct {
	cache, disk []byte
	dirty       map[int]bool // by sector
}

func newSimDisk(t *testing.T, seed uint64) *simDisk {
	d := &simDisk{t: t, rng: rand.New(rand.NewPCG(seed, 0)), files: map[string]*simFile{}}
	for _, path := range testPaths {
		d.files[path] = &simFile{make([]byte, simSize), make([]byte, simSize), map[int]bool{}}
	}
	return d
}

func (d *simDisk) open(path string) (file, error) {
	if d.onOpen != nil {
		if err := d.onOpen(path); err != nil {
			return nil, err
		}
	}
	return &simHandle{d: d, path: path, f: d.files[path]}, nil
}

func (d *simDisk) heal() { d.onOpen, d.onWrite, d.onSync, d.onRead = nil, nil, nil, nil }

// set puts an image into a slot, durably.
func (d *simDisk) set(i int, image []byte) {
	f := d.files[testPaths[i]]
	clear(f.cache)
	copy(f.cache, image)
	copy(f.disk, f.cache)
	clear(f.dirty)
}

func (d *simDisk) image(i int) []byte { return d.files[testPaths[i]].cache }

// powerCut loses the cache; each dirty sector may have reached the disk.
func (d *simDisk) powerCut() {
	for _, f := range d.files {
		d.flushSome(f)
		copy(f.cache, f.disk)
	}
}

// evict drops some clean sectors from the cache, as memory pressure does.
func (d *simDisk) evict() {
	for _, f := range d.files {
		for s := range simSize / sector {
			if !f.dirty[s] && d.rng.IntN(2) == 0 {
				copy(f.cache[s*sector:(s+1)*sector], f.disk[s*sector:])
			}
		}
	}
}

func (d *simDisk) flushSome(f *simFile) {
	odds := d.rng.IntN(4) // none, some, most, all
	for s := range simSize / sector {
		if f.dirty[s] && d.rng.IntN(3) < odds {
			copy(f.disk[s*sector:(s+1)*sector], f.cache[s*sector:])
		}
	}
	clear(f.dirty)
}

type simHandle struct {
	d              *simDisk
	path           string
	f              *simFile
	failed, closed bool
}

func (h *simHandle) use(what string) {
	if h.closed || h.failed {
		h.d.t.Errorf("%s on a descriptor of %s that failed (%v) or is closed (%v)", what, h.path, h.failed, h.closed)
	}
}

func (h *simHandle) ReadAt(p []byte, off int64) (int, error) {
	h.use("read")
	if h.d.onRead != nil {
		if err := h.d.onRead(h.path); err != nil {
			return 0, err
		}
	}
	n := copy(p, h.f.cache[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *simHandle) WriteAt(p []byte, off int64) (int, error) {
	h.use("write")
	if int(off)+len(p) > simSize {
		h.d.t.Errorf("write of %d bytes at %d needs room on the disk", len(p), off)
	}
	n, err := len(p), error(nil)
	if h.d.onWrite != nil {
		n, err = h.d.onWrite(h.path, len(p))
	}
	copy(h.f.cache[off:], p[:n])
	for s := int(off) / sector; s*sector < int(off)+n; s++ {
		h.f.dirty[s] = true
	}
	h.failed = err != nil || n < len(p)
	if errors.Is(err, errCrashed) {
		panic(errCrashed)
	}
	return n, err
}

func (h *simHandle) Sync() error {
	h.use("fsync")
	if h.d.onSync != nil {
		if err := h.d.onSync(h.path); err != nil {
			if errors.Is(err, errCrashed) {
				panic(errCrashed)
			}
			h.failed = true
			h.d.flushSome(h.f)
			return err
		}
	}
	copy(h.f.disk, h.f.cache)
	clear(h.f.dirty)
	return nil
}

func (h *simHandle) Close() error {
	if h.closed {
		h.d.t.Errorf("%s closed twice", h.path)
	}
	h.closed = true
	return nil
}

// once returns a fault that strikes the n-th call and later ones not.
func once(n int, err error) func(string) error {
	return func(string) error {
		if n--; n == 0 {
			return err
		}
		return nil
	}
}

func shortOnce(n, keep int, err error) func(string, int) (int, error) {
	return func(_ string, size int) (int, error) {
		if n--; n == 0 {
			return min(keep, size), err
		}
		return size, nil
	}
}

// errorsOfDisks are what the injected faults report.
var errorsOfDisks = []error{syscall.EIO, syscall.ENOSPC}
