package refresher

import (
	"errors"
	"testing"
	"time"
)

// last is the newest effect of a kind so far.
func last[T any](r *rig) (found T) {
	for _, e := range r.all {
		if e, is := e.(T); is {
			found = e
		}
	}
	return found
}

func TestAStoreThatIsAddedDoesNotMakeAnAttemptForgotten(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	r.exchange(failure(ClassUnknown, 0))
	if r.state.rec.Intent == nil {
		t.Fatal("no intent")
	}
	r.conf.store = 7
	r.step(r.conf)
	r.step(evAsked{at: r.now})
	r.step(evNoSeed{err: ErrNoPair})
	sh := last[effShare](r)
	r.step(evShared{at: sh.at})
	r.pass(6 * time.Second)
	r.step(evAsked{at: r.now, names: append([]string{sh.at.name()}, sh.before...)})
	if r.state.rec.Intent == nil {
		t.Error("the uncertain intent was forgotten although it was never in a store")
	}
	r.pass(31 * time.Second)
}

func TestARestorationThatFailsIsRepeatedWithItsMarks(t *testing.T) {
	r := fleetRig(t, strict, time.Hour)
	foreign := r.foreign()
	r.pass(6 * time.Second)
	r.lists(foreign)
	r.pass(time.Second)
	r.all = nil
	r.step(evAsked{at: r.now}) // wiped
	first := need[effShare](r)
	r.step(evShared{at: first.at, err: errTest})
	r.all = nil
	r.pass(time.Second)
	var second *effShare
	for _, e := range r.all {
		if s, is := e.(effShare); is {
			second = &s
		}
	}
	if second == nil {
		t.Fatal("no second")
	}
	if len(second.before) == 0 {
		t.Error("the second try writes the record without the intents and the mark")
	}
	r.step(evShared{at: second.at})
	r.pass(time.Second)
	r.step(evAsked{at: r.now, names: append([]string{second.at.name()}, second.before...)})
	if len(r.state.fleet.intents) == 0 {
		t.Error("the other's attempt is forgotten")
	}
}

func TestAMarkDoesNotOutweighTheJournalsIntent(t *testing.T) {
	r := fleetRig(t, strict, time.Hour)
	rec := r.state.rec
	rec.Intent = &intent{At: r.now.Wall, AtBoot: r.now.Boot, BootID: "this boot", Shared: true}
	here := rec.position().name()
	m := machine{state: r.state}
	mark := signedName(m.key(), kindQuiet, r.state.rec.position(), "00000000000000ff00000001")
	n := unopenedRig(t, strict, time.Hour, inFleet)
	n.now = r.now.Add(time.Second)
	n.step(evOpened{rec: &rec})
	n.step(evAsked{at: n.now, names: []string{here, mark}})
	if n.state.rec.Intent == nil {
		t.Error("the journal's intent was taken for one that never got to the store")
	}
}

func TestTheHoldOffOfAFleetIsAtLeastThreeTimeouts(t *testing.T) {
	r := fleetRig(t, Profile{RevokesPrevious: true, NeedsAccess: true, HoldOff: 4 * time.Second}, time.Hour)
	if r.state.sched.holdOff < 3*defaultTimeout {
		t.Error("less than 3 timeouts")
	}
}

func TestANameWithoutAValueIsNotReadInATightLoop(t *testing.T) {
	r := fleetRig(t, strict, time.Hour)
	next := r.successor().position().name()
	r.pass(6 * time.Second)
	n := 0
	r.lists(next)
	for range 1000 {
		rd, ok := effect[effRead](r)
		if !ok {
			break
		}
		r.step(evRead{name: rd.name, err: ErrNotStored})
		if _, ok := effect[effAsk](r); !ok {
			break
		}
		r.lists(next)
		n++
	}
	if n >= 1000 {
		t.Error("1000 rounds of list and read without any time passing")
	}
}

