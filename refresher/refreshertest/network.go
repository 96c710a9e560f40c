package refreshertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"
)

// Network connects by address, with [net.Pipe] in place of sockets. An address
// at which nobody listens refuses. Make it with [NewNetwork].
//
// A pipe has no buffer: a write waits for its reader. What would lie in a
// socket's buffer on a real network is therefore not yet written here.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*listener // by address
}

// NewNetwork returns a network without listeners.
func NewNetwork() *Network { return &Network{listeners: make(map[string]*listener)} }

// Dial connects to address ("host:port", compared as text). It has the form of
// [net.Dialer.DialContext].
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	refused := &net.OpError{Op: "dial", Net: network, Addr: addr(address), Err: syscall.ECONNREFUSED}
	if l == nil {
		return nil, refused
	}
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.closed:
		return nil, refused
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: network, Addr: addr(address), Err: ctx.Err()}
	}
}

// Listen takes connections for address until the listener is closed.
func (n *Network) Listen(address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, syscall.EADDRINUSE)
	}
	l := &listener{network: n, address: addr(address), conns: make(chan net.Conn), closed: make(chan struct{})}
	n.listeners[address] = l
	return l, nil
}

// Serve runs an HTTP/1.1 server at address. stop ends it with its connections,
// and returns when the server has; a second server may then take the address. It
// panics where the address is taken, which is a mistake of the test.
func (n *Network) Serve(address string, handler http.Handler) (stop func()) {
	l, err := n.Listen(address)
	if err != nil {
		panic(err)
	}
	server := &http.Server{Handler: handler} //nolint:gosec // timeouts are the test's business
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			panic(err)
		}
	}()
	return sync.OnceFunc(func() {
		_ = server.Close()
		<-done
	})
}

type listener struct {
	network *Network
	address addr
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

// Accept implements [net.Listener].
func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener]; the address is free again.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		delete(l.network.listeners, string(l.address))
		l.network.mu.Unlock()
		close(l.closed)
	})
	return nil
}

// Addr implements [net.Listener].
func (l *listener) Addr() net.Addr { return l.address }

type addr string

func (addr) Network() string  { return "pipe" }
func (a addr) String() string { return string(a) }
