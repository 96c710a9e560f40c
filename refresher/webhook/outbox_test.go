package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// deadHook is a hook whose receiver is down.
func deadHook(t *testing.T, cfg HookConfig) *Hook {
	t.Helper()
	srv := serve(t, http.NotFoundHandler())
	srv.Close()
	cfg.URL = srv.URL
	return testHook(t, cfg)
}

func TestAnEventIsSentAfterARestartUnderTheSameID(t *testing.T) {
	box := &inbox{answer: func(*http.Request, wireEvent) int { return http.StatusInternalServerError }}
	srv := serve(t, box)
	dir := t.TempDir()
	first := openTest(t, Config{Dir: dir}, testHook(t, HookConfig{URL: srv.URL}))
	ev := testEvent("s")
	announce(t, first, ev, nil)
	for all, _ := box.seen(); len(all) == 0; all, _ = box.seen() {
		time.Sleep(time.Millisecond)
	}
	closeNow(t, first)

	box.mu.Lock()
	box.answer = nil
	box.mu.Unlock()
	openTest(t, Config{Dir: dir}, testHook(t, HookConfig{URL: srv.URL}))
	if got := box.wait(t, 1)[0].event; got.ID != ev.ID || got.Token != newAccess {
		t.Errorf("got %v", got.ID)
	}
}

func TestNothingOnTheDiskIsReadable(t *testing.T) {
	dir := t.TempDir()
	o := openTest(t, Config{Dir: dir}, deadHook(t, HookConfig{}))
	announce(t, o, testEvent("s"), nil)
	data, err := os.ReadFile(filepath.Join(dir, logName))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("canary")) || len(data) == 0 {
		t.Errorf("%d bytes hold a token", len(data))
	}
	if info, _ := os.Stat(filepath.Join(dir, logName)); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestARequiredEventIsPendingUntilItsHooksHaveAnswered(t *testing.T) {
	gate := make(chan struct{})
	slow := &inbox{answer: func(*http.Request, wireEvent) int { <-gate; return http.StatusOK }}
	quick := new(inbox)
	required := testHook(t, HookConfig{URL: serve(t, slow).URL, Required: true})
	o := openTest(t, Config{Dir: t.TempDir()}, required, testHook(t, HookConfig{URL: serve(t, quick).URL}))

	ev := testEvent("s")
	done := make(chan struct{})
	if !announce(t, o, ev, func() { close(done) }) {
		t.Fatal("it is not pending")
	}
	quick.wait(t, 1)
	select {
	case <-done:
		t.Fatal("done before the required hook has answered")
	default:
	}
	again := make(chan struct{})
	if !announce(t, o, ev, func() { close(again) }) {
		t.Fatal("announced again, it is not pending")
	}
	close(gate)
	<-done
	<-again
	if announce(t, o, ev, func() { t.Error("done was called") }) {
		t.Error("what was delivered is pending")
	}
	if all, _ := slow.seen(); len(all) != 1 {
		t.Errorf("the event was sent %d times", len(all))
	}
}

func TestAfterARestartAnAnnouncementOfTheSameIDIsTheSameEvent(t *testing.T) {
	open := make(chan struct{})
	box := &inbox{answer: func(*http.Request, wireEvent) int {
		select {
		case <-open:
			return http.StatusOK
		default:
			return http.StatusServiceUnavailable
		}
	}}
	srv := serve(t, box)
	dir, ev := t.TempDir(), testEvent("s")
	cfg := HookConfig{URL: srv.URL, Required: true}
	first := openTest(t, Config{Dir: dir}, testHook(t, cfg))
	announce(t, first, ev, nil)
	closeNow(t, first)

	second := openTest(t, Config{Dir: dir}, testHook(t, cfg))
	done := make(chan struct{})
	if !announce(t, second, ev, func() { close(done) }) {
		t.Fatal("it is not pending")
	}
	if s := second.Status(); s[0].Pending != 1 {
		t.Errorf("%d events wait, want 1", s[0].Pending)
	}
	close(open)
	<-done
	closeNow(t, second)

	third := openTest(t, Config{Dir: dir}, testHook(t, cfg))
	if announce(t, third, ev, nil) {
		t.Error("what was delivered two processes ago is pending")
	}
	if _, took := box.seen(); len(took) != 1 {
		t.Errorf("it was delivered %d times", len(took))
	}
}

