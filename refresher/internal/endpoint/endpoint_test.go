package endpoint

import (
	"errors"
	"testing"
)

func TestWhichAddressesAreDialled(t *testing.T) {
	tests := []struct {
		name, address string
		any           error // where plain http may leave the machine, and with https
		plain         error // plain http
	}{
		{"a public address", "203.0.113.7:443", nil, ErrNotLoopback},
		{"a private address", "10.0.0.1:443", nil, ErrNotLoopback},
		{"a public IPv6 address", "[2001:db8::1]:443", nil, ErrNotLoopback},
		{"loopback", "127.0.0.53:80", nil, nil},
		{"IPv6 loopback", "[::1]:80", nil, nil},
		{"IPv4 loopback in IPv6 form", "[::ffff:127.0.0.1]:80", nil, nil},
		{"the metadata service", "169.254.169.254:80", ErrForbidden, ErrForbidden},
		{"the metadata service in IPv6 form", "[::ffff:169.254.169.254]:80", ErrForbidden, ErrForbidden},
		{"the metadata service of EC2", "[fd00:ec2::254]:80", ErrForbidden, ErrForbidden},
		{"its neighbour", "[fd00:ec2::255]:80", nil, ErrNotLoopback},
		{"link-local", "169.254.0.1:80", ErrForbidden, ErrForbidden},
		{"link-local IPv6", "[fe80::1]:80", ErrForbidden, ErrForbidden},
		{"link-local IPv6 with a zone", "[fe80::1%eth0]:80", ErrForbidden, ErrForbidden},
		{"the end of link-local IPv6", "[febf::1]:80", ErrForbidden, ErrForbidden},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := check(tt.address, false); !errors.Is(err, tt.any) {
				t.Errorf("any: %v, want %v", err, tt.any)
			}
			if err := check(tt.address, true); !errors.Is(err, tt.plain) {
				t.Errorf("plain: %v, want %v", err, tt.plain)
			}
		})
	}
	if check("nonsense", false) == nil {
		t.Error("an address that cannot be read is dialled")
	}
}
