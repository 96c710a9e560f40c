package refresher

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bootClock reads CLOCK_BOOTTIME, which runs on while the machine sleeps; Go's
// monotonic clock does not (golang/go#24595).
type bootClock struct{ id string }

// NewClock returns the system's clock.
func NewClock() Clock {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return NewProcessClock()
	}
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return bootClock{id: strings.TrimSpace(string(id))}
}

func (c bootClock) Now() Instant {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail: it did not in NewClock
	return Instant{Wall: time.Now().Round(0), Boot: time.Duration(ts.Nano())}
}

func (bootClock) CountsSleep() bool { return true }

func (c bootClock) BootID() string { return c.id }
