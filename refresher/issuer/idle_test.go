package issuer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// testCertificate borrows httptest's, which is valid for example.com and
// 127.0.0.1.
func testCertificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	return srv.TLS.Certificates[0], pool
}

func needsProbe(t *testing.T) {
	t.Helper()
	if runtime.GOOS == "windows" || runtime.GOOS == "plan9" {
		t.Skip("no read without waiting here: see probe_other.go")
	}
}

// Between Prepare and Send the gate is closed and drained, and servers close
// idle connections. Whatever is noticed before the first byte costs nothing.
func TestAConnectionThatDiedWhileItWaited(t *testing.T) {
	needsProbe(t)
	cert, roots := testCertificate(t)
	secure := func(max uint16) func(net.Conn) net.Conn {
		return func(conn net.Conn) net.Conn {
			return tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: max})
		}
	}
	plain := func(conn net.Conn) net.Conn { return conn }
	tests := []struct {
		name    string
		layer   func(net.Conn) net.Conn
		unasked string
	}{
		{name: "is replaced once over plain http", layer: plain},
		{name: "is replaced once where the server said 408 first", layer: plain, unasked: "HTTP/1.1 408 Request Timeout\r\n\r\n"},
		{name: "is replaced once over TLS 1.2", layer: secure(tls.VersionTLS12)},
		// The session tickets lie before the end of the stream: a peek at the
		// socket sees data and takes the connection for alive.
		{name: "is replaced once over TLS 1.3", layer: secure(tls.VersionTLS13)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			idle := make(chan struct{})
			s := serveRaw(t, func(s *rawServer, raw net.Conn, nth int) {
				conn := tt.layer(raw)
				if nth == 1 {
					if c, ok := conn.(*tls.Conn); ok {
						_ = c.Handshake()
					}
					_, _ = io.WriteString(conn, tt.unasked)
					conn.Close()
					close(idle)
					return
				}
				if s.readRequest(conn) {
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"+goodBody)
					conn.Close()
				}
			})
			url := s.url()
			if _, ok := tt.layer(nil).(*tls.Conn); ok {
				url = strings.Replace(url, "http:", "https:", 1)
			}
			ex := prepare(t, newBearer(t, url, func(c *BearerConfig) { c.TLS = &tls.Config{RootCAs: roots} }))
			<-idle
			a := ex.Send(context.Background(), oldPair())
			wantClass(t, a, refresher.ClassOK)
			wantNewPair(t, a.Pair)
			if n := s.requests.Load(); n != 1 {
				t.Errorf("the server saw %d requests", n)
			}
		})
	}
}

func TestAReplacementThatCannotBeMadeMeansNotSent(t *testing.T) {
	needsProbe(t)
	idle := make(chan struct{})
	s := serveRaw(t, func(s *rawServer, conn net.Conn, _ int) {
		s.listener.Close()
		conn.Close()
		close(idle)
	})
	ex := prepare(t, newBearer(t, s.url()))
	<-idle
	wantClass(t, ex.Send(context.Background(), oldPair()), refresher.ClassNotSent)
}

// A redial that took all of the time would leave none for the answer, and giving
// up on an answer is what loses a session.
func TestAReplacementMayTakeHalfOfTheTime(t *testing.T) {
	needsProbe(t)
	idle := make(chan struct{})
	s := serveRaw(t, func(_ *rawServer, conn net.Conn, _ int) {
		conn.Close()
		close(idle)
	})
	b := newBearer(t, s.url())
	ex := prepare(t, b)
	<-idle
	var left time.Duration
	b.client.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return nil, io.EOF
	}
	wantClass(t, ex.Send(context.Background(), oldPair()), refresher.ClassNotSent)
	if left <= 0 || left > b.profile.Timeout/2 {
		t.Errorf("the redial had %v of %v", left, b.profile.Timeout)
	}
}

func TestAReplacementThatComesAfterCloseIsNotUsed(t *testing.T) {
	needsProbe(t)
	idle := make(chan struct{})
	s := serveRaw(t, func(_ *rawServer, conn net.Conn, _ int) {
		conn.Close()
		close(idle)
	})
	b := newBearer(t, s.url())
	ex := prepare(t, b)
	<-idle
	near, far := net.Pipe()
	b.client.Dial = func(context.Context, string, string) (net.Conn, error) {
		ex.Close()
		return near, nil
	}
	wantClass(t, ex.Send(context.Background(), oldPair()), refresher.ClassNotSent)
	_ = far.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the replacement was left open: %v", err)
	}
}

// The replacement may die as well, but only after the request was written; then
// nothing is known and nothing is repeated.
func TestAServerThatClosesEveryConnectionIsDialledTwice(t *testing.T) {
	needsProbe(t)
	closed := make(chan int, 8)
	s := serveRaw(t, func(_ *rawServer, conn net.Conn, nth int) {
		if nth > 1 {
			_, _ = conn.Read(make([]byte, 1))
		}
		conn.Close()
		closed <- nth
	})
	ex := prepare(t, newBearer(t, s.url()))
	<-closed
	wantClass(t, ex.Send(context.Background(), oldPair()), refresher.ClassUnknown)
	if nth := <-closed; nth != 2 || len(closed) != 0 {
		t.Errorf("connection %d was the last, and %d more", nth, len(closed))
	}
}

// With TLS 1.3 a client learns after its handshake that its certificate was
// refused. That is no idle connection: another one would fare the same.
func TestARefusedClientCertificateMeansNotSent(t *testing.T) {
	needsProbe(t)
	cert, roots := testCertificate(t)
	refused := make(chan error, 8)
	s := serveRaw(t, func(_ *rawServer, conn net.Conn, _ int) {
		refused <- tls.Server(conn, &tls.Config{
			Certificates: []tls.Certificate{cert},
			ClientAuth:   tls.RequireAnyClientCert,
		}).Handshake()
	})
	ex := prepare(t, newBearer(t, strings.Replace(s.url(), "http:", "https:", 1), func(c *BearerConfig) {
		c.TLS = &tls.Config{RootCAs: roots}
	}))
	if err := <-refused; err == nil {
		t.Fatal("the server did not refuse")
	}
	a := ex.Send(context.Background(), oldPair())
	wantClass(t, a, refresher.ClassNotSent)
	if !strings.Contains(a.Err.Error(), "certificate required") {
		t.Errorf("error %q does not tell why", a.Err)
	}
	if len(refused) != 0 {
		t.Error("it dialled again")
	}
}

func TestAProbeLeavesALivingConnectionAsItWas(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	w := &wire{Conn: client}
	l := &link{wire: w, stream: w}
	if err := l.probe(); err != nil {
		t.Fatalf("probe of a pipe: %v", err)
	}
	if w.probing {
		t.Fatal("it would never wait again")
	}
	var nerr net.Error
	if !errors.As(errNothingYet, &nerr) || !nerr.Timeout() || errNothingYet.Error() == "" {
		t.Fatal("crypto/tls would take it for final")
	}
}
