package refresher

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

// Heard is what an issuer tells of a session by itself (FusionAuth's webhooks).
// It is told before the issuer's transaction is over, and perhaps in the middle
// of an exchange of ours, so that nothing waits for anything.
type Heard struct {
	// Exchanged: somebody exchanged Refresh, or is about to, and gets Access.
	Exchanged bool
	// Revoked: what is named below is no longer good.
	Revoked bool

	Refresh     Secret // of one pair
	RefreshID   string // the same by its name
	Access      Secret
	User        string // all pairs of a user, by the claim "sub"
	Application string // of an application, by the claim "applicationId"
}

// Hear tells the session what was heard. It does not wait; false says that the
// session has ended.
func (s *Session) Hear(h Heard) bool { return s.post(evHeard{h}) }

type evHeard struct{ heard Heard }

// catchUpAfter is how long after somebody else's exchange ours follows: its
// transaction should be over, and a grace period that the issuer grants not.
const catchUpAfter = 2 * time.Second

func (m *machine) hear(h Heard) {
	switch {
	case !m.usable(), !h.names(&m.rec):
	case h.Revoked:
		m.stop("the issuer has revoked the session")
		if m.stage < stageSending {
			m.lose(ReasonRevoked, "the issuer says that it was revoked")
		} // else the answer tells
	case !h.Exchanged, m.stage != stageIdle, h.Access.Equal(NewSecret(m.rec.Access)):
		// It is our own exchange that it speaks of.
	case m.rec.Intent != nil && !m.rec.Stays:
		// Ours, too, most likely: one whose answer was lost.
	default:
		// Whoever it was holds the next pair now. With an issuer that leaves the
		// refresh token in use, or accepts it once more, ours is the same again.
		m.catchUp = m.now.Add(m.sched.scaled(catchUpAfter))
	}
}

// catchUpNow asks for the exchange when its time has come.
func (m *machine) catchUpNow() {
	if m.catchUp.IsZero() || m.stage != stageIdle || !m.usable() {
		return
	}
	if !m.reached(m.catchUp) {
		m.wakeAt(m.catchUp)
		return
	}
	m.catchUp = Instant{}
	m.wanted = causeHeard
}

// names reports whether it speaks of a record's pair.
func (h Heard) names(r *record) bool {
	switch {
	case !h.Refresh.IsZero():
		return h.Refresh.Equal(NewSecret(r.Refresh))
	case h.RefreshID != "":
		return h.RefreshID == r.RefreshID
	case h.User == "" && h.Application == "":
		return false
	}
	user, application := readOwner(r.Access)
	return (h.User == "" || strings.EqualFold(h.User, user)) && (h.Application == "" || strings.EqualFold(h.Application, application))
}

// readOwner reads whose access token that is, without verifying it: it is ours.
func readOwner(access string) (user, application string) {
	parts := strings.Split(access, ".")
	if len(parts) != 3 {
		return "", ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return "", ""
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return "", ""
	}
	claims := object{}
	if scanObject(dec, 1, "", claims) != nil {
		return "", ""
	}
	user, _ = claims["sub"].(string)
	application, _ = claims["applicationId"].(string)
	return user, application
}

// Hear tells the pool what was heard, and the sessions that it speaks of. It does
// not wait: with very many sessions it takes a moment to find them. False says
// that the pool does not know its sessions yet.
func (p *Pool) Hear(h Heard) bool {
	if !p.opened.over() {
		return false
	}
	if m, ok := p.FindRefreshToken(h.Refresh); ok {
		if s, err := p.liveSession(m.member); err == nil && s.Hear(h) {
			return true
		}
	}
	p.work.Go(func() {
		for _, m := range p.named(h) {
			if s, err := p.liveSession(m); err == nil {
				s.Hear(h)
			}
		}
	})
	return true
}

// named are the members that it speaks of.
func (p *Pool) named(h Heard) (found []member) {
	for n := range p.table.parts {
		part := &p.table.parts[n]
		for i := 0; p.ctx.Err() == nil; i++ {
			part.RLock()
			if i >= len(part.slots) {
				part.RUnlock()
				break
			}
			s := &part.slots[i]
			if s.ref != 0 {
				if e, err := packedEntry(part.bytes.Get(s.ref)).unpack(); err == nil && h.names(&e.rec) {
					found = append(found, member{number: uint32(i)*poolParts + uint32(n), serial: s.serial})
				}
			}
			part.RUnlock()
		}
	}
	return found
}
