package caddymodule

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// heldAnswer keeps a short 2xx answer back until all of it is there, and then has
// it looked at. A longer one, and a stream of events, is looked at before its
// first byte goes on, and then goes on as it comes.
type heldAnswer struct {
	caddyhttp.ResponseWriterWrapper
	look   func() error // called once; an error is answered in the answer's place
	status int
	body   []byte
	whole  bool // all of the body is kept
	passed bool // goes on as it comes
	before http.Header

	refused error
	stop    context.CancelFunc // ends the request to the upstream
}

func newHeldAnswer(w http.ResponseWriter, look func() error) *heldAnswer {
	return &heldAnswer{ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, look: look, before: w.Header().Clone()}
}

// serve has an answer made and looked at.
func (w *heldAnswer) serve(r *http.Request, next caddyhttp.Handler) (err error) {
	ctx, stop := context.WithCancel(r.Context())
	defer stop()
	w.stop = stop
	defer func() {
		if w.refused == nil {
			return
		}
		if p := recover(); p != nil && p != http.ErrAbortHandler { // that is what stop leads to
			panic(p)
		}
		header := w.Header()
		clear(header)
		maps.Copy(header, w.before)
		err = w.refused
	}()
	if err := next.ServeHTTP(w, r.WithContext(ctx)); err != nil {
		return err
	}
	return w.release()
}

// WriteHeader implements http.ResponseWriter.
func (w *heldAnswer) WriteHeader(status int) {
	switch {
	case status < 200 && status != http.StatusSwitchingProtocols:
		w.ResponseWriter.WriteHeader(status)
	case w.status != 0:
	case status < 200 || status >= 300:
		w.status, w.passed = status, true
		w.ResponseWriter.WriteHeader(status)
	default:
		w.status = status
		if isEventStream(w.Header()) {
			_ = w.pass()
		}
	}
}

// Write implements io.Writer.
func (w *heldAnswer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.passed && len(w.body)+len(p) <= refresher.MaxAnswer {
		w.body = append(w.body, p...)
		return len(p), nil
	}
	if err := w.pass(); err != nil {
		return 0, err
	}
	return w.ResponseWriter.Write(p)
}

// ReadFrom implements io.ReaderFrom: what is copied does not go around Write.
func (w *heldAnswer) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{w}, r)
}

// release lets go of what waits.
func (w *heldAnswer) release() error {
	w.whole = true
	return w.pass()
}

// pass lets the answer go on from here, unless it must not.
func (w *heldAnswer) pass() error {
	if w.passed || w.refused != nil || w.status == 0 {
		return w.refused
	}
	if w.refused = w.look(); w.refused != nil {
		w.body = nil
		if w.stop != nil {
			w.stop() // nobody wants the rest
		}
		return w.refused
	}
	w.passed = true
	body := w.body
	w.body = nil
	w.ResponseWriter.WriteHeader(w.status)
	if len(body) == 0 {
		return nil
	}
	_, err := w.ResponseWriter.Write(body)
	return err
}

// Flush implements http.Flusher: what is held stays so.
func (w *heldAnswer) Flush() { _ = w.FlushError() }

// FlushError is what http.ResponseController calls to flush.
func (w *heldAnswer) FlushError() error {
	if !w.passed {
		return nil
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func isEventStream(header http.Header) bool {
	kind, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	return kind == "text/event-stream"
}

// text is the body without its compression; an error says why it cannot be read.
func (w *heldAnswer) text() ([]byte, error) {
	switch {
	case isEventStream(w.Header()):
		return nil, errors.New("it is a stream of events")
	case !w.whole:
		return nil, errTooLong
	case len(w.body) == 0:
		return nil, nil
	}
	return decompressed(strings.Join(w.Header()["Content-Encoding"], ","), w.body)
}

var errTooLong = fmt.Errorf("it is longer than %d KiB", refresher.MaxAnswer>>10)

// decompressed reads what an upstream has compressed although it was asked not to.
func decompressed(encoding string, body []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "", "identity":
		return body, nil
	case "gzip", "x-gzip":
		r, err = gzip.NewReader(bytes.NewReader(body))
	case "deflate":
		r, err = zlib.NewReader(bytes.NewReader(body))
	default:
		return nil, fmt.Errorf("it is compressed (%.20q), although that was not asked for", encoding)
	}
	if err != nil {
		return nil, fmt.Errorf("it is compressed: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(r, refresher.MaxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("it is compressed: %w", err)
	case len(text) > refresher.MaxAnswer:
		return nil, errTooLong
	}
	return text, nil
}
