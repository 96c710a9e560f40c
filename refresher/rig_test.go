package refresher

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// rig drives step by hand: one event at a time, on a clock that stands still in
// between, without jitter.
type rig struct {
	t       *testing.T
	state   state
	now     Instant
	life    time.Duration // of the pairs that the rig hands out
	conf    evConfigured
	disk    []tokenHash // what the journal has of spent tokens
	last    []any       // effects of the last step
	all     []any
	pairs   int
	dropped int
	spread  float64
}

// strict is the profile of 7G's issuer.
var strict = Profile{RevokesPrevious: true, NeedsAccess: true}

// lenient is that of a usual OAuth2 issuer.
var lenient = Profile{}

var errTest = errors.New("as the test wants it")

// newRig returns a rig whose journal is open and new, whose configuration runs,
// and whose sources have nothing yet.
func newRig(t *testing.T, profile Profile, life time.Duration, change ...func(*rig)) *rig {
	t.Helper()
	r := unopenedRig(t, profile, life, change...)
	r.step(evOpened{})
	if !r.conf.signsIn {
		r.step(evNoSeed{err: ErrNoPair})
	}
	return r
}

func unopenedRig(t *testing.T, profile Profile, life time.Duration, change ...func(*rig)) *rig {
	t.Helper()
	r := &rig{t: t, life: life, conf: evConfigured{profile: profile, running: true}}
	r.now = Instant{Wall: time.Unix(1_800_000_000, 0), Boot: time.Hour}
	r.state = state{env: environment{
		countsSleep: true, bootID: "this boot", owner: 1, fresh: []byte("a key"),
		spread: func([]byte, uint64, uint64, uint64) float64 { return r.spread },
	}}
	for _, f := range change {
		f(r)
	}
	r.step(r.conf)
	return r
}

// seededRig is newRig with a first pair, at rest.
func seededRig(t *testing.T, profile Profile, life time.Duration, change ...func(*rig)) *rig {
	t.Helper()
	r := newRig(t, profile, life, change...)
	r.step(evSeed{seed{pair: r.pair(), source: "file"}})
	r.saved(nil)
	return r
}

// pair returns a pair never seen before.
func (r *rig) pair() Pair {
	r.pairs++
	return Pair{
		Access: NewSecret(fmt.Sprintf("access-%d", r.pairs)), Refresh: NewSecret(fmt.Sprintf("refresh-%d", r.pairs)),
		ExpiresIn: r.life,
	}
}

func (r *rig) step(event any) []any {
	r.t.Helper()
	switch ev := event.(type) {
	case evOpened:
		if r.disk = nil; ev.rec != nil {
			r.disk = ev.rec.Spent
		}
	case evSaved:
		for _, e := range r.all {
			if save, ok := e.(effSave); ok && ev.err == nil && save.version == ev.version {
				r.disk = save.rec.Spent
			}
		}
	}
	whole := r.state
	if whole.sparse {
		whole.completed(r.disk)
	}
	want, effects := step(whole, r.now, event)
	r.state, r.last = recalling(r.state, r.now, event, func(s *state) { s.completed(r.disk) })
	if got := r.state; got.sparse {
		got.completed(r.disk)
		if !slices.Equal(got.rec.Spent, want.rec.Spent) {
			r.t.Fatalf("after %T: %d spent tokens at hand and in the journal, want %d", event, len(got.rec.Spent), len(want.rec.Spent))
		}
	} else if !slices.Equal(got.rec.Spent, want.rec.Spent) {
		r.t.Fatalf("after %T: %d spent tokens at hand, want %d", event, len(got.rec.Spent), len(want.rec.Spent))
	}
	if kinds(effects) != kinds(r.last) {
		r.t.Fatalf("after %T: %s; with all spent tokens at hand %s", event, kinds(r.last), kinds(effects))
	}
	r.state = repacked(r.t, r.state)
	r.state.thin(0)
	r.all = append(r.all, r.last...)
	return r.last
}

// pass moves both clocks and ticks.
func (r *rig) pass(d time.Duration) []any {
	r.t.Helper()
	r.now = r.now.Add(d)
	return r.step(evTick{})
}

// passTo is pass up to an instant.
func (r *rig) passTo(at Instant) []any {
	r.t.Helper()
	return r.pass(at.Sub(r.now))
}

// effect returns the last step's effect of one kind.
func effect[T any](r *rig) (found T, ok bool) {
	for _, e := range r.last {
		if e, is := e.(T); is {
			found, ok = e, true
		}
	}
	return found, ok
}

// need is effect where its absence ends the test.
func need[T any](r *rig) T {
	r.t.Helper()
	e, ok := effect[T](r)
	if !ok {
		r.t.Fatalf("no %T in %s (phase %s, last error %q)", e, kinds(r.last), r.phase(), r.state.lastErr)
	}
	return e
}

