package redisstore

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// fickle is a server that reads a script call and hangs up without an answer.
type fickle struct {
	addr string

	mu    sync.Mutex
	calls int
}

func serveFickle(t *testing.T) *fickle {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fickle{addr: ln.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = conn.Close() }()
				f.serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return f
}

func (f *fickle) serve(conn net.Conn) {
	for in := bufio.NewReader(conn); ; {
		command, err := readCommand(in)
		if err != nil {
			return
		}
		answer := "+OK\r\n"
		switch strings.ToLower(strings.Join(command[:min(2, len(command))], " ")) {
		case "hello 2":
			answer = "-ERR unknown command\r\n"
		case "info replication":
			answer = "$11\r\nrole:master\r\n"
		case "cluster slots":
			host, port, _ := net.SplitHostPort(f.addr)
			answer = fmt.Sprintf("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$%d\r\n%s\r\n:%s\r\n", len(host), host, port)
		default:
			if strings.EqualFold(command[0], "evalsha") || strings.EqualFold(command[0], "eval") {
				f.mu.Lock()
				f.calls++
				f.mu.Unlock()
				return
			}
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

func readCommand(in *bufio.Reader) ([]string, error) {
	var n int
	if _, err := fmt.Fscanf(in, "*%d\r\n", &n); err != nil || n < 1 {
		return nil, io.EOF
	}
	command := make([]string, n)
	for i := range command {
		var size int
		if _, err := fmt.Fscanf(in, "$%d\r\n", &size); err != nil {
			return nil, err
		}
		word := make([]byte, size+2)
		if _, err := io.ReadFull(in, word); err != nil {
			return nil, err
		}
		command[i] = string(word[:size])
	}
	return command, nil
}

// In a cluster go-redis sends a command again after a connection ended,
// whatever MaxRetries says.
func TestACommandWhoseAnswerIsLostIsNotSentAgain(t *testing.T) {
	for _, scheme := range []string{"redis", "redis+cluster"} {
		f := serveFickle(t)
		s, err := Open(Config{URL: scheme + "://" + f.addr, Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		err = s.Create(t.Context(), "s", "a", []byte("x"))
		f.mu.Lock()
		calls := f.calls
		f.mu.Unlock()
		if err == nil || calls != 1 {
			t.Errorf("%s: sent %d times, error %v", scheme, calls, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}
