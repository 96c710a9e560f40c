package issuer

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Tokens as the tests send and receive them. They are long and odd enough that
// finding one in a text is no accident.
const (
	oldAccess  = "canary-old-access-Zk3"
	oldRefresh = "canary-old-refresh-Qp7"
	newAccess  = "canary-new-access-Xw9"
	newRefresh = "canary-new-refresh-Lm5"

	goodHead = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
	goodBody = `{"accessToken":"` + newAccess + `","refreshToken":"` + newRefresh + `"}`
)

func oldPair() refresher.Pair {
	return refresher.Pair{Access: refresher.NewSecret(oldAccess), Refresh: refresher.NewSecret(oldRefresh)}
}

// rawServer is an issuer on a TCP listener that may misbehave in any way.
type rawServer struct {
	listener net.Listener
	requests atomic.Int32 // requests read to their end
}

// serveRaw calls serve for each connection (counted from 1) and closes it when
// serve returns. At the test's end it closes all and waits.
func serveRaw(t *testing.T, serve func(s *rawServer, conn net.Conn, nth int)) *rawServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &rawServer{listener: ln}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns []net.Conn
	)
	wg.Go(func() {
		for nth := 1; ; nth++ {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				serve(s, conn, nth)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s
}

func (s *rawServer) url() string {
	return "http://" + s.listener.Addr().String() + "/User/RefreshToken"
}

// readRequest reads one request to its end and counts it.
func (s *rawServer) readRequest(conn net.Conn) bool {
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return false
	}
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		return false
	}
	s.requests.Add(1)
	return true
}

// untilClosed holds a connection open until the other end closes it.
func untilClosed(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

func newBearer(t *testing.T, url string, change ...func(*BearerConfig)) *Bearer {
	t.Helper()
	cfg := BearerConfig{URL: url, Profile: refresher.Profile{Timeout: 5 * time.Second}}
	for _, f := range change {
		f(&cfg)
	}
	b, err := NewBearer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// prepare connects, or fails the test.
func prepare(t *testing.T, b *Bearer) refresher.Exchange {
	t.Helper()
	ex, err := b.Prepare(context.Background())
	if err != nil {
		t.Fatalf("prepare: %v", err)
	}
	t.Cleanup(ex.Close)
	return ex
}

func send(t *testing.T, b *Bearer) refresher.Answer {
	t.Helper()
	return prepare(t, b).Send(context.Background(), oldPair())
}

func wantClass(t *testing.T, a refresher.Answer, want refresher.Class) {
	t.Helper()
	if a.Class != want {
		t.Fatalf("class %v, want %v (error: %v)", a.Class, want, a.Err)
	}
	if (a.Err == nil) != (want == refresher.ClassOK) {
		t.Fatalf("class %v with error %v", a.Class, a.Err)
	}
}

func wantNewPair(t *testing.T, p refresher.Pair) {
	t.Helper()
	if p.Access.Reveal() != newAccess || p.Refresh.Reveal() != newRefresh {
		t.Fatalf("got the pair %q, %q", p.Access.Reveal(), p.Refresh.Reveal())
	}
}
