package issuer

import (
	"crypto/sha256"
	"sync"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// maxDoubts bounds how many refused refresh tokens are remembered.
const maxDoubts = 1024

// doubts settles what a 400 means that does not say: some servers answer
// "invalid_request" (Dex), or nothing at all, where RFC 6749 has invalid_grant.
// What was sent tells: the same request was
// accepted with other refresh tokens, so that it is not the configuration, and
// this one is refused for the second time, so that it was no accident. The
// second time comes after the backoff of [refresher.ClassConfig].
//
// Before the first success nothing is concluded: to give up a login over a wrong
// setting would be worse than to ask again in a quarter of an hour.
type doubts struct {
	mu      sync.Mutex
	worked  bool
	refused map[[sha256.Size]byte]bool
}

func (d *doubts) settle(a refresher.Answer, code string, sent refresher.Pair) refresher.Answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := sha256.Sum256([]byte(sent.Refresh.Reveal()))
	switch {
	case a.Class == refresher.ClassOK:
		d.worked = true
		delete(d.refused, key)
	case a.Class != refresher.ClassConfig || !a.Vague:
	case d.worked && d.refused[key]:
		delete(d.refused, key)
		a.Class = refresher.ClassRejected
	case d.worked:
		if d.refused == nil || len(d.refused) >= maxDoubts {
			d.refused = map[[sha256.Size]byte]bool{}
		}
		d.refused[key] = true
	}
	return a
}
