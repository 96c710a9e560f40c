package refresher

import (
	"context"
	"time"
)

// Token is a session's access token for somebody who takes it along, and so is
// not told when it is replaced.
type Token struct {
	Access Secret
	ID     Secret // empty where there is none

	Epoch, Generation uint64

	// ExpiresAt is the access token's end; zero where that is not known.
	ExpiresAt time.Time

	// GoodUntil is when to ask again: ExpiresAt, or the next exchange where that
	// revokes the access token. Zero where it is not known.
	GoodUntil time.Time
}

// Token returns the access token in force. It waits as [Session.Enter] does, and
// has its errors.
func (s *Session) Token(ctx context.Context) (Token, error) {
	pass, err := s.Enter(ctx, true)
	if err != nil {
		return Token{}, err
	}
	pass.Settle()
	now := s.clock.Now()
	t := Token{Access: NewSecret(pass.Token()), Epoch: pass.Epoch(), Generation: pass.Generation()}
	t.ExpiresAt = pass.snap.end(now)
	t.GoodUntil = t.ExpiresAt
	var known state
	s.known.Load().unpack(&known, s.environment())
	if known.rec.Epoch != t.Epoch {
		return t, nil
	}
	t.ID = NewSecret(known.rec.ID)
	if at := known.sched.refreshAt; known.profile.RevokesPrevious && !at.IsZero() && known.rec.Generation == t.Generation {
		if next := now.Add(at.Boot - now.Boot).Wall; t.GoodUntil.IsZero() || next.Before(t.GoodUntil) {
			t.GoodUntil = next
		}
	}
	return t, nil
}
