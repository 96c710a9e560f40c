package refresher

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

var updateTransitions = flag.Bool("transitions.update", false, "write testdata/transitions.txt anew, to be read before it is kept")

// situations are the phases as contract 5 names them, each in the ways in which
// a session can be in it.
var situations = []struct {
	name  string
	phase Phase
	setup func(t *testing.T) *rig
}{
	{"holding (not opened)", PhaseHolding, func(t *testing.T) *rig { return unopenedRig(t, strict, time.Hour) }},
	{"holding (journal fails)", PhaseHolding, func(t *testing.T) *rig {
		r := newRig(t, strict, time.Hour)
		r.step(evSeed{seed{pair: r.pair(), source: "file"}})
		r.saved(errTest)
		return r
	}},
	{"empty", PhaseEmpty, func(t *testing.T) *rig { return newRig(t, strict, time.Hour) }},
	{"fresh", PhaseFresh, func(t *testing.T) *rig { return seededRig(t, strict, time.Hour) }},
	{"exchanging (preparing)", PhaseExchanging, func(t *testing.T) *rig { return rigAt(t, stagePreparing) }},
	{"exchanging (draining)", PhaseExchanging, func(t *testing.T) *rig { return rigAt(t, stageDraining) }},
	{"exchanging (recording)", PhaseExchanging, func(t *testing.T) *rig { return rigAt(t, stageRecording) }},
	{"exchanging (sending)", PhaseExchanging, func(t *testing.T) *rig { return rigAt(t, stageSending) }},
	{"exchanging (committing)", PhaseExchanging, func(t *testing.T) *rig { return rigAt(t, stageCommitting) }},
	{"backoff", PhaseBackoff, func(t *testing.T) *rig { return rigAfter(t, failure(ClassRetry, 503)) }},
	{"degraded", PhaseDegraded, func(t *testing.T) *rig {
		a := failure(ClassRetry, 503)
		a.RetryAfter = 8 * time.Minute
		r := rigAfter(t, a)
		r.pass(7 * time.Minute)
		return r
	}},
	{"uncertain (hold-off)", PhaseUncertain, func(t *testing.T) *rig { return rigAfter(t, failure(ClassUnknown, 0)) }},
	{"uncertain (no witness)", PhaseUncertain, func(t *testing.T) *rig {
		r := rigAfter(t, failure(ClassUnknown, 0))
		r.pass(31 * time.Second)
		return r
	}},
	{"expired", PhaseExpired, func(t *testing.T) *rig {
		r := seededRig(t, Profile{RevokesPrevious: true}, time.Hour)
		a := failure(ClassRetry, 503)
		a.RetryAfter = 2 * time.Hour
		r.exchange(a) // when due
		r.exchange(a) // in the last stretch
		r.pass(time.Minute)
		return r
	}},
	{"lost", PhaseLost, func(t *testing.T) *rig { return rigAfter(t, failure(ClassRejected, 400)) }},
	{"lost (undecryptable)", PhaseLost, func(t *testing.T) *rig {
		r := unopenedRig(t, strict, time.Hour)
		r.step(evUnusable{reason: ReasonUndecryptable, detail: "another key"})
		return r
	}},
	{"holding (a webhook has not agreed)", PhaseHolding, func(t *testing.T) *rig {
		r := seededRig(t, strict, time.Hour, announcing(true))
		r.exchange(r.ok())
		return r
	}},
	{"fresh (a webhook is told)", PhaseFresh, func(t *testing.T) *rig {
		r := seededRig(t, strict, time.Hour, announcing(false))
		r.exchange(r.ok())
		return r
	}},
	{"fleet: holding (not asked yet)", PhaseHolding, func(t *testing.T) *rig {
		r := unopenedRig(t, strict, time.Hour, inFleet)
		r.step(evOpened{})
		return r
	}},
	{"fleet: empty", PhaseEmpty, func(t *testing.T) *rig {
		r := unopenedRig(t, strict, time.Hour, inFleet)
		r.step(evOpened{})
		r.lists()
		return r
	}},
	{"fleet: fresh", PhaseFresh, func(t *testing.T) *rig { return fleetRig(t, strict, time.Hour) }},
	{"fleet: fresh (not stored yet)", PhaseFresh, func(t *testing.T) *rig {
		r := fleetRig(t, strict, time.Hour)
		r.step(evSeed{seed{pair: r.pair(), source: "import"}})
		r.saved(nil)
		return r
	}},
	{"fleet: due (asking)", PhaseFresh, func(t *testing.T) *rig { return fleetRigAt(t, stageAsking) }},
	{"fleet: exchanging (posting)", PhaseExchanging, func(t *testing.T) *rig { return fleetRigAt(t, stagePosting) }},
	{"fleet: exchanging (sending)", PhaseExchanging, func(t *testing.T) *rig { return fleetRigAt(t, stageSending) }},
	{"fleet: exchanging (another instance)", PhaseExchanging, func(t *testing.T) *rig {
		r := fleetRig(t, strict, time.Hour)
		r.pass(pollIdle)
		r.lists(r.foreign())
		return r
	}},
	{"fleet: uncertain (another instance has gone)", PhaseUncertain, func(t *testing.T) *rig {
		r := fleetRig(t, strict, time.Hour)
		r.pass(pollIdle)
		r.lists(r.foreign())
		r.pass(31 * time.Second)
		return r
	}},
	{"fleet: fresh (lost unless the store knows better)", PhaseFresh, func(t *testing.T) *rig {
		r := fleetRigAt(t, stageSending)
		r.step(evAnswer{failure(ClassRejected, 400)})
		r.saved(nil)
		return r
	}},
	{"fleet: holding (due, and the store is away)", PhaseHolding, func(t *testing.T) *rig {
		r := fleetRigAt(t, stageAsking)
		r.step(evAsked{id: r.state.attempt.id, at: r.now, err: errTest})
		return r
	}},
	{"fleet: lost", PhaseLost, func(t *testing.T) *rig {
		r := fleetRigAt(t, stageSending)
		r.step(evAnswer{failure(ClassRejected, 400)})
		r.saved(nil)
		r.lists()
		return r
	}},
}