// none fails the test where the last step had an effect of this kind.
func none[T any](r *rig) {
	r.t.Helper()
	if e, ok := effect[T](r); ok {
		r.t.Fatalf("unexpected %T in %s", e, kinds(r.last))
	}
}

// saved answers writes of the journal until none is asked for.
func (r *rig) saved(err error) {
	r.t.Helper()
	for range 3 {
		if !r.state.writing {
			return
		}
		r.step(evSaved{version: r.writing(), err: err})
		if err != nil {
			return
		}
	}
}

// writing is the version of the write under way.
func (r *rig) writing() uint64 {
	for i := len(r.all) - 1; i >= 0; i-- {
		if e, ok := r.all[i].(effSave); ok {
			return e.version
		}
	}
	return 0
}

func (r *rig) phase() Phase {
	m := machine{state: r.state, now: r.now}
	return m.phase()
}

func (r *rig) wantPhase(want Phase) {
	r.t.Helper()
	if got := r.phase(); got != want {
		r.t.Fatalf("phase %s, want %s (lost %q, last error %q)", got, want, r.state.rec.Lost, r.state.lastErr)
	}
}

func (r *rig) wantLost(want Reason) {
	r.t.Helper()
	if got := r.state.rec.Lost; got != want {
		r.t.Fatalf("lost: %q, want %q (phase %s)", got, want, r.phase())
	}
}

func (r *rig) wantGeneration(want uint64) {
	r.t.Helper()
	if got := r.state.rec.Generation; got != want {
		r.t.Fatalf("generation %d, want %d", got, want)
	}
}

// next is when the next attempt may be made, from now; -1 for never.
func (r *rig) next() time.Duration {
	m := machine{state: r.state, now: r.now}
	at, _, ok := m.nextAttempt()
	if !ok {
		return -1
	}
	return at.Sub(r.now)
}

func (r *rig) wantNext(want time.Duration) {
	r.t.Helper()
	if got := r.next(); got.Round(time.Millisecond) != want.Round(time.Millisecond) {
		r.t.Fatalf("the next attempt is in %v, want %v", got, want)
	}
}

// begin lets time pass until an exchange begins.
func (r *rig) begin() effPrepare {
	r.t.Helper()
	if r.state.stage == stageIdle {
		d := r.next()
		if d < 0 {
			r.t.Fatalf("no attempt is to come (phase %s)", r.phase())
		}
		r.pass(max(d, 0))
	}
	if r.state.stage != stagePreparing {
		r.t.Fatalf("stage %d, phase %s, lost %q: nothing began", r.state.stage, r.phase(), r.state.rec.Lost)
	}
	return effPrepare{attempt: r.state.attempt.id}
}

// reach takes an exchange up to a stage.
func (r *rig) reach(want stage) {
	r.t.Helper()
	r.begin()
	if r.state.stage < want {
		r.step(evPrepared{attempt: r.state.attempt.id, conn: rigConn{r}})
	}
	if r.state.stage < want && r.state.stage == stageDraining {
		r.step(evDrained{attempt: r.state.attempt.id})
	}
	if r.state.stage < want && r.state.stage == stageRecording {
		r.saved(nil)
	}
	if r.state.stage < want && r.state.stage == stageSending {
		r.step(evAnswer{r.ok()})
	}
	if r.state.stage != want {
		r.t.Fatalf("stage %d, want %d", r.state.stage, want)
	}
}

func (r *rig) ok() Answer { return Answer{Class: ClassOK, Status: 200, Pair: r.pair()} }

func failure(c Class, status int) Answer { return Answer{Class: c, Status: status, Err: errTest} }

// exchange makes the next attempt, which ends with a.
func (r *rig) exchange(a Answer) {
	r.t.Helper()
	r.reach(stageSending)
	r.step(evAnswer{a})
	r.saved(nil)
}

// rigConn is a connection to the issuer on which nothing is sent.
type rigConn struct{ r *rig }

func (rigConn) Send(context.Context, Pair) Answer { panic("the rig answers") }

func (c rigConn) Close() { c.r.dropped++ }

// kinds names effects: "publish wake".
func kinds(effects []any) string {
	var names []string
	for _, e := range effects {
		name := strings.ToLower(strings.TrimPrefix(reflect.TypeOf(e).Name(), "eff"))
		if n, ok := e.(effNote); ok {
			name = "note:" + string(n.note.Kind)
		}
		if name != "wake" { // a tick is asked for after nearly everything
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

func (r *rig) notes(kind NoteKind) (found []Note) {
	for _, e := range r.all {
		if n, ok := e.(effNote); ok && n.note.Kind == kind {
			found = append(found, n.note)
		}
	}
	return found
}
