package journal

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	keySize     = 32
	keyIDSize   = 4
	sealVersion = 1
	sealPrefix  = 1 + keyIDSize + chacha20poly1305.NonceSizeX
	domain      = "caddy-refresh/1"
)

// ErrWrongKey says that no key of the ring has the id of the key that sealed.
var ErrWrongKey = errors.New("sealed with a key that is not in the keyring")

type masterKey struct {
	id     [keyIDSize]byte
	secret [keySize]byte
}

// Keyring holds master keys of 32 bytes: the first one seals, all open. It prints
// as [redacted].
type Keyring struct {
	// keys is a function because fmt calls no method of a value that it reaches
	// through an unexported field: it follows pointers, but not functions.
	keys func() []*masterKey
}

// NewKeyring copies the keys. No key, a length other than 32 bytes and a
// duplicate are errors.
func NewKeyring(keys ...[]byte) (*Keyring, error) {
	if len(keys) == 0 {
		return nil, errors.New("keyring: no key given; at least one is needed")
	}
	ring := make([]*masterKey, 0, len(keys))
	for i, key := range keys {
		if len(key) != keySize {
			return nil, fmt.Errorf("keyring: key %d has %d bytes, want %d", i+1, len(key), keySize)
		}
		for _, other := range keys[:i] {
			if bytes.Equal(key, other) {
				return nil, fmt.Errorf("keyring: key %d is given twice; remove one", i+1)
			}
		}
		master := &masterKey{secret: [keySize]byte(key)}
		sum := sha256.Sum256(AAD(domain, "key-id", string(key)))
		copy(master.id[:], sum[:])
		ring = append(ring, master)
	}
	return &Keyring{keys: func() []*masterKey { return ring }}, nil
}

// ParseKey decodes a key of 32 bytes from base64, in the standard or the URL
// alphabet, padded or not, with white space around it. The error never repeats
// the text.
func ParseKey(text string) ([]byte, error) {
	text = strings.TrimSpace(text)
	for _, enc := range []*base64.Encoding{
		base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding,
	} {
		if key, err := enc.DecodeString(text); err == nil && len(key) == keySize {
			return key, nil
		}
	}
	return nil, fmt.Errorf("a key must be %d bytes in base64; make one with: openssl rand -base64 %d", keySize, keySize)
}

// Subkey derives the key of one session and purpose from the first master key by
// HKDF-SHA256.
func (r *Keyring) Subkey(session, purpose string) [32]byte {
	return r.keys()[0].subkey(session, purpose)
}

func (k *masterKey) subkey(session, purpose string) [32]byte {
	sub, err := hkdf.Key(sha256.New, k.secret[:], nil, string(AAD(domain, session, purpose)), keySize)
	if err != nil {
		panic(err) // only for more than 255 hashes of output
	}
	return [32]byte(sub)
}

func (k *masterKey) aead(session string) cipher.AEAD {
	sub := k.subkey(session, "seal")
	aead, err := chacha20poly1305.NewX(sub[:])
	if err != nil {
		panic(err) // only for a key that has not 32 bytes
	}
	return aead
}

// Seal encrypts plain for session with the first key and binds it to aad, made by
// [AAD]. The result is version (1 byte) ‖ key id (4) ‖ nonce (24, random) ‖
// XChaCha20-Poly1305 ciphertext, 45 bytes longer than plain.
func (r *Keyring) Seal(aad []byte, session string, plain []byte) []byte {
	key := r.keys()[0]
	sealed := make([]byte, sealPrefix, sealPrefix+len(plain)+chacha20poly1305.Overhead)
	sealed[0] = sealVersion
	copy(sealed[1:], key.id[:])
	nonce := sealed[1+keyIDSize:]
	_, _ = rand.Read(nonce) // never fails
	return key.aead(session).Seal(sealed, nonce, plain, aad)
}

// SameFirst reports whether both rings seal with the same key.
func (r *Keyring) SameFirst(other *Keyring) bool {
	return r.keys()[0].id == other.keys()[0].id
}

// Open is the inverse of [Keyring.Seal]. The error wraps [ErrWrongKey] when no
// key of the ring has the id in sealed, else [ErrDamaged]: cut, changed, or
// sealed for another session or aad.
func (r *Keyring) Open(aad []byte, session string, sealed []byte) ([]byte, error) {
	if len(sealed) < sealPrefix+chacha20poly1305.Overhead || sealed[0] != sealVersion {
		return nil, fmt.Errorf("sealed record is malformed: %w", ErrDamaged)
	}
	id, nonce := sealed[1:1+keyIDSize], sealed[1+keyIDSize:sealPrefix]
	err := fmt.Errorf("key id %x: %w; add the former key to the keyring", id, ErrWrongKey)
	for _, key := range r.keys() {
		if !bytes.Equal(id, key.id[:]) {
			continue
		}
		plain, failed := key.aead(session).Open(nil, nonce, sealed[sealPrefix:], aad)
		if failed == nil {
			return plain, nil
		}
		err = fmt.Errorf("sealed record does not authenticate: %w", ErrDamaged)
	}
	return nil, err
}

// AAD joins parts, each preceded by its length (8 bytes, big endian), so that
// different lists never give the same bytes.
func AAD(parts ...string) []byte {
	var out []byte
	for _, part := range parts {
		out = binary.BigEndian.AppendUint64(out, uint64(len(part)))
		out = append(out, part...)
	}
	return out
}

const redacted = "[redacted]"

// String implements [fmt.Stringer].
func (Keyring) String() string { return redacted }

// GoString implements [fmt.GoStringer].
func (Keyring) GoString() string { return redacted }

// Format implements [fmt.Formatter], so that no verb reaches a key.
func (Keyring) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }
