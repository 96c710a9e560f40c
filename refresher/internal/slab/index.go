package slab

import "encoding/binary"

// Sum recognises a token: a keyed 128-bit value.
type Sum [16]byte

// Index finds the records that hold a sum. It keeps 32 bits of each sum, so that
// whoever asks has to look at the record. The zero value is empty.
//
// It is an open-addressed table with linear probing. An entry's place follows
// from the bits that are kept, so that the table can grow, and close the gaps
// that deletions leave, without the sums.
type Index struct {
	table []uint64 // tag << 32 | record + 1; 0 is free
	count int
}

// MaxRecord is the largest number of a record.
const MaxRecord = 1<<32 - 2

func tagOf(sum Sum) uint32 { return binary.LittleEndian.Uint32(sum[:]) }

// home is where an entry with that tag is looked for first.
func (x *Index) home(tag uint32) int { return int(uint64(tag) * uint64(len(x.table)) >> 32) }

func (x *Index) next(i int) int {
	if i++; i == len(x.table) {
		return 0
	}
	return i
}

// Len is the number of entries.
func (x *Index) Len() int { return x.count }

// Put adds a record under a sum. The same one twice is two entries.
func (x *Index) Put(sum Sum, record uint32) {
	if 8*(x.count+1) > 7*len(x.table) {
		x.resize(max(64, len(x.table)+len(x.table)/2))
	}
	x.put(uint64(tagOf(sum))<<32 | uint64(record+1))
	x.count++
}

func (x *Index) put(entry uint64) {
	i := x.home(uint32(entry >> 32))
	for x.table[i] != 0 {
		i = x.next(i)
	}
	x.table[i] = entry
}

// Find asks holds about each record that may hold the sum, until it says yes.
func (x *Index) Find(sum Sum, holds func(record uint32) bool) (record uint32, ok bool) {
	if x.count == 0 {
		return 0, false
	}
	tag := tagOf(sum)
	for i := x.home(tag); x.table[i] != 0; i = x.next(i) {
		if uint32(x.table[i]>>32) == tag {
			if record := uint32(x.table[i]) - 1; holds(record) {
				return record, true
			}
		}
	}
	return 0, false
}

// Delete takes one entry of a record out.
func (x *Index) Delete(sum Sum, record uint32) {
	if x.count == 0 {
		return
	}
	entry := uint64(tagOf(sum))<<32 | uint64(record+1)
	for i := x.home(tagOf(sum)); x.table[i] != 0; i = x.next(i) {
		if x.table[i] == entry {
			x.close(i)
			x.count--
			break
		}
	}
	if len(x.table) > 64 && 4*x.count < len(x.table) {
		x.resize(max(64, len(x.table)/2))
	}
}

// close frees place i and moves up what would no longer be found behind it.
func (x *Index) close(i int) {
	for j := x.next(i); x.table[j] != 0; j = x.next(j) {
		home := x.home(uint32(x.table[j] >> 32))
		if x.distance(home, j) >= x.distance(i, j) {
			x.table[i] = x.table[j]
			i = j
		}
	}
	x.table[i] = 0
}

// distance is how many places b lies behind a.
func (x *Index) distance(a, b int) int {
	if b -= a; b < 0 {
		b += len(x.table)
	}
	return b
}

func (x *Index) resize(size int) {
	old := x.table
	x.table = make([]uint64, size)
	for _, entry := range old {
		if entry != 0 {
			x.put(entry)
		}
	}
}
