package refresher

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/slab"
)

// poolEntry is one session of a pool: what is durable of it, and the tokens by
// which callers are recognised. At rest it is one string of bytes, the same in
// memory and in the log.
type poolEntry struct {
	id      poolID
	created uint32 // seconds since 1970
	used    uint32 // the same, of the last use before it was written
	boot    uint32 // of rec.BootID, see bootSum
	rec     record
	given   []givenToken
}

// poolID names a session of a pool for ever.
type poolID [8]byte

// String is the id as the admin API shows it.
func (id poolID) String() string { return fmt.Sprintf("%x", id[:]) }

// binaryID is the id as a number.
func binaryID(id poolID) uint64 { return binary.LittleEndian.Uint64(id[:]) }

// sum is under what the index finds it.
func (id poolID) sum() (s slab.Sum) {
	copy(s[:], id[:])
	copy(s[8:], id[:])
	return s
}

// TokenKind says what a caller presented.
type TokenKind uint8

// The kinds of tokens.
const (
	AccessToken  TokenKind = iota + 1
	RefreshToken           // or the handle that stands for one
	SpentToken             // a refresh token of a session that has ended, or has forgotten it
)

// givenToken is a token that a caller was given at some time. Only its keyed sum
// is kept.
type givenToken struct {
	sum  slab.Sum
	kind TokenKind
	who  Caller // who used it first; 0: nobody yet, or callers cannot be told apart
}

// Caller tells apart those who use a pool's tokens, where the listener can; 0
// where it cannot. See [Pool.Caller].
type Caller uint64

const (
	// maxGiven bounds the tokens that one session is known by: the first two,
	// which a caller may go on with for ever, and the newest.
	maxGiven   = 64
	givenFixed = 2
	givenSize  = 16 + 1 + 8
)

// An entry's bytes begin with what the request path wants, in fixed places:
//
//	0  form (1), flags (1), number of given tokens (1), 0 (1)
//	4  length of the access token (4)
//	8  id (8)
//	16 created, used: seconds since 1970 (4 each)
//	24 epoch (8), generation (8)
//	40 when the pair was received: nanoseconds since 1970 (8), since boot (8)
//	56 how long the access token had left by then, nanoseconds (8)
//	64 the boot, see bootSum (4)
//	68 given tokens, access token, and the rest as codec has it
const (
	entryForm   = 1
	entryGiven  = 68
	flagExpires = 1
	flagOpen    = 2 // an attempt's outcome is open
	flagOdd     = 4 // see record.Odd
	flagTell    = 8 // a rotation is still to be told
)

func (e *poolEntry) pack(to []byte) []byte {
	flags := byte(0)
	for _, f := range []struct {
		flag byte
		set  bool
	}{{flagExpires, e.rec.Expires}, {flagOpen, e.rec.Intent != nil}, {flagOdd, e.rec.Odd > 0}, {flagTell, len(e.rec.Announce) > 0}} {
		if f.set {
			flags |= f.flag
		}
	}
	to = append(to, entryForm, flags, byte(len(e.given)), 0)
	to = binary.LittleEndian.AppendUint32(to, uint32(len(e.rec.Access)))
	to = append(to, e.id[:]...)
	to = binary.LittleEndian.AppendUint32(to, e.created)
	to = binary.LittleEndian.AppendUint32(to, e.used)
	to = binary.LittleEndian.AppendUint64(to, e.rec.Epoch)
	to = binary.LittleEndian.AppendUint64(to, e.rec.Generation)
	to = binary.LittleEndian.AppendUint64(to, uint64(e.rec.Received.UnixNano()))
	to = binary.LittleEndian.AppendUint64(to, uint64(e.rec.ReceivedBoot))
	to = binary.LittleEndian.AppendUint64(to, uint64(e.rec.Left))
	to = binary.LittleEndian.AppendUint32(to, e.boot)
	for _, g := range e.given {
		to = append(to, g.sum[:]...)
		to = append(to, byte(g.kind))
		to = binary.LittleEndian.AppendUint64(to, uint64(g.who))
	}
	to = append(to, e.rec.Access...)
	c := codec{bytes: to}
	e.carry(&c)
	return c.bytes
}

// packedEntry is an entry's bytes.
type packedEntry []byte

func (p packedEntry) id() poolID         { return poolID(p[8:16]) }
func (p packedEntry) created() uint32    { return binary.LittleEndian.Uint32(p[16:]) }
func (p packedEntry) used() uint32       { return binary.LittleEndian.Uint32(p[20:]) }
func (p packedEntry) setUsed(at uint32)  { binary.LittleEndian.PutUint32(p[20:], at) }
func (p packedEntry) epoch() uint64      { return binary.LittleEndian.Uint64(p[24:]) }
func (p packedEntry) generation() uint64 { return binary.LittleEndian.Uint64(p[32:]) }
func (p packedEntry) expires() bool      { return p[1]&flagExpires != 0 }
func (p packedEntry) givenCount() int    { return int(p[2]) }

