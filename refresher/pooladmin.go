package refresher

import (
	"bytes"
	"context"
	"encoding/hex"
	"slices"
	"time"
)

// PoolCounts is how a pool is doing, at a glance.
type PoolCounts struct {
	Pool     string        `json:"pool"`
	Sessions int           `json:"sessions"`
	Live     int           `json:"live"`              // of them: with an exchange or a request under way
	States   map[Phase]int `json:"states"`            // of all
	Left     []int         `json:"left"`              // sessions by the time that their access token has left, see Bounds
	Bounds   []float64     `json:"bounds_seconds"`    // upper ends of all but the last of Left
	Intents  int           `json:"intents_open"`      // exchanges under way or with an unknown outcome
	Lost     uint64        `json:"lost"`              // since the process began
	Bytes    int64         `json:"bytes"`             // that the sessions take in memory
	Problem  string        `json:"problem,omitempty"` // why the pool is not ready
}

// leftBounds are the classes of the time left.
var leftBounds = []time.Duration{0, time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 24 * time.Hour}

// Counts looks at all sessions: with a million it takes some ten milliseconds.
func (p *Pool) Counts() PoolCounts {
	c := PoolCounts{Pool: p.name, States: map[Phase]int{}, Left: make([]int, len(leftBounds)+1), Lost: p.lost.Load(), Bytes: p.table.size()}
	for _, b := range leftBounds {
		c.Bounds = append(c.Bounds, b.Seconds())
	}
	if text := p.failed.Load(); text != nil {
		c.Problem = *text
	}
	now := int64(p.now().Boot)
	for n := range p.table.parts {
		part := &p.table.parts[n]
		part.RLock()
		c.Live += len(part.live)
		for i := range part.slots {
			s := &part.slots[i]
			if s.ref == 0 {
				continue
			}
			c.Sessions++
			state, left, open := part.phase(uint32(i), s, now)
			c.States[state]++
			if open {
				c.Intents++
			}
			class := 0
			for class < len(leftBounds) && left > leftBounds[class] {
				class++
			}
			c.Left[class]++
		}
		part.RUnlock()
	}
	return c
}

// phase is a session's state, how long its access token has left, and whether it
// has an open intent; the lock is held.
func (p *poolPart) phase(i uint32, s *slot, now int64) (state Phase, left time.Duration, open bool) {
	e := packedEntry(p.bytes.Get(s.ref))
	left = time.Duration(never)
	if e.expires() {
		left = time.Duration(s.notAfter - now)
	}
	switch live := p.live[i]; {
	case live != nil:
		st := live.Status()
		return st.State, left, st.IntentOpen
	case left <= 0:
		return PhaseExpired, left, false
	}
	return PhaseFresh, left, false
}

// Status is the state of the session, without secrets.
func (m Member) Status() (Status, error) {
	p := m.pool
	part, i := p.table.part(m.number)
	part.RLock()
	defer part.RUnlock()
	s, packed, ok := part.entry(i, m.serial)
	if !ok {
		return Status{}, ErrForgotten
	}
	return p.status(part, i, s, packed), nil
}

// status describes an entry; the part's lock is held.
func (p *Pool) status(part *poolPart, i uint32, s *slot, packed packedEntry) Status {
	now := p.now()
	var st Status
	if live := part.live[i]; live != nil {
		st = live.Status()
	} else {
		st = Status{
			State: PhaseFresh, Epoch: packed.epoch(), Generation: packed.generation(), Source: "learned",
			Fingerprint: NewSecret(string(packed.access())).Fingerprint(),
		}
		if packed.expires() {
			st.ExpiresAt = now.Add(time.Duration(s.notAfter) - now.Boot).Wall
		}
		if s.due != never {
			st.RefreshAt = now.Add(time.Duration(s.due) - now.Boot).Wall
		}
		if packed.expires() && s.notAfter <= int64(now.Boot) {
			st.State = PhaseExpired
		}
	}
	st.Name, st.Pool = p.sessionName(packed.id()), p.name
	return st
}

// Session finds a session by the id that stands behind the pool's name.
func (p *Pool) Session(id string) (Member, bool) {
	raw, ok := parseID(id)
	if !ok {
		return Member{}, false
	}
	m, _, ok := p.table.find(raw.sum())
	return Member{pool: p, member: m}, ok
}

func parseID(text string) (id poolID, ok bool) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(id) {
		return id, false
	}
	return poolID(raw), true
}

// List describes up to limit sessions behind the one whose id is after, in the
// order of their ids; "" begins. next is the id to go on with, or empty. Its
// session may have ended by then.
func (p *Pool) List(after string, limit int) (list []Status, next string) {
	type place struct {
		member
		id poolID
	}
	limit = max(limit, 1)
	from, begun := parseID(after)
	var near []place // behind from, the next limit+1 and perhaps some more
	cut := func() {
		slices.SortFunc(near, func(a, b place) int { return bytes.Compare(a.id[:], b.id[:]) })
		near = near[:min(len(near), limit+1)]
	}
	for n := range p.table.parts {
		part := &p.table.parts[n]
		part.RLock()
		for i := range part.slots {
			s := &part.slots[i]
			if s.ref == 0 {
				continue
			}
			if id := packedEntry(part.bytes.Get(s.ref)).id(); !begun || bytes.Compare(id[:], from[:]) > 0 {
				near = append(near, place{member{uint32(i*poolParts + n), s.serial}, id})
			}
			if len(near) >= 2*limit+1000 {
				cut()
			}
		}
		part.RUnlock()
	}
	cut()
	if len(near) > limit {
		near = near[:limit]
		next = near[limit-1].id.String()
	}
	for _, at := range near {
		if st, err := (Member{pool: p, member: at.member}).Status(); err == nil {
			list = append(list, st)
		}
	}
	return list, next
}

// Refresh is [Session.Refresh].
func (m Member) Refresh(ctx context.Context) error {
	return m.withLive(ctx, func(s *Session) error { return s.Refresh(ctx) })
}

// FindRefreshToken returns the session whose refresh token in use that is, or to
// whose callers it was given: for those who hear of it from the issuer.
func (p *Pool) FindRefreshToken(token Secret) (Member, bool) {
	if !p.opened.over() || token.IsZero() {
		return Member{}, false
	}
	m, given, ok := p.table.find(p.sums.sum(token.Reveal()))
	return Member{pool: p, member: m}, ok && given.kind == RefreshToken
}
