//go:build failpoint && unix

package failpoint

import (
	"testing"
	"time"
)

func TestARuleIsParsed(t *testing.T) {
	parsed, err := parse("W4:kill@3,W3:sleep:5ms,W6:stop%0.25")
	if err != nil || len(parsed) != 3 {
		t.Fatalf("%d rules, error %v", len(parsed), err)
	}
	if r := parsed["W4"]; r.nth != 3 || r.chance != 1 {
		t.Errorf("W4: %+v", r)
	}
	if r := parsed["W6"]; r.nth != 0 || r.chance != 0.25 {
		t.Errorf("W6: %+v", r)
	}
	for _, bad := range []string{"W1", "W1:jump", "W1:sleep", "W1:sleep:x", "W1:kill@x", "W1:kill%x"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestAPointActsWhenItIsItsTurn(t *testing.T) {
	acted := 0
	r := &rule{act: func() { acted++ }, nth: 2, chance: 1, text: "W1:test"}
	for range 3 {
		r.reach()
	}
	if acted != 1 {
		t.Errorf("acted %d times", acted)
	}
	r = &rule{act: func() { acted++ }, chance: 0}
	r.reach()
	if acted != 1 {
		t.Error("acted without a chance")
	}
	parsed, _ := parse("W1:sleep:20ms")
	began := time.Now()
	parsed["W1"].reach()
	if time.Since(began) < 20*time.Millisecond {
		t.Error("did not sleep")
	}
}
