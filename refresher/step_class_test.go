package refresher

import (
	"testing"
	"time"
)

// The times below are for a life of an hour: lead 12 min, hold-off 30 s.

func TestASuccessfulExchangeReplacesThePair(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	r.wantNext(48 * time.Minute)
	r.exchange(r.ok())
	r.wantPhase(PhaseFresh)
	r.wantGeneration(2)
	if got := r.state.rec.pair(); got.Access.Reveal() != "access-2" || got.Refresh.Reveal() != "refresh-2" {
		t.Errorf("pair %s, %s", got.Access.Reveal(), got.Refresh.Reveal())
	}
	if r.state.rec.Intent != nil || r.state.version != r.state.saved {
		t.Error("the intent is still there, or the pair not in the journal")
	}
	r.wantNext(48 * time.Minute)
}

func TestTheLifeCountsFromTheRequest(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	r.reach(stageSending)
	r.now = r.now.Add(8 * time.Second)
	r.step(evAnswer{r.ok()})
	r.saved(nil)
	r.wantNext(48*time.Minute - 8*time.Second)
}

func TestAnAnswerWithoutARefreshTokenKeepsTheOld(t *testing.T) {
	for name, refresh := range map[string]string{"none": "", "the same": "refresh-1"} {
		t.Run(name, func(t *testing.T) {
			r := seededRig(t, lenient, time.Hour)
			r.exchange(Answer{Class: ClassOK, Pair: Pair{Access: NewSecret("next"), Refresh: NewSecret(refresh), ExpiresIn: time.Hour}})
			r.wantGeneration(2)
			if got := r.state.rec.Refresh; got != "refresh-1" {
				t.Errorf("refresh token %q", got)
			}
			r.step(evSeed{seed{pair: Pair{Access: NewSecret("a"), Refresh: NewSecret("refresh-1")}, source: "file"}})
			r.wantGeneration(2) // it is the one in use
			r.exchange(r.ok())
			r.wantGeneration(3)
		})
	}
}