// times are what a plan is made of: of the record nothing else is set.
func (p packedEntry) times() (e poolEntry) {
	e.id = p.id()
	e.rec.Epoch, e.rec.Generation, e.rec.Expires = p.epoch(), p.generation(), p.expires()
	e.rec.Received = time.Unix(0, int64(binary.LittleEndian.Uint64(p[40:])))
	e.rec.ReceivedBoot = time.Duration(binary.LittleEndian.Uint64(p[48:]))
	e.rec.Left = time.Duration(binary.LittleEndian.Uint64(p[56:]))
	e.boot = binary.LittleEndian.Uint32(p[64:])
	return e
}

// unsettled reports whether a plan would not do: an attempt's outcome is open, the
// access token's times are odd, or somebody is to be told of it first.
func (p packedEntry) unsettled() bool { return p[1]&(flagOpen|flagOdd|flagTell) != 0 }

func (p packedEntry) givenBytes(i int) []byte {
	return p[entryGiven+i*givenSize : entryGiven+(i+1)*givenSize]
}

func (p packedEntry) given(i int) givenToken {
	b := p.givenBytes(i)
	return givenToken{sum: slab.Sum(b), kind: TokenKind(b[16]), who: Caller(binary.LittleEndian.Uint64(b[17:]))}
}

// find returns the place of a sum among the given tokens.
func (p packedEntry) find(sum slab.Sum) int {
	for i := range p.givenCount() {
		if slab.Sum(p.givenBytes(i)) == sum {
			return i
		}
	}
	return -1
}

// bind writes who uses a given token, in place.
func (p packedEntry) bind(i int, who Caller) {
	binary.LittleEndian.PutUint64(p.givenBytes(i)[17:], uint64(who))
}

func (p packedEntry) access() []byte {
	start := entryGiven + p.givenCount()*givenSize
	n := int(binary.LittleEndian.Uint32(p[4:]))
	return p[start : start+n : start+n]
}

func (p packedEntry) unpack() (e poolEntry, err error) {
	defer func() {
		if r := recover(); r != nil { // another version's, or cut
			err = fmt.Errorf("a record of the pool is not in a form that this version reads")
		}
	}()
	if p[0] != entryForm {
		return e, fmt.Errorf("a record of the pool has the form %d, which this version does not read", p[0])
	}
	e = p.times()
	e.created, e.used = p.created(), p.used()
	for i := range p.givenCount() {
		e.given = append(e.given, p.given(i))
	}
	access := p.access()
	e.rec.Access = string(access)
	rest := entryGiven + p.givenCount()*givenSize + len(access)
	c := codec{bytes: p[rest:], reading: true}
	e.carry(&c)
	return e, nil
}

// carry is for what is durable of a pool's session beyond the entry's fixed
// part. It has no history: what happened stands in the log and the metrics.
func (e *poolEntry) carry(c *codec) {
	r := &e.rec
	text(c, &r.Refresh)
	text(c, &r.ID)
	text(c, &r.RefreshID)
	number(c, &r.Odd)
	number(c, &r.Quiet)
	flags(c, &r.Stays)
	list(c, &r.Spent, word[tokenHash])
	text(c, &r.Kept)
	list(c, &r.Announce, carryAnnouncement)
	optional(c, &r.Intent, func(c *codec, in *intent) {
		date(c, &in.At)
		number(c, &in.AtBoot)
		text(c, &in.BootID)
		number(c, &in.Retries)
		flags(c, &in.Unknown, &in.Answered)
	})
}

// bootSum stands for a boot's name, which is long; 0 where it has none.
func bootSum(id string) uint32 {
	if id == "" {
		return 0
	}
	return max(1, crc32.ChecksumIEEE([]byte(id)))
}

// give adds a token to those that callers were given.
func (e *poolEntry) give(g givenToken) (dropped []givenToken) {
	if slices.ContainsFunc(e.given, func(o givenToken) bool { return o.sum == g.sum }) {
		return nil
	}
	e.given = append(e.given, g)
	for len(e.given) > maxGiven {
		dropped = append(dropped, e.given[givenFixed])
		e.given = slices.Delete(e.given, givenFixed, givenFixed+1)
	}
	return dropped
}

// maxPooledSpent bounds the spent refresh tokens that a pool's session
// remembers: those that nobody was given cannot come back from anywhere.
const maxPooledSpent = 4

// age is how old the session is.
func (p packedEntry) age(now time.Time) time.Duration {
	return now.Sub(time.Unix(int64(p.created()), 0))
}