func TestAPairDoesNotWaitForAHookThatIsGoneOrNotRequiredAnyMore(t *testing.T) {
	for name, next := range map[string]func(h *Hook) []*Hook{
		"gone": func(*Hook) []*Hook { return nil },
		"not required": func(h *Hook) []*Hook {
			cfg := h.cfg
			cfg.Required = false
			again, _ := NewHook(cfg)
			return []*Hook{again}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := deadHook(t, HookConfig{Required: true})
			dir := t.TempDir()
			o := openTest(t, Config{Dir: dir}, h)
			done := make(chan struct{})
			if !announce(t, o, testEvent("s"), func() { close(done) }) {
				t.Fatal("it is not pending")
			}
			if err := o.Configure(next(h)...); err != nil {
				t.Fatal(err)
			}
			<-done
			closeNow(t, o)
			back := openTest(t, Config{Dir: dir}, h)
			if s := back.Status(); s[0].Pending != 1 {
				t.Errorf("the hook is back and finds %d events", s[0].Pending)
			}
		})
	}
}

func TestAFullOutboxRefusesAloudAndNeverWhatIsRequired(t *testing.T) {
	core, logs := observer.New(zap.ErrorLevel)
	plain, required := deadHook(t, HookConfig{}), deadHook(t, HookConfig{Required: true})
	o := openTest(t, Config{Dir: t.TempDir(), MaxEvents: 2, Logger: zap.New(core)}, plain, required)
	for range 2 {
		announce(t, o, testEvent("s"), nil)
	}
	ev := testEvent("s")
	pending, err := o.Announce(t.Context(), ev, nil)
	if !errors.Is(err, ErrFull) || !pending {
		t.Fatalf("got pending %v, %v", pending, err)
	}
	for _, s := range o.Status() {
		want, refused := 2, uint64(1)
		if s.Required {
			want, refused = 3, 0
		}
		if s.Pending != want || s.Refused != refused {
			t.Errorf("required %v: %d wait, %d refused", s.Required, s.Pending, s.Refused)
		}
	}
	found := logs.FilterField(zap.String("event", ev.ID)).FilterField(zap.Int("max_events", 2)).All()
	if len(found) != 1 {
		t.Errorf("the log tells of it %d times", len(found))
	}
}

func TestAFormerKeyOpensAndIsNotNeededLater(t *testing.T) {
	box := new(inbox)
	dead := deadHook(t, HookConfig{})
	dir := t.TempDir()
	ev := testEvent("s")
	first := openTest(t, Config{Dir: dir, Keyring: testRing(t, 1)}, dead)
	announce(t, first, ev, nil)
	closeNow(t, first)
	closeNow(t, openTest(t, Config{Dir: dir, Keyring: testRing(t, 2, 1)}, dead)) // seals anew

	third := openTest(t, Config{Dir: dir, Keyring: testRing(t, 2)}, dead)
	if err := third.Reseal(t.Context(), testRing(t, 3)); err != nil {
		t.Fatal(err)
	}
	closeNow(t, third)

	srv := serve(t, box)
	last := openTest(t, Config{Dir: dir, Keyring: testRing(t, 3)})
	cfg := dead.cfg
	cfg.Dial = dialTo(srv.Listener.Addr().String())
	if err := last.Configure(testHook(t, cfg)); err != nil {
		t.Fatal(err)
	}
	if got := box.wait(t, 1)[0].event.ID; got != ev.ID {
		t.Errorf("got %s", got)
	}
}

