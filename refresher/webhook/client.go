package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
)

const (
	userAgent      = "caddy-token-refresh"
	maxAnswerHead  = 32 << 10
	idleConnection = 90 * time.Second
)

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// newClient makes a client for the one host of u: HTTP/1.1, TLS 1.2 or newer, no
// redirects (a body with tokens goes to whom it was addressed), no cookies, no
// proxy whatever the environment says.
func newClient(u *url.URL, cfg *tls.Config, insecure bool, dial dialer) *http.Client {
	secure := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg != nil {
		secure = cfg.Clone()
		secure.MinVersion = max(secure.MinVersion, tls.VersionTLS12)
	}
	secure.NextProtos = []string{"http/1.1"}
	if dial == nil {
		dial = carefulDialer(u.Scheme == "http" && !insecure)
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

// forbidden are addresses at which no receiver lives but machines' secrets do:
// link-local ones (cloud metadata services) and the IPv6 one of EC2.
var forbidden = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("fd00:ec2::254/128"),
}

var (
	errForbiddenAddress = errors.New("link-local and metadata addresses are not dialled")
	errNotLoopback      = errors.New("plain http is for loopback addresses only")
)

// carefulDialer looks at what a name has resolved to this time, so that a name
// cannot pass a check as one address and be dialled as another.
func carefulDialer(loopbackOnly bool) dialer {
	d := net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("unexpected address: %w", err)
		}
		// A prefix never contains an address with a zone, nor an IPv4 address in
		// its IPv6 form: both are taken off first.
		ip := ap.Addr().Unmap().WithZone("")
		for _, p := range forbidden {
			if p.Contains(ip) {
				return errForbiddenAddress
			}
		}
		if loopbackOnly && !ip.IsLoopback() {
			return errNotLoopback
		}
		return nil
	}}
	return d.DialContext
}

// checkURL reads the URL of something that secrets are sent to or keys come
// from: https, or http to this machine, or http anywhere where insecure allows
// it. Its errors do not repeat the URL: a secret could stand in it.
func checkURL(text string, insecure bool) (*url.URL, error) {
	if text == "" {
		return nil, errors.New("the URL is missing")
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("the URL cannot be read")
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("the URL must begin with https://")
	case u.User != nil:
		return nil, errors.New("the URL holds a user name, which would show in logs: use basic_auth")
	case u.Fragment != "" || strings.HasSuffix(text, "#"):
		return nil, errors.New("the URL has a fragment, which is never sent")
	case u.Hostname() == "" || strings.HasSuffix(u.Host, ":"):
		return nil, errors.New("the URL has no host, or no port after its colon")
	case u.Scheme == "http" && !insecure && !loopback(u.Hostname()):
		return nil, fmt.Errorf("%s: plain http would send tokens readable over the network", u.Host)
	}
	return u, nil
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
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
