package journal

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const keyFile = "encryption.key"

// LoadOrCreateKey reads the key in <dir>/encryption.key (base64 and a newline,
// mode 0600), or makes a random one there; dir is created and checked as in
// [Open]. Processes that race get the same key, of which one created it, and a
// crash never leaves half a key. A file open to group or others is an error.
func LoadOrCreateKey(dir string) (key []byte, created bool, err error) {
	if err := prepareDir(dir); err != nil {
		return nil, false, err
	}
	path := filepath.Join(dir, keyFile)
	key, err = readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if created, err = createKey(path); err == nil {
			key, err = readKey(path)
		}
	}
	if err == nil {
		// Also for a key that another process has just made: it may crash before
		// it gets here, and what is sealed with the key must not outlive it.
		err = syncDir(dir)
	}
	if err != nil {
		return nil, false, fmt.Errorf("encryption key %s: %w", path, err)
	}
	return key, created, nil
}

func readKey(path string) ([]byte, error) {
	f, err := openPrivate(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return nil, err
	}
	return ParseKey(string(text))
}

// createKey writes a new key beside path and links it there; false means that
// another process was first. A link, unlike a rename, replaces nothing.
func createKey(path string) (created bool, err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+keyFile+"-*")
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.Remove(tmp.Name())) }()
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	_, err = tmp.WriteString(base64.StdEncoding.EncodeToString(key) + "\n")
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return false, err
	}
	err = os.Link(tmp.Name(), path)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%w; configure a key if this file system has no hard links", err)
	}
	return true, nil
}
