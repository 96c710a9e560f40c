package refresher

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	// maxWaiting bounds the requests that wait for one session's token.
	maxWaiting = 1024

	// settleAfter is how long after its headers went out an unanswered request
	// counts as authenticated: an upload that is still being sent need not hold
	// up an exchange.
	settleAfter = time.Second

	// politeDrain is how long an exchange waits for requests that could be sent
	// again: most are answered by then, and need not be.
	politeDrain = 20 * time.Millisecond

	// The gate's word: its top bit says closed, the next barred; below are two counts of
	// requests that carry the token and have no answer yet, those that can be
	// sent again and those that cannot.
	gateClosed    = 1 << 63
	gateBarred    = 1 << 62 // only requests that can be sent again may pass
	oneRepeatable = 1 << 31
	oneOther      = 1
	countOther    = oneRepeatable - 1
)

// snapshot is what requests see of a session: one is published for each change
// of the view. All but word and the channels is immutable.
type snapshot struct {
	view
	header string // "Bearer " and the token
	owned  *owned // nil: tokens are not recognised

	// word is the gate. One word, so that passing and closing have an order:
	// whoever passed is counted before the closer looks.
	word    atomic.Uint64
	drained event // the gate is closed and nobody counted that cannot be sent again
	quiet   event // the gate is closed and nobody counted at all
	next    event // a successor is published
}

const bearerPrefix = "Bearer "

func newSnapshot(v view, token Secret) *snapshot {
	return &snapshot{view: v, header: bearerPrefix + token.Reveal()}
}

// end is when the token ends, by the wall clock; zero where that is not known.
func (s *snapshot) end(now Instant) (at time.Time) {
	if s.mode == modeReady && s.until != 0 {
		at = now.Add(time.Duration(s.until) - now.Boot).Wall
	}
	return at
}

func (s *snapshot) token() string { return s.header[len(bearerPrefix):] }

// enter counts a request in, unless the gate is closed.
func (s *snapshot) enter(one uint64) bool {
	word := s.word.Add(one)
	if word&gateClosed == 0 && (word&gateBarred == 0 || one == oneRepeatable) {
		return true
	}
	s.leave(one)
	return false
}

func (s *snapshot) leave(one uint64) {
	if word := s.word.Add(-one); word&gateClosed != 0 {
		s.tellIfEmpty(word)
	}
}

// lineage are the snapshots by which requests may carry the token of the
// generation in use. The last is the published one.
type lineage []*snapshot

// followed is the lineage with a new snapshot: those before it stay if they are
// of the same generation and requests passed by them that are not over.
func (l lineage) followed(by *snapshot) (next lineage) {
	for i, s := range l {
		last := i == len(l)-1 // busy or not: somebody may be just about to pass
		busy := s.word.Load()&^(gateClosed|gateBarred) != 0
		if (busy || last) && s.mode == modeReady && s.epoch == by.epoch && s.generation == by.generation {
			next = append(next, s)
		}
	}
	return append(next, by)
}

func (l lineage) closeGate() {
	for _, s := range l {
		s.closeGate()
	}
}

// closeGate holds back what comes from now on; drained and quiet tell when
// those that passed before are done.
func (s *snapshot) closeGate() { s.tellIfEmpty(s.word.Or(gateClosed) | gateClosed) }

func (s *snapshot) tellIfEmpty(word uint64) {
	if word&countOther == 0 {
		s.drained.happen()
	}
	if word&^gateBarred == gateClosed {
		s.quiet.happen()
	}
}

// bar holds back requests that could not be sent again.
func (s *snapshot) bar() { s.word.Or(gateBarred) }

// drain waits for what passed: briefly for all, up to limit for the requests
// that could not be sent again.
func (l lineage) drain(limit time.Duration) {
	l.await(func(s *snapshot) *event { return &s.quiet }, min(politeDrain, limit))
	l.await(func(s *snapshot) *event { return &s.drained }, limit-politeDrain)
}

func (l lineage) await(what func(*snapshot) *event, limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, s := range l {
		select {
		case <-what(s).happened():
		case <-timer.C:
			return
		}
	}
}

// Pass is a request's leave to go on with one generation's access token. The
// zero value is none. It is not to be copied once the request has gone on.
type Pass struct {
	snap    *snapshot
	hold    *hold // of a request that cannot be sent again
	settled uint32

	// Waited is how long the request was held back for it.
	Waited time.Duration
}

