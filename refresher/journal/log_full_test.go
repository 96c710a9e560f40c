package journal

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// fullFile is on a disk that takes so many writes more.
type fullFile struct {
	appendFile
	left *int
}

func (f fullFile) Write(p []byte) (int, error) {
	if *f.left <= 0 {
		return 0, syscall.ENOSPC
	}
	*f.left--
	return f.appendFile.Write(p)
}

func TestALogOnAFullDiskLeavesNoFilesBehind(t *testing.T) {
	dir, keys := privateDir(t), testKeys(t, 1)
	l, _, _ := replayed(t, dir, keys)
	mustAppend(t, l, "before")
	left := 0
	l.create = func(path string) (appendFile, error) {
		f, err := createAppend(path)
		return fullFile{f, &left}, err
	}
	l.file.appendFile = fullFile{l.file.appendFile, &left}
	for i := range 50 {
		left = i % 2 // with one, the file's head can be written
		if err := l.Append([]byte("lost")); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("%v", err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) > 1 {
		t.Errorf("%d files, want the one that holds something", len(entries))
	}
	left = 1000
	mustAppend(t, l, "after")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, got, _ := replayed(t, dir, keys)
	if want := []string{"before", "after"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestMoreThanABatchHoldsMayWaitToBeWritten(t *testing.T) {
	dir, keys := privateDir(t), testKeys(t, 1)
	l, _, _ := replayed(t, dir, keys)
	record := bytes.Repeat([]byte("x"), 1<<20)
	const n = maxBatch>>20 + 3
	for range n { // callers are bound, say, and nobody signs in
		l.Enqueue(record)
	}
	mustAppend(t, l, "last")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, got, replay := replayed(t, dir, keys)
	if len(got) != n+1 || got[n] != "last" || got[0] != strings.Repeat("x", 1<<20) || !replay.Clean {
		t.Errorf("%d records, %+v", len(got), replay.Clean)
	}
}
