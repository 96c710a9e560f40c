package refresher

// Ready reports whether a request would get a token: now, or after the wait that
// an exchange costs.
func (s *Session) Ready() bool {
	switch s.cur.Load().mode {
	case modeReady, modeComing:
		return true
	}
	return false
}
