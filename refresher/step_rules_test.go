package refresher

import (
	"errors"
	"fmt"
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

func TestPairsFromOutside(t *testing.T) {
	offer := func(r *rig, p Pair) error {
		reply := make(chan error, 1)
		for _, e := range r.step(evSeed{seed{pair: p, source: "import", reply: reply}}) {
			if e, ok := e.(effReply); ok {
				return e.err
			}
		}
		return nil
	}
	t.Run("start a new epoch", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.exchange(r.ok())
		if err := offer(r, r.pair()); err != nil {
			t.Fatal(err)
		}
		if r.state.rec.Epoch != 2 || r.state.rec.Generation != 1 {
			t.Errorf("epoch %d, generation %d", r.state.rec.Epoch, r.state.rec.Generation)
		}
	})
	t.Run("are refused if ever used", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.exchange(r.ok())
		r.exchange(r.ok())
		for n := 1; n <= 3; n++ {
			err := offer(r, Pair{Access: NewSecret("x"), Refresh: NewSecret(fmt.Sprintf("refresh-%d", n))})
			if n == 3 && err != nil || n < 3 && !errors.Is(err, ErrSpent) {
				t.Errorf("generation %d: %v", n, err)
			}
		}
		r.wantGeneration(3)
		_ = offer(r, r.pair())
		if err := offer(r, Pair{Access: NewSecret("x"), Refresh: NewSecret("refresh-3")}); !errors.Is(err, ErrSpent) {
			t.Errorf("from the epoch before: %v", err)
		}
	})
	t.Run("are refused when it is the one that was lost", func(t *testing.T) {
		r := rigAfter(t, failure(ClassRejected, 400))
		if err := offer(r, Pair{Access: NewSecret("x"), Refresh: NewSecret("refresh-1")}); !errors.Is(err, ErrSpent) {
			t.Error(err)
		}
		if err := offer(r, r.pair()); err != nil {
			t.Error(err)
		}
		r.wantPhase(PhaseFresh)
		if len(r.notes(NoteReauthenticated)) != 1 {
			t.Error("not told")
		}
	})
	t.Run("need a refresh token", func(t *testing.T) {
		r := newRig(t, strict, time.Hour)
		if err := offer(r, Pair{Access: NewSecret("x")}); !errors.Is(err, ErrNoRefresh) {
			t.Error(err)
		}
	})
	t.Run("wait for the exchange under way", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.reach(stageSending)
		first, second := make(chan error, 1), make(chan error, 1)
		r.step(evSeed{seed{pair: r.pair(), source: "import", reply: first}})
		none[effReply](r)
		p := r.pair()
		r.step(evSeed{seed{pair: p, source: "import", reply: second}})
		if e := need[effReply](r); e.to != (chan<- error)(first) || e.err == nil {
			t.Error("the first is not told that another came")
		}
		r.step(evAnswer{failure(ClassUnknown, 0)})
		if e := need[effReply](r); e.to != (chan<- error)(second) || e.err != nil {
			t.Errorf("second: %v", e.err)
		}
		if r.state.rec.Access != p.Access.Reveal() || r.state.rec.Intent != nil || r.state.rec.Epoch != 2 {
			t.Error("not in use")
		}
		r.wantPhase(PhaseFresh)
	})
	t.Run("tell when they have no end", func(t *testing.T) {
		r := newRig(t, strict, 0)
		r.step(evSeed{seed{pair: r.pair(), source: "file"}})
		if len(r.notes(NoteNoExpiry)) != 1 || r.state.lastErr == "" {
			t.Error("not told")
		}
		r.wantNext(-1)
		r.refused("GET /", false) // only a 401 leads to an exchange
		r.exchange(r.ok())
		r.wantGeneration(2)
	})
	t.Run("may have a configured life", func(t *testing.T) {
		r := newRig(t, strict, 0, func(r *rig) { r.conf.policy.Lifetime = time.Hour })
		r.step(evSeed{seed{pair: r.pair(), source: "file"}})
		r.wantNext(48 * time.Minute)
	})
	t.Run("that have ended are lost at once where a live one is wanted", func(t *testing.T) {
		r := newRig(t, strict, 0)
		p := r.pair()
		p.Access = jwtOf(t, fmt.Sprintf(`{"exp":%d}`, r.now.Wall.Unix()-1))
		r.step(evSeed{seed{pair: p, source: "file"}})
		r.wantLost(ReasonExpired)
	})
	// Neither a note nor an error: nobody would know why the file is of no use.
	t.Run("from a file without a refresh token are told of", func(t *testing.T) {
		r := newRig(t, strict, time.Hour)
		r.step(evFetched{seed{pair: Pair{Access: NewSecret("x")}, source: "file"}})
		if len(r.notes(NoteSourceFailed)) == 0 {
			t.Error("nothing was told")
		}
	})
	// The first fetch asks all sources at once. Where the pair that comes is of
	// no use, signing in was left marked as under way for ever.
	t.Run("that are of no use leave signing in possible", func(t *testing.T) {
		r := unopenedRig(t, strict, time.Hour, func(r *rig) { r.conf.signsIn = true })
		r.step(evOpened{})
		r.step(evFetched{seed{pair: Pair{Access: NewSecret("x")}, source: "file"}})
		for range 20 {
			if e, ok := effect[effFetch](r); ok && e.signIn {
				return
			}
			r.pass(10 * time.Second)
		}
		t.Errorf("no sign-in was asked for; requests see mode %d", r.state.shown.mode)
	})
}

