package journal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

const holderEnv = "JOURNAL_TEST_LOCK_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(holderEnv); dir != "" {
		holdLock(dir)
		return
	}
	os.Exit(m.Run())
}

// holdLock is the second process: it takes the lock and waits to be killed.
func holdLock(dir string) {
	if _, err := TryLock(dir, "s"); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("locked")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func startHolder(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holderEnv+"="+dir)
	if _, err := cmd.StdinPipe(); err != nil { // kept open: the holder waits on it
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatalf("the second process says %q, error %v", line, err)
	}
	return cmd
}

func TestALockIsFreeAsSoonAsItsHolderIsKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	for range 3 {
		holder := startHolder(t, dir)
		if _, err := TryLock(dir, "S"); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "s.lock") {
			t.Fatalf("while another process holds it: %v", err)
		}
		if err := holder.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = holder.Wait() // reports the kill
		lock, err := TryLock(dir, "s")
		if err != nil {
			t.Fatalf("after kill -9: %v", err)
		}
		if err := lock.Unlock(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALockIsExclusiveInOneProcessToo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	lock, err := TryLock(dir, "s")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TryLock(dir, "S"); !errors.Is(err, ErrLocked) {
		t.Errorf("the same name in upper case: %v", err)
	}
	other, err := TryLock(dir, "t")
	if err != nil {
		t.Fatalf("another name: %v", err)
	}
	if err := errors.Join(other.Unlock(), lock.Unlock(), lock.Unlock()); err != nil {
		t.Error(err)
	}
	again, err := TryLock(dir, "s")
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Unlock()
	if info, err := os.Stat(filepath.Join(dir, "s.lock")); err != nil || info.Mode() != 0o600 {
		t.Errorf("lock file %v, error %v", info, err)
	}
}

func TestAForgottenLockStaysLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := TryLock(dir, "s"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		runtime.GC()
	}
	if _, err := TryLock(dir, "s"); !errors.Is(err, ErrLocked) {
		t.Errorf("after a collection: %v", err)
	}
}

func TestTryLockChecksDirectoryAndFile(t *testing.T) {
	dir := t.TempDir()
	for path, says := range map[string]string{filepath.Join(dir, "s.lock"): "chmod 600", dir: "chmod 700"} {
		if path == dir {
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
		} else if err := errors.Join(os.Chmod(dir, 0o700), writeMode(path, 0o666)); err != nil {
			t.Fatal(err)
		}
		if _, err := TryLock(dir, "s"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", path, err)
		}
		_ = os.Remove(filepath.Join(dir, "s.lock"))
	}
}
