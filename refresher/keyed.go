package refresher

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// environment is what a state knows of the process around it; it never changes.
type environment struct {
	countsSleep bool
	bootID      string
	// owner tells this process from the others that share the session.
	owner uint64
	// fresh is the key that a session gets with its first record: drawn from the
	// encryption key, so that instances that begin at once have the same. Later
	// it may be missing.
	fresh []byte
	// spread spreads a session's instants over [0,1): the same for everybody who
	// holds its record.
	spread func(key []byte, epoch, generation, n uint64) float64
}

func newOwner() uint64 {
	var owner [8]byte
	_, _ = rand.Read(owner[:]) // never fails (crypto/rand)
	return binary.BigEndian.Uint64(owner[:])
}

// environment is made anew for each use: all sessions of a process have the same
// but for the owner.
func (s *Session) environment() environment {
	return environment{countsSleep: s.clock.CountsSleep(), bootID: s.clock.BootID(), owner: s.owner, spread: spread}
}

// keyedSum is HMAC-SHA256 of the parts, each with its length before it, cut to
// 64 bits. Every keyed value of a session comes from it. Their key is made with
// the session's first record and kept in each, so that it outlives a change of
// the encryption key.
func keyedSum(key []byte, purpose string, parts ...string) uint64 {
	mac := hmac.New(sha256.New, key)
	var n [8]byte
	for _, p := range append([]string{purpose}, parts...) {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		mac.Write(n[:])
		mac.Write([]byte(p))
	}
	return binary.BigEndian.Uint64(mac.Sum(nil))
}

func spread(key []byte, epoch, generation, n uint64) float64 {
	return float64(keyedSum(key, "jitter", fmt.Sprint(epoch, generation, n))>>11) / (1 << 53)
}

// key is the session's own key.
func (m *machine) key() []byte {
	if len(m.rec.HashKey) > 0 {
		return m.rec.HashKey
	}
	return m.env.fresh
}

// hash recognises a refresh token.
func (m *machine) hash(token Secret) tokenHash {
	return tokenHash(keyedSum(m.key(), "hash-token", token.Reveal()))
}

// spread is the session's jitter for a generation.
func (m *machine) spread(n uint64) float64 {
	return m.env.spread(m.key(), m.rec.Epoch, m.rec.Generation, n)
}