func TestWhatCameWhileAnotherWasReadIsReadNext(t *testing.T) {
	r := unopenedRig(t, strict, time.Hour, inFleet)
	src := fleetRig(t, strict, time.Hour)
	rec := src.state.rec
	n1 := *src.successor()
	r.step(evOpened{rec: &rec})
	r.step(evAsked{at: r.now, names: []string{rec.position().name()}, pushes: true})
	rd := need[effRead](r)
	r.step(evNews{})
	r.now = r.now.Add(5 * time.Millisecond)
	r.step(evAsked{at: r.now, names: []string{rec.position().name(), n1.position().name()}, pushes: true})
	r.step(evRead{name: rd.name, rec: &rec})
	if _, ok := effect[effRead](r); !ok {
		w := need[effWake](r)
		m := machine{state: r.state, now: r.now}
		t.Errorf("the successor is not read; poll every %v, wake in %v", m.pollEvery(), w.at.Sub(r.now))
	}
}

func TestAnEntryThatCouldNotBeOpenedIsForgottenWhenItIsGone(t *testing.T) {
	r := fleetRig(t, lenient, time.Hour)
	bad := position{epoch: 9, generation: 1}.name()
	r.pass(6 * time.Second)
	r.lists(bad)
	r.step(evRead{name: bad, err: errTest, unusable: true})
	r.pass(6 * time.Second)
	r.lists()
	if r.state.fleet.bad != "" {
		t.Errorf("still bad: %q", r.state.fleet.bad)
	}
	r.passTo(r.state.sched.refreshAt.Add(10 * time.Second))
	r.lists()
	if r.state.stage == stageIdle {
		t.Errorf("no exchange is made: %s", r.phase())
	}
}

func TestASignInGoesOnWithoutTheStoreThatWasTakenAway(t *testing.T) {
	r := unopenedRig(t, strict, time.Hour, inFleet, func(r *rig) { r.conf.signsIn = true })
	r.step(evOpened{})
	r.step(evAsked{at: r.now})
	r.step(evNoSeed{err: ErrNoPair})
	ask := last[effAsk](r)
	r.conf.store = 0
	r.step(r.conf)
	r.step(evAsked{id: ask.id, at: r.now})
	for range 100 {
		r.pass(10 * time.Second)
	}
	for _, e := range r.all {
		if _, is := e.(effFetch); is {
			return
		}
	}
	t.Errorf("never signs in again: running %v ask %d phase %s", r.state.signIn.running, r.state.signIn.ask, r.phase())
}

func TestAPairThatWasStoredLateIsAsOldAsItIs(t *testing.T) {
	r := fleetRig(t, lenient, 5*time.Minute)
	r.life = 5 * time.Minute
	succ := r.successor() // received now, on another machine whose store is away (or which is down: W5)
	for range 40 {        // 4 minutes and a bit over
		r.pass(6 * time.Second)
		r.lists()
		if r.state.stage != stageIdle { // keep ours from exchanging: its issuer is unreachable
			r.step(evAsked{id: r.state.attempt.id, at: r.now, err: errTest})
		}
	}
	r.pass(2 * time.Minute)
	r.lists()
	r.pass(time.Second)
	succ.Age = r.now.Wall.Sub(succ.Received)
	succ.Received = succ.Received.Add(time.Hour) // and the clock there is wrong
	r.step(evAsked{at: r.now, names: r.names(succ.position().name())})
	r.step(evRead{name: succ.position().name(), rec: succ})
	r.wantGeneration(2)
	if r.phase() == PhaseFresh {
		t.Error("an access token that ended is shown as fresh")
	}
}

func TestALogoutByAnInstanceThatLagsBehindEndsTheNewestPair(t *testing.T) {
	src := fleetRig(t, strict, time.Hour)
	rec := *src.successor()
	rec.Epoch = 5
	r := unopenedRig(t, strict, time.Hour, inFleet)
	r.step(evOpened{})
	reply := make(chan error, 1)
	r.step(evEnd{reply: reply})
	e, ok := effect[effReply](r)
	r.step(evAsked{at: r.now, names: []string{rec.position().name()}})
	r.step(evRead{name: rec.position().name(), rec: &rec})
	if ok && e.err == nil && r.state.rec.Lost == "" {
		t.Error("the session was ended, said the answer; it goes on")
	}
}

