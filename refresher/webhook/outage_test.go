package webhook

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// outage is what a receiver does while it is down.
var outages = map[string]func(r *http.Request) int{
	"answers 500": func(*http.Request) int { return http.StatusInternalServerError },
	"answers 429 with Retry-After, like a busy one": func(*http.Request) int { return http.StatusTooManyRequests },
	"redirects": func(*http.Request) int { return http.StatusFound },
	"hangs": func(r *http.Request) int {
		<-r.Context().Done()
		return http.StatusOK // that nobody reads
	},
}

func TestAReceiverThatIsDownLosesNothingAndGetsEachSessionInOrder(t *testing.T) {
	for name, down := range outages {
		for _, long := range []time.Duration{10 * time.Second, 3 * time.Hour} {
			t.Run(fmt.Sprintf("it %s for %v", name, long), func(t *testing.T) {
				dir := t.TempDir()
				synctest.Test(t, func(t *testing.T) { outage(t, dir, down, long) })
			})
		}
	}
}

func outage(t *testing.T, dir string, down func(*http.Request) int, long time.Duration) {
	begun := time.Now()
	box := &inbox{answer: func(r *http.Request, _ wireEvent) int {
		if time.Since(begun) < long {
			return down(r)
		}
		return http.StatusOK
	}}
	p, stop := servePipes(box)
	defer stop()
	o, err := Open(Config{Dir: dir, Keyring: testRing(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer closeNow(t, o)
	if err := o.Configure(testHook(t, HookConfig{URL: "http://localhost/", Dial: p.dial})); err != nil {
		t.Fatal(err)
	}
	const sessions, each = 6, 8
	want := map[string][]string{} // session -> ids
	for n := range each {
		for s := range sessions {
			ev := testEvent(fmt.Sprint("s", s))
			ev.UserID = ev.Session // so that the receiver can tell
			want[ev.Session] = append(want[ev.Session], ev.ID)
			announce(t, o, ev, nil)
		}
		time.Sleep(time.Duration(n) * 100 * time.Millisecond)
	}
	time.Sleep(long + longestPause + 2*DefaultTimeout)
	synctest.Wait()

	all, took := box.seen()
	got := map[string][]string{}
	known := map[string]bool{}
	for _, a := range took {
		if !known[a.event.ID] { // an answer that came too late is taken twice
			got[a.event.UserID] = append(got[a.event.UserID], a.event.ID)
		}
		known[a.event.ID] = true
	}
	for session, ids := range want {
		if fmt.Sprint(got[session]) != fmt.Sprint(ids) {
			t.Errorf("session %s got %v, want %v", session, got[session], ids)
		}
	}
	// A receiver that is down for long is asked at most a dozen times on the way
	// to the longest pause, then once in half of it.
	if most := sessions*each + 4*DefaultParallel + 12 + int(long/(longestPause/2)); len(all) > most {
		t.Errorf("it was asked %d times, want at most %d", len(all), most)
	}
	if s := o.Status()[0]; s.Pending != 0 || s.Failures != 0 || s.Delivered != sessions*each {
		t.Errorf("status %+v", s)
	}
}

func TestASessionWhoseEventIsRefusedDoesNotHoldUpTheOthers(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		box := &inbox{answer: func(_ *http.Request, ev wireEvent) int {
			if ev.UserID == "poison" {
				return http.StatusBadRequest
			}
			return http.StatusOK
		}}
		p, stop := servePipes(box)
		defer stop()
		o, err := Open(Config{Dir: dir, Keyring: testRing(t)})
		if err != nil {
			t.Fatal(err)
		}
		defer closeNow(t, o)
		if err := o.Configure(testHook(t, HookConfig{URL: "http://localhost/", Dial: p.dial})); err != nil {
			t.Fatal(err)
		}
		bad := testEvent("poison")
		bad.UserID = "poison"
		announce(t, o, bad, nil)
		after := testEvent("poison")
		announce(t, o, after, nil)
		const good = 50
		for i := range good {
			announce(t, o, testEvent(fmt.Sprint("s", i)), nil)
			time.Sleep(time.Second)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		_, took := box.seen()
		if len(took) != good {
			t.Errorf("%d events of others arrived, want %d", len(took), good)
		}
		for _, a := range took {
			if a.event.ID == after.ID {
				t.Error("an event came before the one that was refused")
			}
		}
	})
}

func TestOneSessionsEventsAreNotSentSideBySide(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		busy := make(chan struct{}, 1)
		box := &inbox{answer: func(*http.Request, wireEvent) int {
			select {
			case busy <- struct{}{}:
			default:
				return http.StatusConflict
			}
			time.Sleep(time.Second)
			<-busy
			return http.StatusOK
		}}
		p, stop := servePipes(box)
		defer stop()
		o, err := Open(Config{Dir: dir, Keyring: testRing(t)})
		if err != nil {
			t.Fatal(err)
		}
		defer closeNow(t, o)
		if err := o.Configure(testHook(t, HookConfig{URL: "http://localhost/", Dial: p.dial})); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			announce(t, o, testEvent("s"), nil)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if all, took := box.seen(); len(took) != 10 || len(all) != 10 {
			t.Errorf("sent %d, delivered %d, want 10", len(all), len(took))
		}
	})
}

