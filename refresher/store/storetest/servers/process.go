//go:build unix

package servers

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// readyWait is how long a server may take to answer.
const readyWait = 20 * time.Second

// Process is a server that runs as a child of the test and ends with it. Its
// methods fail the test where something does not work; call them from the test's
// goroutine.
type Process struct {
	t     testing.TB
	path  string
	args  func() []string
	ready func() error

	cmd    *exec.Cmd
	ended  chan struct{}
	output *buffer
}

// buffer keeps what a server prints, for when it does not start.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.text.Len() > 1<<16 {
		b.text.Reset()
	}
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// find returns the path of a program, or ends the test.
func find(t testing.TB, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("%s is missing: install it", program)
	default:
		t.Skipf("%s is missing", program)
	}
	return path
}

// launch starts a server. Another process may take a port between its choice and
// its use, so choose is called anew when the server ends at once.
func launch(t testing.TB, program string, choose func(p *Process)) *Process {
	t.Helper()
	p := &Process{t: t, path: find(t, program)}
	t.Cleanup(p.Kill)
	for try := 1; ; try++ {
		choose(p)
		err := p.start()
		if err == nil {
			return p
		}
		p.Kill()
		if try == 3 {
			t.Fatalf("%s: %v; it printed:\n%s", program, err, p.output)
		}
	}
}

func (p *Process) start() error {
	cmd, ended, output := exec.Command(p.path, p.args()...), make(chan struct{}), new(buffer)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = childAttr()
	p.cmd, p.ended, p.output = cmd, ended, output
	started := make(chan error)
	go func() {
		// The child is killed when the thread that started it ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	deadline := time.After(readyWait)
	for {
		err := p.ready()
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return errors.New("it ended at once")
		case <-deadline:
			return fmt.Errorf("it is not ready: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Start starts the server again, on the same address and data, and waits until
// it is ready.
func (p *Process) Start() {
	p.t.Helper()
	if err := p.start(); err != nil {
		p.t.Fatalf("%s: %v; it printed:\n%s", p.path, err, p.output)
	}
}

// Stop asks the server to end and waits for it.
func (p *Process) Stop() { p.end(syscall.SIGTERM) }

// Kill ends the server with SIGKILL, also while it is paused.
func (p *Process) Kill() { p.end(syscall.SIGKILL) }

func (p *Process) end(sig syscall.Signal) {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.ended:
	case <-time.After(readyWait):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// Pause freezes the server: its connections stay and nothing answers.
func (p *Process) Pause() {
	p.t.Helper()
	p.signal(syscall.SIGSTOP)
	awaitStopped(p.cmd.Process.Pid)
}

// Resume ends a pause.
func (p *Process) Resume() { p.signal(syscall.SIGCONT) }

func (p *Process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatalf("%s: %v", p.path, err)
	}
}

// ports returns free TCP ports of 127.0.0.1. No process is started meanwhile:
// until it runs it would have the listeners, too, closed or not.
func ports(t testing.TB, n int) []string {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	free := make([]string, n)
	for i := range free {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = ln.Close() }()
		free[i] = strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	}
	return free
}

func dial(address string) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(time.Second))
	}
	return conn, err
}
