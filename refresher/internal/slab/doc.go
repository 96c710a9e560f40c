// Package slab keeps very many small records where the garbage collector does
// not look: byte strings in large chunks, an index from sums of tokens to the
// records that hold them, and a queue by time. None of its types may be used by
// several goroutines at once; whoever owns them has the lock.
package slab