func fleetRigAt(t *testing.T, s stage) *rig {
	t.Helper()
	r := fleetRig(t, strict, time.Hour)
	r.reachInFleet(s)
	return r
}

func rigAt(t *testing.T, s stage) *rig {
	t.Helper()
	r := seededRig(t, strict, time.Hour)
	r.reach(s)
	return r
}

func rigAfter(t *testing.T, a Answer) *rig {
	t.Helper()
	r := seededRig(t, strict, time.Hour)
	r.exchange(a)
	return r
}

// happenings are the events, each in the forms that make a difference.
var happenings = []struct {
	name  string
	event func(r *rig) any
}{
	{"the journal opens empty", func(*rig) any { return evOpened{} }},
	{"the journal opens with a pair", func(r *rig) any {
		return evOpened{rec: &record{Epoch: 7, Generation: 3, Access: "stored", Refresh: "stored-refresh", Received: r.now.Wall, Left: time.Hour, Expires: true}}
	}},
	{"the journal cannot be opened", func(*rig) any { return evUnusable{reason: ReasonUndecryptable, detail: "another key"} }},
	{"configured", func(r *rig) any { return r.conf }},
	{"configured with a login", func(r *rig) any { c := r.conf; c.signsIn = true; return c }},
	{"detached", func(r *rig) any { c := r.conf; c.running = false; return c }},
	{"tick", func(*rig) any { return evTick{} }},
	{"tick an hour later", func(r *rig) any { r.now = r.now.Add(time.Hour); return evTick{} }},
	{"close", func(*rig) any { return evClose{} }},
	{"connected", func(r *rig) any { return evPrepared{attempt: r.state.attempt.id, conn: rigConn{r}} }},
	{"not connected", func(r *rig) any { return evPrepared{attempt: r.state.attempt.id, err: errTest} }},
	{"drained", func(r *rig) any { return evDrained{attempt: r.state.attempt.id} }},
	{"saved", func(r *rig) any { return evSaved{version: r.state.version} }},
	{"not saved", func(r *rig) any { return evSaved{version: r.state.version, err: errTest} }},
	{"answer ok", func(r *rig) any { return evAnswer{r.ok()} }},
	{"answer retry", func(*rig) any { return evAnswer{failure(ClassRetry, 503)} }},
	{"answer quiet", func(*rig) any { return evAnswer{failure(ClassQuiet, 502)} }},
	{"answer config", func(*rig) any { return evAnswer{failure(ClassConfig, 404)} }},
	{"answer unauthorized", func(*rig) any { return evAnswer{failure(ClassUnauthorized, 401)} }},
	{"answer rejected", func(*rig) any { return evAnswer{failure(ClassRejected, 400)} }},
	{"answer unknown", func(*rig) any { return evAnswer{failure(ClassUnknown, 0)} }},
	{"a new pair", func(r *rig) any { return evSeed{seed{pair: r.pair(), source: "file"}} }},
	{"a new pair by signing in", func(r *rig) any { return evSeed{seed{pair: r.pair(), source: "login", signsIn: true}} }},
	{"a new pair by import", func(r *rig) any {
		return evSeed{seed{pair: r.pair(), source: "import", reply: make(chan error, 1)}}
	}},
	{"a spent pair", func(*rig) any {
		return evSeed{seed{pair: Pair{Access: NewSecret("access-1"), Refresh: NewSecret("refresh-1")}, source: "file"}}
	}},
	{"a new pair that was asked for", func(r *rig) any { return evFetched{seed{pair: r.pair(), source: "file"}} }},
	{"a pair of no use that was asked for", func(*rig) any { return evFetched{seed{pair: Pair{Access: NewSecret("a")}, source: "file"}} }},
	{"no pair", func(*rig) any { return evNoSeed{err: ErrNoPair} }},
	{"signing in failed", func(*rig) any { return evNoSeed{signIn: true, err: errTest} }},
	{"an operator refreshes", func(*rig) any { return evRefresh{reply: make(chan error, 1)} }},
	{"accepted upstream", func(r *rig) any { return evAccepted{epoch: r.state.rec.Epoch, generation: r.state.rec.Generation} }},
	{"refused upstream", func(r *rig) any {
		return evUnauthorized{epoch: r.state.rec.Epoch, generation: r.state.rec.Generation, route: "GET /", reply: make(chan verdict, 1)}
	}},
	{"refused upstream again", func(r *rig) any {
		return evUnauthorized{epoch: r.state.rec.Epoch, generation: r.state.rec.Generation, route: "GET /", again: true}
	}},
	{"somebody ends the session", func(*rig) any { return evEnd{reply: make(chan error, 1)} }},
	{"news from the store", func(*rig) any { return evNews{} }},
	{"the store is empty", func(r *rig) any { return evAsked{at: r.now} }},
	{"the store has nothing new", func(r *rig) any { return evAsked{at: r.now, names: r.names()} }},
	{"the store has the next pair", func(r *rig) any {
		return evAsked{at: r.now, names: r.names(r.successor().position().name())}
	}},
	{"the store has another's intent", func(r *rig) any { return evAsked{at: r.now, names: r.names(r.foreign())} }},
	{"the store does not answer", func(r *rig) any { return evAsked{at: r.now, err: errTest} }},
	{"locked, and nothing new", func(r *rig) any {
		return evAsked{id: r.state.attempt.id, at: r.now, names: r.names(), locked: true}
	}},
	{"locked, and another's intent", func(r *rig) any {
		return evAsked{id: r.state.attempt.id, at: r.now, names: r.names(r.foreign()), locked: true}
	}},
	{"the intent is written", func(r *rig) any {
		return evIntended{name: r.state.fleet.owned, at: r.now, names: append(r.names(), r.state.fleet.owned)}
	}},
	{"the intent is written beside another's", func(r *rig) any {
		return evIntended{name: r.state.fleet.owned, at: r.now, names: append(r.names(r.foreign()), r.state.fleet.owned)}
	}},
	{"the intent is not written", func(r *rig) any { return evIntended{name: r.state.fleet.owned, at: r.now, err: errTest} }},
	{"the next pair was read", func(r *rig) any {
		rec := r.successor()
		r.state.fleet.reading = rec.position().name()
		return evRead{name: rec.position().name(), rec: rec}
	}},
	{"an entry that cannot be opened was read", func(r *rig) any {
		r.state.fleet.reading = r.successor().position().name()
		return evRead{name: r.state.fleet.reading, err: errTest, unusable: true}
	}},
	{"our pair is stored", func(r *rig) any { return evShared{at: r.state.rec.position()} }},
	{"our pair is not stored", func(r *rig) any { return evShared{at: r.state.rec.position(), err: errTest} }},
	{"another's pair stands there", func(r *rig) any { return evShared{at: r.state.rec.position(), err: ErrStored} }},
	{"heard of somebody else's exchange", func(r *rig) any {
		return evHeard{Heard{Exchanged: true, Refresh: NewSecret(r.state.rec.Refresh), Access: NewSecret("another")}}
	}},
	{"heard of a revocation", func(r *rig) any { return evHeard{Heard{Revoked: true, Refresh: NewSecret(r.state.rec.Refresh)}} }},
	{"a webhook's outbox has the event", func(r *rig) any { return evAnnounced{id: r.announcementID()} }},
	{"a webhook's answer is waited for", func(r *rig) any { return evAnnounced{id: r.announcementID(), pending: true} }},
	{"a webhook's outbox fails", func(r *rig) any { return evAnnounced{id: r.announcementID(), err: errTest} }},
	{"a webhook agrees", func(r *rig) any { return evAgreed{id: r.announcementID()} }},
	{"an older token refused", func(r *rig) any {
		return evUnauthorized{epoch: r.state.rec.Epoch, generation: r.state.rec.Generation - 1, route: "GET /", reply: make(chan verdict, 1)}
	}},
}