// Bearer returns the access token behind "Bearer ".
func (p Pass) Bearer() string { return p.snap.header }

// Token returns the access token alone.
func (p Pass) Token() string { return p.snap.token() }

// Generation returns the number of the token's pair within its epoch.
func (p Pass) Generation() uint64 { return p.snap.generation }

// Epoch returns the number of the login that the token comes from.
func (p Pass) Epoch() uint64 { return p.snap.epoch }

// Settle tells that the upstream has dealt with the token: its answer has
// begun, or the request is over. It may be called more than once, and at once.
func (p *Pass) Settle() {
	switch {
	case p.hold != nil:
		p.hold.release()
	case p.snap != nil && atomic.CompareAndSwapUint32(&p.settled, 0, 1):
		p.snap.leave(oneRepeatable)
	}
}

// hold is a counted request that cannot be sent again. It settles by itself
// after a while.
type hold struct {
	snap     *snapshot
	released atomic.Bool
	timer    *time.Timer
}

func (s *snapshot) hold() *hold {
	if !s.enter(oneOther) {
		return nil
	}
	h := &hold{snap: s}
	h.timer = time.AfterFunc(settleAfter, h.expire)
	return h
}

func (h *hold) release() {
	h.timer.Stop()
	h.expire()
}

// expire is also the timer's, which may fire before the timer is known.
func (h *hold) expire() {
	if h.released.CompareAndSwap(false, true) {
		h.snap.leave(oneOther)
	}
}

// Unavailable is why a request cannot have a token.
type Unavailable struct {
	Session string
	Lost    Reason // set: a new login is needed
	Busy    bool   // too many requests wait already

	// RetryAfter is when it is worth asking again; 0 where it is not.
	RetryAfter time.Duration
}

// Error implements error.
func (u *Unavailable) Error() string {
	switch {
	case u.Lost != "":
		return fmt.Sprintf("session %q is lost (%s): a new login is needed", u.Session, u.Lost)
	case u.Busy:
		return fmt.Sprintf("session %q: %d requests wait for a token already", u.Session, maxWaiting)
	}
	return fmt.Sprintf("session %q has no live access token at present", u.Session)
}

// Enter gives a request the session's access token. It returns at once while
// one is fresh. During an exchange that revokes the previous token, or where the
// next attempt is near, it waits: at most the policy's wait, or until ctx ends.
// Its error is an [*Unavailable] or the context's cause.
//
// repeatable says that the request can be sent again should the token turn out
// to be revoked. An exchange waits for the others until they call [Pass.Settle],
// for these a moment at most.
func (s *Session) Enter(ctx context.Context, repeatable bool) (Pass, error) {
	if p, ok := s.cur.Load().pass(repeatable); ok {
		return p, nil
	}
	return s.enterWaiting(ctx, repeatable, time.Now())
}

// pass is the way through the gate: a load and an atomic add.
func (s *snapshot) pass(repeatable bool) (Pass, bool) {
	if s.mode != modeReady {
		return Pass{}, false
	}
	if repeatable {
		return Pass{snap: s}, s.enter(oneRepeatable)
	}
	h := s.hold()
	return Pass{snap: s, hold: h}, h != nil
}

// enterWaiting is Enter for a request that has been waiting since began.
func (s *Session) enterWaiting(ctx context.Context, repeatable bool, began time.Time) (Pass, error) {
	defer s.waiting.Add(-1)
	if s.waiting.Add(1) > maxWaiting {
		return Pass{}, &Unavailable{Session: s.name, Busy: true, RetryAfter: time.Second}
	}
	limit := time.NewTimer(s.cur.Load().wait - time.Since(began))
	defer limit.Stop()
	for {
		snap := s.cur.Load()
		if p, ok := snap.pass(repeatable); ok {
			p.Waited = time.Since(began)
			return p, nil
		}
		if err := s.hopeless(snap, time.Since(began)); err != nil {
			return Pass{}, err
		}
		select {
		case <-snap.next.happened():
		case <-ctx.Done():
			return Pass{}, context.Cause(ctx)
		case <-s.done.happened():
			return Pass{}, &Unavailable{Session: s.name, RetryAfter: time.Second}
		case <-limit.C:
			if snap := s.cur.Load(); snap.mode == modeReady && (snap.until == 0 || s.clock.Now().Boot < time.Duration(snap.until)) {
				// The issuer takes longer than a request may wait, and may not
				// have committed at all. The token has not ended: try it.
				return Pass{snap: snap, settled: 1, Waited: time.Since(began)}, nil
			}
			return Pass{}, &Unavailable{Session: s.name, RetryAfter: time.Second}
		}
	}
}

