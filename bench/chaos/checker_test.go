package chaos

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// zero is when all histories here begin; at is so many seconds later.
var zero = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds float64) time.Time {
	return zero.Add(time.Duration(seconds * float64(time.Second)))
}

// exchange is a line of the ledger: session s1's generation goes over to the
// next.
func exchange(seconds float64, generation int, delivered bool) sandbox.Entry {
	return sandbox.Entry{Session: "s1", Generation: generation, Issued: generation + 1, At: at(seconds), CommittedAt: at(seconds), Delivered: delivered, Status: 200}
}

func reuse(seconds float64, generation int) sandbox.Entry {
	return sandbox.Entry{Session: "s1", Generation: generation, At: at(seconds), Reuse: true, Status: 400}
}

func request(seconds float64, who, result string, generation int) Event {
	return Event{T: at(seconds + 0.1), Began: at(seconds), Who: who, Run: 1, Op: OpRequest, Kind: "get", Result: result, Session: "s1", Generation: generation}
}

func did(seconds float64, who string, op Op, result string) Event {
	return Event{T: at(seconds), Who: who, Op: op, Result: result}
}

func of(seconds float64, who string, op Op, epoch, generation int, result string) Event {
	return Event{T: at(seconds), Who: who, Op: op, Epoch: epoch, Generation: generation, Result: result}
}

// named tells which session the first epoch is.
var named = []Event{
	{T: at(0), Op: OpPair, Session: "s1", Fingerprint: "aa"},
	{T: at(0), Who: "i1", Op: OpStatus, Epoch: 1, Generation: 1, Result: "fresh", Fingerprint: "aa"},
}

