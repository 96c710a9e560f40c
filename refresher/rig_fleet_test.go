package refresher

import (
	"testing"
	"time"
)

// inFleet has the rig's session share a store.
func inFleet(r *rig) { r.conf.store = 1 }

// fleetRig is a session of a fleet at rest: its first pair is in the store.
func fleetRig(t *testing.T, profile Profile, life time.Duration, change ...func(*rig)) *rig {
	t.Helper()
	r := unopenedRig(t, profile, life, append(change, inFleet)...)
	r.step(evOpened{})
	r.lists()
	r.step(evNoSeed{err: ErrNoPair})
	r.step(evSeed{seed{pair: r.pair(), source: "file"}})
	r.saved(nil)
	r.shares(nil)
	r.wantPhase(PhaseFresh)
	return r
}

// names are what the store holds: our record, and others.
func (r *rig) names(others ...string) []string {
	names := others
	if here := r.state.fleet.stored; !here.isZero() {
		names = append(names, here.name())
	}
	return names
}

// lists answers the poll under way with our record and others.
func (r *rig) lists(others ...string) []any {
	r.t.Helper()
	return r.step(evAsked{at: r.now, names: r.names(others...)})
}

// asks answers the attempt that asks.
func (r *rig) asks(others ...string) []any {
	r.t.Helper()
	return r.step(evAsked{id: r.state.attempt.id, at: r.now, names: r.names(others...), locked: true})
}

// intended answers the write of the intent.
func (r *rig) intends(others ...string) []any {
	r.t.Helper()
	return r.step(evIntended{name: r.state.fleet.owned, at: r.now, names: append(r.names(others...), r.state.fleet.owned)})
}

// shares answers the write of our record.
func (r *rig) shares(err error) []any {
	r.t.Helper()
	return r.step(evShared{at: r.state.rec.position(), err: err})
}

// foreign is the intent of another instance for the generation in use.
func (r *rig) foreign() string {
	m := machine{state: r.state}
	return signedName(m.key(), kindIntent, r.state.rec.position(), "00000000000000ff00000001")
}

// successor is what another instance has stored after it rotated.
func (r *rig) successor() *record {
	m := machine{state: r.state}
	rec := r.state.rec
	p := r.pair()
	rec.Prev = m.chain()
	rec.Generation++
	rec.Access, rec.Refresh = p.Access.Reveal(), p.Refresh.Reveal()
	rec.Received, rec.Left, rec.Expires, rec.BootID = r.now.Wall, r.life, true, "another boot"
	rec.Intent = nil
	return &rec
}

// reachInFleet takes an exchange up to a stage.
func (r *rig) reachInFleet(want stage) {
	r.t.Helper()
	r.begin1()
	for range 8 {
		if r.state.stage >= want {
			break
		}
		switch r.state.stage {
		case stageAsking:
			r.asks()
		case stagePreparing:
			r.step(evPrepared{attempt: r.state.attempt.id, conn: rigConn{r}})
		case stageDraining:
			r.step(evDrained{attempt: r.state.attempt.id})
		case stageRecording:
			r.saved(nil)
		case stagePosting:
			r.intends()
		case stageSending:
			r.step(evAnswer{r.ok()})
		}
	}
	if r.state.stage != want {
		r.t.Fatalf("stage %d, want %d", r.state.stage, want)
	}
}

// begin1 lets time pass until an exchange asks the store.
func (r *rig) begin1() {
	r.t.Helper()
	if r.state.stage != stageIdle {
		return
	}
	r.pass(max(r.next(), 0))
	if r.state.stage != stageAsking {
		r.t.Fatalf("stage %d, phase %s: nothing began", r.state.stage, r.phase())
	}
}