// TestWhatAnAnswerMeans is contract 3b and rotation.md 7.1: each row one attempt
// when due, and when the next one may be made.
func TestWhatAnAnswerMeans(t *testing.T) {
	retryAfter := func(c Class, d time.Duration) Answer {
		a := failure(c, 503)
		a.RetryAfter = d
		return a
	}
	const never = -1
	for _, test := range []struct {
		name    string
		profile Profile
		answer  Answer
		phase   Phase
		next    time.Duration
		intent  bool
		lost    Reason
	}{
		{name: "retry is soon", profile: strict, answer: failure(ClassRetry, 503), phase: PhaseBackoff, next: 200 * time.Millisecond},
		{name: "not sent is soon", profile: strict, answer: failure(ClassNotSent, 0), phase: PhaseBackoff, next: 200 * time.Millisecond},
		{name: "Retry-After is kept", profile: strict, answer: retryAfter(ClassRetry, 3*time.Minute), phase: PhaseBackoff, next: 3 * time.Minute},
		{name: "Retry-After is kept, save for the last stretch", profile: strict, answer: retryAfter(ClassRetry, time.Hour), phase: PhaseBackoff, next: 12*time.Minute - 20*time.Second},
		{name: "a Retry-After that is shorter than backoff changes nothing", profile: strict, answer: retryAfter(ClassConfig, time.Second), phase: PhaseBackoff, next: time.Minute},
		{name: "quiet waits for the hold-off, without a witness", profile: strict, answer: failure(ClassQuiet, 502), phase: PhaseUncertain, next: 30 * time.Second, intent: true},
		{name: "quiet with Retry-After", profile: strict, answer: retryAfter(ClassQuiet, 2*time.Minute), phase: PhaseUncertain, next: 2 * time.Minute, intent: true},
		{name: "quiet with Retry-After, save for the last stretch", profile: strict, answer: retryAfter(ClassQuiet, time.Hour), phase: PhaseUncertain, next: 12*time.Minute - 20*time.Second, intent: true},
		{name: "redirect", profile: strict, answer: failure(ClassRedirect, 302), phase: PhaseBackoff, next: 2 * time.Second},
		{name: "config", profile: strict, answer: failure(ClassConfig, 404), phase: PhaseBackoff, next: time.Minute},
		{name: "a 400 of no earlier attempt is config", profile: strict, answer: failure(ClassConfig, 400), phase: PhaseBackoff, next: time.Minute},
		{name: "unauthorized, once more after the hold-off", profile: strict, answer: failure(ClassUnauthorized, 401), phase: PhaseBackoff, next: 30 * time.Second},
		{name: "rejected", profile: strict, answer: failure(ClassRejected, 400), phase: PhaseLost, next: 0, lost: ReasonRejected},
		{name: "unknown, strict: not without a witness", profile: strict, answer: failure(ClassUnknown, 0), phase: PhaseUncertain, next: never, intent: true},
		{name: "unknown, reusable: at once", profile: Profile{RevokesPrevious: true, NeedsAccess: true, ReuseInterval: time.Minute}, answer: failure(ClassUnknown, 0), phase: PhaseUncertain, next: 500 * time.Millisecond, intent: true},
		{name: "unknown, the access token lives on: as late as can be", profile: lenient, answer: failure(ClassUnknown, 0), phase: PhaseUncertain, next: 8 * time.Minute, intent: true},
		{name: "unknown, with a hold-off of its own", profile: Profile{HoldOff: 9 * time.Minute}, answer: failure(ClassUnknown, 0), phase: PhaseUncertain, next: 9 * time.Minute, intent: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := seededRig(t, test.profile, time.Hour)
			r.exchange(test.answer)
			r.wantPhase(test.phase)
			r.wantGeneration(1)
			r.wantLost(test.lost)
			if got := r.state.rec.Intent != nil; got != test.intent && test.lost == "" {
				t.Errorf("an open intent: %v", got)
			}
			if test.lost != "" {
				return
			}
			r.wantNext(test.next)
			if test.next == never {
				return
			}
			r.exchange(r.ok())
			r.wantGeneration(2)
			r.wantPhase(PhaseFresh)
		})
	}
}

func TestBackoffGrows(t *testing.T) {
	for _, test := range []struct {
		name   string
		class  Class
		life   time.Duration
		spread float64
		want   []time.Duration
	}{
		{"retry at its shortest", ClassRetry, time.Hour, 0, []time.Duration{200 * time.Millisecond, 2 * time.Second, 2 * time.Second, 2 * time.Second, 3200 * time.Millisecond, 6 * time.Second}},
		{"retry at its longest", ClassRetry, time.Hour, 1, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second}},
		{"retry is capped by a sixth of the lead", ClassRetry, 5 * time.Minute, 1, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 12500 * time.Millisecond, 12500 * time.Millisecond}},
		{"retry of a short life", ClassRetry, 8 * time.Second, 1, []time.Duration{800 * time.Millisecond, 800 * time.Millisecond}},
		{"redirect", ClassRedirect, 24 * time.Hour, 0, []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute, time.Minute}},
		{"config", ClassConfig, 24 * time.Hour, 0, []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute}},
		{"config of a short life", ClassConfig, 20 * time.Second, 0, []time.Duration{2 * time.Second, 2 * time.Second}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := seededRig(t, strict, test.life, func(r *rig) { r.spread = test.spread })
			for n, want := range test.want {
				r.exchange(failure(test.class, 500))
				m := machine{state: r.state, now: r.now}
				if got := m.next.Sub(r.now).Round(time.Millisecond); got != want {
					t.Fatalf("after %d failures: %v, want %v", n+1, got, want)
				}
				r.state.stretched = true // only backoff is looked at here
			}
		})
	}
	t.Run("config stops at 15 minutes", func(t *testing.T) {
		r := seededRig(t, strict, 24*time.Hour)
		for n := range 40 {
			r.state.failures = n + 1
			m := machine{state: r.state, now: r.now}
			if d := m.backoff(failure(ClassConfig, 404)); d <= 0 || d > 15*time.Minute {
				t.Fatalf("after %d failures: %v", n+1, d)
			}
		}
	})
}