func TestALogoutAsksTheStoreFirst(t *testing.T) {
	r := fleetRig(t, strict, time.Hour)
	other := *r.successor()
	other.Epoch, other.Generation = 2, 1
	r.pass(2 * time.Second)
	r.step(evEnd{reply: make(chan error, 1)})
	none[effReply](r)
	r.saved(nil)
	r.shares(nil) // t.2.0
	r.pass(6 * time.Second)
	r.step(evAsked{at: r.now, names: r.names(other.position().name())})
	r.step(evRead{name: other.position().name(), rec: &other})
	if r.state.rec.Lost == "" {
		t.Error("it goes on")
	}
}

func TestAnAnswerToOursSaysNothingOfAnothersAttempt(t *testing.T) {
	r := fleetRig(t, strict, time.Hour)
	r.reachInFleet(stageSending)
	ours := r.state.fleet.owned
	r.step(evAnswer{failure(ClassQuiet, 502)})
	r.saved(nil)
	r.lists(ours, r.foreign())
	r.pass(31 * time.Second)
	r.lists(ours, r.foreign())
	for range 400 { // past the last attempt before the end
		r.pass(10 * time.Second)
		r.lists(ours, r.foreign())
		if r.state.stage != stageIdle {
			t.Fatal("tried again without a witness, although another's attempt may have been committed")
		}
	}
}

func TestAnOperatorAsksWhileAnotherInstanceExchanges(t *testing.T) {
	during := func(t *testing.T) (*rig, string, chan error) {
		r := fleetRig(t, strict, time.Hour)
		foreign := r.foreign()
		r.pass(6 * time.Second)
		r.lists(foreign)
		reply := asksNow(r)
		if err, ok := told(r, reply); ok {
			t.Fatalf("answered at once: %v", err)
		}
		return r, foreign, reply
	}
	t.Run("and gets what that one got", func(t *testing.T) {
		r, _, reply := during(t)
		rec := r.successor()
		r.pass(6 * time.Second)
		r.step(evAsked{at: r.now, names: []string{rec.position().name()}})
		r.step(evRead{name: rec.position().name(), rec: rec})
		if err, ok := told(r, reply); !ok || err != nil {
			t.Errorf("answered: %v, %v", ok, err)
		}
		r.wantGeneration(2)
		r.wantPhase(PhaseFresh)
	})
	t.Run("and gets one of its own where that one sent nothing, after all were told", func(t *testing.T) {
		r, _, reply := during(t)
		r.pass(6 * time.Second)
		r.lists() // withdrawn
		need[effPlan](r)
		r.pass(max(r.next(), 0))
		r.reachInFleet(stageCommitting)
		r.saved(nil)
		if err, ok := told(r, reply); !ok || err != nil {
			t.Errorf("answered: %v, %v", ok, err)
		}
	})
	t.Run("and is told so where nobody knows what that one did", func(t *testing.T) {
		r, foreign, reply := during(t)
		for range 10 {
			r.pass(6 * time.Second)
			r.lists(foreign)
		}
		if err, ok := told(r, reply); !ok || !errors.Is(err, ErrNotNow) {
			t.Errorf("answered: %v, %v", ok, err)
		}
	})
}

func TestClocksThatDifferInAFleetAreToldOnceAnHour(t *testing.T) {
	for name, tt := range map[string]struct {
		ahead time.Duration // the other's clock
		told  bool
	}{
		"as they should be": {300 * time.Millisecond, false},
		"one ahead":         {2 * time.Second, true},
		"one far behind":    {-time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := fleetRig(t, strict, time.Hour)
			for range 3 {
				r.pass(6 * time.Second)
				r.lists()
				rec := r.successor()
				rec.Received = rec.Received.Add(tt.ahead)
				r.pass(6 * time.Second)
				rec.Age = 6 * time.Second
				r.step(evAsked{at: r.now, names: []string{rec.position().name()}})
				r.step(evRead{name: rec.position().name(), rec: rec})
			}
			r.wantGeneration(4)
			found := r.notes(NoteClockSpread)
			if told := len(found) == 1; told != tt.told || len(found) > 1 {
				t.Errorf("told %d times", len(found))
			}
			if tt.told && (found[0].Took > 0) != (tt.ahead > 0) {
				t.Errorf("by %v", found[0].Took)
			}
		})
	}
}
