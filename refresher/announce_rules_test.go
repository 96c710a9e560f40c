package refresher

import (
	"slices"
	"testing"
	"time"
)

// announcing configures an announcer; required: pairs wait for it.
func announcing(required bool) func(*rig) {
	return func(r *rig) { r.conf.announces, r.conf.required = true, required }
}

// announcementID is the one of the first announcement that is not over.
func (r *rig) announcementID() string {
	for _, a := range r.state.rec.Announce {
		return a.ID
	}
	return "none"
}

// shows reports whether requests may have the generation in use.
func (r *rig) shows() bool {
	return r.state.shown.mode == modeReady && r.state.shown.generation == r.state.rec.Generation
}

func TestARotationIsToldAfterItIsInTheJournal(t *testing.T) {
	r := seededRig(t, strict, time.Hour, announcing(false))
	r.reach(stageCommitting)
	if _, ok := effect[effAnnounce](r); ok {
		t.Fatal("it was told before it was written")
	}
	r.saved(nil)
	told := need[effAnnounce](r).announcement
	if told.Presented != "refresh-1" || told.Original != "access-1" || told.Token != "access-2" || told.Held || len(told.ID) != 36 {
		t.Errorf("told %+v", told)
	}
	if !r.shows() {
		t.Error("the new pair waits, though nobody has to agree")
	}
	r.step(evAnnounced{id: told.ID})
	if len(r.state.rec.Announce) != 0 {
		t.Error("it is still to be told")
	}
	r.saved(nil)
}

func TestTheAccessTokenIsToldOnlyWhereItWasSent(t *testing.T) {
	for _, c := range []struct {
		profile Profile
		sent    bool
	}{{strict, true}, {lenient, false}, {Profile{SendsAccess: true}, true}} {
		r := seededRig(t, c.profile, time.Hour, announcing(false))
		r.exchange(r.ok())
		if got := r.state.rec.Announce[0].Original != ""; got != c.sent {
			t.Errorf("%+v: told %t, want %t", c.profile, got, c.sent)
		}
	}
}

func TestNobodyGetsAPairBeforeAllHaveAgreed(t *testing.T) {
	r := seededRig(t, strict, time.Hour, announcing(true))
	r.exchange(r.ok())
	id := r.announcementID()
	for _, ev := range []any{evTick{}, evAnnounced{id: id, pending: true}, evTick{}, evAgreed{id: "another"}} {
		if r.step(ev); r.shows() || r.state.shown.mode != modeComing {
			t.Fatalf("after %T: requests see %+v", ev, r.state.shown)
		}
	}
	if n := count[effAnnounce](r.all); n != 1 {
		t.Errorf("told %d times", n)
	}
	r.step(evAgreed{id: id})
	if !r.shows() {
		t.Error("it is still held back")
	}
}

func TestAFailingOutboxIsAskedAgain(t *testing.T) {
	r := seededRig(t, strict, time.Hour, announcing(true))
	r.exchange(r.ok())
	id := r.announcementID()
	for range 5 {
		r.step(evAnnounced{id: id, err: errTest})
		if _, ok := effect[effAnnounce](r); ok || r.shows() {
			t.Fatal("asked again at once, or shown")
		}
		r.pass(time.Minute)
		if need[effAnnounce](r).announcement.ID != id {
			t.Fatal("another id")
		}
	}
	r.step(evAnnounced{id: id})
	if !r.shows() {
		t.Error("it is still held back")
	}
}

func TestWhatWasNotToldIsToldAfterARestartWithTheSameID(t *testing.T) {
	for _, required := range []bool{false, true} {
		r := seededRig(t, strict, time.Hour, announcing(required))
		r.exchange(r.ok())
		id := r.announcementID()
		r.step(evAnnounced{id: id, pending: true})
		rec := r.state.rec
		next := unopenedRig(t, strict, time.Hour, announcing(required), func(n *rig) { n.now = r.now.Add(time.Second) })
		next.step(evOpened{rec: &rec})
		if a := need[effAnnounce](next).announcement; a.ID != id {
			t.Errorf("required %t: the id is %s, was %s", required, a.ID, id)
		}
		if next.shows() == required {
			t.Errorf("required %t: shown %t", required, next.shows())
		}
	}
}

