package refresher

// warn tells once a generation when its refresh token nears the end of its own
// life because no exchange has succeeded: they begin after a third of it. The
// end is where the issuer's profile says how long a refresh token lives unused.
func (m *machine) warn() {
	life := m.profile.RefreshLifetime
	if m.aging || life <= 0 || !m.usable() || !m.reached(m.received.Add(life/4*3)) {
		return // some tick comes soon after
	}
	m.aging = true
	m.note(Note{Kind: NoteRefreshExpiring, Err: m.lastErr, Next: m.received.Add(life).Wall})
}
