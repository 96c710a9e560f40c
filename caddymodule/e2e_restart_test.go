package caddymodule_test

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func TestARestartGoesOnWithTheStoredPair(t *testing.T) {
	b := newBench(t)
	file := b.site(t, "file", sandbox.Config{AccessLifetime: 30 * time.Second}) // the file keeps its first pair
	login := b.loginSite(t, "login", sandbox.Config{AccessLifetime: 30 * time.Second})
	b.start(t)
	for _, s := range b.sites {
		eventually(t, 3*time.Second, "the first pair", s.at(t, 1, 1))
		s.refresh(t)
		s.refresh(t)
	}
	for restart := range 3 {
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
		b.load(t)
		for _, s := range b.sites {
			if who := s.whoami(t); who.Session != "s1" || who.Generation != 3+restart {
				t.Errorf("%s: the upstream sees %+v, want generation %d", s.name, who, 3+restart)
			}
			// Long enough for a look at the file.
			never(t, 1200*time.Millisecond, "another epoch", func() bool { return s.status(t).Epoch != 1 })
			s.refresh(t)
			if st := s.status(t); st.Generation != 4+restart {
				t.Errorf("%s: the admin API shows %+v, want generation %d", s.name, st, 4+restart)
			}
		}
	}
	for _, s := range []*site{file, login} {
		s.checkLedger(t)
		s.wantStats(t, map[string]int{"logins": 1, "attempts": 5, "exchanges": 5, "unauthorized": 0})
	}
}

func TestANewPairInTheFileStartsTheSessionAnew(t *testing.T) {
	b := newBench(t)
	plain := b.site(t, "plain", sandbox.Config{AccessLifetime: 30 * time.Second})
	mount := b.emptySite(t, "mount", sandbox.Config{AccessLifetime: 30 * time.Second})
	volume := newVolume(t, filepath.Join(b.dir, "secrets"))
	mount.tokens = "tokens file " + volume.file()
	volume.swap(mount.sandbox.Login())
	late := b.emptySite(t, "late", sandbox.Config{AccessLifetime: 30 * time.Second})
	late.tokens = "tokens file " + late.tokensFile() // does not exist yet
	b.start(t)

	for _, s := range []*site{plain, mount} {
		eventually(t, 3*time.Second, "the first pair", s.at(t, 1, 1))
		s.refresh(t)
		if who := s.whoami(t); who.Generation != 2 {
			t.Errorf("the upstream sees %+v", who)
		}
	}
	first, err := os.ReadFile(plain.tokensFile())
	if err != nil {
		t.Fatal(err)
	}
	if a := late.get(t, "/whoami"); a.status != http.StatusServiceUnavailable {
		t.Errorf("without a pair a caller gets %v", a)
	}

	access, refresh := plain.sandbox.Login()
	plain.writeTokens(t, access, refresh)
	volume.swap(mount.sandbox.Login())
	access, refresh = late.sandbox.Login()
	late.writeTokens(t, access, refresh)
	for s, want := range map[*site]int{plain: 2, mount: 2, late: 1} {
		eventually(t, 5*time.Second, s.name+": the new pair", s.at(t, want, 1))
		if who := s.whoami(t); who.Session != map[int]string{1: "s1", 2: "s2"}[want] || who.Generation != 1 {
			t.Errorf("%s: the upstream sees %+v", s.name, who)
		}
	}

	// What is no pair, and a pair that was used before, change nothing.
	for _, text := range []string{"", "{", `{"accessToken":"a"}`, string(first)} {
		if err := os.WriteFile(plain.tokensFile(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		never(t, 1500*time.Millisecond, "another epoch", func() bool { return !plain.at(t, 2, 1)() })
	}
	plain.refresh(t)
	if who := plain.whoami(t); who.Session != "s2" || who.Generation != 2 {
		t.Errorf("the upstream sees %+v", who)
	}

	// One that comes while Caddy is down is found at the start.
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	volume.swap(mount.sandbox.Login())
	b.load(t)
	eventually(t, 5*time.Second, "mount: the new pair", mount.at(t, 3, 1))
	if who := mount.whoami(t); who.Session != "s3" {
		t.Errorf("the upstream sees %+v after the restart", who)
	}
	if who := plain.whoami(t); who.Session != "s2" || who.Generation != 2 {
		t.Errorf("the upstream sees %+v after the restart", who)
	}
	if !plain.at(t, 2, 2)() {
		t.Errorf("the admin API shows %+v", plain.status(t))
	}
	for _, s := range b.sites {
		s.checkLedger(t)
	}
}

// volume is a directory as Kubernetes mounts a secret: its file is a link
// through ..data, which is a link to a directory that is replaced as a whole.
type volume struct {
	t   *testing.T
	dir string
	n   int
}

func newVolume(t *testing.T, dir string) *volume {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join("..data", "tokens.json"), filepath.Join(dir, "tokens.json")); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("no symbolic links here: %v", err)
	}
	return &volume{t: t, dir: dir}
}

func (v *volume) file() string { return filepath.Join(v.dir, "tokens.json") }

func (v *volume) swap(access, refresh string) {
	v.t.Helper()
	v.n++
	name := "..2026_11_22_0" + string(rune('0'+v.n))
	old, _ := os.Readlink(filepath.Join(v.dir, "..data"))
	check := func(err error) {
		v.t.Helper()
		if err != nil {
			v.t.Fatal(err)
		}
	}
	check(os.Mkdir(filepath.Join(v.dir, name), 0o700))
	writePair(v.t, filepath.Join(v.dir, name, "tokens.json"), access, refresh)
	check(os.Symlink(name, filepath.Join(v.dir, "..data_tmp")))
	check(os.Rename(filepath.Join(v.dir, "..data_tmp"), filepath.Join(v.dir, "..data")))
	if old != "" {
		check(os.RemoveAll(filepath.Join(v.dir, old)))
	}
}
