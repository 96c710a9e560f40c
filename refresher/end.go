package refresher

import "context"

// effEnded hands over the pair of a session that was ended: from here on nothing
// of ours exchanges it.
type effEnded struct{ last Pair }

// End ends the session for good, in every instance that shares it: its pair is
// forgotten and no source signs in again by itself. A new pair, or a new login,
// starts it anew.
//
// An exchange under way is waited for. last is the pair that was in use, for
// [Revoker.Revoke]: nobody exchanges it any more, and nobody else gets it. It is
// empty where there was none. Where ctx ended first, a further End returns it.
func (s *Session) End(ctx context.Context) (last Pair, err error) {
	if err := s.call(ctx, func(reply chan<- error) any { return evEnd{reply} }); err != nil {
		return Pair{}, err
	}
	if p := s.last.Swap(nil); p != nil {
		last = *p
	}
	return last, nil
}

// End is [Session.End]. It returns when it is durable that the pool does not have
// the session any more; [ErrForgotten] says that somebody else was faster.
func (m Member) End(ctx context.Context) (last Pair, err error) {
	var id poolID
	if !m.pool.table.view(m.member, func(_ *slot, packed packedEntry) { id = packed.id() }) {
		return Pair{}, ErrForgotten
	}
	err = m.withLive(ctx, func(s *Session) (err error) {
		last, err = s.End(ctx)
		return err
	})
	if err != nil {
		return Pair{}, err
	}
	if ok, err := m.pool.forget(m.member, "end"); ok {
		return last, err
	}
	return last, m.pool.log.Append(deleteRecord(id)) // the session's own end came first, and may not be written yet
}
