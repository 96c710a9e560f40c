package refresher

import (
	"time"
)

// Instant is one moment on both of a machine's clocks. Boot is a clock that
// nobody can set: time since boot where the system has one that also runs while
// it sleeps (Linux: CLOCK_BOOTTIME), else Go's monotonic clock.
type Instant struct {
	Wall time.Time
	Boot time.Duration
}

// Add moves both readings.
func (i Instant) Add(d time.Duration) Instant {
	return Instant{Wall: i.Wall.Add(d), Boot: i.Boot + d}
}

// Sub is the time from u to i on the clock that nobody can set.
func (i Instant) Sub(u Instant) time.Duration { return i.Boot - u.Boot }

// IsZero reports whether the instant was never set.
func (i Instant) IsZero() bool { return i.Wall.IsZero() }

// Clock is where a session reads the time. Timers are the time package's, so
// that testing/synctest can turn them.
type Clock interface {
	Now() Instant

	// CountsSleep reports whether Boot runs on while the machine sleeps. Where
	// it does not, a deadline is over as soon as either reading says so.
	CountsSleep() bool

	// BootID is the same for all processes of one boot and differs after the
	// next; empty where the system has no such thing. With it a stored Boot
	// reading is worth something to the next process.
	BootID() string
}

// processClock is the portable clock: wall time, and Go's monotonic clock
// counted from the process's start.
type processClock struct{ start time.Time }

// NewProcessClock returns a clock made of the time package alone: under
// testing/synctest it is virtual. Its Boot stands still while the machine
// sleeps.
func NewProcessClock() Clock { return processClock{start: time.Now()} }

func (c processClock) Now() Instant {
	now := time.Now()
	return Instant{Wall: now.Round(0), Boot: now.Sub(c.start)}
}

func (processClock) CountsSleep() bool { return false }

func (processClock) BootID() string { return "" }