func TestTheCheckerSees(t *testing.T) {
	rules := Rules{Recovery: 5 * time.Second}
	killed := append([]Event{did(1, "", OpFault, "")}, did(2.1, "i1", OpKill, "W4"))
	tests := []struct {
		name   string
		events []Event
		ledger []sandbox.Entry
		rules  Rules
		want   string // the beginning of a problem; empty: there is none
	}{
		{name: "nothing wrong", events: []Event{request(1, "i1", "200", 1), of(2, "i1", OpRotated, 1, 2, ""), request(3, "i2", "200", 2)},
			ledger: []sandbox.Entry{exchange(2, 1, true)}},
		{name: "a spent token presented", ledger: []sandbox.Entry{exchange(2, 1, true), reuse(4, 1)}, want: "I1"},
		{name: "a spent token presented whose successor another holds", events: []Event{of(2.1, "i1", OpRotated, 1, 2, "")},
			ledger: []sandbox.Entry{exchange(2, 1, false), reuse(9, 1)}, want: "I1"},
		{name: "a spent token presented that nobody could know to be spent", ledger: []sandbox.Entry{exchange(2, 1, false), reuse(9, 1)}},
		{name: "a spent token presented where the issuer forgives", rules: Rules{Forgiving: true},
			ledger: []sandbox.Entry{exchange(2, 1, true), {Session: "s1", Generation: 1, Issued: 2, At: at(3), Reuse: true, Status: 200}}},
		{name: "one where it forgives no longer", rules: Rules{Forgiving: true}, ledger: []sandbox.Entry{exchange(2, 1, true), reuse(60, 1)}, want: "I1"},
		{name: "two exchanges of one generation", ledger: []sandbox.Entry{exchange(2, 1, true), exchange(3, 1, true)}, want: "I2"},
		{name: "a generation that went back", events: []Event{request(1, "i1", "200", 3), request(2, "i1", "200", 2)}, want: "I3"},
		{name: "two generations at once", events: []Event{request(1, "i1", "200", 3), request(1.05, "i1", "200", 2), request(1, "i2", "200", 2)}},
		{name: "a generation that went back over a restart", events: []Event{request(1, "i1", "200", 3),
			{T: at(2.1), Began: at(2), Who: "i1", Run: 2, Op: OpRequest, Result: "200", Session: "s1", Generation: 2}}},
		{name: "a refusal while nothing was wrong", events: []Event{request(1, "i1", "401", 0)}, want: "I4"},
		{name: "a failure while nothing was wrong", events: []Event{request(1, "i1", "error", 0)}, want: "I4"},
		{name: "a refusal during a fault", events: []Event{did(1, "", OpFault, ""), request(2, "i1", "401", 0), did(3, "", OpCalm, ""), did(4, "", OpRecovered, "")}},
		{name: "a refusal after it", events: []Event{did(1, "", OpFault, ""), did(3, "", OpCalm, ""), did(4, "", OpRecovered, ""), request(5, "i1", "401", 0)}, want: "I4"},
		{name: "a refusal during a fault that nobody may notice", rules: Rules{Undisturbed: true},
			events: []Event{did(1, "", OpFault, ""), request(2, "i1", "503", 0)}, want: "I4"},
		{name: "a loss without an exchange", events: append(killed, of(5, "i2", OpLost, 1, 1, "two_generals")), want: "I6"},
		{name: "a loss whose answer had arrived", events: []Event{of(5, "i2", OpLost, 1, 1, "two_generals")},
			ledger: []sandbox.Entry{exchange(2, 1, true)}, want: "I6"},
		{name: "a loss whose answer never arrived", events: []Event{of(5, "i2", OpLost, 1, 1, "two_generals")}, ledger: []sandbox.Entry{exchange(2, 1, false)}},
		{name: "that loss by another name", events: []Event{of(5, "i2", OpLost, 1, 1, "rejected")}, ledger: []sandbox.Entry{exchange(2, 1, false)}, want: "I7"},
		{name: "a loss whose receiver was killed", events: append(killed, of(5, "i2", OpLost, 1, 1, "two_generals")), ledger: []sandbox.Entry{exchange(2, 1, true)}},
		{name: "a loss whose receiver was killed with the pair on disk, and came back",
			events: []Event{did(2.1, "i1", OpKill, "W5"), did(3, "i1", OpStart, ""), of(6, "i2", OpLost, 1, 1, "two_generals")},
			ledger: []sandbox.Entry{exchange(2, 1, true)}, want: "I6"},
		{name: "a loss whose receiver was frozen all the time", ledger: []sandbox.Entry{exchange(2, 1, true)},
			events: []Event{did(1.9, "i1", OpPause, ""), of(8, "i2", OpLost, 1, 1, "two_generals"), did(9, "i1", OpResume, "")}},
		{name: "a loss whose receiver was cut off all the time", ledger: []sandbox.Entry{exchange(2, 1, false)},
			events: []Event{did(1.9, "i1", OpCut, "store"), of(2.1, "i1", OpRotated, 1, 2, ""), of(8, "i2", OpLost, 1, 1, "two_generals")}},
		{name: "a loss whose receiver was cut off and came back", ledger: []sandbox.Entry{exchange(2, 1, false)},
			events: []Event{did(1.9, "i1", OpCut, "store"), of(2.1, "i1", OpRotated, 1, 2, ""), did(4, "i1", OpHeal, "store"), of(8, "i2", OpLost, 1, 1, "two_generals")},
			want:   "I6"},
		{name: "any loss where the issuer forgives", rules: Rules{Forgiving: true}, ledger: []sandbox.Entry{exchange(2, 1, false)},
			events: []Event{of(8, "i2", OpLost, 1, 1, "two_generals")}, want: "I6"},
		{name: "an epoch that was given up without a word", events: []Event{of(2, "i1", OpStarted, 2, 1, "")}, want: "I6"},
		{name: "a slow recovery", events: []Event{did(1, "", OpCalm, ""), did(8, "", OpRecovered, "")}, want: "I9"},
		{name: "a recovery with a login", rules: Rules{Login: 5 * time.Second}, ledger: []sandbox.Entry{exchange(2, 1, false)},
			events: []Event{did(1, "", OpFault, ""), did(3, "", OpCalm, ""), of(5, "i2", OpLost, 1, 1, "two_generals"), did(11, "", OpRecovered, "")}},
		{name: "no recovery", events: []Event{did(1, "", OpCalm, "")}, want: "I9"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := test.rules
			r.Recovery = rules.Recovery
			got := Check(append(append([]Event(nil), named...), test.events...), test.ledger, r).Problems
			switch {
			case test.want == "" && len(got) > 0:
				t.Errorf("it complains: %q", got)
			case test.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], test.want+":")):
				t.Errorf("problems %q, want one of %s", got, test.want)
			}
		})
	}
}

func TestAHistoryIsWrittenLineByLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.jsonl")
	h, err := NewHistory(path)
	if err != nil {
		t.Fatal(err)
	}
	h.Add(request(1, "i1", "200", 3))
	h.Add(Event{Op: OpCalm})
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	var back Event
	if len(lines) != 2 || json.Unmarshal([]byte(lines[0]), &back) != nil || back != h.Events()[0] {
		t.Errorf("the file holds %s", text)
	}
	if h.Events()[1].T.IsZero() {
		t.Error("an event has no time")
	}
}
