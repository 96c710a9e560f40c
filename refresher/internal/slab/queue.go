package slab

// Queue holds records by a time, the earliest first: a binary heap. A record
// whose time changed need not be found in it: whoever takes it from the front
// looks at the record and puts it back with its true time if that is later. The
// zero value is empty.
type Queue struct{ heap []queued }

type queued struct {
	at     int64
	record uint32
	serial uint32 // of what the record was when it was put in
}

// Len is the number of entries.
func (q *Queue) Len() int { return len(q.heap) }

// Push adds a record.
func (q *Queue) Push(at int64, record, serial uint32) {
	q.heap = append(q.heap, queued{at, record, serial})
	i := len(q.heap) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if q.heap[parent].at <= q.heap[i].at {
			break
		}
		q.heap[parent], q.heap[i] = q.heap[i], q.heap[parent]
		i = parent
	}
}

// First returns the earliest entry.
func (q *Queue) First() (at int64, record, serial uint32, ok bool) {
	if len(q.heap) == 0 {
		return 0, 0, 0, false
	}
	f := q.heap[0]
	return f.at, f.record, f.serial, true
}

// Pop removes the earliest entry.
func (q *Queue) Pop() {
	last := len(q.heap) - 1
	q.heap[0] = q.heap[last]
	q.heap = q.heap[:last]
	if cap(q.heap) > 64 && len(q.heap) < cap(q.heap)/4 {
		q.heap = append(make([]queued, 0, cap(q.heap)/2), q.heap...)
	}
	q.sink()
}

// Later gives the earliest entry its true time.
func (q *Queue) Later(at int64) {
	q.heap[0].at = at
	q.sink()
}

// sink moves the first entry to its place.
func (q *Queue) sink() {
	for i := 0; ; {
		child := 2*i + 1
		if child >= len(q.heap) {
			return
		}
		if child+1 < len(q.heap) && q.heap[child+1].at < q.heap[child].at {
			child++
		}
		if q.heap[i].at <= q.heap[child].at {
			return
		}
		q.heap[i], q.heap[child] = q.heap[child], q.heap[i]
		i = child
	}
}
