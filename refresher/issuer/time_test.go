package issuer

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// overPipe returns a bearer issuer whose connections are pipes, served by serve:
// within synctest's bubble time is then the bubble's.
func overPipe(t *testing.T, timeout time.Duration, serve func(net.Conn)) *Bearer {
	t.Helper()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	b := newBearer(t, "http://127.0.0.1/refresh")
	b.client.Timeout = timeout
	b.client.Dial = func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		wg.Go(func() {
			defer far.Close()
			serve(far)
		})
		return near, nil
	}
	return b
}

// Each byte comes within any deadline per read; all of them never do.
func TestTheDeadlineIsForTheWholeExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := overPipe(t, 10*time.Second, func(conn net.Conn) {
			s := &rawServer{}
			if !s.readRequest(conn) {
				return
			}
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for range tick.C {
				if _, err := io.WriteString(conn, "H"); err != nil {
					return
				}
			}
		})
		ex := prepare(t, b)
		begin := time.Now()
		a := ex.Send(t.Context(), oldPair())
		wantClass(t, a, refresher.ClassUnknown)
		if !errors.Is(a.Err, context.DeadlineExceeded) {
			t.Errorf("error %v is not the deadline's", a.Err)
		}
		if d := time.Since(begin); d != 10*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func TestTheCallersDeadlineCountsWhereItIsEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ex := prepare(t, overPipe(t, 10*time.Second, untilClosed))
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		wantClass(t, ex.Send(ctx, oldPair()), refresher.ClassUnknown)
		if d := time.Since(begin); d != 3*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func TestCancellingEndsAnExchangeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ex := prepare(t, overPipe(t, 10*time.Second, untilClosed))
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		time.AfterFunc(2*time.Second, cancel)
		a := ex.Send(ctx, oldPair())
		wantClass(t, a, refresher.ClassUnknown)
		if !errors.Is(a.Err, context.Canceled) {
			t.Errorf("error %v is not the cancellation's", a.Err)
		}
		if d := time.Since(begin); d != 2*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

// A pipe holds no bytes: a server that does not read leaves the write at 0.
func TestAWriteThatGetsNowhereMeansNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		ex := prepare(t, overPipe(t, time.Second, func(net.Conn) { <-release }))
		wantClass(t, ex.Send(t.Context(), oldPair()), refresher.ClassNotSent)
		close(release)
	})
}

func TestAWriteThatBreaksOffMeansUnknown(t *testing.T) {
	b := overPipe(t, time.Second, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1))
	})
	wantClass(t, send(t, b), refresher.ClassUnknown)
}

// Before, the write raced with the closing of the connection and sometimes won;
// hence the repetition.
func TestAContextThatIsOverSendsNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b := overPipe(t, time.Second, untilClosed)
	for range 50 {
		a := prepare(t, b).Send(ctx, oldPair())
		wantClass(t, a, refresher.ClassNotSent)
		if !errors.Is(a.Err, context.Canceled) {
			t.Fatalf("error %v is not the cancellation's", a.Err)
		}
	}
}

func TestConnectingHasItsOwnDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Client{Timeout: 4 * time.Second, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		begin := time.Now()
		_, err := c.Prepare(t.Context(), &url.URL{Scheme: "https", Host: "issuer.example"})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 4*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}

func TestAHandshakeThatHangsHasTheSameDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := overPipe(t, 4*time.Second, untilClosed)
		b.url.Scheme = "https"
		begin := time.Now()
		_, err := b.Prepare(t.Context())
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 4*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}