func TestAnIssuerThatDoesNotRevokeLeavesTheFormerTokenWhileAWebhookIsWaitedFor(t *testing.T) {
	r := seededRig(t, lenient, time.Hour, announcing(true))
	end := r.state.sched.notAfter
	r.exchange(r.ok())
	if r.state.shown.mode != modeReady && r.state.shown != (view{}) || count[effPublish](r.last) != 0 {
		t.Fatalf("requests see %+v", r.state.shown)
	}
	r.passTo(end)
	if r.state.shown.mode != modeComing {
		t.Errorf("after its end requests see %+v", r.state.shown)
	}
	r.step(evAgreed{id: r.announcementID()})
	if !r.shows() {
		t.Error("it is still held back")
	}
}

func TestASessionIsKeptAliveWhileAWebhookDoesNotAnswer(t *testing.T) {
	r := seededRig(t, strict, time.Hour, announcing(true))
	for range 3 {
		r.exchange(r.ok())
		for _, a := range r.state.rec.Announce {
			r.step(evAnnounced{id: a.ID, pending: true})
		}
		r.saved(nil)
	}
	var ids []string
	for _, a := range r.state.rec.Announce {
		ids = append(ids, a.ID)
	}
	if r.state.rec.Generation != 4 || len(ids) != 3 || r.shows() {
		t.Fatalf("generation %d, %d to be told, shown %t", r.state.rec.Generation, len(ids), r.shows())
	}
	for i, id := range ids {
		r.step(evAgreed{id: id})
		if r.shows() != (i == len(ids)-1) {
			t.Errorf("after %d have agreed: shown %t", i+1, r.shows())
		}
	}
}

func TestWithoutAWebhookNothingWaits(t *testing.T) {
	r := seededRig(t, strict, time.Hour, announcing(true))
	r.exchange(r.ok())
	conf := r.conf
	conf.announces, conf.required = false, false
	r.step(conf)
	if !r.shows() || len(r.state.rec.Announce) != 0 {
		t.Errorf("shown %t, %d to be told", r.shows(), len(r.state.rec.Announce))
	}
}

func TestANewLoginDoesNotWaitForTheFormerOnesWebhook(t *testing.T) {
	r := seededRig(t, strict, time.Hour, announcing(true))
	r.exchange(r.ok())
	r.step(evSeed{seed{pair: r.pair(), source: "import"}})
	r.saved(nil)
	if !r.shows() || len(r.state.rec.Announce) != 1 {
		t.Errorf("shown %t, %d to be told", r.shows(), len(r.state.rec.Announce))
	}
}

func TestTheIDOfAnEventIsThatOfItsGeneration(t *testing.T) {
	r := seededRig(t, strict, time.Hour, announcing(false))
	var ids []string
	for range 4 {
		r.exchange(r.ok())
		ids = append(ids, r.announcementID())
		r.step(evAnnounced{id: r.announcementID()})
		r.saved(nil)
	}
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 4 {
		t.Errorf("ids %q", ids)
	}
}

func TestAnExchangeKnowsTheRequestThatCausedIt(t *testing.T) {
	r := seededRig(t, strict, time.Hour, announcing(false))
	r.step(evUnauthorized{epoch: 1, generation: 1, route: "GET /", origin: "somebody", reply: make(chan verdict, 1)})
	r.step(evPrepared{attempt: r.state.attempt.id, conn: rigConn{r}})
	r.step(evDrained{attempt: r.state.attempt.id})
	r.saved(nil)
	r.step(evAnswer{r.ok()})
	r.saved(nil)
	if got := string(r.state.rec.Announce[0].Origin); got != "somebody" {
		t.Errorf("origin %q", got)
	}
	r.exchange(r.ok()) // by the schedule
	if got := string(r.state.rec.Announce[1].Origin); got != "" {
		t.Errorf("origin %q of the next one", got)
	}
}

func count[T any](effects []any) (n int) {
	for _, e := range effects {
		if _, ok := e.(T); ok {
			n++
		}
	}
	return n
}
