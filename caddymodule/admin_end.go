package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// endedSession is the answer to an end.
type endedSession struct {
	refresher.Status
	RevokedAtIssuer bool       `json:"revoked_at_issuer"`
	Revocation      revocation `json:"revocation"`
	Note            string     `json:"note"` // the same for people
}

// revocation is what became of a session's pair at the issuer.
type revocation string

const (
	pairRevoked      revocation = "revoked"
	pairNone         revocation = "no_pair"       // there was nothing to revoke
	pairNotRevocable revocation = "not_revocable" // the issuer has no call for it
	pairNotRevoked   revocation = "failed"
)

const (
	notRevoked = "the pair is forgotten here, but this kind of issuer has no way to revoke it: it stays good there until it expires"

	endLimit    = 30 * time.Second // in which an exchange under way ends, too
	revokeTries = 3
	revokePause = 500 * time.Millisecond // between them, unless the issuer says more
	revokeWait  = 5 * time.Second        // and at most
)

// end ends a session: nobody gets its tokens any more, and no source signs in
// again by itself. Then its pair is revoked at the issuer where that is possible.
// Whoever asked may hang up: it is done all the same.
func (a *adminAPI) end(w http.ResponseWriter, r *http.Request, t target) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), endLimit)
	defer cancel()
	answer, err := t.status()
	if err != nil {
		return failed(w, err)
	}
	var last refresher.Pair
	var issuer refresher.Issuer
	if t.member != nil {
		issuer = t.pool.issuer
		last, err = t.member.End(ctx)
		answer = refresher.Status{Name: answer.Name, Pool: answer.Pool, State: refresher.PhaseLost, Reason: refresher.ReasonLoggedOut}
	} else {
		issuer = t.session.issuer
		last, err = t.session.shared.End(ctx)
		if err == nil {
			answer = t.session.shared.Status()
		}
	}
	if err != nil {
		return failed(w, err)
	}
	ended := endedSession{Status: answer}
	ended.Revocation, ended.Note = revoke(context.WithoutCancel(ctx), issuer, last)
	ended.RevokedAtIssuer = ended.Revocation == pairRevoked
	log := t.app.logger.Info
	if ended.Revocation == pairNotRevoked {
		log = t.app.logger.Error
	}
	log("an operator ended a session", zap.String("session", answer.Name), zap.String("revocation", ended.Note))
	return writeJSON(w, ended)
}

// revoke revokes a pair that nobody exchanges any more, and says for people what
// came of it. The pair is known nowhere else, so it tries more than once.
func revoke(ctx context.Context, issuer refresher.Issuer, last refresher.Pair) (revocation, string) {
	if last.Refresh.IsZero() {
		return pairNone, "the session had no pair that could be revoked"
	}
	revoker, ok := issuer.(refresher.Revoker)
	if !ok {
		return pairNotRevocable, notRevoked
	}
	for n := 1; ; n++ {
		err := revoker.Revoke(ctx, last)
		var later *refresher.RetryError
		switch {
		case err == nil:
			return pairRevoked, "the pair is revoked at the issuer, and forgotten here"
		case errors.Is(err, refresher.ErrNotRevocable):
			return pairNotRevocable, fmt.Sprintf("the pair is forgotten here, but not revoked (%v): it stays good at the issuer until it expires", err)
		case !errors.As(err, &later) || n == revokeTries:
			return pairNotRevoked, fmt.Sprintf("the pair is forgotten here, but could not be revoked: %v; end the session at the issuer itself", err)
		}
		select {
		case <-time.After(min(max(later.After, time.Duration(n)*revokePause), revokeWait)):
		case <-ctx.Done():
			return pairNotRevoked, fmt.Sprintf("the pair is forgotten here, but could not be revoked: %v; end the session at the issuer itself", context.Cause(ctx))
		}
	}
}