// TestEveryEventInEveryPhase holds each pair of phase and event against the
// table in testdata/transitions.txt: the phase that follows, and the effects by
// kind. A pair that the table lacks fails, and so does one that it lists in
// vain.
func TestEveryEventInEveryPhase(t *testing.T) {
	const path = "testdata/transitions.txt"
	var lines strings.Builder
	lines.WriteString("# phase (how) | event | the phase that follows: the effects by kind, but for the next tick\n")
	got := map[string]string{}
	for _, s := range situations {
		for _, h := range happenings {
			r := s.setup(t)
			r.wantPhase(s.phase)
			r.step(h.event(r))
			does := fmt.Sprintf("%s: %s", r.phase(), kinds(r.last))
			if r.state.rec.Lost != "" {
				does = fmt.Sprintf("%s(%s): %s", r.phase(), r.state.rec.Lost, kinds(r.last))
			}
			pair := s.name + " | " + h.name
			got[pair] = strings.TrimSpace(does)
			fmt.Fprintf(&lines, "%s | %s\n", pair, got[pair])
		}
	}
	if *updateTransitions {
		if err := os.WriteFile(path, []byte(lines.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if sc.Text() == "" || strings.HasPrefix(sc.Text(), "#") {
			continue
		}
		i := strings.LastIndex(sc.Text(), " | ")
		pair, want := sc.Text()[:i], sc.Text()[i+3:]
		does, ok := got[pair]
		switch {
		case !ok:
			t.Errorf("%s: listed, but there is no such phase or event, or it is listed twice", pair)
		case does != want:
			t.Errorf("%s:\n  does   %s\n  listed %s", pair, does, want)
		}
		delete(got, pair)
	}
	for pair, does := range got {
		t.Errorf("%s is not listed; it does %s", pair, does)
	}
}
