package refresher

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/slab"
)

// spentTokens are refresh tokens that callers were given and that are good for
// nothing any more: of generations that a session no longer remembers, and of
// sessions that have ended. Whoever still presents one is to sign in again; the
// issuer must not see it, as to some it means that the tokens were stolen. Only
// half of a sum is kept, until nobody can hold the token any more.
type spentTokens struct {
	mu    sync.RWMutex
	until map[uint64]uint32 // seconds since 1970
}

// maxSpentTokens bounds what is kept: some 30 MiB.
const maxSpentTokens = 1 << 20

func half(sum slab.Sum) uint64 { return binary.LittleEndian.Uint64(sum[8:]) }

func (s *spentTokens) add(until uint32, tokens ...uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil {
		s.until = map[uint64]uint32{}
	}
	for _, t := range tokens {
		if len(s.until) >= maxSpentTokens {
			for any := range s.until { // one has to go
				delete(s.until, any)
				break
			}
		}
		s.until[t] = until
	}
}

func (s *spentTokens) has(sum slab.Sum) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.until[half(sum)]
	return ok
}

// all returns what is not over, and forgets the rest.
func (s *spentTokens) all(now time.Time) map[uint64]uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := make(map[uint64]uint32, len(s.until))
	for t, until := range s.until {
		if int64(until) > now.Unix() {
			left[t] = until
		}
	}
	s.until = left
	kept := make(map[uint64]uint32, len(left))
	for t, until := range left {
		kept[t] = until
	}
	return kept
}

func spentRecord(token uint64, until uint32) []byte {
	text := binary.LittleEndian.AppendUint64([]byte{logSpent}, token)
	return binary.LittleEndian.AppendUint32(text, until)
}

// spend notes refresh tokens as spent, and has that written with the next records
// that somebody waits for.
func (p *Pool) spend(sums []slab.Sum) {
	cfg := p.settings()
	if cfg == nil || len(sums) == 0 {
		return
	}
	until := uint32(p.now().Wall.Add(cfg.maxAge()).Unix())
	for _, sum := range sums {
		p.spent.add(until, half(sum))
		p.log.Enqueue(spentRecord(half(sum), until))
	}
}

// spentBy are the refresh tokens of an entry that are spent once the pool has
// forgotten it. ended says that its session is over; otherwise the one in use is
// good at the issuer, and whoever has it may go on there.
func (p *Pool) spentBy(packed packedEntry, ended bool) (sums []slab.Sum) {
	var current slab.Sum
	if e, err := packed.unpack(); err == nil && !ended {
		current = p.sums.sum(e.rec.Refresh)
	}
	for i := range packed.givenCount() {
		if g := packed.given(i); g.kind == RefreshToken && (ended || g.sum != current) {
			sums = append(sums, g.sum)
		}
	}
	return sums
}
