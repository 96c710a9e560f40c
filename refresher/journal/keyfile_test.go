package journal

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestLoadOrCreateKeyMakesAKeyOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "state")
	key, created, err := LoadOrCreateKey(dir)
	if err != nil || !created || len(key) != keySize || bytes.Equal(key, make([]byte, keySize)) {
		t.Fatalf("%d bytes, created %v, error %v", len(key), created, err)
	}
	again, created, err := LoadOrCreateKey(dir)
	if err != nil || created || !bytes.Equal(key, again) {
		t.Errorf("the second time: created %v, error %v", created, err)
	}
	path := filepath.Join(dir, "encryption.key")
	text, err := os.ReadFile(path)
	if err != nil || string(text) != base64.StdEncoding.EncodeToString(key)+"\n" {
		t.Errorf("the file is not base64 and a newline, error %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("file %v, error %v", info, err)
	}
	if got := listDir(t, dir); !slices.Equal(got, []string{"encryption.key"}) {
		t.Errorf("files %q", got)
	}
}

func TestLoadOrCreateKeyOfManyAtOnceGivesAllTheSameKey(t *testing.T) {
	for range 20 {
		dir := filepath.Join(t.TempDir(), "state")
		var wg sync.WaitGroup
		var mu sync.Mutex
		keys, creators := map[string]bool{}, 0
		for range 8 {
			wg.Go(func() {
				key, created, err := LoadOrCreateKey(dir)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				}
				keys[string(key)] = true
				if created {
					creators++
				}
			})
		}
		wg.Wait()
		if len(keys) != 1 || creators != 1 {
			t.Fatalf("%d keys, %d creators", len(keys), creators)
		}
	}
}

func TestLoadOrCreateKeyReplacesNoKeyThatCameBetween(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, _, err := LoadOrCreateKey(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "encryption.key")
	before, err1 := os.ReadFile(path)
	created, err2 := createKey(path)
	after, err3 := os.ReadFile(path)
	if err := errors.Join(err1, err2, err3); err != nil || created || !bytes.Equal(before, after) {
		t.Errorf("created %v, error %v", created, err)
	}
}

func TestLoadOrCreateKeyIgnoresWhatACrashLeft(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	left := filepath.Join(dir, ".encryption.key-123")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(left, []byte("AAAA"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, created, err := LoadOrCreateKey(dir); err != nil || !created {
		t.Errorf("created %v, error %v", created, err)
	}
}

func TestLoadOrCreateKeyRefusesAKeyFileItCannotTrust(t *testing.T) {
	good := base64.StdEncoding.EncodeToString(testKey(1)) + "\n"
	for _, c := range []struct {
		name string
		text string
		mode os.FileMode
		says string // "" is no error
	}{
		{"a private file", good, 0o600, ""},
		{"a file that cannot be written to", good, 0o400, ""},
		{"a file the group can read", good, 0o640, "chmod 600"},
		{"a file everybody can read", good, 0o644, "chmod 600"},
		{"an empty file", "", 0o600, "base64"},
		{"half a key", "SECRETSECRETSECRET", 0o600, "base64"},
		{"an endless file", good + strings.Repeat("SECRET", 1000), 0o600, "base64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			path := filepath.Join(dir, "encryption.key")
			err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(path, []byte(c.text), 0o600), os.Chmod(path, c.mode))
			if err != nil {
				t.Fatal(err)
			}
			key, created, err := LoadOrCreateKey(dir)
			if created {
				t.Error("a key was created")
			}
			if c.says == "" {
				if err != nil || !bytes.Equal(key, testKey(1)) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err == nil || key != nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %v", err)
			}
			if strings.Contains(err.Error(), "SECRET") {
				t.Errorf("the error tells the text: %v", err)
			}
			if text, _ := os.ReadFile(path); string(text) != c.text {
				t.Error("the file was changed")
			}
		})
	}
}

func TestLoadOrCreateKeyRefusesADirectoryOthersCanWriteTo(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadOrCreateKey(dir); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("error %v", err)
	}
}