func TestASecondUnauthorizedIsARejection(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	r.exchange(failure(ClassUnauthorized, 401))
	r.wantLost("")
	r.exchange(failure(ClassRetry, 503)) // does not clear it
	r.exchange(failure(ClassUnauthorized, 401))
	r.wantLost(ReasonRejected)
}

func TestUnauthorizedWhereTheUpstreamSaidSoIsARejection(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	r.refused("GET /", false)
	r.exchange(failure(ClassUnauthorized, 401))
	r.wantLost(ReasonRejected)
}

// refused tells that the upstream refused the token in use, and returns the
// verdict.
func (r *rig) refused(route string, again bool) verdict {
	r.t.Helper()
	reply := make(chan verdict, 1)
	ev := evUnauthorized{epoch: r.state.rec.Epoch, generation: r.state.rec.Generation, route: route, again: again, reply: reply}
	for _, e := range r.step(ev) {
		if v, ok := e.(effVerdict); ok {
			return v.verdict
		}
	}
	r.t.Fatal("no verdict")
	return 0
}

func (r *rig) accepted() {
	r.t.Helper()
	r.step(evAccepted{epoch: r.state.rec.Epoch, generation: r.state.rec.Generation})
}

func TestAnUnknownOutcomeAtAStrictIssuer(t *testing.T) {
	uncertain := func(t *testing.T) *rig {
		r := seededRig(t, strict, time.Hour)
		r.exchange(failure(ClassUnknown, 0))
		return r
	}
	t.Run("is tried again when the upstream accepts the token after the hold-off", func(t *testing.T) {
		r := uncertain(t)
		r.accepted()
		r.wantNext(-1) // a witness within the hold-off proves nothing
		r.pass(29 * time.Second)
		if v, ok := effect[effPublish](r); ok && v.view.watch {
			t.Error("watched within the hold-off")
		}
		r.pass(time.Second)
		if !need[effPublish](r).view.watch {
			t.Error("not watched after the hold-off")
		}
		r.accepted()
		if r.state.stage != stagePreparing {
			t.Fatalf("stage %d after the witness", r.state.stage)
		}
		r.exchange(r.ok())
		r.wantGeneration(2)
	})
	t.Run("an old witness is none", func(t *testing.T) {
		r := uncertain(t)
		r.pass(31 * time.Second)
		r.step(evAccepted{epoch: r.state.rec.Epoch, generation: r.state.rec.Generation + 1})
		r.step(evAccepted{epoch: r.state.rec.Epoch + 1, generation: r.state.rec.Generation})
		r.wantNext(-1)
	})
	t.Run("is lost when the upstream refuses the token", func(t *testing.T) {
		r := uncertain(t)
		if v := r.refused("GET /", false); v != verdictAgain {
			t.Errorf("verdict %d", v)
		}
		r.wantLost(ReasonTwoGenerals)
	})
	t.Run("is lost when no witness comes before the end", func(t *testing.T) {
		r := uncertain(t)
		r.pass(11 * time.Minute)
		r.wantLost("")
		r.pass(2 * time.Minute)
		r.wantLost(ReasonTwoGenerals)
	})
	for name, a := range map[string]Answer{
		"rejected": failure(ClassRejected, 400), "unauthorized": failure(ClassUnauthorized, 401), "a 400 that does not say why": vague(400),
	} {
		t.Run("is lost when the next attempt is answered: "+name, func(t *testing.T) {
			r := uncertain(t)
			r.pass(30 * time.Second)
			r.accepted()
			r.exchange(a)
			r.wantLost(ReasonTwoGenerals)
		})
	}
	t.Run("stays open when the next attempt meets a wrong setting", func(t *testing.T) {
		r := uncertain(t)
		r.pass(30 * time.Second)
		r.accepted()
		r.exchange(failure(ClassConfig, 400)) // invalid_client, or a page of a load balancer
		r.wantLost("")
	})
	t.Run("stays open when the next attempt is refused for now", func(t *testing.T) {
		r := uncertain(t)
		r.pass(30 * time.Second)
		r.accepted()
		r.exchange(failure(ClassRetry, 503))
		if r.state.rec.Intent == nil {
			t.Fatal("the first attempt is forgotten")
		}
		r.exchange(failure(ClassConfig, 404))
		r.wantPhase(PhaseUncertain)
		r.exchange(r.ok())
		r.wantGeneration(2)
	})
	// The witness makes each attempt as safe as the first.
	t.Run("is tried again as often as the upstream shows that nothing was committed", func(t *testing.T) {
		r := uncertain(t)
		for range 5 {
			r.pass(30 * time.Second)
			r.accepted()
			r.exchange(failure(ClassUnknown, 0))
		}
		r.pass(30 * time.Second)
		r.wantNext(-1)
		r.passTo(r.state.sched.notAfter)
		r.wantLost(ReasonTwoGenerals)
	})
	t.Run("keeps an answer that cannot be used", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		a := failure(ClassUnknown, 200)
		a.Raw = NewSecret("<html>")
		r.exchange(a)
		if r.state.rec.Kept != "PGh0bWw+" {
			t.Errorf("kept %q", r.state.rec.Kept)
		}
		r.pass(30 * time.Second)
		r.accepted()
		r.exchange(r.ok())
		if r.state.rec.Kept != "" {
			t.Error("kept after a success")
		}
	})
}

