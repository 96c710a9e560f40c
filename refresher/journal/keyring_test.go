package journal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func testKey(fill byte) []byte { return bytes.Repeat([]byte{fill}, keySize) }

func mustRing(t testing.TB, keys ...[]byte) *Keyring {
	t.Helper()
	ring, err := NewKeyring(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func TestNewKeyringRefusesUnusableKeys(t *testing.T) {
	for _, c := range []struct {
		name string
		keys [][]byte
		good bool
	}{
		{"no key", nil, false},
		{"a nil key", [][]byte{nil}, false},
		{"a short key", [][]byte{testKey(1)[:31]}, false},
		{"a long key", [][]byte{append(testKey(1), 1)}, false},
		{"a duplicate", [][]byte{testKey(1), testKey(2), testKey(1)}, false},
		{"one key", [][]byte{testKey(1)}, true},
		{"three keys", [][]byte{testKey(1), testKey(2), testKey(3)}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if ring, err := NewKeyring(c.keys...); (err == nil) != c.good || (ring != nil) != c.good {
				t.Errorf("ring %v, error %v", ring, err)
			}
		})
	}
}

func TestAKeyringCopiesItsKeys(t *testing.T) {
	key := testKey(1)
	ring := mustRing(t, key)
	sealed := ring.Seal(nil, "s", []byte("plain"))
	clear(key)
	if plain, err := mustRing(t, testKey(1)).Open(nil, "s", sealed); err != nil || string(plain) != "plain" {
		t.Errorf("got %q, error %v", plain, err)
	}
	if _, err := ring.Open(nil, "s", sealed); err != nil {
		t.Error(err)
	}
}

func TestAKeyringNeverPrintsItsKeys(t *testing.T) {
	key := []byte("canary-canary-canary-canary-1234")
	ring := mustRing(t, key)
	hidden := struct {
		p *Keyring
		v Keyring
	}{ring, *ring} //nolint:govet // the copy is the point
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%U"} {
		if got := fmt.Sprintf(verb, ring); got != redacted {
			t.Errorf("%s prints %q", verb, got)
		}
		_, _ = fmt.Fprintf(&out, verb+verb+verb, *ring, hidden, []any{ring, &hidden})
	}
	out.WriteString(ring.String() + ring.GoString())
	text, err := json.Marshal(map[string]any{"ring": ring, "value": *ring})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(text)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "ring", ring, "hidden", hidden)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "ring", ring, "hidden", hidden)
	for _, form := range []string{
		"canary", hex.EncodeToString(key[:6]), strings.ToUpper(hex.EncodeToString(key[:6])),
		base64.StdEncoding.EncodeToString(key[:6]), "99 97 110 97", "99, 97, 110", "0x63, 0x61",
		"U+0063 U+0061", "c a n a",
	} {
		if strings.Contains(out.String(), form) {
			t.Errorf("printed as %q in:\n%s", form, out.String())
		}
	}
}

func TestParseKey(t *testing.T) {
	key := bytes.Repeat([]byte{0xfb, 0xff}, 16) // has + and /, or - and _
	std, url := base64.StdEncoding.EncodeToString(key), base64.URLEncoding.EncodeToString(key)
	for _, c := range []struct {
		name, text string
		good       bool
	}{
		{"standard alphabet", std, true},
		{"standard alphabet without padding", strings.TrimRight(std, "="), true},
		{"URL alphabet", url, true},
		{"URL alphabet without padding", strings.TrimRight(url, "="), true},
		{"white space around it", " \t" + std + "\r\n", true},
		{"nothing", "", false},
		{"a key of 31 bytes", base64.StdEncoding.EncodeToString(key[:31]), false},
		{"a key of 33 bytes", base64.StdEncoding.EncodeToString(append(key[:32:32], 1)), false},
		{"hex", hex.EncodeToString(key), false},
		{"a stray character", "SECRET!" + std[7:], false},
		{"two keys", std + "\n" + std, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseKey(c.text)
			if (err == nil) != c.good || c.good && !bytes.Equal(got, key) {
				t.Fatalf("got %d bytes, error %v", len(got), err)
			}
			if err != nil && (strings.Contains(err.Error(), "SECRET") || len(c.text) > 8 && strings.Contains(err.Error(), c.text[8:16])) {
				t.Errorf("the error tells the text: %v", err)
			}
		})
	}
}

func TestSubkeysDifferByKeySessionAndPurpose(t *testing.T) {
	one, two := mustRing(t, testKey(1), testKey(2)), mustRing(t, testKey(2), testKey(1))
	seen := map[[32]byte]string{}
	for name, sub := range map[string][32]byte{
		"a, mac":           one.Subkey("a", "mac"),
		"a, hash":          one.Subkey("a", "hash"),
		"b, mac":           one.Subkey("b", "mac"),
		"am, ac":           one.Subkey("am", "ac"),
		"empty, amac":      one.Subkey("", "amac"),
		"amac, empty":      one.Subkey("amac", ""),
		"other key, a mac": two.Subkey("a", "mac"),
	} {
		if other, twice := seen[sub]; twice {
			t.Errorf("%q and %q have the same subkey", name, other)
		}
		seen[sub] = name
	}
	if one.Subkey("a", "mac") != mustRing(t, testKey(1)).Subkey("a", "mac") {
		t.Error("the subkey depends on more than the first key")
	}
}

