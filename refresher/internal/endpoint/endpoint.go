// Package endpoint is about the servers that secrets are sent to or keys come
// from: which URLs name one, and which addresses are dialled for it.
package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
)

// Parse reads an endpoint's URL: https, or http to this machine, or http
// anywhere where insecure allows it. Its errors do not repeat the URL: a secret
// could stand in it.
func Parse(text string, insecure bool) (*url.URL, error) {
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
		return nil, errors.New("the URL holds a user name, which would show in logs")
	case u.Fragment != "" || strings.HasSuffix(text, "#"):
		return nil, errors.New("the URL has a fragment, which is never sent")
	case u.Hostname() == "":
		return nil, errors.New("the URL has no host")
	case !HostSafe(u.Host):
		return nil, errors.New("the URL's host holds characters that no host name has (international names in their xn-- form)")
	case !portValid(u):
		return nil, errors.New("the URL's port is not one")
	case u.Scheme == "http" && !insecure && !Loopback(u.Hostname()):
		return nil, fmt.Errorf("%s: plain http would send tokens readable over the network", u.Host)
	}
	return u, nil
}

func portValid(u *url.URL) bool {
	if strings.HasSuffix(u.Host, ":") {
		return false
	}
	if u.Port() == "" {
		return true
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && n > 0
}

// Loopback reports whether a host is this machine by its name alone.
func Loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// HostSafe reports whether text looks like a host with or without a port.
func HostSafe(text string) bool {
	for i := range len(text) {
		switch c := text[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte(".-_:[]", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// forbidden are addresses at which no endpoint lives but machines' secrets do:
// link-local ones (cloud metadata services) and the IPv6 one of EC2.
var forbidden = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("fd00:ec2::254/128"),
}

// Why an address is not dialled.
var (
	ErrForbidden   = errors.New("link-local and metadata addresses are not dialled")
	ErrNotLoopback = errors.New("plain http is for loopback addresses only")
)

// DialFunc is that of [net.Dialer.DialContext].
type DialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// Dialer dials for u. With plain http that insecure does not allow it stays on
// this machine, whatever the name resolves to.
func Dialer(u *url.URL, insecure bool) DialFunc {
	loopbackOnly := u.Scheme == "http" && !insecure
	d := net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		return check(address, loopbackOnly)
	}}
	return d.DialContext
}

// check judges the address that is about to be dialled. It sees what the name
// resolved to this time, so a name cannot pass a check as one address and then
// be dialled as another (DNS rebinding).
func check(address string, loopbackOnly bool) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("unexpected address: %w", err)
	}
	// A prefix never contains an address with a zone, nor an IPv4 address in
	// its IPv6 form: both are taken off first.
	ip := ap.Addr().Unmap().WithZone("")
	for _, p := range forbidden {
		if p.Contains(ip) {
			return ErrForbidden
		}
	}
	if loopbackOnly && !ip.IsLoopback() {
		return ErrNotLoopback
	}
	return nil
}
