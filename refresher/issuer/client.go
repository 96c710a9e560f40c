package issuer

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

// DefaultTimeout bounds connecting and, separately, an exchange where the
// configuration names no other time.
const DefaultTimeout = 10 * time.Second

// Client makes connections that carry one HTTP/1.1 request each. It keeps no
// state between them and is safe for concurrent use. Proxies named in the
// environment are ignored: a token goes to the issuer and to nobody else. The
// zero value is ready for use.
type Client struct {
	// TLS configures https; nil takes the system's roots. TLS 1.2 is the lowest
	// version whatever stands here, and HTTP/1.1 the only protocol offered.
	TLS *tls.Config

	// Timeout bounds Prepare and, separately, Do; 0 is [DefaultTimeout].
	Timeout time.Duration

	// InsecureHTTP lets plain http leave the machine. Without it a plain
	// connection is made to loopback addresses only, whatever a name resolves to.
	InsecureHTTP bool

	// Dial replaces the TCP dialer, and with it the check of the resolved
	// address; nil dials.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Prepare resolves u's host, connects and completes the TLS handshake. Nothing
// of a request is sent. The URL's scheme is https or http; [Conn.Do] uses the
// rest of it. Link-local and cloud metadata addresses are refused.
func (c *Client) Prepare(ctx context.Context, u *url.URL) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	l, err := c.connect(ctx, u)
	if err != nil {
		return nil, err
	}
	return &Conn{client: c, url: u, link: l}, nil
}

func (c *Client) dial(ctx context.Context, u *url.URL) (net.Conn, error) {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	dial := c.Dial
	if dial == nil {
		dial = endpoint.Dialer(u, c.InsecureHTTP)
	}
	return dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
}

func (c *Client) timeout() time.Duration {
	if c.Timeout <= 0 {
		return DefaultTimeout
	}
	return c.Timeout
}

func (c *Client) connect(ctx context.Context, u *url.URL) (*link, error) {
	raw, err := c.dial(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", u.Host, err)
	}
	w := &wire{Conn: raw}
	if u.Scheme != "https" {
		return &link{wire: w, stream: w}, nil
	}
	stream := tls.Client(w, c.tlsConfig(u.Hostname()))
	if err := stream.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("tls handshake with %s: %w", u.Host, err)
	}
	return &link{wire: w, stream: stream}, nil
}

func (c *Client) tlsConfig(host string) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.TLS != nil {
		cfg = c.TLS.Clone()
		cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	cfg.NextProtos = []string{"http/1.1"}
	// The request in one record (up to 16 KiB), so that it leaves whole or not at
	// all: half a record cannot be decrypted, but the first of several can.
	cfg.DynamicRecordSizingDisabled = true
	return cfg
}