// The values were computed apart from this code; a change of them would make
// every record on disk unreadable.
func TestSubkeyAndKeyIDAreStable(t *testing.T) {
	ring := mustRing(t, testKey(1))
	sub := ring.Subkey("session", "seal")
	if got := hex.EncodeToString(sub[:]); got != wantSubkey {
		t.Errorf("subkey %s", got)
	}
	if got := hex.EncodeToString(ring.Seal(nil, "session", nil)[:5]); got != "01"+wantKeyID {
		t.Errorf("version and key id %s", got)
	}
}

func TestSealAndOpen(t *testing.T) {
	one, two, three := testKey(1), testKey(2), testKey(3)
	old, aad := mustRing(t, one), AAD("kind", "session")
	sealed := old.Seal(aad, "s", []byte("plain"))
	for _, c := range []struct {
		name    string
		ring    *Keyring
		aad     []byte
		session string
		sealed  []byte
		want    error
	}{
		{"the same ring opens", old, aad, "s", sealed, nil},
		{"a ring with a new first key opens", mustRing(t, two, one), aad, "s", sealed, nil},
		{"a ring without the key does not", mustRing(t, two, three), aad, "s", sealed, ErrWrongKey},
		{"other associated data", old, AAD("kinds", "ession"), "s", sealed, ErrDamaged},
		{"no associated data", old, nil, "s", sealed, ErrDamaged},
		{"another session", old, aad, "t", sealed, ErrDamaged},
		{"nothing", old, aad, "s", nil, ErrDamaged},
		{"a cut end", old, aad, "s", sealed[:len(sealed)-1], ErrDamaged},
		{"only the prefix", old, aad, "s", sealed[:sealPrefix], ErrDamaged},
		{"an added byte", old, aad, "s", append(bytes.Clone(sealed), 0), ErrDamaged},
		{"another version", old, aad, "s", append([]byte{2}, sealed[1:]...), ErrDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			plain, err := c.ring.Open(c.aad, c.session, c.sealed)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || err == nil && string(plain) != "plain" {
				t.Errorf("got %q, error %v", plain, err)
			}
			if err != nil && plain != nil {
				t.Error("an error came with a text")
			}
		})
	}
	if bytes.Equal(sealed, old.Seal(aad, "s", []byte("plain"))) {
		t.Error("sealing twice gave the same bytes")
	}
	if len(sealed) != len("plain")+45 {
		t.Errorf("sealing added %d bytes", len(sealed)-len("plain"))
	}
}

func TestAFlippedBitNeverOpens(t *testing.T) {
	ring := mustRing(t, testKey(1), testKey(2))
	sealed := ring.Seal(nil, "s", []byte("plain"))
	for i := range len(sealed) * 8 {
		bad := bytes.Clone(sealed)
		bad[i/8] ^= 1 << (i % 8)
		want := ErrDamaged
		if at := i / 8; at >= 1 && at <= keyIDSize {
			want = ErrWrongKey
		}
		if _, err := ring.Open(nil, "s", bad); !errors.Is(err, want) {
			t.Errorf("bit %d: error %v, want %v", i, err, want)
		}
	}
}

func TestAADOfDifferentListsDiffers(t *testing.T) {
	seen := map[string][]string{}
	for _, parts := range [][]string{
		nil, {""}, {"", ""}, {"ab"}, {"a", "b"}, {"", "ab"}, {"ab", ""}, {"a\x00", "b"}, {"a", "\x00b"},
		{string(AAD("a", "b"))},
	} {
		aad := string(AAD(parts...))
		if other, twice := seen[aad]; twice {
			t.Errorf("%q and %q give the same bytes", parts, other)
		}
		seen[aad] = parts
	}
}

func FuzzKeyringOpen(f *testing.F) {
	f.Add([]byte("plain"), "s", "s", uint16(3), byte(1), uint16(0), uint16(0))
	f.Add([]byte("plain"), "s", "t", uint16(0), byte(0), uint16(0), uint16(0))
	f.Add([]byte("plain"), "s", "s", uint16(0), byte(0), uint16(9), uint16(0))
	f.Add([]byte("plain"), "s", "s", uint16(0), byte(0), uint16(0), uint16(30))
	f.Add([]byte{}, "", "", uint16(0), byte(0), uint16(0), uint16(0))
	ring := mustRing(f, testKey(1), testKey(2))
	older := mustRing(f, testKey(2))
	f.Fuzz(func(t *testing.T, plain []byte, session, openAs string, at uint16, flip byte, cut, swap uint16) {
		aad := AAD("record", session)
		sealed, other := ring.Seal(aad, session, plain), older.Seal(aad, session, plain)
		// Flip one byte, cut the end, put the head of another record in front.
		bad := bytes.Clone(sealed)
		bad[int(at)%len(bad)] ^= flip
		copy(bad[:int(swap)%(len(bad)+1)], other)
		bad = bad[:len(bad)-int(cut)%(len(bad)+1)]
		whole := openAs == session && (bytes.Equal(bad, sealed) || bytes.Equal(bad, other))
		got, err := ring.Open(AAD("record", openAs), openAs, bad)
		switch {
		case whole:
			if err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("an unchanged record does not open: %v", err)
			}
		case err == nil:
			t.Fatal("a changed record was opened")
		case !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrWrongKey):
			t.Fatalf("error %v is of no kind", err)
		}
		if _, err := ring.Open(aad, session, plain); err == nil {
			t.Fatal("arbitrary bytes were opened")
		}
	})
}

const (
	wantSubkey = "5d19d87e50b3adbd8deda36eb9218c88b0f5e37592051b223d2582a5259c80f0"
	wantKeyID  = "1cfc0c2d"
)
