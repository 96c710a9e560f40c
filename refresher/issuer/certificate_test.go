package issuer

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"context"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// With TLS 1.3 a server refuses the client's certificate, or that there is none,
// when the handshake is complete on our side: a network away the refusal comes
// only when the request is on its way, and still the request was not read.
func TestARefusedClientCertificateHasSpentNothing(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the request was read") }))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.StartTLS()
	defer srv.Close()
	roots := srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	b := newBearer(t, srv.URL, func(c *BearerConfig) {
		c.TLS = &tls.Config{RootCAs: roots}
		c.Dial = func(_ context.Context, _, address string) (net.Conn, error) { return dialFarAway(t, address) }
	})
	a := send(t, b)
	wantClass(t, a, refresher.ClassNotSent)
}

// dialFarAway connects to an address that is some milliseconds away.
func dialFarAway(t *testing.T, address string) (net.Conn, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	middle, err := ln.Accept()
	if err != nil {
		return nil, err
	}
	far, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _, _ = middle.Close(), far.Close() })
	go delayed(far, middle)
	go delayed(middle, far)
	return near, nil
}

func delayed(to io.WriteCloser, from io.Reader) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		<-time.After(5 * time.Millisecond)
		if n > 0 {
			_, _ = to.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}
