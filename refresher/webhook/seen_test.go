package webhook

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func receivedAt(id string, at time.Time) Received {
	return Received{Kind: KindRevokedUser, ID: id, CreateInstant: at}
}

func TestEachEventPassesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSeen(SeenConfig{})
		now := time.Now()
		expect := func(ev Received, want Verdict) {
			t.Helper()
			if got := s.Admit(ev); got != want {
				t.Errorf("%v: %s, want %s", ev, got, want)
			}
		}
		expect(receivedAt("a", now), VerdictNew)
		expect(receivedAt("a", now), VerdictRepeated)
		expect(receivedAt("a", now.Add(time.Minute)), VerdictRepeated) // the id counts, whatever else it says
		expect(receivedAt("future", now.Add(5*time.Minute)), VerdictNew)
		expect(receivedAt("far future", now.Add(5*time.Minute+time.Second)), VerdictStale)
		expect(receivedAt("past", now.Add(-5*time.Minute)), VerdictNew)
		expect(receivedAt("far past", now.Add(-5*time.Minute-time.Second)), VerdictStale)
		expect(Received{Kind: KindIgnored}, VerdictRepeated)

		time.Sleep(4 * time.Minute)
		expect(receivedAt("a", now), VerdictRepeated)
		time.Sleep(2 * time.Minute)
		expect(receivedAt("a", now), VerdictStale)
		expect(receivedAt("future", now.Add(5*time.Minute)), VerdictRepeated)
		time.Sleep(5 * time.Minute)
		expect(receivedAt("future", now.Add(5*time.Minute)), VerdictStale)
		expect(receivedAt("b", time.Now()), VerdictNew)
		if s.row.Len() != 1 || len(s.ids) != 1 {
			t.Errorf("%d ids are kept", s.row.Len())
		}
	})
}

func TestAWiderWindowTakesWhatIsDeliveredLate(t *testing.T) {
	s := NewSeen(SeenConfig{Window: 24 * time.Hour})
	if got := s.Admit(receivedAt("a", time.Now().Add(-23*time.Hour))); got != VerdictNew {
		t.Error(got)
	}
}

func TestAnEventThatCouldNotBeActedOnPassesAgain(t *testing.T) {
	s := NewSeen(SeenConfig{})
	ev := receivedAt("a", time.Now())
	s.Admit(ev)
	s.Forget("a")
	s.Forget("never seen")
	if got := s.Admit(ev); got != VerdictNew {
		t.Error(got)
	}
}

// Memory is bounded, and still no id passes twice: what was forgotten is stale.
func TestWhatWasForgottenForWantOfRoomDoesNotPassAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const capacity, many = 10, 100
		s := NewSeen(SeenConfig{Capacity: capacity})
		var all []Received
		for i := range many {
			ev := receivedAt(fmt.Sprint(i), time.Now())
			all = append(all, ev)
			if got := s.Admit(ev); got != VerdictNew {
				t.Fatalf("event %d: %s", i, got)
			}
			time.Sleep(time.Millisecond)
		}
		if s.row.Len() > capacity {
			t.Errorf("%d ids are kept", s.row.Len())
		}
		for i, ev := range all {
			if got := s.Admit(ev); got == VerdictNew {
				t.Errorf("event %d passed again", i)
			}
		}
	})
}