func TestSigningIn(t *testing.T) {
	signsIn := func(r *rig) { r.conf.signsIn = true }
	t.Run("is tried again with backoff", func(t *testing.T) {
		for _, test := range []struct {
			name string
			err  error
			want []time.Duration
		}{
			{"soon", errTest, []time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond}},
			{"slowly", &RetryError{Err: errTest, Slow: true}, []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 15 * time.Minute, 15 * time.Minute}},
			{"not before the server wants", &RetryError{Err: errTest, After: time.Hour}, []time.Duration{time.Hour, time.Hour}},
		} {
			t.Run(test.name, func(t *testing.T) {
				r := unopenedRig(t, strict, time.Hour, signsIn)
				r.step(evOpened{})
				if !need[effFetch](r).signIn {
					t.Fatal("not asked for at the start")
				}
				for _, want := range test.want {
					r.step(evNoSeed{signIn: true, err: test.err})
					if got := r.state.signIn.next.Sub(r.now); got != want {
						t.Fatalf("in %v, want %v", got, want)
					}
					r.pass(want - 1)
					none[effFetch](r)
					r.pass(1)
					if e := need[effFetch](r); !e.signIn || e.lying {
						t.Fatalf("%+v", e)
					}
					r.pass(time.Hour)
					none[effFetch](r) // one at a time
				}
			})
		}
	})
	t.Run("reaches its longest backoff", func(t *testing.T) {
		r := unopenedRig(t, strict, time.Hour, signsIn)
		r.step(evOpened{})
		for range 80 {
			r.step(evNoSeed{signIn: true, err: errTest})
			d := r.state.signIn.next.Sub(r.now)
			if d <= 0 || d > time.Minute {
				t.Fatalf("in %v", d)
			}
			r.pass(d)
		}
	})
	t.Run("begins anew with a new configuration", func(t *testing.T) {
		r := unopenedRig(t, strict, time.Hour, signsIn)
		r.step(evOpened{})
		r.step(evNoSeed{signIn: true, err: &RetryError{Err: errTest, Slow: true}})
		r.step(r.conf)
		need[effFetch](r)
	})
	t.Run("follows a loss", func(t *testing.T) {
		r := newRig(t, strict, time.Hour, signsIn)
		r.step(evFetched{seed{pair: r.pair(), source: "login", signsIn: true}})
		r.saved(nil)
		r.reach(stageSending)
		r.step(evAnswer{failure(ClassRejected, 400)})
		if !need[effFetch](r).signIn {
			t.Fatal("not asked for")
		}
		if got := need[effPublish](r).view.mode; got != modeComing {
			t.Errorf("requests see mode %d", got)
		}
		r.step(evNoSeed{signIn: true, err: errTest})
		if got := need[effPublish](r).view; got.mode != modeLater || time.Duration(got.until) != r.now.Boot+200*time.Millisecond {
			t.Errorf("requests see %+v", got)
		}
		r.pass(200 * time.Millisecond)
		r.step(evSeed{seed{pair: r.pair(), source: "login", signsIn: true}})
		r.wantPhase(PhaseFresh)
		if r.state.rec.Epoch != 2 {
			t.Errorf("epoch %d", r.state.rec.Epoch)
		}
	})
	t.Run("takes the same refresh token as a new login", func(t *testing.T) {
		r := newRig(t, strict, time.Hour, signsIn)
		p := r.pair()
		r.step(evSeed{seed{pair: p, source: "login", signsIn: true}})
		r.exchange(failure(ClassRejected, 400))
		r.step(evSeed{seed{pair: p, source: "login", signsIn: true}})
		r.wantPhase(PhaseFresh)
	})
	for name, change := range map[string]func(*rig){
		"is not made where that is not wanted": func(r *rig) { r.conf.signsIn = true; r.conf.policy.NoReauthenticate = true },
		"is not made without such a source":    func(*rig) {},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, strict, time.Hour, change)
			r.step(evFetched{seed{pair: r.pair(), source: "file"}})
			r.saved(nil)
			r.exchange(failure(ClassRejected, 400))
			for range 100 {
				none[effFetch](r)
				r.pass(time.Minute)
			}
			if r.state.shown.mode != modeLost {
				t.Errorf("requests see mode %d", r.state.shown.mode)
			}
		})
	}
	// Contract 4: only the first source that has a pair is looked at. After a
	// restart of a lost session the file and the login were asked side by side.
	t.Run("is not asked for beside a source that may have a pair", func(t *testing.T) {
		r := unopenedRig(t, strict, time.Hour, signsIn)
		r.step(evOpened{rec: &record{Epoch: 1, Generation: 4, Access: "a", Refresh: "b", Lost: ReasonRejected, Expires: true, Left: time.Hour, Received: r.now.Wall}})
		var fetches []effFetch
		for _, e := range r.last {
			if e, ok := e.(effFetch); ok {
				fetches = append(fetches, e)
			}
		}
		if len(fetches) != 1 {
			t.Errorf("asked at once: %+v", fetches)
		}
	})
	t.Run("is not done twice at once", func(t *testing.T) {
		r := unopenedRig(t, strict, time.Hour, signsIn)
		r.step(evOpened{rec: &record{Epoch: 1, Generation: 4, Access: "a", Refresh: "b", Lost: ReasonRejected, Expires: true, Left: time.Hour, Received: r.now.Wall}})
		r.step(evFetched{seed{pair: Pair{Access: NewSecret("a"), Refresh: NewSecret("b")}, source: "file"}}) // the spent one
		logins := 0
		for _, e := range r.all {
			if e, ok := e.(effFetch); ok && e.signIn {
				logins++
			}
		}
		if logins > 1 {
			t.Errorf("%d logins under way", logins)
		}
	})
}

