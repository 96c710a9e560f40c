package refresher

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

func FuzzReadTimes(f *testing.F) {
	f.Add(sampleToken)
	for _, claims := range []string{`{"exp":1740000000}`, `{"exp":1e300}`, `{"exp":"5","iat":-1}`, `[]`, `{"exp":1,"exp":2}`} {
		f.Add(jwtText(`{"alg":"none"}`, claims))
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := readTimes(NewSecret(text))
		for _, at := range []time.Time{got.expires, got.issued} {
			if !at.IsZero() && (at.Unix() <= 0 || at.Year() > 9999) {
				t.Errorf("%v from %q", at, text)
			}
		}
		if !got.issued.IsZero() && !got.expires.After(got.issued) {
			t.Errorf("ends at %v before it begins at %v", got.expires, got.issued)
		}
		left, known := measure(Pair{Access: NewSecret(text)}, planNow, 0, 0)
		if known && left > maxLifetime {
			t.Errorf("lives for %v", left)
		}
		plan(Policy{}, Profile{}, planNow, left, known, 0.5)
	})
}

// What ParsePair accepts, encoding/json reads likewise, as far as names go that
// are spelled exactly.
func FuzzParsePair(f *testing.F) {
	for _, s := range []string{
		`{"accessToken":"a","refreshToken":"r"}`, `{"access_token":"a","refresh_token":"r","expires_in":3600}`,
		`{"token":"a","refreshToken":null,"expiresIn":"60"}`, `{"accessToken":"a","accessToken":"b"}`,
		`{"AccessToken":"a","token":"b"}`, `{"token":"\u0061\ud800"}`, `{"token":"a"} {}`, `{"token":"a","x":[1,{"token":"b"},]}`,
		`{"token":"a","expires_in":1e300}`, `{"token":"a\u0000"}`, "\xef\xbb\xbf{}", `{"token":"a","x":[[[[[[[[[]]]]]]]]]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := ParsePair(body, DefaultFields())
		if err != nil {
			if !p.Access.IsZero() || !p.Refresh.IsZero() {
				t.Errorf("a pair beside the error %v", err)
			}
			return
		}
		var all map[string]json.RawMessage
		if err := json.Unmarshal(body, &all); err != nil {
			t.Fatalf("accepted, but encoding/json says %v: %q", err, body)
		}
		first := func(names []string) string {
			for _, name := range names {
				var s *string
				if json.Unmarshal(all[name], &s) == nil && s != nil {
					return *s
				}
			}
			return ""
		}
		fields := DefaultFields()
		if got, want := p.Access.Reveal(), first(fields.Access); got != want || got == "" {
			t.Errorf("access token %q, encoding/json reads %q", got, want)
		}
		if got, want := p.Refresh.Reveal(), first(fields.Refresh); got != want {
			t.Errorf("refresh token %q, encoding/json reads %q", got, want)
		}
		if strings.ContainsAny(p.Access.Reveal(), "\r\n ,\"") || len(p.Access.Reveal()) > MaxAccessToken || len(p.Refresh.Reveal()) > MaxRefreshToken {
			t.Errorf("no header can carry %q", p.Access.Reveal())
		}
		if p.ExpiresIn != 0 && (p.ExpiresIn < time.Second || p.ExpiresIn > maxLifetime) {
			t.Errorf("expires in %v", p.ExpiresIn)
		}
	})
}

// A sealed record that was changed anywhere never opens.
func FuzzRecordOpen(f *testing.F) {
	ring, err := journal.NewKeyring(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		f.Fatal(err)
	}
	v := vault{ring: ring, name: "billing"}
	whole, err := v.seal(&record{Epoch: 1, Generation: 2, Access: "a", Refresh: "r", Spent: []tokenHash{1, 1 << 63}, HashKey: []byte("hash key")})
	if err != nil {
		f.Fatal(err)
	}
	if rec, err := v.open(whole); err != nil || rec.Refresh != "r" || rec.Spent[1] != 1<<63 || string(rec.HashKey) != "hash key" {
		f.Fatalf("%+v, %v", rec, err)
	}
	if _, err := (vault{ring: ring, name: "other"}).open(whole); err == nil {
		f.Fatal("opened as another session's")
	}
	// The sealed text differs from one process to the next: what is done to it is
	// the input.
	f.Add(0, byte(0), 0, []byte(nil))
	f.Add(40, byte(1), 0, []byte(nil))
	f.Add(0, byte(0), 1, []byte("x"))
	f.Fuzz(func(t *testing.T, at int, flip byte, cut int, tail []byte) {
		text := slices.Clone(whole[:len(whole)-min(max(cut, 0), len(whole))])
		text = append(text, tail...)
		if at >= 0 && at < len(text) {
			text[at] ^= flip
		}
		rec, err := v.open(text)
		if err == nil != bytes.Equal(text, whole) {
			t.Errorf("%+v, %v", rec, err)
		}
		if err != nil && rec != nil {
			t.Error("a record beside an error")
		}
		if rec, err := v.open(tail); err == nil {
			t.Errorf("opened: %+v", rec)
		}
	})
}

// TestARecordCutOrFlippedNeverOpens goes through all of what the fuzzer samples.
func TestARecordCutOrFlippedNeverOpens(t *testing.T) {
	ring, err := journal.NewKeyring(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	v := vault{ring: ring, name: "billing"}
	whole, err := v.seal(&record{Access: "a", Refresh: "r", HashKey: []byte("k")})
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		if _, err := v.open(whole[:i]); err == nil {
			t.Fatalf("cut to %d bytes: opened", i)
		}
		changed := slices.Clone(whole)
		changed[i] ^= 1
		if _, err := v.open(changed); err == nil {
			t.Fatalf("byte %d changed: opened", i)
		}
	}
	if _, err := v.open(ring.Seal(v.aad(), v.name, []byte(`{"access":"a"}`))); err == nil {
		t.Error("a record without its hash key opened")
	}
	if _, err := v.open(ring.Seal(v.aad(), v.name, []byte(`{"spent":["!"]}`))); err == nil {
		t.Error("a record that is not one opened")
	}
}

// FuzzStep feeds random events, also ones that cannot come, and holds what must
// be true after every step.
func FuzzStep(f *testing.F) {
	f.Add([]byte{0}, uint8(0))
	f.Add([]byte{0, 10, 3, 9, 1, 2, 4, 4, 5, 4, 20, 7}, uint8(1))
	f.Add([]byte{31, 17, 31, 66, 31, 31, 28, 60, 92, 124, 156, 31, 188, 31, 12, 31}, uint8(64))
	f.Add([]byte("a longer one, that goes through more of it, perhaps \x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c"), uint8(7))
	f.Fuzz(runScript)
}

// TestRandomEvents is a little of FuzzStep at each run of the tests.
func TestRandomEvents(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	script := make([]byte, 300)
	runs := 1000
	if RaceDetector {
		runs /= 5
	}
	for range runs {
		for i := range script {
			script[i] = byte(rng.Uint32())
		}
		runScript(t, script, uint8(rng.Uint32()))
	}
}

func runScript(t *testing.T, script []byte, kind uint8) {
	profiles := []Profile{strict, lenient, {RevokesPrevious: true, ReuseInterval: 5 * time.Second}, {NeedsAccess: true, AcceptsExpired: true, HoldOff: time.Second}}
	lives := []time.Duration{2 * time.Second, time.Minute, time.Hour, 0}
	r := unopenedRig(t, profiles[kind%4], lives[kind/4%4], func(r *rig) {
		r.conf.signsIn = kind&128 != 0
		r.conf.store = uint64(kind >> 6 & 1)
	})
	r.step(evOpened{})
	inv := invariants{saved: map[uint64]record{}}
	for _, b := range script {
		before, done := r.state, len(r.all)
		r.fuzzed(b&31, time.Duration(b>>5))
		inv.check(t, before, r, r.all[done:])
		r.all = r.all[max(0, len(r.all)-50):]
	}
}

// fuzzed is one step of a script.
func (r *rig) fuzzed(what byte, arg time.Duration) {
	id := r.state.attempt.id
	switch what {
	case 0:
		r.pass(arg * 100 * time.Millisecond)
	case 1:
		r.pass(arg * 10 * time.Second)
	case 2:
		r.pass(arg * 10 * time.Minute)
	case 3:
		r.now.Wall = r.now.Wall.Add((arg - 3) * time.Hour)
		r.step(evTick{})
	case 4, 5:
		if r.state.writing {
			r.step(evSaved{version: r.writing()})
		}
	case 6:
		if r.state.writing {
			r.step(evSaved{version: r.writing(), err: errTest})
		}
	case 7, 8:
		r.step(evPrepared{attempt: id, conn: rigConn{r}})
	case 9:
		r.step(evPrepared{attempt: id - uint64(arg&1), err: errTest})
	case 10, 11:
		r.step(evDrained{attempt: id})
	case 12, 13:
		r.step(evAnswer{r.ok()})
	case 14, 15:
		a := failure(Class(2+arg), 400)
		a.RetryAfter = arg * time.Second
		r.step(evAnswer{a})
	case 16, 17:
		r.step(evSeed{seed{pair: r.pair(), source: "file"}})
	case 18:
		r.step(evFetched{seed{pair: r.pair(), source: "login", signsIn: true}})
	case 19:
		r.step(evSeed{seed{pair: Pair{Access: NewSecret("x"), Refresh: NewSecret("refresh-1")}, source: "import", reply: make(chan error, 1)}})
	case 20:
		r.step(evNoSeed{signIn: arg&1 == 0, err: &RetryError{Err: errTest, Slow: arg&2 == 0}})
	case 21:
		r.step(evRefresh{reply: make(chan error, 1)})
	case 22, 23:
		r.step(evAccepted{epoch: r.state.rec.Epoch, generation: r.state.rec.Generation})
	case 24, 25:
		r.step(evUnauthorized{
			epoch: r.state.rec.Epoch, generation: r.state.rec.Generation - uint64(arg&1), route: "GET /", again: arg&2 != 0,
			reply: make(chan verdict, 1),
		})
	case 26:
		c := r.conf
		c.running = arg&1 == 0
		c.policy.RefreshPercent = float64(arg) * 15
		r.step(c)
	case 27:
		if arg == 7 {
			r.step(evClose{})
		}
	case 28, 29:
		r.fuzzedFleet(arg)
	default: // straight on
		if r.state.fleet.on {
			r.lists()
			r.shares(nil)
			r.asks()
		}
		if r.state.stage == stagePreparing {
			r.step(evPrepared{attempt: id, conn: rigConn{r}})
		}
		if r.state.stage == stageDraining {
			r.step(evDrained{attempt: id})
		}
		r.saved(nil)
		if r.state.stage == stagePosting {
			r.intends()
		}
	}
}

// fuzzedFleet is a step of a script that is about the store.
func (r *rig) fuzzedFleet(arg time.Duration) {
	next := r.successor()
	switch arg {
	case 0:
		r.lists()
	case 1:
		r.lists(r.foreign())
	case 2:
		r.lists(next.position().name())
	case 3:
		r.step(evIntended{name: r.state.fleet.owned, at: r.now, names: r.names(r.foreign())})
	case 4:
		r.asks(r.foreign())
	case 5:
		r.step(evRead{name: r.state.fleet.reading, rec: next})
	case 6:
		r.step(evAsked{at: r.now, err: errTest})
		r.step(evIntended{name: r.state.fleet.owned, at: r.now, err: errTest})
	default:
		r.shares(ErrStored)
		r.step(evEnd{reply: make(chan error, 1)})
	}
}

type invariants struct {
	saved map[uint64]record // what was asked to be written, by version
}

func (inv *invariants) check(t *testing.T, before state, r *rig, effects []any) {
	t.Helper()
	s := r.state
	if s.rec.Epoch < before.rec.Epoch || s.rec.Epoch == before.rec.Epoch && s.rec.Generation < before.rec.Generation {
		t.Fatalf("from %d.%d back to %d.%d", before.rec.Epoch, before.rec.Generation, s.rec.Epoch, s.rec.Generation)
	}
	if s.attempt.id > before.attempt.id && before.stage != stageIdle && before.stage != stageCommitting && r.state.stage != stagePreparing && !s.fleet.on {
		t.Fatalf("attempt %d begins in stage %d of %d", s.attempt.id, before.stage, before.attempt.id)
	}
	if s.attempt.gated && s.stage == stageIdle {
		t.Fatal("at rest, with the gate closed")
	}
	if s.stage == stageIdle && len(s.waiting) > 0 && !s.fleet.on {
		t.Fatal("at rest, and a caller of Refresh still waits")
	}
	for _, e := range effects {
		switch e := e.(type) {
		case effSave:
			inv.saved[e.version] = e.rec
		case effSend:
			rec, ok := inv.saved[s.attempt.saving]
			if !s.attempt.unsaved && (!ok || s.saved < s.attempt.saving || rec.Intent == nil && s.saved == s.attempt.saving) {
				t.Fatalf("sent without an intent in the journal (saved %d, wanted %d)", s.saved, s.attempt.saving)
			}
			if s.rec.Intent == nil {
				t.Fatal("sent without an intent")
			}
			if before.stage == stageSending {
				t.Fatal("sent twice")
			}
			if s.fleet.on && (s.fleet.owned == "" || s.fleet.stored != s.rec.position()) {
				t.Fatalf("sent without an intent in the store, or of a pair that is not there: owned %q, stored %v, here %v", s.fleet.owned, s.fleet.stored, s.rec.position())
			}
		case effPublish:
			if e.view.mode == modeReady && (!s.rec.hasPair() || s.rec.Lost != "" || e.token.IsZero()) {
				t.Fatalf("ready without a pair: %+v", e.view)
			}
		case effWake:
			if e.at.Sub(r.now) > 10*time.Second {
				t.Fatalf("no tick for %v", e.at.Sub(r.now))
			}
		}
	}
}
