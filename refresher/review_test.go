package refresher

import (
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// A 401 that came before an exchange was sent, and may have caused it, was taken
// for proof that it had been committed.
func TestA401FromBeforeAnExchangeIsNoProofThatItWasCommitted(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	reply := make(chan verdict, 1)
	early := evUnauthorized{epoch: 1, generation: 1, at: r.now, route: "GET /a", reply: reply}
	r.step(early)
	r.pass(time.Second)
	r.exchange(failure(ClassUnknown, 0))
	r.wantPhase(PhaseUncertain)
	r.step(early) // the same one, asked about again
	r.wantPhase(PhaseUncertain)
	if v := need[effVerdict](r).verdict; v != verdictAgain {
		t.Errorf("verdict %d", v)
	}
	r.pass(time.Second)
	r.step(evUnauthorized{epoch: 1, generation: 1, at: r.now, route: "GET /a"})
	r.wantLost(ReasonTwoGenerals)
}

// A session that was closed right after its first configuration kept its lock:
// no other one of that name could be opened until the process ended.
func TestASessionThatIsClosedAtOnceLetsGoOfItsLock(t *testing.T) {
	keys, err := journal.NewKeyring(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for range 50 {
		s := New("quick", Options{Dir: dir})
		detach, err := s.Attach(Config{Issuer: profileOnly{}, Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		detach()
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		lock, err := journal.TryLock(dir, "quick")
		if err != nil {
			t.Fatal(err)
		}
		if err := lock.Unlock(); err != nil {
			t.Fatal(err)
		}
	}
}

type profileOnly struct{ Issuer }

func (profileOnly) Profile() Profile { return Profile{NeedsAccess: true} }

// A machine may start with a clock that is behind; the schedule of a stored pair
// was never put right when the clock was.
func TestAClockThatIsSetAfterTheStartPutsTheScheduleRight(t *testing.T) {
	r := unopenedRig(t, strict, 24*time.Hour)
	r.step(evOpened{rec: &record{
		Epoch: 1, Generation: 4, Access: "a", Refresh: "b",
		Received: r.now.Wall.Add(-time.Hour), BootID: "another boot", Expires: true, Left: 24 * time.Hour,
	}})
	before := r.state.sched.notAfter
	r.now.Wall = r.now.Wall.Add(8 * time.Hour)
	r.step(evTick{})
	if moved := before.Boot - r.state.sched.notAfter.Boot; moved != 8*time.Hour {
		t.Errorf("the end came %v nearer, want 8h", moved)
	}
	r.now.Wall = r.now.Wall.Add(48 * time.Hour) // a wrong one must not end the session
	r.step(evTick{})
	if r.state.rec.Lost != "" || r.state.stage != stagePreparing {
		t.Errorf("lost %q, stage %d: want one early exchange", r.state.rec.Lost, r.state.stage)
	}
}

// A longer wait took effect with the next rotation only.
func TestANewConfigurationsWaitCountsAtOnce(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	conf := r.conf
	conf.policy.Wait = time.Minute
	r.step(conf)
	if got := need[effPublish](r).view.wait; got != time.Minute {
		t.Errorf("requests wait %v", got)
	}
}

func TestSourcesThatChangedAreAskedInTheirOrder(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	r.step(evLook{})
	if got := need[effFetch](r); !got.lying || got.signIn {
		t.Errorf("asked %+v", got)
	}
	r.step(evLook{}) // while the first is under way
	for _, e := range r.last {
		if _, ok := e.(effFetch); ok {
			t.Error("asked twice at once")
		}
	}
	r.step(evNoSeed{err: ErrNoPair})
	need[effFetch](r)
}

// A key that was corrected by a reload did not help before the next start.
func TestACorrectedKeyOpensTheJournal(t *testing.T) {
	ring := func(first byte) *journal.Keyring {
		keys, err := journal.NewKeyring(append([]byte{first}, make([]byte, 31)...))
		if err != nil {
			t.Fatal(err)
		}
		return keys
	}
	dir := t.TempDir()
	attach := func(s *Session, keys *journal.Keyring) {
		if _, err := s.Attach(Config{Issuer: profileOnly{}, Keys: keys}); err != nil {
			t.Fatal(err)
		}
	}
	first := New("keys", Options{Dir: dir})
	attach(first, ring(1))
	if err := first.Import(t.Context(), Pair{Access: NewSecret("a"), Refresh: NewSecret("r"), ExpiresIn: time.Hour}, "import"); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := New("keys", Options{Dir: dir})
	defer s.Close(t.Context())
	attach(s, ring(2))
	if _, err := s.Enter(t.Context(), true); err == nil {
		t.Fatal("the wrong key opened the journal")
	}
	attach(s, ring(1))
	if err := s.Import(t.Context(), Pair{Access: NewSecret("a"), Refresh: NewSecret("r")}, "import"); err != nil { // the one in use: no change
		t.Fatal(err)
	}
	p, err := s.Enter(t.Context(), true)
	if err != nil || p.Token() != "a" {
		t.Fatalf("with the right key: %v", err)
	}
	p.Settle()
}
