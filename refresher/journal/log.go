package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Log keeps very many small records on a local disk, sealed, in a few files:
// what is appended at the same time shares one write and one fsync. Which record
// replaces which its owner knows. Replaying all of them in their order, the last
// one of a kind counting, gives what was acknowledged, and perhaps some of what
// was being written when the process died.
//
// The files are <name>.base.<n>, everything as of its making, and the logs
// <name>.log.<m> with m >= n, everything since. A file is written by one process
// and never continued by another, so that each has a key and counts its nonces.
//
// Make it with [OpenLog]; the caller holds the lock of the name ([TryLock]). All
// methods may be called at once, save Compact beside itself.
type Log struct {
	dir, name string
	create    func(path string) (appendFile, error) // tests put failing ones in its place

	mu      sync.Mutex
	keys    *Keyring
	next    *batch // is being filled
	closed  bool
	written int64 // bytes of the logs since the base
	number  uint64
	damaged []string // files that are kept

	turn chan struct{} // who holds it may write to file
	file *logFile      // nil: the last one failed
}

// batch is what is written at once.
type batch struct {
	records []byte
	done    chan struct{}
	err     error
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// Replay is what [OpenLog] found.
type Replay struct {
	Records int
	Damaged []string // files of which a part could not be read; they are kept
	Clean   bool     // the last process had closed its log
}

// OpenLog replays what is there through each, which must not keep the record, in
// the order in which it was written, and begins a new log. An error of each ends
// it. The error wraps [ErrWrongKey] where the keys do not open what is there.
func OpenLog(dir, name string, keys *Keyring, each func(record []byte) error) (*Log, Replay, error) {
	base, err := basePath(dir, name)
	if err != nil {
		return nil, Replay{}, err
	}
	if err := prepareDir(dir); err != nil {
		return nil, Replay{}, err
	}
	l := &Log{
		dir: dir, name: filepath.Base(base), keys: keys,
		create: createAppend, next: newBatch(), turn: make(chan struct{}, 1),
	}
	replay, err := l.replay(each)
	if err != nil {
		return nil, Replay{}, err
	}
	l.damaged = replay.Damaged
	if err := l.begin(); err != nil {
		return nil, Replay{}, err
	}
	return l, replay, nil
}

// Append writes records and returns when they are on the disk. After an error
// they may be there, or not.
func (l *Log) Append(records ...[]byte) error {
	b, err := l.add(records)
	if err != nil {
		return err
	}
	return l.commit(b)
}

// Enqueue takes records, in the order of the calls, and returns what waits until
// they are on the disk, as [Log.Append] does. Whoever does not wait gets them
// written with the next that somebody waits for.
func (l *Log) Enqueue(records ...[]byte) (wait func() error) {
	b, err := l.add(records)
	if err != nil {
		return func() error { return err }
	}
	return func() error { return l.commit(b) }
}

func (l *Log) add(records [][]byte) (*batch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("log %s: %w", l.name, fs.ErrClosed)
	}
	for _, r := range records {
		l.next.records = appendRecord(l.next.records, r)
	}
	return l.next, nil
}

// commit waits until a batch is written, by whoever comes first.
func (l *Log) commit(b *batch) error {
	select {
	case <-b.done:
		return b.err
	case l.turn <- struct{}{}:
	}
	defer func() { <-l.turn }()
	select {
	case <-b.done: // and its writer had just finished
		return b.err
	default:
	}
	l.mu.Lock()
	l.next = newBatch()
	l.mu.Unlock()
	b.err = l.write(b.records)
	clear(b.records)
	b.records = nil
	close(b.done)
	return b.err
}

// write puts one batch into the file; the caller has the turn. A file that
// failed is left as it is: what it holds was acknowledged before.
func (l *Log) write(records []byte) error {
	if len(records) == 0 {
		return nil
	}
	if l.file == nil {
		if err := l.begin(); err != nil {
			return err
		}
	}
	written := 0
	var err error
	for len(records) > 0 && err == nil {
		var some []byte
		some, records = cutBatch(records)
		var n int
		n, err = l.file.append(some)
		written += n
	}
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("log %s: %w", l.file.path, err), l.file.Close())
		if !l.file.kept {
			_ = os.Remove(l.file.path) // as newFile does
		}
		l.file = nil
		return err
	}
	l.file.kept = true
	l.mu.Lock()
	l.written += int64(written)
	l.mu.Unlock()
	return nil
}

// begin starts the next log file.
func (l *Log) begin() error {
	l.mu.Lock()
	l.number++
	number, keys := l.number, l.keys
	l.mu.Unlock()
	f, err := l.newFile(kindLog, number, keys, l.path(kindLog, number))
	if err != nil {
		return err
	}
	l.file = f
	return nil
}

// Written is how many bytes the logs hold since the last base: what a
// [Log.Compact] would free, at most.
func (l *Log) Written() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.written
}

// Rekey seals what is written from now on with other keys. What is there opens
// with the former ones until the next [Log.Compact].
func (l *Log) Rekey(keys *Keyring) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keys = keys
}

// Close writes what waits and closes the files.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	b := l.next
	l.mu.Unlock()
	err := l.commit(b)
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	if l.file == nil {
		return err
	}
	if err == nil {
		if _, err = l.file.append(nil); err == nil { // an empty batch says that this is the end
			err = l.file.Sync()
		}
	}
	return errors.Join(err, l.file.Close())
}

// The kinds of files.
const (
	kindBase = "base"
	kindLog  = "log"
)

func (l *Log) path(kind string, number uint64) string {
	return filepath.Join(l.dir, fmt.Sprintf("%s.%s.%d", l.name, kind, number))
}

// files lists the numbers of the files of a kind, in their order.
func (l *Log) files(kind string) ([]uint64, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, e := range entries {
		if text, ok := strings.CutPrefix(e.Name(), l.name+"."+kind+"."); ok {
			if n, err := strconv.ParseUint(text, 10, 64); err == nil {
				numbers = append(numbers, n)
			}
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}
