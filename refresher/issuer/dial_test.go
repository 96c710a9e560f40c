package issuer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

// The check sits in the dialer, behind name resolution: nothing leaves.
func TestTheDialerRefusesTheMetadataService(t *testing.T) {
	c := &Client{InsecureHTTP: true}
	_, err := c.Prepare(context.Background(), &url.URL{Scheme: "http", Host: "169.254.169.254"})
	if !errors.Is(err, endpoint.ErrForbidden) {
		t.Fatalf("got %v", err)
	}
	_, err = (&Client{}).Prepare(context.Background(), &url.URL{Scheme: "http", Host: "203.0.113.7"})
	if !errors.Is(err, endpoint.ErrNotLoopback) {
		t.Fatalf("got %v", err)
	}
}

func TestAFailureBeforeTheRequestIsAnErrorOfPrepare(t *testing.T) {
	cert, roots := testCertificate(t)
	quiet := log.New(io.Discard, "", 0)
	server := func(t *testing.T, cfg *tls.Config) string {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			t.Error("a request arrived")
		}))
		srv.TLS, srv.Config.ErrorLog = cfg, quiet
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv.URL
	}
	t.Run("when the name does not resolve", func(t *testing.T) {
		b := newBearer(t, "https://issuer.example/")
		want := &net.DNSError{Err: "no such host", Name: "issuer.example", IsNotFound: true}
		b.client.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, want }
		_, err := b.Prepare(context.Background())
		if !errors.Is(err, want) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("when the connection is refused", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		if _, err := newBearer(t, "http://"+ln.Addr().String()).Prepare(context.Background()); err == nil {
			t.Error("it connected")
		}
	})
	t.Run("when the certificate is not trusted", func(t *testing.T) {
		_, err := newBearer(t, server(t, nil)).Prepare(context.Background())
		if e := (x509.UnknownAuthorityError{}); !errors.As(err, &e) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("when the certificate is for another host", func(t *testing.T) {
		_, err := newBearer(t, server(t, nil), func(c *BearerConfig) {
			c.TLS = &tls.Config{RootCAs: roots, ServerName: "other.test"}
		}).Prepare(context.Background())
		if e := (x509.HostnameError{}); !errors.As(err, &e) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("when the server speaks TLS 1.1 at most, whatever is configured", func(t *testing.T) {
		old := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
		_, err := newBearer(t, server(t, old), func(c *BearerConfig) {
			c.TLS = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS10}
		}).Prepare(context.Background())
		if err == nil {
			t.Error("it connected")
		}
	})
}

func TestOnlyHTTP1IsNegotiated(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			t.Errorf("the request came over %s", r.Proto)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, goodBody)
	}))
	srv.EnableHTTP2 = true
	srv.TLS = &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if !slices.Equal(hello.SupportedProtos, []string{"http/1.1"}) {
			t.Errorf("offered %q", hello.SupportedProtos)
		}
		return nil, nil
	}}
	srv.StartTLS()
	defer srv.Close()
	_, roots := testCertificate(t)
	cfg := &tls.Config{RootCAs: roots, NextProtos: []string{"h2"}}
	a := send(t, newBearer(t, srv.URL, func(c *BearerConfig) { c.TLS = cfg }))
	wantClass(t, a, refresher.ClassOK)
	if cfg.NextProtos[0] != "h2" || cfg.ServerName != "" {
		t.Error("the caller's configuration was changed")
	}
}

func TestProxiesInTheEnvironmentAreIgnored(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		t.Setenv(name, "http://proxy.example:3128")
	}
	for scheme, want := range map[string]string{"http": "issuer.example:80", "https": "issuer.example:443"} {
		var dialled string
		c := &Client{Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			dialled = address
			return nil, io.EOF
		}}
		if _, err := c.Prepare(context.Background(), &url.URL{Scheme: scheme, Host: "issuer.example"}); err == nil {
			t.Error("it connected")
		}
		if dialled != want {
			t.Errorf("%s: dialled %s, want %s", scheme, dialled, want)
		}
	}
}
