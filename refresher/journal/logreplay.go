package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
)

// replay reads the newest base and all logs since.
func (l *Log) replay(each func([]byte) error) (Replay, error) {
	var found Replay
	bases, err := l.files(kindBase)
	if err != nil {
		return found, err
	}
	logs, err := l.files(kindLog)
	if err != nil {
		return found, err
	}
	var since uint64
	if n := len(bases); n > 0 {
		since = bases[n-1]
		l.number = since
		if _, err := l.replayFile(kindBase, since, &found, each); err != nil {
			return found, err
		}
	}
	found.Clean = true
	for _, n := range logs {
		if n < since {
			continue
		}
		l.number = max(l.number, n)
		size, err := l.replayFile(kindLog, n, &found, each)
		if err != nil {
			return found, err
		}
		l.written += size
	}
	return found, nil
}

func (l *Log) replayFile(kind string, number uint64, found *Replay, each func([]byte) error) (int64, error) {
	path := l.path(kind, number)
	f, err := openPrivate(path, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	r, err := openLogReader(f, l.keys, l.aad(kind, number), l.name)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) && kind == kindLog: // died before its first batch
		found.Clean = false
		return info.Size(), nil
	case errors.Is(err, ErrWrongKey):
		return 0, fmt.Errorf("%s: %w", path, err)
	case err != nil:
		found.Damaged = append(found.Damaged, path)
		return info.Size(), nil
	}
	ended := false
	for batch, err := range r.ahead() {
		if err != nil {
			return 0, fmt.Errorf("reading %s: %w", path, err)
		}
		ended = len(batch) == 0
		for len(batch) > 0 {
			record, rest, ok := cutRecord(batch)
			if !ok {
				r.damaged = true // it was sealed so; nobody ever wrote that
				break
			}
			if err := each(record); err != nil {
				return 0, err
			}
			found.Records++
			batch = rest
		}
	}
	found.Clean = found.Clean && (ended || kind == kindBase)
	if r.damaged {
		found.Damaged = append(found.Damaged, path)
	}
	return info.Size(), nil
}

// Compact makes a new base of all that is in force, which records must yield at
// least as new as it is when Compact is called, and removes the files before it.
// Appending goes on meanwhile. Files that could not be read whole are kept as
// *.damaged.
func (l *Log) Compact(records iter.Seq[[]byte]) (err error) {
	former, number, err := l.startOver()
	if err != nil {
		return err
	}
	l.mu.Lock()
	keys := l.keys
	l.mu.Unlock()
	tmp := l.path(kindBase, number) + ".tmp"
	f, err := l.newFile(kindBase, number, keys, tmp)
	if err != nil {
		return err
	}
	if err := errors.Join(f.fill(records), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("log %s: %w", tmp, err), os.Remove(tmp))
	}
	if err := os.Rename(tmp, l.path(kindBase, number)); err != nil {
		return err
	}
	if err := syncDir(l.dir); err != nil {
		return err
	}
	l.mu.Lock()
	l.written -= former
	l.mu.Unlock()
	return l.removeBefore(number)
}

// startOver begins a new log; what is appended from now on is not in the base's
// predecessors.
func (l *Log) startOver() (former int64, number uint64, err error) {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	l.mu.Lock()
	closed := l.closed
	former = l.written
	l.mu.Unlock()
	if closed {
		return 0, 0, fmt.Errorf("log %s: %w", l.name, fs.ErrClosed)
	}
	if l.file != nil {
		err := l.file.Close()
		l.file = nil
		if err != nil {
			return 0, 0, err
		}
	}
	if err := l.begin(); err != nil {
		return 0, 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return former, l.number, nil
}

// removeBefore removes the files that a base has replaced.
func (l *Log) removeBefore(number uint64) error {
	for _, kind := range []string{kindBase, kindLog} {
		numbers, err := l.files(kind)
		if err != nil {
			return err
		}
		for _, n := range numbers {
			if n >= number {
				continue
			}
			path := l.path(kind, n)
			if slices.Contains(l.damaged, path) {
				err = os.Rename(path, path+".damaged")
			} else {
				err = os.Remove(path)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
