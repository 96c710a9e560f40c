package refresher

import (
	"math/rand/v2"
	"testing"
	"time"
)

const day = 24 * time.Hour

var planNow = Instant{Wall: time.Unix(1_800_000_000, 0), Boot: time.Hour}

// TestTheSchedule is the table of rotation.md 2.3.
func TestTheSchedule(t *testing.T) {
	for _, test := range []struct {
		life                 time.Duration
		policy               Policy
		profile              Profile
		lead, holdOff, dueIn time.Duration
	}{
		{life: 2 * time.Second, lead: time.Second, holdOff: 4 * time.Second, dueIn: time.Second},
		{life: 3 * time.Second, lead: 1500 * time.Millisecond, holdOff: 4 * time.Second, dueIn: 1500 * time.Millisecond},
		{life: 8 * time.Second, lead: 4 * time.Second, holdOff: 4 * time.Second, dueIn: 4 * time.Second},
		{life: time.Minute, lead: 30 * time.Second, holdOff: 12 * time.Second, dueIn: 30 * time.Second},
		{life: 5 * time.Minute, lead: 75 * time.Second, holdOff: 30 * time.Second, dueIn: 225 * time.Second},
		{life: 20 * time.Minute, lead: 4 * time.Minute, holdOff: 30 * time.Second, dueIn: 16 * time.Minute},
		{life: time.Hour, lead: 12 * time.Minute, holdOff: 30 * time.Second, dueIn: 48 * time.Minute},
		{life: day, lead: 15 * time.Minute, holdOff: 30 * time.Second, dueIn: day - 15*time.Minute},
		{life: 60 * day, lead: 15 * time.Minute, holdOff: 30 * time.Second, dueIn: 60*day - 15*time.Minute},
		{life: 60 * day, profile: Profile{RefreshLifetime: 30 * day}, lead: 15 * time.Minute, holdOff: 30 * time.Second, dueIn: 10 * day},
		{life: time.Hour, profile: Profile{RefreshLifetime: 30 * day}, lead: 12 * time.Minute, holdOff: 30 * time.Second, dueIn: 48 * time.Minute},
		{life: 60 * day, profile: Profile{RefreshLifetime: 30 * day}, policy: Policy{RefreshBefore: 55 * day}, lead: 55 * day, holdOff: 30 * time.Second, dueIn: 6 * day},
		{life: time.Hour, policy: Policy{RefreshPercent: 20}, lead: 12 * time.Minute, holdOff: 30 * time.Second, dueIn: 48 * time.Minute},
		{life: time.Hour, policy: Policy{RefreshPercent: 50}, lead: 30 * time.Minute, holdOff: 30 * time.Second, dueIn: 30 * time.Minute},
		{life: time.Hour, policy: Policy{RefreshPercent: 100}, lead: time.Hour, holdOff: 30 * time.Second, dueIn: 6 * time.Minute},
		{life: time.Hour, policy: Policy{RefreshBefore: 10 * time.Second}, lead: 10 * time.Second, holdOff: 4 * time.Second, dueIn: time.Hour - 10*time.Second},
		{life: time.Hour, policy: Policy{RefreshBefore: 3 * time.Hour}, lead: time.Hour, holdOff: 30 * time.Second, dueIn: 6 * time.Minute},
		{life: time.Hour, profile: Profile{HoldOff: time.Second}, lead: 12 * time.Minute, holdOff: time.Second, dueIn: 48 * time.Minute},
		{life: 0, lead: 0, holdOff: 4 * time.Second, dueIn: 0},
	} {
		s := plan(test.policy, test.profile, planNow, test.life, true, 0)
		if s.lead != test.lead || s.holdOff != test.holdOff || s.refreshAt.Sub(planNow) != test.dueIn {
			t.Errorf("life %v, %+v, %+v: lead %v, hold-off %v, due in %v; want %v, %v, %v", test.life, test.policy, test.profile,
				s.lead, s.holdOff, s.refreshAt.Sub(planNow), test.lead, test.holdOff, test.dueIn)
		}
		if s.notAfter != planNow.Add(test.life) {
			t.Errorf("life %v ends at %v", test.life, s.notAfter)
		}
	}
}

