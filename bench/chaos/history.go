package chaos

import (
	"bufio"
	"encoding/json"
	"os"
	"sync"
	"time"
)

// Op says what an event is about.
type Op string

// The operations.
const (
	OpRequest Op = "request" // a caller's, ended; Result is the status, or "error"
	OpStatus  Op = "status"  // the admin API showed something new; Result is the state
	OpPair    Op = "pair"    // the issuer has a new pair

	// What an instance logged.
	OpRotated Op = "rotated"
	OpJoined  Op = "joined"
	OpStarted Op = "started" // an epoch; also with a new login
	OpLost    Op = "lost"    // Result is the reason

	// What was done to an instance.
	OpStart  Op = "start"
	OpKill   Op = "kill" // Result is the failpoint, if it was one
	OpPause  Op = "pause"
	OpResume Op = "resume"
	OpCut    Op = "cut" // Result is from what: "store", "issuer"
	OpHeal   Op = "heal"

	// The run as a whole.
	OpFault     Op = "fault"     // from here on things may go wrong
	OpCalm      Op = "calm"      // no fault is in effect any more
	OpRecovered Op = "recovered" // all instances are fresh, on the same pair
)

// Event is one line of a history. It holds no token.
type Event struct {
	T           time.Time `json:"t"`
	Who         string    `json:"who,omitempty"` // an instance; empty: the test
	Op          Op        `json:"op"`
	Run         int       `json:"run,omitempty"`     // the instance's process, 1 is its first
	Began       time.Time `json:"began,omitzero"`    // OpRequest
	Kind        string    `json:"kind,omitempty"`    // OpRequest: get, post, stream or sse
	Session     string    `json:"session,omitempty"` // as the issuer calls it
	Epoch       int       `json:"epoch,omitempty"`   // as the fleet calls it
	Generation  int       `json:"gen,omitempty"`
	Result      string    `json:"result,omitempty"`
	Fingerprint string    `json:"fp,omitempty"` // of the access token
}

// History records events as they happen, one JSON object a line.
type History struct {
	mu     sync.Mutex
	file   *os.File
	out    *bufio.Writer
	events []Event
}

// NewHistory makes a file for a history.
func NewHistory(path string) (*History, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &History{file: file, out: bufio.NewWriter(file)}, nil
}

// Add records an event; without a time it is now.
func (h *History) Add(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.T.IsZero() {
		e.T = time.Now()
	}
	e.T, e.Began = e.T.Round(0), e.Began.Round(0)
	h.events = append(h.events, e)
	line, _ := json.Marshal(e) // has nothing that cannot be encoded
	_, _ = h.out.Write(append(line, '\n'))
}

// Events returns what was recorded so far.
func (h *History) Events() []Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Event(nil), h.events...)
}

// Close completes the file.
func (h *History) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.out.Flush(); err != nil {
		return err
	}
	return h.file.Close()
}
