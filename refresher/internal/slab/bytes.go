package slab

import (
	"encoding/binary"
	"math"
	"math/bits"
)

const (
	unit      = 32      // bytes: what a block's size is a multiple of
	firstSize = 8 << 10 // bytes of the first chunk; each is twice the one before
	lastSize  = 1 << 20 // up to this
	prefix    = 4       // bytes: a string's length stands before it
)

// Ref is where a string is kept; 0 is nowhere.
type Ref uint32

// Bytes keeps byte strings in chunks without pointers. A string that was freed
// is overwritten with zeros: tokens lie in here. The zero value is empty.
type Bytes struct {
	chunks [][]byte
	starts []uint32 // of each chunk, in units
	filled int      // bytes of the newest chunk
	free   map[int]Ref
	used   int64 // bytes in blocks that are in use
}

// Put stores a copy of data and says where.
func (b *Bytes) Put(data []byte) Ref {
	size := blockSize(len(data))
	b.used += int64(size)
	ref := b.take(size)
	block := b.block(ref)
	binary.LittleEndian.PutUint32(block, uint32(len(data)))
	copy(block[prefix:], data)
	return ref
}

// Get returns the string itself, good until it is freed.
func (b *Bytes) Get(ref Ref) []byte {
	block := b.block(ref)
	n := binary.LittleEndian.Uint32(block)
	return block[prefix : prefix+n : prefix+n]
}

// Free gives a string's place back.
func (b *Bytes) Free(ref Ref) {
	block := b.block(ref)
	size := blockSize(int(binary.LittleEndian.Uint32(block)))
	b.used -= int64(size)
	clear(block[:size])
	if b.free == nil {
		b.free = map[int]Ref{}
	}
	// The free blocks of one size are a list; its links lie in the blocks.
	binary.LittleEndian.PutUint32(block, uint32(b.free[size]))
	b.free[size] = ref
}

// Used is how many bytes the strings take.
func (b *Bytes) Used() int64 { return b.used }

// Size is how many bytes the chunks take.
func (b *Bytes) Size() (n int64) {
	for _, chunk := range b.chunks {
		n += int64(len(chunk))
	}
	return n
}

// Clear overwrites all with zeros; nothing is in it any more.
func (b *Bytes) Clear() {
	for _, chunk := range b.chunks {
		clear(chunk)
	}
	*b = Bytes{}
}

// take returns a block of that size: a free one, else the next of the newest
// chunk. What is left of a chunk that is too short for it is lost.
func (b *Bytes) take(size int) Ref {
	if ref := b.free[size]; ref != 0 {
		b.free[size] = Ref(binary.LittleEndian.Uint32(b.block(ref)))
		return ref
	}
	if n := len(b.chunks); n == 0 || b.filled+size > len(b.chunks[n-1]) {
		b.grow(size)
	}
	n := len(b.chunks) - 1
	ref := Ref(b.starts[n] + uint32(b.filled/unit))
	b.filled += size
	return ref
}

func (b *Bytes) grow(size int) {
	start, next := uint32(1), firstSize // unit 0 is nobody's: Ref 0 is none
	if n := len(b.chunks); n > 0 {
		start = b.starts[n-1] + uint32(len(b.chunks[n-1])/unit)
		next = min(2*len(b.chunks[n-1]), lastSize)
	}
	next = max(next, size)
	if uint64(start)+uint64(next/unit) > math.MaxUint32 {
		panic("slab: more than 128 GiB")
	}
	b.chunks = append(b.chunks, make([]byte, next))
	b.starts = append(b.starts, start)
	b.filled = 0
}

// block returns the chunk from ref on.
func (b *Bytes) block(ref Ref) []byte {
	lo, hi := 0, len(b.starts)
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; b.starts[mid] <= uint32(ref) {
			lo = mid
		} else {
			hi = mid
		}
	}
	return b.chunks[lo][int(uint32(ref)-b.starts[lo])*unit:]
}

// blockSize rounds up to what is handed out: multiples of a unit, and for long
// strings of an eighth of their size, so that there are few sizes.
func blockSize(n int) int {
	n += prefix
	step := max(unit, 1<<max(0, bits.Len(uint(n))-5))
	return (n + step - 1) / step * step
}