func TestARestart(t *testing.T) {
	stored := func(r *rig, change func(*record)) *record {
		rec := &record{
			Epoch: 3, Generation: 9, Access: "stored", Refresh: "stored-refresh", Source: "file",
			Received: r.now.Wall.Add(-10 * time.Minute), Left: time.Hour, Expires: true,
			BootID: "this boot", ReceivedBoot: r.now.Boot - 10*time.Minute,
		}
		change(rec)
		return rec
	}
	restart := func(t *testing.T, p Profile, change func(*record)) *rig {
		r := unopenedRig(t, p, time.Hour)
		r.step(evOpened{rec: stored(r, change)})
		return r
	}
	t.Run("goes on with what is stored", func(t *testing.T) {
		r := restart(t, strict, func(*record) {})
		r.wantPhase(PhaseFresh)
		r.wantNext(38 * time.Minute)
		if e := need[effFetch](r); !e.lying || e.signIn {
			t.Errorf("asks %+v", e)
		}
		if got := need[effPublish](r); got.view.epoch != 3 || got.view.generation != 9 || got.token.Reveal() != "stored" {
			t.Errorf("publishes %+v", got.view)
		}
		none[effSave](r)
	})
	t.Run("trusts the clock of the same boot more than the wall", func(t *testing.T) {
		r := restart(t, strict, func(rec *record) { rec.Received = rec.Received.Add(-5 * time.Hour) })
		r.wantNext(38 * time.Minute)
	})
	t.Run("of the machine trusts the wall", func(t *testing.T) {
		r := restart(t, strict, func(rec *record) { rec.BootID, rec.ReceivedBoot = "another boot", 99*time.Hour })
		r.wantNext(38 * time.Minute)
	})
	t.Run("that took too long is a loss", func(t *testing.T) {
		r := restart(t, strict, func(rec *record) { rec.BootID, rec.Received = "another boot", rec.Received.Add(-time.Hour) })
		r.wantLost(ReasonExpired)
	})
	t.Run("with an open intent holds off", func(t *testing.T) {
		r := restart(t, strict, func(rec *record) { rec.Intent = &intent{At: rec.Received} })
		r.wantPhase(PhaseUncertain)
		r.pass(30*time.Second - 1)
		r.accepted()
		r.wantNext(-1)
		r.pass(1)
		r.accepted()
		r.exchange(r.ok())
		r.wantGeneration(10)
	})
	t.Run("with an open intent and a refused token is two generals", func(t *testing.T) {
		r := restart(t, strict, func(rec *record) { rec.Intent = &intent{At: rec.Received} })
		r.refused("GET /", false)
		r.wantLost(ReasonTwoGenerals)
	})
	t.Run("does not forget a loss", func(t *testing.T) {
		r := restart(t, strict, func(rec *record) { rec.Lost = ReasonRejected; rec.Intent = &intent{} })
		r.wantLost(ReasonRejected)
		r.step(evNoSeed{err: ErrNoPair})
		if got := need[effPublish](r).view; got.mode != modeLost || got.reason != ReasonRejected {
			t.Errorf("publishes %+v", got)
		}
	})
	// A pair that had ended when it came is exchanged after 30 s, whatever it
	// says. A reload must not turn that into never.
	t.Run("or a reload keeps the schedule of a pair that came expired", func(t *testing.T) {
		r := seededRig(t, Profile{}, 0, func(r *rig) { r.conf.policy.Lifetime = time.Hour })
		p := r.pair()
		p.Access = jwtOf(t, fmt.Sprintf(`{"exp":%d}`, r.now.Wall.Unix()))
		r.exchange(Answer{Class: ClassOK, Pair: p})
		r.wantNext(30 * time.Second)
		r.step(r.conf)
		r.wantNext(30 * time.Second)
	})
}

