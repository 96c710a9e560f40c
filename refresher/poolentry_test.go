package refresher

import (
	"reflect"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/slab"
)

// FuzzPoolEntry: what is packed comes back, and what is not an entry of ours is
// refused without a panic.
func FuzzPoolEntry(f *testing.F) {
	f.Add("access", "refresh", uint64(3), int64(1_700_000_000_123456789), uint8(5), []byte{1})
	f.Add("", "", uint64(0), int64(0), uint8(0), []byte{})
	f.Fuzz(func(t *testing.T, access, refresh string, n uint64, at int64, given uint8, other []byte) {
		e := poolEntry{id: poolID{byte(n), 2}, created: uint32(at), used: uint32(n), boot: uint32(n >> 3)}
		e.rec = record{
			Epoch: n, Generation: n + 1, Access: access, Refresh: refresh, ID: refresh, RefreshID: access,
			Received: time.Unix(0, at), ReceivedBoot: time.Duration(at / 2), Left: time.Duration(n), Expires: n%2 == 0,
			Odd: int(given % 3), Quiet: time.Duration(given), Stays: n%3 == 0, Kept: refresh,
		}
		for i := range given % (maxGiven + 1) {
			e.given = append(e.given, givenToken{sum: slab.Sum{i, byte(n)}, kind: TokenKind(1 + i%2), who: Caller(i)})
		}
		if n%5 == 0 {
			e.rec.Intent = &intent{At: time.Unix(0, at), AtBoot: 3, BootID: "b", Unknown: true, Retries: 2}
			e.rec.Spent = []tokenHash{tokenHash(n), 7}
		}
		packed := packedEntry(e.pack(nil))
		got, err := packed.unpack()
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Fatalf("%+v came back as %+v (%v)", e, got, err)
		}
		if string(packed.access()) != access || packed.unsettled() != (e.rec.Intent != nil || e.rec.Odd > 0) {
			t.Error("the fixed part says something else")
		}
		for i, g := range e.given {
			if packed.find(g.sum) != i {
				t.Errorf("token %d is not found", i)
			}
		}
		if len(other) > entryGiven {
			_, _ = packedEntry(other).unpack()
		}
	})
}

func TestAnEntryKeepsTheFirstTokensAndTheNewest(t *testing.T) {
	var e poolEntry
	dropped := 0
	for i := range 200 {
		dropped += len(e.give(givenToken{sum: slab.Sum{byte(i)}, kind: AccessToken}))
		e.give(givenToken{sum: slab.Sum{byte(i)}, kind: AccessToken}) // again: nothing
	}
	if len(e.given) != maxGiven || dropped != 200-maxGiven {
		t.Fatalf("%d are kept, %d were dropped", len(e.given), dropped)
	}
	for i, want := range map[int]byte{0: 0, 1: 1, 2: 200 - maxGiven + 2, maxGiven - 1: 199} {
		if e.given[i].sum[0] != want {
			t.Errorf("place %d holds token %d, want %d", i, e.given[i].sum[0], want)
		}
	}
}
