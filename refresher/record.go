package refresher

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// Bounds of what a record remembers; it must fit into a journal slot.
const (
	maxSeeds   = 256
	maxSpent   = 1024
	maxHistory = 16

	maxErrorKept = 512 // bytes of an attempt's error
)

// record is all that is durable of a session: written as one sealed piece to
// the journal before an exchange is sent (with its intent) and after it came
// back. It is never changed in place; step works on copies.
type record struct {
	// HashKey is the key of the session's keyed values, see keyedSum.
	HashKey []byte `json:"hash_key"`

	Epoch      uint64 `json:"epoch"`      // grows with each new login or seed
	Generation uint64 `json:"generation"` // grows with each rotation, 1 is the first of its epoch
	Access     string `json:"access"`
	Refresh    string `json:"refresh"`
	ID         string `json:"id_token,omitempty"`
	RefreshID  string `json:"refresh_id,omitempty"`
	Source     string `json:"source"` // where this epoch came from

	// The access token's time, on the wall clock and, for a process of the same
	// boot, on the clock that nobody can set.
	Received     time.Time     `json:"received"`
	Left         time.Duration `json:"left"` // from Received; meaningless unless Expires
	Expires      bool          `json:"expires"`
	Odd          int           `json:"odd,omitempty"` // pairs in a row whose access token had ended when it was issued
	BootID       string        `json:"boot_id,omitempty"`
	Age          time.Duration `json:"age,omitempty"` // of the pair when it was given to the store
	ReceivedBoot time.Duration `json:"received_boot,omitempty"`

	// Intent is the attempt to exchange this generation that may have reached
	// the issuer and of which no definite answer was kept.
	Intent *intent `json:"intent,omitempty"`

	// Quiet is how long, from when an instance got the pair, a request of the
	// generation before may be on its way: with an issuer that accepts a spent
	// token again the next exchange waits for it, so that it is never two
	// generations old.
	Quiet time.Duration `json:"quiet,omitempty"`

	// Stays: the exchange that brought this pair left the refresh token in use.
	Stays bool `json:"stays,omitempty"`

	// Prev is drawn from the record before, of the same epoch.
	Prev tokenHash `json:"prev,omitempty"`

	// Owned recognises the access tokens of this epoch.
	Owned []tokenHash `json:"owned,omitempty"`

	// Announce are the rotations that are still to be told.
	Announce []announcement `json:"announce,omitempty"`

	Lost   Reason `json:"lost,omitempty"`
	Detail string `json:"detail,omitempty"` // of Lost, for people

	Seeds   []tokenHash `json:"seeds"` // refresh tokens that came from a source
	Spent   []tokenHash `json:"spent"` // refresh tokens of earlier generations, newest last
	History []Rotation  `json:"history"`

	// Kept is the body of a successful answer that could not be used, for an
	// operator with the key.
	Kept string `json:"kept,omitempty"`
}

// intent marks an attempt as under way. Unknown is set once it ended without a
// definite outcome; a process that finds it unset knows as little, as its
// predecessor died in between.
type intent struct {
	At      time.Time     `json:"at"`
	AtBoot  time.Duration `json:"at_boot,omitempty"`
	BootID  string        `json:"boot_id,omitempty"`
	Unknown bool          `json:"unknown,omitempty"`
	// Answered: the issuer answered in full, but ambiguously (502, 504); it is
	// tried again after the hold-off without a witness.
	Answered bool `json:"answered,omitempty"`
	Retries  int  `json:"retries,omitempty"`
	// Shared: it was written to a fleet's store, too, before anything was sent.
	Shared bool `json:"shared,omitempty"`
}

// youngerThan reports whether the intent is known to be that young: by the clock
// that nobody can set where the boot is the same.
func (i *intent) youngerThan(d time.Duration, now Instant, bootID string) bool {
	age := now.Wall.Sub(i.At)
	if bootID != "" && bootID == i.BootID {
		age = now.Boot - i.AtBoot
	}
	return age >= 0 && age < d
}

// Rotation is an attempt to exchange in a session's history.
type Rotation struct {
	At         time.Time     `json:"at"`
	Epoch      uint64        `json:"epoch"`
	Generation uint64        `json:"generation"` // that it led to, or was tried from
	Outcome    string        `json:"outcome"`    // a class, or the kind of source
	Took       time.Duration `json:"took_ns,omitempty"`
	Error      string        `json:"error,omitempty"`
	Times      int           `json:"times,omitempty"` // that it failed like this in a row, if more than once; the rest is the last's
}

// tokenHash recognises a refresh token: a keyed hash, cut to 64 bits.
type tokenHash uint64

// MarshalText keeps the number out of JSON's float range.
func (h tokenHash) MarshalText() ([]byte, error) {
	return []byte(strconv.FormatUint(uint64(h), 36)), nil
}

// UnmarshalText is the inverse of MarshalText.
func (h *tokenHash) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 36, 64)
	*h = tokenHash(n)
	return err
}

func (r *record) hasPair() bool { return r.Access != "" && r.Refresh != "" }

func (r *record) pair() Pair {
	return Pair{Access: NewSecret(r.Access), Refresh: NewSecret(r.Refresh), ID: NewSecret(r.ID), RefreshID: r.RefreshID}
}

// knows reports whether a refresh token was ever used in this session: as a
// seed, in an earlier generation, or now.
func (r *record) knows(h, current tokenHash) bool {
	return h == current && r.Refresh != "" || slices.Contains(r.Seeds, h) || slices.Contains(r.Spent, h)
}

// appendBounded returns a new slice; the old one may belong to a record that is
// being written.
func appendBounded[T any](old []T, limit int, add ...T) []T {
	all := append(slices.Clone(old), add...)
	return all[max(0, len(all)-limit):]
}

// restored is when the pair was received on this process's clock.
func (r *record) restored(now Instant, bootID string) Instant {
	if bootID != "" && bootID == r.BootID {
		return Instant{Wall: r.Received, Boot: r.ReceivedBoot}
	}
	return Instant{Wall: r.Received, Boot: now.Boot - now.Wall.Sub(r.Received)}
}

const recordVersion = 1

// vault seals records of one session and opens them. What is sealed is bound to
// the session and to the place it is kept in.
type vault struct {
	ring  *journal.Keyring
	name  string // of the session, as in file names
	entry string // its name in a shared store; empty in the journal
}

func (v vault) aad() []byte {
	return journal.AAD("caddy-refresh/1", "record", strconv.Itoa(recordVersion), v.name, v.entry)
}

func (v vault) seal(r *record) ([]byte, error) {
	plain, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding the record of session %q: %w", v.name, err)
	}
	defer clear(plain)
	return v.ring.Seal(v.aad(), v.name, plain), nil
}

func (v vault) open(text []byte) (*record, error) {
	plain, err := v.ring.Open(v.aad(), v.name, text)
	if err != nil {
		return nil, fmt.Errorf("opening the record of session %q: %w", v.name, err)
	}
	defer clear(plain)
	r := new(record)
	if json.Unmarshal(plain, r) != nil || len(r.HashKey) == 0 {
		return nil, fmt.Errorf("the record of session %q is not in a form that this version reads", v.name)
	}
	return r, nil
}

// keepRaw bounds what of an unusable answer goes into a record.
func keepRaw(raw Secret) string {
	const limit = 32 << 10
	text := raw.Reveal()
	return base64.StdEncoding.EncodeToString([]byte(text[:min(len(text), limit)]))
}
