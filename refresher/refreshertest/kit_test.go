package refreshertest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/refreshertest"
)

func TestANetworkServesUnderVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := refreshertest.NewNetwork()
		if _, err := n.Dial(t.Context(), "tcp", "a:80"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("nobody listens: %v", err)
		}
		slow := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(time.Hour)
			_, _ = io.WriteString(w, "done")
		})
		for range 2 { // the address is free again
			stop := n.Serve("a:80", slow)
			if _, err := n.Listen("a:80"); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("taken: %v", err)
			}
			client := &http.Client{Transport: &http.Transport{DialContext: n.Dial, DisableKeepAlives: true}}
			began := time.Now()
			resp, err := client.Get("http://a/")
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(text) != "done" || time.Since(began) != time.Hour {
				t.Errorf("%q, %v after %v", text, err, time.Since(began))
			}
			stop()
			stop()
		}
		l, err := n.Listen("b:80")
		if err != nil || l.Addr().String() != "b:80" || l.Addr().Network() != "pipe" {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Dial(ctx, "tcp", "b:80"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nobody accepts: %v", err)
		}
		l.Close()
	})
}

func TestAClockTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := refreshertest.NewClock()
		at := c.Now()
		moved := func(wall, boot time.Duration) {
			t.Helper()
			now := c.Now()
			if now.Wall.Sub(at.Wall) != wall || now.Boot-at.Boot != boot {
				t.Errorf("moved by %v and %v, want %v and %v", now.Wall.Sub(at.Wall), now.Boot-at.Boot, wall, boot)
			}
			at = now
		}
		time.Sleep(time.Second)
		moved(time.Second, time.Second)
		c.Suspend(time.Hour)
		moved(time.Hour, time.Hour)
		c.SetWall(-time.Minute)
		moved(-time.Minute, 0)
		id := c.BootID()
		c.Reboot("another")
		if c.BootID() == id || c.Now().Boot != 0 || !c.CountsSleep() {
			t.Error("it is the same boot")
		}
		c = refreshertest.NewSimpleClock()
		at = c.Now()
		c.Suspend(time.Hour)
		moved(time.Hour, 0)
		if c.CountsSleep() || c.BootID() != "" {
			t.Error("a simple clock knows of sleep")
		}
	})
}