func TestAnUnknownOutcomeWithinTheReuseInterval(t *testing.T) {
	profile := Profile{RevokesPrevious: true, NeedsAccess: true, ReuseInterval: 10 * time.Second}
	r := seededRig(t, profile, time.Hour)
	r.exchange(failure(ClassUnknown, 0))
	began := r.now
	for _, want := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second} {
		r.wantNext(want)
		if v := r.refused("GET /", false); v != verdictWait {
			t.Fatalf("verdict %d: the next attempt gets the successor", v)
		}
		r.exchange(failure(ClassUnknown, 0))
	}
	if r.now.Sub(began) < 7*time.Second {
		t.Fatalf("only %v", r.now.Sub(began))
	}
	r.pass(2 * time.Second) // 0.8 of the interval is over
	r.wantNext(-1)
	r.passTo(r.state.sched.notAfter)
	r.wantPhase(PhaseLost)
}

// After two retries nothing more is tried; when the access token has served its
// time the session is lost (rotation.md 4.6), or nobody would ever sign in again.
func TestUnknownOutcomesWhereTheAccessTokenLivesOnEndInTwoGenerals(t *testing.T) {
	r := seededRig(t, lenient, time.Hour)
	for range 3 {
		r.exchange(failure(ClassUnknown, 0))
	}
	r.wantNext(-1)
	r.pass(time.Hour)
	r.wantLost(ReasonTwoGenerals)
}

func TestAQuietAnswerIsNoEnd(t *testing.T) {
	r := seededRig(t, strict, time.Hour)
	for n := range 5 { // more than the retries of an unknown outcome
		r.exchange(failure(ClassQuiet, 504))
		if d := r.next(); d != 30*time.Second {
			t.Fatalf("after %d: in %v", n+1, d)
		}
	}
	r.exchange(r.ok())
	r.wantGeneration(2)
}

