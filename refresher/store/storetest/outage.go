package storetest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// Eventually waits until something holds.
func Eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never holds that %s", what)
		}
	}
}

// Works reports whether a store answers.
func Works(s refresher.Store) func() bool {
	return func() bool {
		_, err := s.List(context.Background(), "s")
		return err == nil
	}
}

// WantFailures calls every method and wants errors that say something, and not
// the word "canary", which a test's password holds.
func WantFailures(t *testing.T, s refresher.Store, says string) {
	t.Helper()
	ctx := t.Context()
	_, errList := s.List(ctx, "s")
	_, errGet := s.Get(ctx, "s", "a")
	_, errLock := s.Lock(ctx, "s")
	for what, err := range map[string]error{
		"List": errList, "Get": errGet, "Lock": errLock,
		"Create": s.Create(ctx, "s", "a", nil), "Delete": s.Delete(ctx, "s", "a"),
	} {
		if err == nil || !strings.Contains(err.Error(), says) || errors.Is(err, refresher.ErrNotStored) || errors.Is(err, refresher.ErrStored) {
			t.Errorf("%s: %v, want that it says %q", what, err, says)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: the error tells the password: %v", what, err)
		}
	}
}