func TestAPairThatCameExpired(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	old := r.now.Wall.Add(-time.Hour).Unix()
	for n, want := range []time.Duration{30, 60, 120, 240, 480, 960, 960} {
		p := r.pair()
		p.Access, p.ExpiresIn = jwtOf(t, fmt.Sprintf(`{"exp":%d,"jti":"%d"}`, old, n)), 0
		r.exchange(Answer{Class: ClassOK, Pair: p})
		r.wantPhase(PhaseFresh)
		r.wantGeneration(uint64(n) + 2)
		r.wantNext(want * time.Second)
		if lead := r.state.sched.lead; lead < time.Second {
			t.Errorf("lead %v: an exchange does not wait for what is in flight, and a tick comes every 50 ms", lead)
		}
	}
	r.exchange(r.ok())
	r.wantNext(48 * time.Minute)
}

func TestA401OfTheUpstream(t *testing.T) {
	t.Run("leads to one exchange a generation", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		if v := r.refused("GET /a", false); v != verdictWait {
			t.Fatalf("verdict %d", v)
		}
		r.exchange(failure(ClassRetry, 503))
		for _, route := range []string{"GET /a", "GET /b"} {
			if v := r.refused(route, false); v != verdictPass {
				t.Errorf("%s: verdict %d after the one attempt", route, v)
			}
		}
		// The upstream refuses the token: that one attempt is made good as soon
		// as backoff allows, not when the pair would be due.
		r.wantNext(200 * time.Millisecond)
		r.exchange(r.ok())
		r.wantGeneration(2)
	})
	t.Run("to an older token is sent again", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.exchange(r.ok())
		reply := make(chan verdict, 1)
		r.step(evUnauthorized{epoch: 1, generation: 1, route: "GET /", reply: reply})
		if v := need[effVerdict](r).verdict; v != verdictAgain {
			t.Errorf("verdict %d", v)
		}
		r.step(evUnauthorized{epoch: 1, generation: 1, route: "GET /", again: true, reply: reply})
		if v := need[effVerdict](r).verdict; v != verdictPass {
			t.Errorf("verdict %d", v)
		}
	})
	t.Run("soon after an exchange is lag, later too young, then a reason", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.exchange(r.ok())
		for _, step := range []struct {
			at   time.Duration
			want verdict
		}{{2999 * time.Millisecond, verdictLag}, {3 * time.Second, verdictPass}, {179 * time.Second, verdictPass}, {180 * time.Second, verdictWait}} {
			r.passTo(r.state.born.Add(step.at))
			if v := r.refused("GET /", false); v != step.want {
				t.Errorf("at age %v: verdict %d, want %d", step.at, v, step.want)
			}
		}
	})
	t.Run("of a short life scales", func(t *testing.T) {
		r := seededRig(t, strict, 10*time.Second)
		r.exchange(r.ok())
		for _, step := range []struct {
			at   time.Duration
			want verdict
		}{{999 * time.Millisecond, verdictLag}, {time.Second, verdictWait}} {
			r.passTo(r.state.born.Add(step.at))
			if v := r.refused("GET /", false); v != step.want {
				t.Errorf("at age %v: verdict %d, want %d", step.at, v, step.want)
			}
		}
	})
	t.Run("to a newer token too puts the route into quarantine", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.refused("GET /bad", true)
		if v := r.refused("GET /bad", false); v != verdictPass {
			t.Errorf("verdict %d", v)
		}
		r.pass(10*time.Minute - 1)
		if v := r.refused("GET /bad", false); v != verdictPass {
			t.Errorf("verdict %d", v)
		}
		r.pass(1)
		if v := r.refused("GET /bad", false); v != verdictWait {
			t.Errorf("verdict %d", v)
		}
	})
	t.Run("of a route in quarantine does not end an uncertain session", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.refused("GET /bad", true)
		r.passTo(r.state.sched.refreshAt)
		r.exchange(failure(ClassUnknown, 0))
		r.refused("GET /bad", true) // keeps it there
		r.wantLost(ReasonTwoGenerals)
	})
	t.Run("fills the quarantine and no more", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		for n := range 1000 {
			r.refused(fmt.Sprintf("GET /%d", n), true)
		}
		if n := len(r.state.routes); n != maxQuarantine {
			t.Errorf("%d routes", n)
		}
	})
	t.Run("during an exchange waits for its outcome", func(t *testing.T) {
		for _, p := range []Profile{strict, lenient} {
			r := seededRig(t, p, time.Hour)
			r.reach(stageSending)
			if v := r.refused("GET /", false); v != verdictWait {
				t.Errorf("%+v: verdict %d", p, v)
			}
		}
	})
	t.Run("passes where nothing can follow", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.step(evClose{})
		if v := r.refused("GET /", false); v != verdictPass {
			t.Errorf("verdict %d", v)
		}
		r = seededRig(t, lenient, time.Hour)
		r.exchange(failure(ClassUnknown, 0))
		if v := r.refused("GET /", false); v != verdictPass {
			t.Errorf("uncertain: verdict %d", v)
		}
	})
}

