package refresher

import (
	"fmt"
	"testing"
	"time"
)

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
