package refresher

import "time"

// Note is something that happened to a session, for logs, metrics and events.
// It holds no token.
type Note struct {
	Kind       NoteKind
	At         time.Time
	Session    string // its name; in a pool, the pool's and an id
	Pool       string // empty: it stands by itself
	Epoch      uint64
	Generation uint64
	Source     string // of the epoch

	Fingerprint string    // of the access token in use
	ExpiresAt   time.Time // its end; zero where it is not known
	RefreshEnds time.Time // when the refresh token ends if it stays unused; zero where it is not known

	Class  Class         // of the exchange
	Status int           // HTTP status of the issuer's answer
	Cause  string        // why the exchange was made
	Reason Reason        // NoteLost
	Signs  bool          // NoteLost: a source will sign in again
	Took   time.Duration // of the exchange; NoteClockStepped, NoteClockSpread: by how much
	Whole  time.Duration // NoteRotated: from the attempt's beginning to the new token's
	Next   time.Time     // when the next attempt, or the next exchange, is due
	Err    string
}

// NoteKind names what happened.
type NoteKind string

// The kinds of notes.
const (
	NoteStarted         NoteKind = "started"         // a first pair, or a new one, starts an epoch
	NoteReauthenticated NoteKind = "reauthenticated" // the same after the session was lost
	NoteRotated         NoteKind = "rotated"
	NoteExchangeFailed  NoteKind = "exchange_failed" // and changed nothing at the issuer
	NoteUncertain       NoteKind = "uncertain"       // the exchange may have been committed
	NoteDegraded        NoteKind = "degraded"
	NoteLost            NoteKind = "lost"
	NoteRefreshExpiring NoteKind = "refresh_token_expiring" // it stays unused, and will not live much longer
	NoteEnded           NoteKind = "ended"                  // its caller has ended it: a pool's only
	NoteSourceFailed    NoteKind = "source_failed"
	NoteSignInFailed    NoteKind = "sign_in_failed"
	NoteJournalFailed   NoteKind = "journal_failed"
	NoteJournalLate     NoteKind = "journal_late" // requests went on before the new pair was on disk
	NoteClockStepped    NoteKind = "clock_stepped"
	NoteQuarantined     NoteKind = "route_quarantined"
	NoteAnnounceFailed  NoteKind = "announce_failed" // those who want to hear of a rotation cannot be told now
	NoteNoExpiry        NoteKind = "no_expiry"
	NoteJoined          NoteKind = "joined"          // another instance has rotated
	NoteStoreFailed     NoteKind = "store_failed"    // the shared store cannot be used
	NoteStoreBack       NoteKind = "store_back"      // it can again
	NoteStoreRegressed  NoteKind = "store_regressed" // it has lost what it held
	NoteForked          NoteKind = "store_forked"    // it holds what does not follow from ours
	NoteClockSpread     NoteKind = "clock_spread"    // another instance's clock is ahead of this one's, or behind, by that much at least
)
