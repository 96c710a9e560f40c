package issuer

import (
	"errors"
	"net"
)

// link is one connection: the TCP connection, and the stream above it that
// carries HTTP (TLS, or the TCP connection itself).
type link struct {
	wire   *wire
	stream net.Conn
}

// wire is the TCP connection under TLS. While probing, Read takes what has
// arrived and never waits.
type wire struct {
	net.Conn
	probing bool
}

func (w *wire) Read(p []byte) (int, error) {
	if w.probing {
		return readNow(w.Conn, p)
	}
	return w.Conn.Read(p)
}

var errUnasked = errors.New("the issuer spoke before the request")

// probe reports why a connection that waited is of no use any more; nil if it
// is, as far as this end can know.
//
// It reads instead of peeking at the socket: with TLS 1.3 the session tickets
// that follow a handshake lie unread in the socket's buffer and hide from a
// peek the end of the stream behind them. They have to pass through TLS.
func (l *link) probe() error {
	l.wire.probing = true
	defer func() { l.wire.probing = false }()
	var b [1]byte
	n, err := l.stream.Read(b[:])
	switch {
	case n > 0:
		// A 408 for having been idle, say: the server is closing.
		return errUnasked
	case errors.Is(err, errNothingYet):
		return nil
	default:
		return err
	}
}

// refusedByTLS reports whether a probe's error is an alert other than
// close_notify. With TLS 1.3 the server's judgement of the client certificate
// arrives that way, after the handshake: a new connection would not change it.
func refusedByTLS(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// certificateRefused reports whether an error is an alert with which a server
// refuses the client's certificate. With TLS 1.3 it comes a round trip after the
// handshake is complete here, and nothing is read before it at the other end (RFC
// 8446 section 4.4.2.4). crypto/tls does not export its alerts.
func certificateRefused(err error) bool {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return false
	}
	switch op.Err.Error() {
	case "tls: certificate required", "tls: bad certificate", "tls: unsupported certificate", "tls: revoked certificate",
		"tls: expired certificate", "tls: unknown certificate", "tls: unknown certificate authority":
		return true
	}
	return false
}

// errNothingYet is temporary in the sense of [net.Error]: crypto/tls goes on
// after such a read error and gives up after any other.
var errNothingYet error = nothingYet{}

type nothingYet struct{}

func (nothingYet) Error() string   { return "nothing has arrived" }
func (nothingYet) Timeout() bool   { return true }
func (nothingYet) Temporary() bool { return true }