func TestTheEndOfTheAccessToken(t *testing.T) {
	for _, test := range []struct {
		name    string
		profile Profile
		answer  Answer
		want    Reason
		phase   Phase
	}{
		{"ends a session whose issuer wants a live one", strict, failure(ClassRetry, 503), ReasonExpired, PhaseLost},
		{"ends it after an ambiguous answer, too", strict, failure(ClassQuiet, 502), ReasonExpired, PhaseLost},
		{"ends it as two generals after an unknown outcome", strict, failure(ClassUnknown, 0), ReasonTwoGenerals, PhaseLost},
		{"does not where an expired one is accepted", Profile{RevokesPrevious: true, NeedsAccess: true, AcceptsExpired: true}, failure(ClassRetry, 503), "", PhaseExpired},
		{"does not at an issuer that does not ask for it", Profile{RevokesPrevious: true}, failure(ClassRetry, 503), "", PhaseExpired},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.answer.RetryAfter = 3 * time.Hour
			r := seededRig(t, test.profile, time.Hour)
			r.exchange(test.answer)
			r.passTo(r.state.sched.notAfter.Add(-time.Millisecond))
			if r.state.stage == stagePreparing { // the last stretch
				r.exchange(test.answer)
			}
			r.wantLost("")
			r.pass(time.Millisecond)
			r.wantLost(test.want)
			r.wantPhase(test.phase)
		})
	}
	t.Run("waits for the answer that is under way", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.reach(stageSending)
		r.pass(time.Hour)
		r.wantLost("")
		r.step(evAnswer{r.ok()})
		r.wantLost("")
		r.wantGeneration(2)
	})
	t.Run("ends an attempt that has sent nothing", func(t *testing.T) {
		r := seededRig(t, strict, time.Hour)
		r.reach(stageDraining)
		r.pass(time.Hour)
		need[effDrop](r)
		r.wantLost(ReasonExpired)
	})
	t.Run("is noticed on time", func(t *testing.T) {
		r := seededRig(t, Profile{}, time.Hour)
		a := failure(ClassRetry, 503)
		a.RetryAfter = 3 * time.Hour
		r.exchange(a)
		r.exchange(a)
		r.passTo(r.state.sched.notAfter.Add(-5 * time.Second))
		if at := need[effWake](r).at; at.Boot > r.state.sched.notAfter.Boot {
			t.Errorf("the next look is %v after the end: until then requests get a dead token", at.Sub(r.state.sched.notAfter))
		}
	})
}

// vague is a refusal that does not say why.
func vague(status int) Answer {
	a := failure(ClassConfig, status)
	a.Vague = true
	return a
}

func TestARefusalThatDoesNotSayWhyIsBelievedTheSecondTime(t *testing.T) {
	bearer := lenient
	bearer.NeedsAccess = true
	for name, tt := range map[string]struct {
		profile  Profile
		rotated  bool
		refusals []Answer
		want     Reason
	}{
		"by an issuer that took another pair of the session": {lenient, true, []Answer{vague(400), vague(400)}, ReasonRejected},
		"not the first time":                        {lenient, true, []Answer{vague(400)}, ""},
		"not by one that has taken none":            {lenient, false, []Answer{vague(400), vague(400)}, ""},
		"not by one that may mind the access token": {bearer, true, []Answer{vague(400), vague(400)}, ""},
		"not after an outage":                       {lenient, true, []Answer{failure(ClassRetry, 503), vague(400)}, ""},
		"nor a page, or a wrong setting":            {lenient, true, []Answer{failure(ClassConfig, 400), failure(ClassConfig, 404)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := seededRig(t, tt.profile, time.Hour)
			if tt.rotated {
				r.exchange(r.ok())
			}
			for _, a := range tt.refusals {
				r.exchange(a)
			}
			r.wantLost(tt.want)
		})
	}
}

func TestAnIssuerThatKeepsRefusingAnExpiredPairLeadsToANewLogin(t *testing.T) {
	for name, may := range map[string]bool{"which a source can make": true, "unless none can": false} {
		t.Run(name, func(t *testing.T) {
			profile := strict
			profile.AcceptsExpired = true
			r := seededRig(t, profile, time.Hour, func(r *rig) { r.conf.signsIn = may })
			r.exchange(failure(ClassConfig, 404))
			r.wantLost("")
			r.pass(time.Hour)
			for range 3 {
				if r.state.rec.Lost == "" {
					r.exchange(failure(ClassConfig, 404))
				}
			}
			want := Reason("")
			if may {
				want = ReasonRejected
			}
			r.wantLost(want)
		})
	}
}