func TestAScheduleForAnyLife(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		life := time.Duration(rng.Int64N(int64(maxLifetime)) >> rng.IntN(40))
		var pol Policy
		switch rng.IntN(4) {
		case 0:
			pol.RefreshPercent = 100 * rng.Float64()
		case 1:
			pol.RefreshBefore = time.Duration(rng.Int64N(int64(3*life) + 1))
		}
		prof := Profile{RefreshLifetime: time.Duration(rng.IntN(2)) * 30 * day, Timeout: 10 * time.Second}
		s := plan(pol, prof, planNow, life, true, rng.Float64())
		latest := plan(pol, prof, planNow, life, true, 0)
		due := s.refreshAt.Sub(planNow)
		switch {
		case due < life/10 && (prof.RefreshLifetime == 0 || pol.explicit() || due < prof.RefreshLifetime/3):
			t.Errorf("life %v, %+v: due in %v, a tight loop", life, pol, due)
		case prof.RefreshLifetime > 0 && !pol.explicit() && due > prof.RefreshLifetime/3:
			t.Errorf("life %v: due in %v, the refresh token lives for %v unused", life, due, prof.RefreshLifetime)
		case due > life && life > 10:
			t.Errorf("life %v, %+v: due in %v, after the end", life, pol, due)
		case s.lead < 0 || s.lead > life:
			t.Errorf("life %v, %+v: lead %v", life, pol, s.lead)
		case !pol.explicit() && (s.lead > life/2 || s.lead > maxLead):
			t.Errorf("life %v: lead %v", life, s.lead)
		case latest.refreshAt.Sub(s.refreshAt) < 0 || latest.refreshAt.Sub(s.refreshAt) > s.lead/5+1:
			t.Errorf("life %v: jitter %v of lead %v", life, latest.refreshAt.Sub(s.refreshAt), s.lead)
		case prof.HoldOff == 0 && (s.holdOff < 4*time.Second || s.holdOff > 30*time.Second):
			t.Errorf("life %v: hold-off %v", life, s.holdOff)
		case s.stretch(10*time.Second) > s.lead/3 || s.stretch(10*time.Second) > 20*time.Second:
			t.Errorf("life %v: stretch %v", life, s.stretch(10*time.Second))
		case s.scaled(time.Minute) > max(life/10, 0) && life > 0:
			t.Errorf("life %v: scaled %v", life, s.scaled(time.Minute))
		case prof.RefreshLifetime > 0 && !pol.explicit() && due > max(10*day, life/10):
			t.Errorf("life %v: due in %v, the refresh token lives 30 days", life, due)
		}
		if t.Failed() {
			return
		}
	}
}

func TestALifeThatIsNotKnown(t *testing.T) {
	s := plan(Policy{}, Profile{}, planNow, 0, false, 0.5)
	if s.known() || !s.refreshAt.IsZero() || s.lead != minLead || s.holdOff != 30*time.Second {
		t.Errorf("%+v", s)
	}
	if got := s.scaled(time.Minute); got != time.Minute {
		t.Errorf("scaled to %v", got)
	}
	t.Run("is exchanged for the refresh token's sake", func(t *testing.T) {
		s := plan(Policy{}, Profile{RefreshLifetime: 30 * day}, planNow, 0, false, 0)
		if s.refreshAt.IsZero() {
			t.Error("never: the refresh token ends unused after 30 days (Profile.RefreshLifetime says after a third of it)")
		}
	})
}

func TestTheJitterIsTheSessionsOwn(t *testing.T) {
	one, other := []byte("one"), []byte("other")
	seen := map[float64]bool{}
	for g := range uint64(1000) {
		u := spread(one, 1, g, 0)
		if u < 0 || u >= 1 || seen[u] || u == spread(other, 1, g, 0) || u != spread(one, 1, g, 0) {
			t.Fatalf("generation %d: %v", g, u)
		}
		seen[u] = true
	}
}
