package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

const (
	userAgent      = "caddy-token-refresh"
	maxAnswerHead  = 32 << 10
	idleConnection = 90 * time.Second
)

// newClient makes a client for the one host of u: HTTP/1.1, TLS 1.2 or newer, no
// redirects (a body with tokens goes to whom it was addressed), no cookies, no
// proxy whatever the environment says.
func newClient(u *url.URL, cfg *tls.Config, insecure bool, dial endpoint.DialFunc) *http.Client {
	secure := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg != nil {
		secure = cfg.Clone()
		secure.MinVersion = max(secure.MinVersion, tls.VersionTLS12)
	}
	secure.NextProtos = []string{"http/1.1"}
	if dial == nil {
		dial = endpoint.Dialer(u, insecure)
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            dial,
			TLSClientConfig:        secure,
			TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{}, // no HTTP/2
			DisableCompression:     true,
			MaxIdleConnsPerHost:    8,
			IdleConnTimeout:        idleConnection,
			MaxResponseHeaderBytes: maxAnswerHead,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// wireFault keeps errors that name addresses or certificates at most.
// net/http's own quote what they could not read, and that can be an echoed
// token; its [url.Error] repeats the URL.
func wireFault(err error) error {
	var (
		op      *net.OpError
		cert    *tls.CertificateVerificationError
		alert   tls.AlertError
		timeout net.Error
	)
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted: %w", context.Canceled)
	case errors.As(err, &timeout) && timeout.Timeout():
		return errors.New("no complete answer in time")
	case errors.As(err, &op):
		return op
	case errors.As(err, &cert):
		return cert
	case errors.As(err, &alert):
		return alert
	}
	return errors.New("the connection ended, or the answer is not HTTP/1.1")
}
