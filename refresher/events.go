package refresher

import "time"

// What step takes and what it wants done.

// Events.
type (
	evOpened   struct{ rec *record } // nil: a new journal
	evUnusable struct {              // the journal is there but cannot be opened
		reason Reason
		detail string
	}
	evConfigured struct {
		policy  Policy
		profile Profile
		signsIn bool
		running bool
		reseal  bool // the key that seals is another
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
	evAccepted struct{ epoch, generation uint64 }
)

// Effects.
type (
	effPrepare struct{ attempt uint64 }
	effDrop    struct{ conn Exchange } // it is not needed
	effDrain   struct {                // close the gate, wait for what passed it
		attempt uint64
		limit   time.Duration
	}
	effSave struct {
		version uint64
		rec     record
	}
	effSend struct {
		conn Exchange
		pair Pair
	}
	effFetch struct { // ask the sources: those that have a pair lying there, those that sign in
		lying, signIn bool
	}
	effPublish struct {
		view  view
		token Secret
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
	effWake struct{ at Instant }
)
