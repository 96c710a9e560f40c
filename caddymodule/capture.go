package caddymodule

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// maxCaptured bounds what all requests of the process hold of their bodies.
const maxCaptured = 32 << 20

var captured atomic.Int64

// capture keeps what was read of a request's body, up to a limit, so that the
// request can be sent again: first what was kept, then the rest from the caller.
// Nothing is read ahead and nothing held back.
type capture struct {
	src io.ReadCloser

	reading sync.Mutex // one Read of src at a time, even if an earlier run's lingers

	mu     sync.Mutex // held for moments only
	kept   []byte
	limit  int64
	booked int64 // of captured
	over   bool  // more was read than is kept
	run    int   // whose readers may read; 2 once the request is sent again
	ended  error // what src ended with
}

func newCapture(src io.ReadCloser, limit, length int64) *capture {
	c := &capture{src: src, limit: limit, run: 1}
	if length > 0 && length <= limit && c.book(length) {
		c.kept = make([]byte, 0, length)
	}
	return c
}

// reserved reports whether a body of that length is sure to be kept whole.
func (c *capture) reserved(length int64) bool { return length > 0 && c.booked >= length }

// book takes n bytes of the process's share.
func (c *capture) book(n int64) bool {
	if captured.Add(n) > maxCaptured {
		captured.Add(-n)
		return false
	}
	c.booked += n
	return true
}

// keep adds what was read; mu is held.
func (c *capture) keep(p []byte) {
	if c.over || len(p) == 0 {
		return
	}
	// What a run that is over reads last belongs to the one that follows it,
	// whatever the limit.
	if size := int64(len(c.kept) + len(p)); c.run == 1 {
		if size > c.limit || size > c.booked && !c.book(max(size, min(2*int64(len(c.kept)), c.limit))-c.booked) {
			c.drop()
			return
		}
	}
	c.kept = append(c.kept, p...)
}

// drop gives up keeping; mu is held.
func (c *capture) drop() {
	c.over = true
	c.kept = nil
	captured.Add(-c.booked)
	c.booked = 0
}

// whole reports whether all that was read is kept.
func (c *capture) whole() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.over
}

// rewind shuts out the readers of the first run; the next ones begin anew. It
// fails if not all that was read is kept.
func (c *capture) rewind() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.run != 1 {
		return false
	}
	c.run = 2
	return true
}

// close shuts out all readers and gives back what was held.
func (c *capture) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.run = 3
	c.drop()
}

func (c *capture) reader() io.ReadCloser { return &captureReader{c: c, run: c.run} }

// captureReader is a body as one run of the request reads it. Closing it leaves
// the source alone: that belongs to the server.
type captureReader struct {
	c   *capture
	run int
	pos int // in kept
}

// Read implements io.Reader.
func (r *captureReader) Read(p []byte) (int, error) {
	c := r.c
	c.reading.Lock()
	defer c.reading.Unlock()
	if n, err, done := r.fromKept(p); done {
		return n, err
	}
	n, err := c.src.Read(p)

	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.ended = err
	}
	if r.run == 2 && c.run == 2 {
		return n, err // it is not sent a third time
	}
	c.keep(p[:n])
	r.pos += n
	if r.run != c.run {
		return 0, errStale
	}
	return n, err
}

// fromKept reads what was read before; done means that src is not to be asked.
func (r *captureReader) fromKept(p []byte) (n int, err error, done bool) {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case r.run != c.run:
		return 0, errStale, true
	case r.pos < len(c.kept):
		n = copy(p, c.kept[r.pos:])
		r.pos += n
		return n, nil, true
	case c.ended != nil:
		return 0, c.ended, true
	}
	return 0, nil, false
}

// Close implements io.Closer.
func (r *captureReader) Close() error { return nil }

// trailers gives each run trailers of its own: those that the caller has
// announced, but for the token's. net/http writes to the request's own map when
// the body ends, whatever stands there, announced or not, and a reader of the
// first run may come upon that end while the second run begins.
type trailers struct {
	io.ReadCloser
	from, to http.Header
	names    []string
}

// Read implements io.Reader.
func (t *trailers) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if err == io.EOF { // from is complete, and nobody writes to it any more
		for _, name := range t.names {
			t.to[name] = t.from[name]
		}
	}
	return n, err
}
