package caddymodule

import (
	"errors"
	"io"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// responder holds a 401 back while the request may be sent again, and is
// transparent to everything else: it shares the header map, flushes, hijacks and
// switches protocols as the writer below does.
type responder struct {
	caddyhttp.ResponseWriterWrapper
	a      *attempt
	state  responderState
	status int // the final one, once it is known
	replay bool
	broken bool // what is held ended too early
	held   []byte

	// The header as it was before the first run; few responses have more fields
	// by then than fit here.
	fields [2]headerField
	more   []headerField
	n      int
}

type responderState uint8

const (
	undecided responderState = iota
	holding
	passing
)

type headerField struct {
	name   string
	values []string
}

func (w *responder) init(to http.ResponseWriter, a *attempt) {
	w.ResponseWriter, w.a = to, a
	w.keepHeader()
}

// keepHeader remembers the header for a second run.
func (w *responder) keepHeader() {
	w.n, w.more = 0, nil
	for name, values := range w.Header() {
		f := headerField{name, values}
		if w.n < len(w.fields) {
			w.fields[w.n] = f
		} else {
			w.more = append(w.more, f)
		}
		w.n++
	}
}

func (w *responder) holding() bool { return w.state == holding }

// WriteHeader decides what becomes of the answer.
func (w *responder) WriteHeader(status int) {
	switch {
	case w.state == holding:
		return
	case w.state == passing:
	case status >= 100 && status < 200 && status != http.StatusSwitchingProtocols:
		w.a.pass.Settle() // the upstream has seen the header
	case status == http.StatusUnauthorized && w.a.repeats():
		w.state, w.status = holding, status
		w.a.pass.Settle()
		return
	default:
		w.state, w.status = passing, status
		w.a.answered(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (w *responder) Write(p []byte) (int, error) {
	if w.state == undecided {
		w.WriteHeader(http.StatusOK)
	}
	if w.state == passing {
		return w.ResponseWriter.Write(p)
	}
	if len(w.held)+len(p) > maxHeld401 {
		if err := w.release(); err != nil {
			return 0, err
		}
		return w.ResponseWriter.Write(p)
	}
	w.held = append(w.held, p...)
	return len(p), nil
}

// ReadFrom implements io.ReaderFrom, so that copying can be left to the system.
func (w *responder) ReadFrom(r io.Reader) (int64, error) {
	if w.state == undecided {
		w.WriteHeader(http.StatusOK)
	}
	if w.state == passing {
		return w.ResponseWriterWrapper.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{w}, r)
}

// FlushError is what http.ResponseController calls to flush.
func (w *responder) FlushError() error {
	if w.state == holding {
		return nil
	}
	if w.state == undecided {
		w.WriteHeader(http.StatusOK)
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Flush implements http.Flusher.
func (w *responder) Flush() { _ = w.FlushError() }

// release passes a held answer on after all.
func (w *responder) release() error {
	w.state = passing
	w.a.answered(w.status)
	w.ResponseWriter.WriteHeader(w.status)
	held := w.held
	w.held = nil
	var err error
	if len(held) > 0 {
		_, err = w.ResponseWriter.Write(held)
	}
	if w.broken {
		panic(http.ErrAbortHandler)
	}
	return err
}

// discard forgets a held answer: the header is again what it was.
func (w *responder) discard() {
	w.state, w.status, w.held, w.broken = undecided, 0, nil, false
	header := w.ResponseWriter.Header()
	clear(header)
	for _, f := range w.fields[:min(w.n, len(w.fields))] {
		header[f.name] = f.values
	}
	for _, f := range w.more {
		header[f.name] = f.values
	}
}

// errStale is what a body's reader gets that belongs to an earlier run.
var errStale = errors.New("this request is being sent again")

// Interface guards
var (
	_ http.ResponseWriter = (*responder)(nil)
	_ http.Flusher        = (*responder)(nil)
	_ io.ReaderFrom       = (*responder)(nil)
)