func TestClocks(t *testing.T) {
	t.Run("a wall clock set forward makes one early exchange in ten minutes", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.now.Wall = r.now.Wall.Add(2 * time.Hour)
		r.step(evTick{})
		need[effPrepare](r)
		if len(r.notes(NoteClockStepped)) != 1 {
			t.Error("not told")
		}
		r.exchange(r.ok())
		r.now.Wall = r.now.Wall.Add(2 * time.Hour)
		r.step(evTick{})
		none[effPrepare](r)
		r.pass(10 * time.Minute)
		r.now.Wall = r.now.Wall.Add(2 * time.Hour)
		r.step(evTick{})
		need[effPrepare](r)
	})
	for name, d := range map[string]time.Duration{"backward": -time.Hour, "forward, but not to when it is due": 10 * time.Minute, "a little": time.Second} {
		t.Run("a wall clock set "+name+" makes none", func(t *testing.T) {
			r := seededRig(t, strict, time.Hour)
			r.now.Wall = r.now.Wall.Add(d)
			r.step(evTick{})
			none[effPrepare](r)
			r.wantPhase(PhaseFresh)
			r.wantNext(48 * time.Minute)
		})
	}
	t.Run("where Boot stops in sleep the wall counts, too", func(t *testing.T) {
		r := seededRig(t, Profile{}, time.Hour, func(r *rig) { r.state.env.countsSleep = false })
		r.now.Wall = r.now.Wall.Add(49 * time.Minute)
		r.step(evTick{})
		need[effPrepare](r)
	})
	t.Run("the issuer's clock is kept in mind", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		issuer := r.now.Add(48 * time.Minute).Wall.Add(20 * time.Minute) // is ahead
		p := r.pair()
		p.Access, p.ExpiresIn = jwtOf(t, fmt.Sprintf(`{"exp":%d}`, issuer.Add(time.Hour).Unix())), 0
		r.exchange(Answer{Class: ClassOK, Pair: p, Offset: 20 * time.Minute, OffsetError: time.Second})
		r.wantNext(48*time.Minute - 800*time.Millisecond)
		p = r.pair()
		r.exchange(Answer{Class: ClassOK, Pair: p, Offset: time.Second, OffsetError: time.Second})
		if r.state.offset != 0 {
			t.Errorf("offset %v, of what is within the error", r.state.offset)
		}
	})
}

