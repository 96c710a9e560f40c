package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// eventStream writes server-sent events, each at once.
type eventStream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

const (
	streamBeat  = 15 * time.Second // a sign of life at least that often
	streamWrite = 10 * time.Second // who takes longer to read is let go
)

// openStream begins the answer.
func openStream(w http.ResponseWriter) (*eventStream, error) {
	s := &eventStream{w: w, control: http.NewResponseController(w)}
	// net/http ends a request when the time for reading it is over, even one that
	// was read long ago. Where there is no such deadline there is none to lift.
	_ = s.control.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // for a proxy in between
	w.WriteHeader(http.StatusOK)
	return s, s.write("retry: 1000\n\n")
}

// send writes an event; without an id it is not one to come back to.
func (s *eventStream) send(id, name string, data any) error {
	text, err := json.Marshal(data)
	if err != nil {
		return err
	}
	if id != "" {
		id = "id: " + id + "\n"
	}
	return s.write(fmt.Sprintf("%sevent: %s\ndata: %s\n\n", id, name, text))
}

// beat writes a comment, so that both ends notice when the other is gone.
func (s *eventStream) beat() error { return s.write(": beat\n\n") }

func (s *eventStream) write(text string) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(streamWrite))
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.control.Flush()
}

// close leaves the connection as it was: another request may come on it.
func (s *eventStream) close() { _ = s.control.SetWriteDeadline(time.Time{}) }
