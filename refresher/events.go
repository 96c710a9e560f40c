package refresher

import "time"

// What step takes and what it wants done.

// Events.
type (
	evOpened struct {
		rec    *record // nil: a new journal
		pooled bool    // a pool's: there are no sources, and the pair came from the issuer

		borrowed bool // another instance's: one's own journal does not have it
	}
	evUnusable struct { // the journal is there but cannot be opened
		reason Reason
		detail string
	}
	evConfigured struct {
		policy  Policy
		profile Profile
		signsIn bool
		running bool
		store   uint64 // the number of the store shared with other instances; 0: none
		reseal  bool   // the key that seals is another

		announces bool // rotations are told to somebody
		required  bool // and pairs wait for their answer
	}
	evTick     struct{}
	evLook     struct{} // a source may have a new pair
	evClose    struct{}
	evPrepared struct {
		attempt uint64
		conn    Exchange
		err     error
	}
	evDrained struct{ attempt uint64 }
	evSaved   struct {
		version uint64
		err     error
	}
	evAnswer  struct{ answer Answer }
	evSeed    struct{ seed seed }
	evFetched struct{ seed seed } // what a source had
	evNoSeed  struct {            // no source had a pair, or signing in failed
		signIn bool
		err    error
	}
	evRefresh  struct{ reply chan<- error }
	evEnd      struct{ reply chan<- error } // log out
	evAccepted struct{ epoch, generation uint64 }
)

// Events of the store that a fleet shares.
type (
	evNews  struct{} // something may have changed there
	evAsked struct {
		id     uint64 // of the attempt or sign-in that asked; 0: a poll
		at     Instant
		names  []string
		pushes bool
		locked bool
		err    error
	}
	evIntended struct {
		name   string
		at     Instant
		names  []string
		pushes bool
		err    error
	}
	evRead struct {
		name     string
		rec      *record
		err      error
		unusable bool // it was read, and cannot be opened
	}
	evShared struct {
		at  position
		err error
	}
)

// Effects.
type (
	effPrepare struct {
		attempt uint64
		last    bool // the last before the access token's end
	}
	effDrop  struct{ conn Exchange } // it is not needed
	effDrain struct {                // close the gate, wait for what passed it
		attempt uint64
		limit   time.Duration
	}
	effSave struct {
		version uint64
		rec     record
		sparse  bool // it is not whole: the journal has to be read first, and could not be
		rest    bool // no further write is to be expected soon
	}
	effSend struct {
		conn Exchange
		pair Pair
		by   Instant // not after this; zero: whenever
	}
	effFetch struct { // ask the sources: those that have a pair lying there, those that sign in
		lying, signIn bool
	}
	effPublish struct {
		view   view
		token  Secret
		barred bool // only for requests that can be sent again
		owned  *owned
	}
	effReply struct {
		to  chan<- error
		err error
	}
	effVerdict struct {
		to      chan<- verdict
		verdict verdict
	}
	effNote struct{ note Note }

	// Effects on the store that a fleet shares.
	effAsk struct { // list the names, with the lock if it can be had in time
		id   uint64
		lock time.Duration // how long to wait for it; 0: without
	}
	effIntend struct{ name string } // write it, then list the names
	effPlan   struct{ name string }
	effErase  struct{ names []string }
	effRead   struct{ name string }
	effShare  struct {
		at     position
		rec    record
		before []string // names to write first
	}
	effUnlock struct{}
	effBar    struct{} // hold back requests that cannot be sent again
	effWake   struct{ at Instant }
)
