package sandbox

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// echo sends back what it gets as it gets it, while the caller still sends.
func echo(w http.ResponseWriter, r *http.Request) {
	http.NewResponseController(w).EnableFullDuplex() // where it is missing (HTTP/2, a recorder) it is not needed
	if kind := r.Header.Get("Content-Type"); kind != "" {
		w.Header().Set("Content-Type", kind)
	} else {
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	for name := range r.Trailer {
		w.Header().Add("Trailer", name)
	}
	// The caller may wait for the header before it sends; but a header takes the
	// place of the 100 that a caller with Expect waits for.
	if r.Header.Get("Expect") == "" {
		w.WriteHeader(http.StatusOK)
		flush(w)
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			flush(w)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			panic(http.ErrAbortHandler) // not in full: must not look complete
		}
	}
	for name, values := range r.Trailer {
		w.Header()[name] = values
	}
}

// events sends server-sent events, the first at once.
func events(w http.ResponseWriter, r *http.Request, caller Session) {
	interval, ok := duration(w, r, "interval")
	if !ok {
		return
	}
	count, ok := number(w, r, "count", 10)
	if !ok {
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	for i := int64(1); ; i++ {
		_, err := fmt.Fprintf(w, "id: %d\ndata: {\"n\":%d,\"generation\":%d,\"now\":%q}\n\n",
			i, i, caller.Generation, now().UTC().Format(time.RFC3339Nano))
		if err != nil || flush(w) != nil {
			return
		}
		if i == count || !wait(r.Context(), max(interval, time.Millisecond)) {
			return
		}
	}
}

func download(w http.ResponseWriter, r *http.Request) {
	size, ok := number(w, r, "bytes", 1000)
	if !ok {
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	w.WriteHeader(http.StatusOK)
	io.Copy(w, Pattern(size)) // an error means that the caller has left
}

// Pattern reads as the n bytes of /download: 0, 1, … 250, 0, 1, … The prime
// length shows a block that is missing, doubled or swapped.
func Pattern(n int64) io.Reader { return io.LimitReader(new(pattern), n) }

type pattern struct{ next byte }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = p.next
		p.next = (p.next + 1) % 251
	}
	return len(b), nil
}
