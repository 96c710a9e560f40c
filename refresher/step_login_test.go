package refresher

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

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

// An issuer that accepts a spent refresh token for a while may answer with the
// pair that the first attempt had been given, whose access token may have ended
// since: no request gets that, and the next exchange comes as soon as it may.
func TestTheSuccessorThatARepeatedAttemptGetsMayHaveEnded(t *testing.T) {
	reuse := Profile{RevokesPrevious: true, NeedsAccess: true, AcceptsExpired: true, ReuseInterval: time.Hour}
	wantsLive := reuse
	wantsLive.AcceptsExpired = false
	for _, test := range []struct {
		name    string
		profile Profile
		after   time.Duration // from the first attempt to the one that is answered
		phase   Phase
	}{
		{name: "is exchanged after the quiet time", profile: reuse, after: 3 * time.Minute, phase: PhaseExpired},
		{name: "cannot be that old: the clocks disagree", profile: reuse, after: time.Minute, phase: PhaseFresh},
		{name: "could not be exchanged: the clocks had better disagree", profile: wantsLive, after: 3 * time.Minute, phase: PhaseFresh},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := unopenedRig(t, test.profile, 4*time.Minute)
			began := r.now.Add(-test.after)
			r.step(evOpened{rec: &record{
				Epoch: 1, Generation: 9, Access: "stored", Refresh: "stored-refresh", Left: 4 * time.Minute, Expires: true,
				Received: began.Wall, BootID: "this boot", ReceivedBoot: began.Boot,
				Intent: &intent{At: began.Wall, AtBoot: began.Boot, BootID: "this boot"},
			}})
			r.wantPhase(PhaseUncertain)
			p := r.pair()
			p.Access, p.ExpiresIn = jwtOf(t, fmt.Sprintf(`{"exp":%d}`, r.now.Wall.Unix()-1)), 0
			r.exchange(Answer{Class: ClassOK, Pair: p})
			r.wantGeneration(10)
			r.wantPhase(test.phase)
			r.wantNext(30 * time.Second)
			r.exchange(r.ok())
			r.wantPhase(PhaseFresh)
			r.wantGeneration(11)
		})
	}
}

// The quiet time after a repeated attempt must not outlast the access token where
// an exchange needs a live one.
func TestAHalfUsedSuccessorIsExchangedBeforeItEnds(t *testing.T) {
	for _, test := range []struct {
		name    string
		expired bool
		next    time.Duration
	}{
		{name: "where the issuer wants a live access token", next: 2250 * time.Millisecond},
		{name: "unless an ended one will do", expired: true, next: 4 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := seededRig(t, Profile{RevokesPrevious: true, NeedsAccess: true, AcceptsExpired: test.expired, ReuseInterval: time.Minute}, 8*time.Second)
			r.exchange(failure(ClassUnknown, 0))
			p := r.pair()
			p.ExpiresIn = 3 * time.Second
			r.exchange(Answer{Class: ClassOK, Pair: p})
			r.wantNext(test.next)
			r.exchange(r.ok())
			r.wantGeneration(3)
			r.wantPhase(PhaseFresh)
		})
	}
}