func TestPausesGrowToTheirBoundAndDiffer(t *testing.T) {
	different := map[time.Duration]bool{}
	for n := 1; n < 100; n++ {
		d := pause(n, longestPause)
		full := min(firstPause<<min(n-1, doublingsAtMost), longestPause)
		if d < full/2 || d >= full {
			t.Fatalf("after %d failures: %v", n, d)
		}
		different[d] = true
	}
	if len(different) < 90 {
		t.Errorf("%d different pauses", len(different))
	}
}

func TestAReceiverIsNotAskedBeforeItsRetryAfterIsOver(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var asked []time.Time
		p, stop := servePipes(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked = append(asked, time.Now()) // one at a time
			if len(asked) == 1 {
				w.Header().Set("Retry-After", "120")
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}))
		defer stop()
		o, err := Open(Config{Dir: dir, Keyring: testRing(t)})
		if err != nil {
			t.Fatal(err)
		}
		defer closeNow(t, o)
		if err := o.Configure(testHook(t, HookConfig{URL: "http://localhost/", Dial: p.dial, Required: true})); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		announce(t, o, testEvent("s"), func() { close(done) })
		<-done
		if len(asked) != 2 || asked[1].Sub(asked[0]) < 2*time.Minute || asked[1].Sub(asked[0]) > 3*time.Minute {
			t.Errorf("asked at %v", asked)
		}
	})
}

func TestClosingLetsADeliveryEndAndInterruptsItWhenItsTimeIsOver(t *testing.T) {
	for name, test := range map[string]struct {
		patience, takes time.Duration
		left            int
	}{
		"it ends in time":    {5 * time.Second, 2 * time.Second, 0},
		"it is interrupted":  {time.Second, 8 * time.Second, 1},
		"there is none left": {0, 8 * time.Second, 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				p, stop := servePipes(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body) // before that a server does not see that its caller has gone
					select {
					case <-time.After(test.takes):
					case <-r.Context().Done():
					}
				}))
				defer stop()
				hook := testHook(t, HookConfig{URL: "http://localhost/", Dial: p.dial})
				o, err := Open(Config{Dir: dir, Keyring: testRing(t)})
				if err != nil {
					t.Fatal(err)
				}
				if err := o.Configure(hook); err != nil {
					t.Fatal(err)
				}
				announce(t, o, testEvent("s"), nil)
				announce(t, o, testEvent("another"), nil)
				synctest.Wait() // both are on their way
				begun := time.Now()
				ctx, cancel := context.WithTimeout(context.Background(), test.patience)
				defer cancel()
				if err := o.Close(ctx); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begun); took > max(test.patience, test.takes) || test.left > 0 && took > test.patience {
					t.Errorf("closing took %v", took)
				}
				again, err := Open(Config{Dir: dir, Keyring: testRing(t)})
				if err != nil {
					t.Fatal(err)
				}
				defer closeNow(t, again)
				left := 0
				for _, r := range again.receivers {
					left += len(r.entries)
				}
				if left != 2*test.left {
					t.Errorf("%d events are left", left)
				}
			})
		})
	}
}
