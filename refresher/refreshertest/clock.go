package refreshertest

import (
	"sync"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// Clock is a [refresher.Clock] that runs with the time package and can be
// turned. Make it with [NewClock]; its methods may be called at once.
type Clock struct {
	noSleep bool

	mu       sync.Mutex
	bootID   string
	start    time.Time
	wall     time.Duration // added to the wall clock
	suspends time.Duration // added to the clock that nobody can set
}

// NewClock returns a clock as Linux has it: it counts the time that the machine
// sleeps, and has a boot id.
func NewClock() *Clock {
	return &Clock{start: time.Now().Add(-time.Hour), bootID: "refreshertest"}
}

// NewSimpleClock returns a clock of the poorer kind: it stands still while the
// machine sleeps, and knows no boot id.
func NewSimpleClock() *Clock {
	return &Clock{start: time.Now().Add(-time.Hour), noSleep: true}
}

// Now implements [refresher.Clock].
func (c *Clock) Now() refresher.Instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	return refresher.Instant{Wall: now.Round(0).Add(c.wall), Boot: now.Sub(c.start) + c.suspends}
}

// CountsSleep implements [refresher.Clock].
func (c *Clock) CountsSleep() bool { return !c.noSleep }

// BootID implements [refresher.Clock].
func (c *Clock) BootID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bootID
}

// Suspend has the machine sleep for d: timers stand still, as Go's do on Linux,
// and the clocks come out ahead.
func (c *Clock) Suspend(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall += d
	if !c.noSleep {
		c.suspends += d
	}
}

// SetWall moves the wall clock by d, as somebody who sets it does.
func (c *Clock) SetWall(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall += d
}

// Reboot makes it another boot: the clock that nobody can set starts anew, under
// another id.
func (c *Clock) Reboot(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.start, c.suspends, c.bootID = time.Now(), 0, id
}

// Interface guard
var _ refresher.Clock = (*Clock)(nil)
