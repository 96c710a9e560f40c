package issuer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// Conn is a connection made by [Client.Prepare], good for one request.
type Conn struct {
	client *Client
	url    *url.URL

	mu   sync.Mutex
	link *link // nil once closed
}

// Outcome is what became of a request. It does not print its contents.
type Outcome struct {
	// Written is how many bytes of the request reached the connection. With 0
	// nothing was sent; with more the issuer may have acted on it.
	Written int

	// SentAt is when the write began, ReceivedAt when the final answer's head
	// was complete; zero if it never was.
	SentAt, ReceivedAt time.Time

	Status int         // 0 without a complete head
	Header http.Header `json:"-"` // nil without a complete head

	// Body is the answer's body as far as it was read, at most
	// [refresher.MaxAnswer] bytes.
	Body refresher.Secret

	// BodyErr says why a complete answer's body cannot be used: it is too long,
	// or encoded.
	BodyErr error

	// Err says why there is no complete answer; nil if there is one.
	Err error
}

// Format implements [fmt.Formatter]: the head can hold cookies, the body tokens.
func (o Outcome) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "issuer.Outcome[written %d, status %d]", o.Written, o.Status)
}

var (
	errClosed = errors.New("the connection was closed before the request")
	errTime   = errors.New("the time for it was over")
)

// Do writes r once and reads the answer, then closes the connection. It never
// repeats and never follows. ctx's end and [Client.Timeout] bound all of it
// together, not each read.
//
// A connection that died while it waited is replaced once before anything is
// written; the new one may take half of the time, so that giving up early is not
// what loses the answer.
func (c *Conn) Do(ctx context.Context, r Request) Outcome {
	ctx, cancel := context.WithTimeout(ctx, c.client.timeout())
	defer cancel()
	defer c.Close()
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.Canceled) {
			c.Close()
			return
		}
		time.AfterFunc(2*lookTime, c.Close) // the connection's own deadline comes first
	})
	defer stop()

	msg, err := r.serialise(c.url)
	if err != nil {
		return Outcome{Err: err}
	}
	stream, err := c.live(ctx)
	if err == nil {
		err = ctx.Err() // the last look: from here on the token may be spent
	}
	if err != nil {
		return Outcome{Err: fault(ctx, err)}
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = stream.SetDeadline(deadline) // fails on a closed connection only, as Write then does
	}
	out := Outcome{SentAt: time.Now()}
	// TLS counts a record when all of it was handed over. Half a record counts
	// as nothing: its receiver cannot decrypt it.
	out.Written, err = stream.Write(msg)
	if err != nil {
		out.Err = fmt.Errorf("write the request: %w", fault(ctx, err))
		return out
	}
	readAnswer(&lastLook{conn: stream, ctx: ctx}, &out)
	if out.Status == 0 && certificateRefused(out.Err) {
		out.Written = 0 // the handshake failed at the other end: what was written is not read there
	}
	if out.Err != nil {
		out.Err = fault(ctx, out.Err)
	}
	return out
}

// lookTime is how long an answer is read on that has arrived by the time the
// process looks.
const lookTime = 50 * time.Millisecond

// lastLook reads for a moment more when its time has been over for a while: the
// process stood still, and what has arrived since is an answer. To throw it away
// would be to lose the session.
type lastLook struct {
	conn   net.Conn
	ctx    context.Context // of the exchange
	looked bool
}

func (l *lastLook) Read(p []byte) (int, error) {
	n, err := l.conn.Read(p)
	deadline, _ := l.ctx.Deadline()
	if n > 0 || l.looked || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(deadline) < lookTime {
		return n, err
	}
	l.looked = true
	_ = l.conn.SetReadDeadline(time.Now().Add(lookTime))
	return l.conn.Read(p)
}

// Close ends the connection; after [Conn.Do] it does nothing. It may be called
// at any time and from any goroutine.
func (c *Conn) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != nil {
		// Not TLS's Close: that one writes first, and can wait for it.
		_ = c.link.wire.Close()
		c.link = nil
	}
}

// live returns a connection that was alive a moment ago: the one there is, or
// else a new one.
func (c *Conn) live(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	l := c.link
	c.mu.Unlock()
	if l == nil {
		return nil, errClosed
	}
	dead := l.probe()
	if dead == nil {
		return l.stream, nil
	}
	if refusedByTLS(dead) {
		return nil, fmt.Errorf("tls connection to %s ended: %w", c.url.Host, dead)
	}
	deadline, _ := ctx.Deadline()
	half, cancel := context.WithTimeout(ctx, time.Until(deadline)/2)
	defer cancel()
	fresh, err := c.client.connect(half, c.url)
	if err != nil {
		return nil, err
	}
	_ = l.wire.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == nil {
		_ = fresh.wire.Close()
		return nil, errClosed
	}
	c.link = fresh
	return fresh.stream, nil
}

// fault tells the end of the time from a failure of the connection. The first
// shows as the second, since the connection is closed under the reader.
func fault(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("interrupted: %w", context.Canceled)
	case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", errTime, context.DeadlineExceeded)
	}
	return err
}
