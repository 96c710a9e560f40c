package sandbox

import (
	"cmp"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// Fault makes an issuer call go wrong. What it says happens in the order of the
// fields. For example:
//
//	Fault{Status: 500}                        // refused, nothing happened
//	Fault{Commit: true, Status: 500}          // done, but it does not look so
//	Fault{Commit: true, Drop: true}           // done, and the answer is lost
//	Fault{Commit: true, DelayAfter: time.Second} // a slow, but good answer
//	Fault{Commit: true, Body: "<html>", ContentType: "text/html"}
//	Fault{Status: 307, Header: http.Header{"Location": {"https://other.example/"}}}
type Fault struct {
	// Path is the issuer endpoint meant; empty is RefreshPath.
	Path string

	// DelayBefore passes before anything else. A caller that hangs up in the
	// meantime prevents the call, unless it shall Outlive its connection.
	DelayBefore time.Duration
	Outlive     bool

	// Commit: the call is really done. Without it, nothing happens and the
	// answer is Status, or 500.
	Commit bool

	// DelayAfter passes between the commit and the answer.
	DelayAfter time.Duration

	// Hang: no answer until the caller hangs up. With Truncate, half of it.
	Hang bool

	// Reset: the connection is reset. Drop: it is closed. No answer either way.
	Reset bool
	Drop  bool

	// Status and Body replace the answer if one of them is set. In Body,
	// {accessToken} and {refreshToken} stand for the pair that was issued.
	Status int
	Body   string

	// Header and ContentType are set on the answer, replaced or not.
	Header      http.Header
	ContentType string

	// Truncate: half of the answer is sent, with the length of the whole; then
	// the connection is closed.
	Truncate bool
}

// faults are those to come, by path.
type faults map[string]*faultQueue

type faultQueue struct {
	next   []Fault
	always *Fault // when next is empty
}

func (f faults) at(path string) *faultQueue {
	if f[path] == nil {
		f[path] = new(faultQueue)
	}
	return f[path]
}

func (f faults) take(path string) *Fault {
	queue := f[path]
	if queue == nil {
		return nil
	}
	if len(queue.next) == 0 {
		return queue.always
	}
	fault := queue.next[0]
	queue.next = queue.next[1:]
	return &fault
}

// Fault queues f for the next calls, so many times (at least once), behind what
// is queued already.
func (s *Sandbox) Fault(f Fault, times int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	queue := s.faults.at(cmp.Or(f.Path, s.cfg.RefreshPath))
	for range max(times, 1) {
		queue.next = append(queue.next, f)
	}
}

// SetFault makes f happen to every call for which none is queued.
func (s *Sandbox) SetFault(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.at(cmp.Or(f.Path, s.cfg.RefreshPath)).always = &f
}

// ClearFaults forgets all faults, queued or set.
func (s *Sandbox) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.faults)
}

// serveFault runs one issuer call as f has it.
func (s *Sandbox) serveFault(w http.ResponseWriter, r *http.Request, f *Fault, entry *Entry, run func() reply) {
	before := r.Context()
	if f.Outlive {
		before = context.WithoutCancel(before)
	}
	if !wait(before, f.DelayBefore) {
		panic(http.ErrAbortHandler)
	}
	rep := refuse(http.StatusInternalServerError, "a fault was asked for")
	if f.Commit {
		rep = run()
	}
	if !wait(r.Context(), f.DelayAfter) {
		panic(http.ErrAbortHandler)
	}
	rep = f.disguise(rep)
	switch {
	case f.Truncate:
		s.settle(entry, rep.status, false)
		f.truncate(w, r, rep)
	case f.Hang:
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case f.Reset:
		reset(w)
	case f.Drop:
		panic(http.ErrAbortHandler)
	default:
		s.deliver(w, r, entry, rep)
	}
}

// disguise replaces what the fault replaces of an answer.
func (f *Fault) disguise(rep reply) reply {
	if f.Status != 0 || f.Body != "" {
		rep.header = http.Header{"Content-Type": {jsonType}}
		rep.body = f.Body
		if rep.pair != nil {
			rep.body = strings.NewReplacer(
				"{accessToken}", rep.pair.access, "{refreshToken}", rep.pair.refresh).Replace(f.Body)
		}
		switch {
		case f.Status >= 200 && f.Status <= 999: // what net/http can send as an answer
			rep.status = f.Status
		case f.Status != 0:
			rep.status = http.StatusInternalServerError
		case f.Commit:
			rep.status = http.StatusOK
		}
	}
	for name, values := range f.Header {
		rep.header[http.CanonicalHeaderKey(name)] = values
	}
	if f.ContentType != "" {
		rep.header.Set("Content-Type", f.ContentType)
	}
	return rep
}

// truncate announces one byte too many even if there is nothing to cut.
func (f *Fault) truncate(w http.ResponseWriter, r *http.Request, rep reply) {
	half := rep.body[:len(rep.body)/2]
	if rep.body == "" {
		rep.body = " "
	}
	rep.writeHeader(w)
	io.WriteString(w, half)
	flush(w)
	if f.Hang {
		<-r.Context().Done()
	}
	panic(http.ErrAbortHandler)
}

// reset ends a TCP connection the rude way, others the usual one.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = wrapped.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// wait lets d pass; false if ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
