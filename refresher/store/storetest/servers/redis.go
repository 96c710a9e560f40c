//go:build unix

package servers

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// RedisOptions say how a Redis server runs; the zero value is a primary that
// writes nothing to disk.
type RedisOptions struct {
	AppendOnly bool     // write each command to disk before the answer
	Cluster    bool     // a cluster of this one node, which has all slots
	TLS        bool     // also listen with TLS, see [Redis.TLSAddr]
	ReplicaOf  *Redis   // copy another server
	Args       []string // further arguments, such as "--requirepass", "secret"
}

// Redis is a redis-server.
type Redis struct {
	*Process

	Addr    string      // host:port
	Socket  string      // path of its Unix socket
	TLSAddr string      // host:port with TLS
	TLS     *tls.Config // what a client needs to trust it
}

// StartRedis starts a Redis server that runs until the test ends.
func StartRedis(t testing.TB, o RedisOptions) *Redis {
	t.Helper()
	dir := shortDir(t)
	r := &Redis{Socket: filepath.Join(dir, "redis.sock")}
	var certs []string
	if o.TLS {
		r.TLS, certs = writeCertificate(t, dir)
	}
	r.Process = launch(t, "redis-server", func(p *Process) {
		port := ports(t, 3)
		r.Addr, r.TLSAddr = "127.0.0.1:"+port[0], "127.0.0.1:"+port[2]
		args := []string{
			"--port", port[0], "--bind", "127.0.0.1", "--dir", dir, "--unixsocket", r.Socket,
			"--save", "", "--appendonly", yes(o.AppendOnly), "--appendfsync", "always",
			"--repl-diskless-sync-delay", "0", "--shutdown-timeout", "0",
		}
		if o.ReplicaOf != nil {
			host, port, _ := net.SplitHostPort(o.ReplicaOf.Addr)
			args = append(args, "--replicaof", host+" "+port)
		}
		if o.Cluster {
			args = append(args, "--cluster-enabled", "yes", "--cluster-port", port[1], "--cluster-require-full-coverage", "no")
		}
		if o.TLS {
			args = append(append(args, "--tls-port", port[2], "--tls-auth-clients", "no"), certs...)
		}
		args = append(args, o.Args...)
		p.args = func() []string { return args }
		p.ready = func() error {
			answer, err := ask(r.Addr, "PING")
			if err == nil && !strings.HasPrefix(answer, "+PONG") && !strings.HasPrefix(answer, "-NOAUTH") {
				err = fmt.Errorf("it answers %q", answer)
			}
			return err
		}
	})
	if o.Cluster {
		r.Do(t, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
		r.Await(t, "cluster_state:ok", "CLUSTER", "INFO")
	}
	if o.ReplicaOf != nil {
		r.Await(t, "master_link_status:up", "INFO", "replication")
	}
	return r
}

// StartSentinel starts a Sentinel that watches a primary under a name and
// declares it down after half a second of silence.
func StartSentinel(t testing.TB, name string, primary *Redis) *Redis {
	t.Helper()
	dir := shortDir(t)
	r := &Redis{}
	host, port, _ := net.SplitHostPort(primary.Addr)
	r.Process = launch(t, "redis-server", func(p *Process) {
		own := ports(t, 1)[0]
		r.Addr = "127.0.0.1:" + own
		file := filepath.Join(dir, "sentinel.conf")
		text := fmt.Sprintf("port %s\nbind 127.0.0.1\ndir %s\nsentinel monitor %s %s %s 1\nsentinel down-after-milliseconds %s 500\nsentinel failover-timeout %s 5000\n",
			own, dir, name, host, port, name, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p.args = func() []string { return []string{file, "--sentinel"} }
		p.ready = func() error {
			_, err := ask(r.Addr, "PING")
			return err
		}
	})
	return r
}

// Do sends one command and returns the raw beginning of the answer. An error
// answer fails the test.
func (r *Redis) Do(t testing.TB, command ...string) string {
	t.Helper()
	answer, err := ask(r.Addr, command...)
	if err != nil || strings.HasPrefix(answer, "-") {
		t.Fatalf("%q: answer %q, error %v", command, answer, err)
	}
	return answer
}

// Await repeats a command until its answer holds text.
func (r *Redis) Await(t testing.TB, text string, command ...string) {
	t.Helper()
	for deadline := time.Now().Add(readyWait); ; time.Sleep(20 * time.Millisecond) {
		answer, err := ask(r.Addr, command...)
		if strings.Contains(answer, text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q: no %q, last answer %q, error %v", command, text, answer, err)
		}
	}
}

// ask sends one command on a connection of its own and returns the answer, of a
// long one the first line and text, not decoded further.
func ask(address string, command ...string) (string, error) {
	conn, err := dial(address)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(command))
	for _, word := range command {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(word), word)
	}
	if _, err := conn.Write([]byte(b.String())); err != nil {
		return "", err
	}
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	var size int
	if n, _ := fmt.Sscanf(line, "$%d", &size); n == 1 && size > 0 {
		text := make([]byte, size)
		for got := 0; got < size && err == nil; {
			var n int
			n, err = in.Read(text[got:])
			got += n
		}
		line += string(text)
	}
	return strings.TrimSpace(line), err
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// shortDir is a directory whose path is short enough for a Unix socket's, which
// that of t.TempDir is not.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "srv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
