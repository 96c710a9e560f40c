//go:build unix && !linux

package servers

import (
	"syscall"
	"time"
)

func childAttr() *syscall.SysProcAttr { return nil }

func awaitStopped(int) { time.Sleep(100 * time.Millisecond) }