func TestAnEntryOfAMissingKeyWaitsAndIsReplacedByItsAnnouncement(t *testing.T) {
	dir := t.TempDir()
	ev := testEvent("s")
	first := openTest(t, Config{Dir: dir, Keyring: testRing(t, 1)}, deadHook(t, HookConfig{}))
	hook := first.receivers[onlyKey(first)].hook
	announce(t, first, ev, nil)
	closeNow(t, first)

	box := new(inbox)
	cfg := hook.cfg
	cfg.Required = true
	cfg.Dial = dialTo(serve(t, box).Listener.Addr().String())
	second := openTest(t, Config{Dir: dir, Keyring: testRing(t, 2)}, testHook(t, cfg))
	if s := second.Status(); s[0].Pending != 1 {
		t.Fatalf("%d events wait", s[0].Pending)
	}
	done := make(chan struct{})
	if !announce(t, second, ev, func() { close(done) }) {
		t.Fatal("it is not pending")
	}
	<-done
	if got := box.wait(t, 1); len(got) != 1 || got[0].event.ID != ev.ID {
		t.Errorf("got %d events", len(got))
	}
}

func TestDamageCostsOneEventAndIsKeptForAnalysis(t *testing.T) {
	dir := t.TempDir()
	first := openTest(t, Config{Dir: dir}, deadHook(t, HookConfig{}))
	hook := first.receivers[onlyKey(first)].hook
	for i := range 3 {
		announce(t, first, testEvent(fmt.Sprint("s", i)), nil)
	}
	closeNow(t, first)
	path := filepath.Join(dir, logName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 0xff
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.ErrorLevel)
	second := openTest(t, Config{Dir: dir, Logger: zap.New(core)}, hook)
	if s := second.Status(); s[0].Pending != 2 {
		t.Errorf("%d events wait, want 2", s[0].Pending)
	}
	kept, err := os.ReadFile(filepath.Join(dir, damagedName))
	if err != nil || !bytes.Equal(kept, data) || logs.Len() == 0 {
		t.Errorf("kept %d bytes (%v), %d lines in the log", len(kept), err, logs.Len())
	}
}

func TestASealedEventCannotBeMovedToAnotherSessionOrHook(t *testing.T) {
	ring := testRing(t)
	sealed := sealEntry(ring, "hook", "session", "id", []byte("text"))
	for name, e := range map[string]struct {
		hook string
		entry
	}{
		"another hook":    {"other", entry{session: "session", id: "id"}},
		"another session": {"hook", entry{session: "other", id: "id"}},
		"another id":      {"hook", entry{session: "session", id: "other"}},
	} {
		e.sealed = sealed
		if _, err := openEntry(ring, e.hook, &e.entry); !errors.Is(err, journal.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOneProcessHasTheOutbox(t *testing.T) {
	dir := t.TempDir()
	openTest(t, Config{Dir: dir})
	if _, err := Open(Config{Dir: dir, Keyring: testRing(t)}); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("got %v", err)
	}
}

func TestAClosedOutboxTakesNothing(t *testing.T) {
	o := openTest(t, Config{Dir: t.TempDir()})
	closeNow(t, o)
	if _, err := o.Announce(t.Context(), testEvent("s"), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestManyAnnounceAtOnce(t *testing.T) {
	box := new(inbox)
	o := openTest(t, Config{Dir: t.TempDir()}, testHook(t, HookConfig{URL: serve(t, box).URL, Required: true}))
	var wg sync.WaitGroup
	const sessions, each = 20, 5
	for s := range sessions {
		wg.Go(func() {
			for range each {
				ev, done := testEvent(fmt.Sprint("s", s)), make(chan struct{})
				for range 2 { // twice at once, now and then
					wg.Go(func() { _, _ = o.Announce(t.Context(), ev, nil) })
				}
				if pending, err := o.Announce(t.Context(), ev, func() { close(done) }); err != nil {
					t.Error(err)
				} else if pending {
					<-done
				}
			}
		})
	}
	wg.Wait()
	if _, took := box.seen(); len(took) != sessions*each {
		t.Errorf("delivered %d events, want %d", len(took), sessions*each)
	}
}

func onlyKey(o *Outbox) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	for key := range o.receivers {
		return key
	}
	return ""
}