// hopeless tells why waiting on snap is of no use; nil if it is.
func (s *Session) hopeless(snap *snapshot, waited time.Duration) error {
	u := &Unavailable{Session: s.name}
	switch snap.mode {
	case modeLost:
		u.Lost = snap.reason
		return u
	case modeEmpty:
		u.RetryAfter = 5 * time.Second
		return u
	case modeLater:
		until := time.Duration(snap.until) - s.clock.Now().Boot
		if waited+until > snap.wait {
			u.RetryAfter = max(until, time.Second)
			return u
		}
	}
	return nil
}

// Unauthorized tells that the upstream answered 401 to a request with p's token
// and asks what to do. With ok the request is to be sent again with the pass
// that comes back; without, the caller gets the 401 as it is. A request that
// cannot be sent again calls [Session.NoteUnauthorized] instead. The error is
// the one of [Session.Enter].
func (s *Session) Unauthorized(ctx context.Context, p Pass, route string) (next Pass, ok bool, err error) {
	began, at := time.Now(), s.clock.Now()
	limit := time.NewTimer(p.snap.wait)
	defer limit.Stop()
	for {
		snap := s.cur.Load()
		v := verdictAgain
		if snap.mode == modeReady && snap.epoch == p.snap.epoch && snap.generation == p.snap.generation {
			v = s.ask(ctx, p, at, route)
		}
		switch v {
		case verdictAgain:
			return s.enterAgain(ctx, began)
		case verdictLag:
			lag := time.NewTimer(min(250*time.Millisecond, snap.wait))
			defer lag.Stop()
			select {
			case <-lag.C:
			case <-ctx.Done():
				return Pass{}, false, context.Cause(ctx)
			}
			return s.enterAgain(ctx, began)
		case verdictPass:
			return Pass{}, false, nil
		}
		select {
		case <-snap.next.happened():
		case <-ctx.Done():
			return Pass{}, false, context.Cause(ctx)
		case <-s.done.happened():
			return Pass{}, false, nil
		case <-limit.C:
			return Pass{}, false, nil
		}
	}
}

// enterAgain is for the second run of a request, which is not sent a third time.
func (s *Session) enterAgain(ctx context.Context, began time.Time) (Pass, bool, error) {
	if p, ok := s.cur.Load().pass(false); ok {
		p.Waited = time.Since(began)
		return p, true, nil
	}
	p, err := s.enterWaiting(ctx, false, began)
	return p, err == nil, err
}

func (s *Session) ask(ctx context.Context, p Pass, at Instant, route string) verdict {
	reply := make(chan verdict, 1)
	ev := evUnauthorized{epoch: p.snap.epoch, generation: p.snap.generation, at: at, route: route, origin: originOf(ctx), reply: reply}
	if !s.post(ev) {
		return verdictPass
	}
	select {
	case v := <-reply:
		return v
	case <-s.done.happened():
		return verdictPass
	}
}

// NoteUnauthorized tells that the upstream answered 401 to p's token where the
// caller gets that answer. again says that the request had been refused with an
// older token before: then it is the route that refuses. Otherwise an exchange
// may follow, for those that come after. ctx is looked at for [WithOrigin] only.
func (s *Session) NoteUnauthorized(ctx context.Context, p Pass, route string, again bool) {
	s.tell(evUnauthorized{epoch: p.snap.epoch, generation: p.snap.generation, route: route, again: again, origin: originOf(ctx)})
}

// Accepted tells that the upstream took p's token. It costs nothing unless the
// session waits for exactly that.
func (s *Session) Accepted(p Pass) {
	if p.snap.watch {
		s.tell(evAccepted{epoch: p.snap.epoch, generation: p.snap.generation})
	}
}

// tell posts what may get lost: the next request will say it again.
func (s *Session) tell(event any) {
	if !s.queue.full() {
		s.post(event)
	}
}
