package refresher

import (
	"testing"
	"time"
)

// A refresh token that nothing has exchanged for three quarters of its life is
// told of once, and again only after a rotation.
func TestARefreshTokenNearItsEndIsToldOnce(t *testing.T) {
	const life = 40 * time.Hour
	r := seededRig(t, Profile{RefreshLifetime: life}, 100*time.Hour)
	begun := r.now
	failing := func() {
		r.pass(10 * time.Minute)
		if r.state.stage == stagePreparing {
			r.step(evPrepared{attempt: r.state.attempt.id, err: errTest})
		}
	}
	for r.now.Sub(begun) < life/4*3-20*time.Minute {
		failing()
	}
	if len(r.notes(NoteRefreshExpiring)) != 0 {
		t.Fatalf("told %v too early", begun.Add(life/4*3).Sub(r.now))
	}
	for range 6 {
		failing()
	}
	notes := r.notes(NoteRefreshExpiring)
	if len(notes) != 1 || !notes[0].Next.Equal(begun.Add(life).Wall) || notes[0].Err == "" {
		t.Fatalf("told: %+v", notes)
	}
	if !r.state.aging {
		t.Error("it is forgotten that it was told")
	}
	m := machine{state: r.state, now: r.now}
	m.renew()
	if m.aging {
		t.Error("the next generation's will not be told")
	}
}

// Without knowledge nothing is told.
func TestARefreshTokenOfUnknownLifeIsNotGuessedAt(t *testing.T) {
	r := seededRig(t, lenient, 100*time.Hour)
	for range 100 {
		r.pass(5 * time.Hour)
	}
	if notes := r.notes(NoteRefreshExpiring); len(notes) != 0 {
		t.Errorf("told: %+v", notes)
	}
}
