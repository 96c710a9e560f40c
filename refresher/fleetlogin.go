package refresher

import (
	"slices"
	"time"
)

// In a fleet one instance signs in: a second login may end the first. The same
// list, write, list that guards an exchange guards it, with a claim in place of
// the intent.

// claimHold is how long a claim holds the others up: whoever has died over it is
// waited for no longer.
func (m *machine) claimHold() time.Duration {
	return 2 * orDefault(m.profile.Timeout, defaultTimeout)
}

// nextLogin is the position of claims.
func (m *machine) nextLogin() position { return position{epoch: m.rec.Epoch + 1} }

// claimSignIn asks the store first.
func (m *machine) claimSignIn() {
	m.attempt.id++
	m.signIn.ask = m.attempt.id
	m.emit(effAsk{id: m.signIn.ask})
}

// sightClaims remembers when each claim was first seen.
func (m *machine) sightClaims(found found, late bool) {
	f := &m.fleet
	f.claims = slices.DeleteFunc(slices.Clone(f.claims), func(s sighting) bool {
		return !late && !slices.Contains(found.claims, s.name)
	})
	for _, name := range found.claims {
		if name != m.signIn.claim && !slices.ContainsFunc(f.claims, func(s sighting) bool { return s.name == name }) {
			f.claims = append(f.claims, sighting{name: name, first: m.now})
		}
	}
}

// othersSignIn reports whether another instance may be signing in.
func (m *machine) othersSignIn() bool {
	return slices.ContainsFunc(m.fleet.claims, func(s sighting) bool { return !m.reached(s.first.Add(m.claimHold())) })
}

// signInAsked: the store knows of no login and of nobody who is signing in, or
// does.
func (m *machine) signInAsked(err error, newer bool) {
	m.signIn.ask = 0
	if err != nil || newer || m.usable() || m.othersSignIn() {
		m.notNow()
		return
	}
	m.signIn.claim = signedName(m.key(), kindClaim, m.nextLogin(), m.ownMark())
	m.emit(effIntend{name: m.signIn.claim})
}

// claimed: the claim is written and the names are here once more.
func (m *machine) claimed(ev evIntended) {
	newer := false
	if ev.err != nil {
		m.storeFails(ev.err)
	} else {
		newer = m.sighted(ev.at, ev.names, ev.pushes)
	}
	if ev.err != nil || newer || m.usable() || m.othersSignIn() {
		m.unclaim()
		m.notNow()
		return
	}
	m.signIn.fetching = true
	m.emit(effFetch{signIn: true})
}

// notNow puts signing in off, each instance by its own while.
func (m *machine) notNow() {
	m.signIn.running = false
	u := m.spread(m.env.owner ^ m.attempt.id)
	m.signIn.next = m.now.Add(time.Duration((0.2 + u) * float64(time.Second)))
}

// unclaim takes the claim back.
func (m *machine) unclaim() {
	if m.signIn.claim != "" {
		m.emit(effErase{names: []string{m.signIn.claim}})
		m.signIn.claim = ""
	}
}
