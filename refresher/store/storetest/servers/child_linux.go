package servers

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// childAttr lets a child die with the test, also where that is killed.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// awaitStopped waits until all threads of a process have stopped: the signal has
// been sent, not taken, when kill(2) returns.
func awaitStopped(pid int) {
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		running := len(threads) == 0
		for _, path := range threads {
			stat, _ := os.ReadFile(path)
			_, after, _ := bytes.Cut(stat, []byte(") "))
			running = running || !bytes.HasPrefix(after, []byte("T"))
		}
		if !running {
			return
		}
	}
}