func TestClosing(t *testing.T) {
	for _, s := range []stage{stagePreparing, stageDraining, stageRecording} {
		r := seededRig(t, strict, time.Hour)
		r.reach(s)
		r.step(evClose{})
		if r.state.stage != stageIdle || r.state.rec.Intent != nil {
			t.Errorf("stage %d: goes on, or leaves an intent", s)
		}
		if _, ok := effect[effDrop](r); ok != (s != stagePreparing) {
			t.Errorf("stage %d: dropped: %v", s, ok)
		}
		id := r.state.attempt.id
		r.step(evPrepared{attempt: id, conn: rigConn{r}})
		need[effDrop](r)
		r.pass(time.Hour)
		none[effPrepare](r)
	}
	r := seededRig(t, strict, time.Hour)
	r.reach(stageSending)
	r.step(evClose{})
	r.step(evAnswer{r.ok()})
	if e := need[effSave](r); e.rec.Generation != 2 {
		t.Error("the outcome is not written")
	}
}

func TestWhatRequestsSeeOfAnExpiredSession(t *testing.T) {
	long := failure(ClassRetry, 503)
	long.RetryAfter = 2 * time.Hour
	r := seededRig(t, Profile{}, time.Hour)
	r.exchange(long)
	r.exchange(long)
	r.passTo(r.state.sched.notAfter)
	if got := need[effPublish](r).view; got.mode != modeLater || time.Duration(got.until) != r.state.next.Boot {
		t.Errorf("sees %+v", got)
	}
	r.conf.running = false
	r.step(r.conf)
	if got := need[effPublish](r).view; got.mode != modeEmpty {
		t.Errorf("without a configuration %+v", got)
	}
	r.conf.running = true
	r.step(r.conf)
	r.begin()
	if got := need[effPublish](r).view; got.mode != modeComing {
		t.Errorf("during the exchange %+v", got)
	}
	r.step(evPrepared{attempt: r.state.attempt.id, conn: rigConn{r}})
	r.saved(nil)
	r.step(evAnswer{r.ok()})
	r.saved(nil)
	if got := r.state.shown; got.mode != modeReady || got.generation != 2 {
		t.Errorf("after it %+v", got)
	}
}

func TestAnAnswerOfNoClassIsNotTakenForARefusal(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	r.reach(stageSending)
	r.step(evAnswer{Answer{Err: errTest}}) // a mistake of an Issuer
	r.wantPhase(PhaseUncertain)            // the token may be spent
}

func TestRoutes(t *testing.T) {
	for _, test := range [][3]string{
		{"GET", "/", "GET /"},
		{"GET", "/users/me", "GET /users/me"},
		{"GET", "/users/123/orders/9f", "GET /users/*/orders/*"},
		{"PUT", "/files/abcdefghijklmnopqrstuvwxyz", "PUT /files/*"},
	} {
		if got := Route(test[0], test[1]); got != test[2] {
			t.Errorf("Route(%q, %q) = %q, want %q", test[0], test[1], got, test[2])
		}
	}
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
