package issuer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"syscall"
)

// forbidden are addresses at which no issuer lives but machines' secrets do:
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

func (c *Client) dial(ctx context.Context, u *url.URL) (net.Conn, error) {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	address := net.JoinHostPort(u.Hostname(), port)
	if c.Dial != nil {
		return c.Dial(ctx, "tcp", address)
	}
	loopbackOnly := u.Scheme == "http" && !c.InsecureHTTP
	d := net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		return checkAddress(address, loopbackOnly)
	}}
	return d.DialContext(ctx, "tcp", address)
}

// checkAddress judges the address that is about to be dialled. It sees what the
// name resolved to this time, so a name cannot pass a check as one address and
// then be dialled as another (DNS rebinding).
func checkAddress(address string, loopbackOnly bool) error {
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
}
