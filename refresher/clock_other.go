//go:build !linux

package refresher

// NewClock returns the system's clock.
func NewClock() Clock { return NewProcessClock() }
