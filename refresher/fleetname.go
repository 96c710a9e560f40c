package refresher

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// What a fleet stores for a session, by name. Every name says where in the
// session's life it belongs, so that one List tells all there is to know:
//
//	r.<epoch>.<generation>                          a pair, sealed
//	t.<epoch>.<generation>                          the end of one: lost, or logged out
//	i.<epoch>.<generation>.<owner><attempt>.<mac>   an intent: an exchange of this generation
//	p.<epoch>.<generation>.<milliseconds>.<mac>     a plan: an exchange that was announced
//	c.<epoch>.<0>.<owner><attempt>.<mac>            a claim: somebody is signing in
//	q.<epoch>.<generation>.<owner><attempt>.<mac>   quiet: the store had lost its intents
//
// Numbers are hexadecimal, 16 digits. The signed ones have no content; the
// keyed sum in the name shows that a holder of the pair made it. Other names are
// none of ours.

type entryKind byte

const (
	kindRecord entryKind = 'r'
	kindTomb   entryKind = 't'
	kindIntent entryKind = 'i'
	kindPlan   entryKind = 'p'
	kindQuiet  entryKind = 'q'
	kindClaim  entryKind = 'c'
)

// position orders all that a session ever was: its logins, the rotations of
// each, and the end of one.
type position struct {
	epoch, generation uint64
	ended             bool
}

func (p position) before(q position) bool {
	switch {
	case p.epoch != q.epoch:
		return p.epoch < q.epoch
	case p.generation != q.generation:
		return p.generation < q.generation
	}
	return !p.ended && q.ended
}

func (p position) isZero() bool { return p == position{} }

// name is where the fleet keeps what is at p.
func (p position) name() string {
	kind := kindRecord
	if p.ended {
		kind = kindTomb
	}
	return fmt.Sprintf("%c.%016x.%016x", kind, p.epoch, p.generation)
}

// position is where a record stands. That its access token ended is no end for
// the others, whose clocks may differ.
func (r *record) position() position {
	p := position{epoch: r.Epoch, generation: r.Generation}
	switch r.Lost {
	case ReasonTwoGenerals, ReasonRejected, ReasonLoggedOut:
		p.ended = true
	}
	return p
}

// entry is a name read.
type entry struct {
	kind entryKind
	at   position
	what string // of an intent: owner and attempt; of a plan: when
	mac  string
}

func parseName(name string) (e entry, ok bool) {
	parts := strings.Split(name, ".")
	if len(parts) < 3 || len(parts[0]) != 1 {
		return e, false
	}
	e.kind = entryKind(parts[0][0])
	var okEpoch, okGeneration bool
	e.at.epoch, okEpoch = parseNumber(parts[1])
	e.at.generation, okGeneration = parseNumber(parts[2])
	e.at.ended = e.kind == kindTomb
	switch e.kind {
	case kindRecord, kindTomb:
		ok = len(parts) == 3
	case kindIntent, kindPlan, kindQuiet, kindClaim:
		if ok = len(parts) == 5; ok {
			e.what, e.mac = parts[3], parts[4]
		}
	}
	return e, ok && okEpoch && okGeneration
}

func parseNumber(text string) (uint64, bool) {
	n, err := strconv.ParseUint(text, 16, 64)
	return n, err == nil && len(text) == 16 && strings.ToLower(text) == text
}

// signedName is the name of an intent or a plan.
func signedName(key []byte, kind entryKind, at position, what string) string {
	base := fmt.Sprintf("%c.%016x.%016x.%s", kind, at.epoch, at.generation, what)
	return fmt.Sprintf("%s.%016x", base, keyedSum(key, "name", base))
}

// genuine reports whether whoever made e held the session's key. Without that,
// whoever can write to the store could stop the rotation.
func (e entry) genuine(key []byte) bool {
	name := signedName(key, e.kind, e.at, e.what)
	return name[strings.LastIndexByte(name, '.')+1:] == e.mac
}

// when is the instant of a plan.
func (e entry) when() (time.Time, bool) {
	ms, ok := parseNumber(e.what)
	return time.UnixMilli(int64(ms & math.MaxInt64)), ok
}

// ownName is a name that nobody else makes, and this process once an attempt.
func (m *machine) ownName(kind entryKind) string {
	return signedName(m.key(), kind, m.rec.position(), m.ownMark())
}

func (m *machine) ownMark() string {
	return fmt.Sprintf("%016x%08x", m.env.owner, uint32(m.attempt.id))
}

func (m *machine) planName(at time.Time) string {
	return signedName(m.key(), kindPlan, m.rec.position(), fmt.Sprintf("%016x", at.UnixMilli()))
}
