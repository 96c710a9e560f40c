package refresher

import (
	"crypto/aes"
	"crypto/cipher"
	"sync"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/slab"
)

// summer makes the keyed sums by which a pool recognises tokens: GMAC, which is
// AES-GCM of nothing with the token as additional data. Its nonce stands still:
// GMAC then is a keyed hash whose values must stay secret, and these never leave
// the process but sealed.
type summer struct {
	aead cipher.AEAD
	room sync.Pool
}

type summerRoom struct {
	in  []byte
	out [16]byte
}

var summerNonce = make([]byte, 12)

func newSummer(key []byte) *summer {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only for a key of another length
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only for another block size
	}
	return &summer{aead: aead, room: sync.Pool{New: func() any { return new(summerRoom) }}}
}

// sum allocates nothing once it is warm.
func (s *summer) sum(token string) slab.Sum {
	room := s.room.Get().(*summerRoom)
	room.in = append(room.in[:0], token...)
	sum := slab.Sum(s.aead.Seal(room.out[:0], summerNonce, nil, room.in))
	clear(room.in)
	s.room.Put(room)
	return sum
}
