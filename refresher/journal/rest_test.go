package journal

import (
	"errors"
	"syscall"
	"testing"
)

func TestAJournalAtRestHoldsNoFileAndGoesOn(t *testing.T) {
	d := newSimDisk(t, 1)
	open := 0
	j, err := load("", "s", func(path string) (file, error) {
		f, err := d.open(path)
		if err == nil {
			open++
			f = counted{f, &open}
		}
		return f, err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{"one", "two", "three"} {
		mustWrite(t, j, body)
		if open != 2 {
			t.Errorf("%d files are open after a write, want both: the next one must not fail to open its own", open)
		}
		if err := j.Rest(); err != nil || open != 0 {
			t.Errorf("at rest %d files are open (%v)", open, err)
		}
		wantBody(t, j, body)
		_ = j.Rest()
	}
}

func TestWithoutADescriptorNothingIsWritten(t *testing.T) {
	d := newSimDisk(t, 1)
	full := false
	j, err := load("", "s", func(path string) (file, error) {
		if full {
			return nil, syscall.EMFILE
		}
		return d.open(path)
	})
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, j, "one")
	_ = j.Rest()
	full = true
	if err := j.Write([]byte("two")); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("%v, want EMFILE", err)
	}
	full = false
	wantBody(t, j, "one")
	mustWrite(t, j, "three")
	wantBody(t, j, "three")
}

// counted is a file of which is known how many are open.
type counted struct {
	file
	open *int
}

func (c counted) Close() error {
	*c.open--
	return c.file.Close()
}
