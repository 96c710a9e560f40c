package refresher

import "slices"

// maxOwned bounds the access tokens by which callers are recognised: the first of
// the epoch, which a program may go on with for ever, and the newest.
const maxOwned = 64

// owned are the access tokens of a session, of whatever generation; only keyed
// hashes are kept.
type owned struct {
	key    []byte
	hashes []tokenHash
}

// own notes the access token in use where that is wanted.
func (m *machine) own() {
	if !m.policy.Swap || m.rec.Access == "" {
		return
	}
	h := m.accessHash(m.rec.Access)
	if slices.Contains(m.rec.Owned, h) {
		return
	}
	list := with(m.rec.Owned, h)
	if len(list) > maxOwned {
		list = slices.Delete(list, 1, 2)
	}
	m.rec.Owned = list
}

func (m *machine) accessHash(access string) tokenHash {
	return tokenHash(keyedSum(m.key(), "hash-access", access))
}

// owned is what requests are recognised by; nil where that is not wanted.
func (m *machine) owned() *owned {
	if !m.policy.Swap || len(m.rec.Owned) == 0 {
		return nil
	}
	return &owned{key: m.key(), hashes: m.rec.Owned}
}

// Owns reports whether an access token was issued in this session, in whatever
// generation. It needs [Policy.Swap].
func (s *Session) Owns(token string) bool {
	o := s.cur.Load().owned
	if o == nil || token == "" || len(token) > MaxAccessToken {
		return false
	}
	return slices.Contains(o.hashes, tokenHash(keyedSum(o.key, "hash-access", token)))
}
