package refresher

import (
	"errors"
	"testing"
	"time"
)

func TestTheBudgetBoundsExchanges(t *testing.T) {
	for _, test := range []struct {
		life time.Duration
		want int // attempts in an hour of which each is refused at once
	}{
		{24 * time.Hour, 24},         // the first twelve, and twelve an hour
		{10 * time.Minute, 12 + 18},  // three a lifetime
		{20 * time.Second, 12 + 540}, // likewise
	} {
		t.Run(test.life.String(), func(t *testing.T) {
			r := seededRig(t, lenient, test.life)
			r.begin()
			end := r.now.Add(time.Hour)
			attempts := 0
			for r.now.Boot < end.Boot {
				if r.state.stage == stagePreparing {
					attempts++
					r.reach(stageSending)
					r.step(evAnswer{failure(ClassRetry, 503)})
					r.saved(nil)
					continue
				}
				r.passTo(need[effWake](r).at)
			}
			if attempts > test.want || attempts < test.want*8/10 {
				t.Errorf("%d attempts, want at most %d", attempts, test.want)
			}
		})
	}
}

func TestTheLastStretch(t *testing.T) {
	long := failure(ClassRetry, 503)
	long.RetryAfter = time.Hour
	t.Run("makes one attempt whatever backoff says", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.exchange(long)
		r.wantNext(12*time.Minute - 20*time.Second) // two timeouts before the end
		r.exchange(long)
		r.passTo(r.state.sched.notAfter.Add(-time.Millisecond))
		if r.state.stage != stageIdle {
			t.Error("a second one")
		}
	})
	t.Run("is a third of a short lead", func(t *testing.T) {
		r := seededRig(t, strict, 30*time.Second)
		r.exchange(long)
		r.wantNext(10 * time.Second)
	})
	t.Run("does not wait for the budget", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.state.budget = budget{used: budgetSize, at: r.now.Add(47 * time.Minute)}
		r.passTo(r.state.sched.notAfter.Add(-20 * time.Second))
		r.begin()
	})
	t.Run("does not cut the hold-off short", func(t *testing.T) {
		r := seededRig(t, Profile{RevokesPrevious: true, NeedsAccess: true, HoldOff: time.Hour}, time.Hour)
		r.exchange(failure(ClassQuiet, 502))
		r.passTo(r.state.sched.notAfter.Add(-time.Millisecond))
		if r.state.stage != stageIdle {
			t.Error("an attempt within the hold-off")
		}
	})
}

func TestAJournalThatCannotBeWritten(t *testing.T) {
	t.Run("has no exchange begun while the access token lives", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.reach(stageRecording)
		r.step(evSaved{version: r.writing(), err: errTest})
		need[effDrop](r)
		none[effSend](r)
		r.wantPhase(PhaseHolding)
		if r.state.rec.Intent != nil {
			t.Error("the intent stays although nothing was sent")
		}
		for r.now.Boot < r.state.sched.notAfter.Boot-20*time.Second.Abs() {
			r.saved(errTest)
			if r.state.stage != stageIdle {
				t.Fatalf("an exchange began %v before the end", r.state.sched.notAfter.Sub(r.now))
			}
			r.passTo(earliest(need[effWake](r).at, r.state.sched.notAfter.Add(-20*time.Second)))
		}
		if n := len(r.notes(NoteJournalFailed)); n != 1 {
			t.Errorf("told %d times", n)
		}
		// In the last stretch it goes on without.
		if r.state.stage != stagePreparing || !r.state.attempt.unsaved {
			t.Fatalf("stage %d in the last stretch", r.state.stage)
		}
		r.saved(errTest)
		r.step(evPrepared{attempt: r.state.attempt.id, conn: rigConn{r}})
		r.step(evDrained{attempt: r.state.attempt.id})
		r.step(evSaved{version: r.writing(), err: errTest})
		need[effSend](r)
		r.step(evAnswer{r.ok()})
		r.step(evSaved{version: r.writing(), err: errTest})
		need[effPublish](r)
		r.wantGeneration(2)
	})
	t.Run("is tried again and then goes on", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.reach(stageRecording)
		r.step(evSaved{version: r.writing(), err: errTest})
		r.pass(time.Second)
		need[effSave](r)
		r.saved(nil)
		r.exchange(r.ok())
		r.wantGeneration(2)
	})
	t.Run("does not hold the next pair back", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.reach(stageCommitting)
		r.step(evSaved{version: r.writing(), err: errTest})
		if got := need[effPublish](r); got.view.generation != 2 || got.token.Reveal() != "access-2" {
			t.Errorf("published %+v", got.view)
		}
		r.pass(time.Second)
		need[effSave](r)
	})
}

func earliest(a, b Instant) Instant {
	if b.Boot < a.Boot {
		return b
	}
	return a
}

func TestAJournalThatIsLateHoldsRequestsAQuarterOfASecond(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	r.reach(stageCommitting)
	none[effPublish](r)
	if at := need[effWake](r).at; at.Sub(r.now) > commitGrace {
		t.Errorf("the next look is in %v", at.Sub(r.now))
	}
	r.pass(249 * time.Millisecond)
	none[effPublish](r)
	r.pass(time.Millisecond)
	if got := need[effPublish](r).view; got.generation != 2 || got.mode != modeReady {
		t.Errorf("published %+v", got)
	}
	if len(r.notes(NoteJournalLate)) != 1 || len(r.notes(NoteRotated)) != 1 {
		t.Error("not told")
	}
	r.saved(nil)
	if len(r.notes(NoteRotated)) != 1 {
		t.Error("rotated was told again")
	}
}

func TestAnExchangeThatRevokesDrainsFirst(t *testing.T) {
	for _, test := range []struct {
		life, drain, want time.Duration
	}{{time.Hour, 0, 2 * time.Second}, {time.Hour, 5 * time.Second, 5 * time.Second}, {8 * time.Second, 0, 4 * time.Second / 3}} {
		r := newRig(t, strict, test.life, func(r *rig) { r.conf.policy.Drain = test.drain })
		r.step(evSeed{seed{pair: r.pair(), source: "file"}})
		r.saved(nil)
		r.reach(stageDraining)
		if got := need[effDrain](r).limit; got != test.want {
			t.Errorf("life %v, drain %v: %v, want %v", test.life, test.drain, got, test.want)
		}
	}
	r := seededRig(t, lenient, time.Hour)
	r.begin()
	r.step(evPrepared{attempt: r.state.attempt.id, conn: rigConn{r}})
	none[effDrain](r)
	need[effSave](r)
}

func TestTheIntentIsInTheJournalBeforeAnythingIsSent(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	r.reach(stageRecording)
	if save := need[effSave](r); save.rec.Intent == nil || save.rec.Intent.Unknown || save.rec.Generation != 1 {
		t.Errorf("saves %+v", save.rec.Intent)
	}
	none[effSend](r)
	r.step(evSaved{version: r.writing() - 1}) // another write
	none[effSend](r)
}

func TestADegradedSessionIsToldOnce(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	r.exchange(failure(ClassRetry, 503))
	for range 100 {
		if r.state.stage == stagePreparing {
			r.step(evPrepared{attempt: r.state.attempt.id, err: errTest})
		}
		r.pass(5 * time.Second)
	}
	r.step(evPrepared{attempt: r.state.attempt.id, err: errTest})
	r.wantPhase(PhaseDegraded)
	if n := len(r.notes(NoteDegraded)); n != 1 {
		t.Errorf("told %d times", n)
	}
}

// asksNow is an operator's request for an exchange.
func asksNow(r *rig) chan error {
	reply := make(chan error, 1)
	r.step(evRefresh{reply: reply})
	return reply
}

// told is what somebody who waits was answered, if so.
func told(r *rig, to chan error) (error, bool) {
	for _, e := range r.all {
		if e, ok := e.(effReply); ok && e.to == (chan<- error)(to) {
			return e.err, true
		}
	}
	return nil, false
}

