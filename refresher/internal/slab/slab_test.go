package slab

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestBytesKeepWhatWasPut(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var b Bytes
	kept := map[Ref][]byte{}
	for range 5000 {
		if len(kept) > 0 && rnd.IntN(3) == 0 {
			for ref := range kept {
				b.Free(ref)
				delete(kept, ref)
				break
			}
		}
		data := make([]byte, rnd.IntN(1200))
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		ref := b.Put(data)
		if ref == 0 || kept[ref] != nil {
			t.Fatalf("the place %d was given out before", ref)
		}
		kept[ref] = append([]byte{}, data...)
	}
	for ref, want := range kept {
		if !bytes.Equal(b.Get(ref), want) {
			t.Fatalf("another string lies at %d", ref)
		}
		b.Free(ref)
	}
	if b.Used() != 0 {
		t.Errorf("%d bytes are still in use", b.Used())
	}
}

func TestAFreedStringIsOverwritten(t *testing.T) {
	var b Bytes
	ref := b.Put([]byte("a-secret-token-of-forty-characters-and-more"))
	place := b.Get(ref)
	b.Free(ref)
	if bytes.Contains(place, []byte("secret")) {
		t.Errorf("the token is still there: %q", place)
	}
}

func TestAFreedPlaceIsUsedAgain(t *testing.T) {
	var b Bytes
	data := make([]byte, 900)
	for range 100000 {
		b.Free(b.Put(data))
	}
	if len(b.chunks) != 1 {
		t.Errorf("%d chunks for one string at a time", len(b.chunks))
	}
}

func TestBytesLongerThanAChunk(t *testing.T) {
	var b Bytes
	long := bytes.Repeat([]byte("x"), 3*lastSize)
	short := b.Put([]byte("short"))
	ref := b.Put(long)
	if !bytes.Equal(b.Get(ref), long) || string(b.Get(short)) != "short" {
		t.Error("a long string is not kept")
	}
}

func sumOf(n uint64) (s Sum) {
	n *= 0x9e3779b97f4a7c15
	binary.LittleEndian.PutUint64(s[:], n^n>>29)
	return s
}

// FuzzIndex does what the bytes say with an index and with a map.
func FuzzIndex(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 0x81, 0x83, 4, 5, 6})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var x Index
		want := map[uint32]Sum{}
		for i, op := range ops {
			n := uint32(op & 0x7f)
			sum := sumOf(uint64(n % 40)) // some share a sum
			if op&0x80 == 0 {
				if _, ok := want[n]; !ok {
					x.Put(sum, n)
					want[n] = sum
				}
			} else if _, ok := want[n]; ok {
				x.Delete(sum, n)
				delete(want, n)
			}
			if x.Len() != len(want) {
				t.Fatalf("after %d operations: %d entries, want %d", i+1, x.Len(), len(want))
			}
		}
		for n, sum := range want {
			if _, ok := x.Find(sum, func(r uint32) bool { return r == n }); !ok {
				t.Fatalf("record %d is not found", n)
			}
		}
	})
}

func TestTheIndexFindsAllThroughGrowthAndDeletion(t *testing.T) {
	const n = 50000
	var x Index
	for i := range uint32(n) {
		x.Put(sumOf(uint64(i)), i)
	}
	for i := uint32(0); i < n; i += 2 {
		x.Delete(sumOf(uint64(i)), i)
	}
	for i := range uint32(n) {
		_, ok := x.Find(sumOf(uint64(i)), func(r uint32) bool { return r == i })
		if ok != (i%2 == 1) {
			t.Fatalf("record %d: found %t", i, ok)
		}
	}
	for i := uint32(1); i < n; i += 2 {
		x.Delete(sumOf(uint64(i)), i)
	}
	if x.Len() != 0 || len(x.table) > 64 {
		t.Errorf("%d entries in a table of %d after all are gone", x.Len(), len(x.table))
	}
}

func TestTheQueueGivesTheEarliestFirst(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var q Queue
	var want []int64
	for i := range uint32(5000) {
		at := rnd.Int64N(1000)
		q.Push(at, i, 0)
		want = append(want, at)
	}
	for i := range 1000 { // some turn out to be later
		at, _, _, _ := q.First()
		moved := at + rnd.Int64N(500)
		q.Later(moved)
		want[slices.Index(want, at)] = moved
		_ = i
	}
	slices.Sort(want)
	for i, w := range want {
		at, _, _, ok := q.First()
		if !ok || at != w {
			t.Fatalf("entry %d: %d, want %d", i, at, w)
		}
		q.Pop()
	}
	if _, _, _, ok := q.First(); ok {
		t.Error("the queue is not empty")
	}
}
