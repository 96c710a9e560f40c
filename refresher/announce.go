package refresher

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"
)

// Announcer is told of each rotation, for those who want to hear of it
// (FusionAuth's event jwt.refresh).
type Announcer interface {
	// Announce takes a rotation and returns once it is sure to be delivered,
	// through restarts, too. The same id again is the same rotation. With pending
	// the new pair must not be used before done is called, which then happens
	// once, perhaps before Announce returns. An error has it called again, later.
	Announce(ctx context.Context, a Announcement, done func()) (pending bool, err error)

	// Required reports whether pairs may have to wait.
	Required() bool
}

// Announcement is one rotation.
type Announcement struct {
	Session string
	ID      string // a UUID, the same however often it is told
	At      time.Time

	Presented Secret // the refresh token that was exchanged
	Original  Secret // the access token that the exchange carried; empty: none
	Token     Secret // the new access token

	// Origin is what was known of the request that caused the exchange, see
	// [WithOrigin]; empty where the schedule did.
	Origin []byte
}

// announcement is one that is not over: part of the record, as a process may end
// at any time.
type announcement struct {
	ID        string    `json:"id"`
	At        time.Time `json:"at"`
	Presented string    `json:"presented"`
	Original  string    `json:"original,omitempty"`
	Token     string    `json:"token"`
	Origin    []byte    `json:"origin,omitempty"`
	Held      bool      `json:"held,omitempty"` // the pair must not be used before
	told      bool      // by this process: the answer is waited for
}

func carryAnnouncement(c *codec, a *announcement) {
	text(c, &a.ID)
	date(c, &a.At)
	text(c, &a.Presented)
	text(c, &a.Original)
	text(c, &a.Token)
	text(c, &a.Origin)
	flags(c, &a.Held, &a.told)
}

// telling is how far announcing has come; the announcements themselves are in
// the record.
type telling struct {
	on       bool // there is an announcer
	required bool // and pairs wait for it
	busy     bool // it is being asked
	failures int
	next     Instant // not before
	err      string
	until    Instant // while pairs wait, the former access token lives until then
}

func (t *telling) carry(c *codec) {
	flags(c, &t.on, &t.required, &t.busy)
	number(c, &t.failures)
	instants(c, &t.next, &t.until)
	text(c, &t.err)
}

// maxAnnouncements bounds those that are not over; past it no exchange begins.
const maxAnnouncements = 48

// Events and effects.
type (
	evAnnounced struct { // the announcer has it
		id      string
		pending bool
		err     error
	}
	evAgreed    struct{ id string } // the pair may be used
	effAnnounce struct{ announcement announcement }
)

// announceRotation notes that a rotation is to be told; the record has the new
// pair already.
func (m *machine) announceRotation(old Pair) {
	if !m.telling.on {
		return
	}
	a := announcement{
		ID: m.eventID(), At: m.now.Wall, Held: m.telling.required,
		Presented: old.Refresh.Reveal(), Token: m.rec.Access, Origin: []byte(m.attempt.origin),
	}
	if m.profile.NeedsAccess || m.profile.SendsAccess {
		a.Original = old.Access.Reveal()
	}
	m.rec.Announce = with(m.rec.Announce, a)
}

// eventID is drawn from the generation, so that it is the same whoever tells of
// it, and when.
func (m *machine) eventID() string {
	at := fmt.Sprint(m.rec.Epoch, m.rec.Generation)
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], keyedSum(m.key(), "event-id", at, "1"))
	binary.BigEndian.PutUint64(b[8:], keyedSum(m.key(), "event-id", at, "2"))
	b[6] = b[6]&0x0f | 0x40 // RFC 9562 section 5.4
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// holding reports whether the pair in use must not be shown to anybody yet.
func (m *machine) holding() bool {
	for _, a := range m.rec.Announce {
		if a.Held {
			return true
		}
	}
	return false
}

// tell announces what is in the journal, one after the other.
func (m *machine) tell() {
	t := &m.telling
	if !m.opened || !m.running || t.busy || m.stage == stageCommitting && m.saved < m.attempt.saving {
		return
	}
	for _, a := range m.rec.Announce {
		if a.told {
			continue
		}
		if !m.reached(t.next) {
			m.wakeAt(t.next)
			return
		}
		t.busy = true
		m.emit(effAnnounce{announcement: a})
		return
	}
}

// announced: the announcer has an announcement, or cannot take it now.
func (m *machine) announced(ev evAnnounced) {
	t := &m.telling
	t.busy = false
	if ev.err != nil {
		t.failures++
		t.next = m.now.Add(min(time.Second<<min(t.failures-1, 6), time.Minute))
		t.err = ev.err.Error()
		m.note(Note{Kind: NoteAnnounceFailed, Err: t.err, Next: t.next.Wall})
		return
	}
	t.failures, t.err = 0, ""
	if !ev.pending {
		m.agreed(ev.id)
		return
	}
	m.changeAnnouncements(func(a announcement) (announcement, bool) {
		a.told = a.told || a.ID == ev.id
		return a, true
	})
}

// agreed: an announcement is over.
func (m *machine) agreed(id string) {
	before := len(m.rec.Announce)
	m.changeAnnouncements(func(a announcement) (announcement, bool) { return a, a.ID != id })
	if len(m.rec.Announce) != before {
		m.changed()
		m.shown = view{}
	}
}

// changeAnnouncements replaces the list; records are never changed in place.
func (m *machine) changeAnnouncements(each func(announcement) (announcement, bool)) {
	var list []announcement
	for _, a := range m.rec.Announce {
		if b, keep := each(a); keep {
			list = append(list, b)
		}
	}
	m.rec.Announce = list
}

// announcementsAfter are those that go on when the record becomes another: nobody
// waits any more for what was told of the pairs before.
func announcementsAfter(former []announcement) (list []announcement) {
	for _, a := range former {
		a.Held = false
		list = append(list, a)
	}
	return list
}

// configureAnnouncer takes another configuration's.
func (m *machine) configureAnnouncer(ev evConfigured) {
	m.telling.on, m.telling.required = ev.announces, ev.required
	m.telling.next = Instant{}
	if len(m.rec.Announce) == 0 {
		return
	}
	// What is held for an announcer that is gone is not held any more; another
	// one may know those that this process has told already.
	before := m.rec.Announce
	m.changeAnnouncements(func(a announcement) (announcement, bool) {
		a.told, a.Held = false, a.Held && ev.required
		return a, ev.announces || !ev.running
	})
	if len(before) != len(m.rec.Announce) {
		m.changed()
	}
	m.shown = view{}
}

type originKey struct{}

// WithOrigin has an exchange that a request causes know of the request: describe
// is called if the exchange is made for it, and what it returns is announced.
func WithOrigin(ctx context.Context, describe func() []byte) context.Context {
	return context.WithValue(ctx, originKey{}, describe)
}

func originOf(ctx context.Context) string {
	if describe, ok := ctx.Value(originKey{}).(func() []byte); ok {
		return string(describe())
	}
	return ""
}