func TestAnOperatorRefreshes(t *testing.T) {
	ask, answer := asksNow, told
	t.Run("at once, in spite of backoff, and is answered when it is committed", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.exchange(failure(ClassConfig, 404))
		reply := ask(r)
		need[effPrepare](r)
		second := ask(r) // joins
		r.reach(stageCommitting)
		if _, ok := answer(r, reply); ok {
			t.Error("answered before it is in the journal")
		}
		r.saved(nil)
		for _, reply := range []chan error{reply, second} {
			if err, ok := answer(r, reply); !ok || err != nil {
				t.Errorf("answered: %v, %v", ok, err)
			}
		}
	})
	t.Run("and hears what went wrong", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		reply := ask(r)
		r.exchange(failure(ClassRetry, 503))
		if err, ok := answer(r, reply); !ok || !errors.Is(err, errTest) {
			t.Errorf("answered: %v, %v", ok, err)
		}
	})
	for name, setup := range map[string]func(t *testing.T) *rig{
		"without a pair":       func(t *testing.T) *rig { return newRig(t, strict, time.Hour) },
		"a lost session":       func(t *testing.T) *rig { return rigAfter(t, failure(ClassRejected, 400)) },
		"after an unknown one": func(t *testing.T) *rig { return rigAfter(t, failure(ClassUnknown, 0)) },
		"without configuration": func(t *testing.T) *rig {
			r := seededRig(t, strict, time.Hour)
			r.conf.running = false
			r.step(r.conf)
			return r
		},
		"while the process ends": func(t *testing.T) *rig { r := seededRig(t, strict, time.Hour); r.step(evClose{}); return r },
	} {
		t.Run("not "+name, func(t *testing.T) {
			r := setup(t)
			if err, ok := answer(r, ask(r)); !ok || !errors.Is(err, ErrNotNow) {
				t.Errorf("answered: %v, %v", ok, err)
			}
		})
	}
	t.Run("and is answered although the access token has just ended", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.now = r.now.Add(time.Hour) // no tick yet
		if err, ok := answer(r, ask(r)); !ok || err == nil {
			t.Errorf("answered: %v, %v (phase %s): the caller waits for nothing", ok, err, r.phase())
		}
	})
}

// The one who asked is told when requests get the new pair, not before: else the
// next request after a successful import may still find the session lost.
func TestRepliesComeAfterThePairIsInForce(t *testing.T) {
	inOrder := func(t *testing.T, r *rig) {
		t.Helper()
		published := false
		for _, e := range r.last {
			switch e.(type) {
			case effPublish:
				published = true
			case effReply:
				if !published {
					t.Errorf("%s", kinds(r.last))
				}
			}
		}
	}
	t.Run("import", func(t *testing.T) {
		r := rigAfter(t, failure(ClassRejected, 400))
		r.step(evSeed{seed{pair: r.pair(), source: "import", reply: make(chan error, 1)}})
		need[effReply](r)
		inOrder(t, r)
	})
	t.Run("refresh", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.step(evRefresh{reply: make(chan error, 1)})
		r.reach(stageCommitting)
		r.step(evSaved{version: r.writing()})
		need[effReply](r)
		inOrder(t, r)
	})
}

func TestAnAnswerOfNoClassIsNotTakenForARefusal(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	r.reach(stageSending)
	r.step(evAnswer{Answer{Err: errTest}}) // a mistake of an Issuer
	r.wantPhase(PhaseUncertain)            // the token may be spent
}

func TestAnOutageIsOneEntryOfTheHistory(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	r.exchange(r.ok())
	failures := 0
	for range 5 {
		r.pass(max(r.next(), 0))
		if r.state.stage == stagePreparing {
			r.step(evPrepared{attempt: r.state.attempt.id, err: errTest})
			failures++
		}
	}
	h := r.state.rec.History
	if last := h[len(h)-1]; len(h) != 3 || failures < 2 || last.Outcome != ClassNotSent.String() || last.Times != failures || last.Error != errTest.Error() || last.Generation != 2 {
		t.Errorf("after %d failures: %+v", failures, h)
	}
	r.exchange(r.ok())
	if h := r.state.rec.History; len(h) != 4 || h[3].Outcome != "ok" || h[3].Times != 0 {
		t.Errorf("after it: %+v", h)
	}
}
