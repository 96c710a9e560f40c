package refresher_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// A session at rest has only its newest spent tokens in memory.
func TestWhatWasSpentLongAgo(t *testing.T) {
	const generations = 12
	longAgo := func(t *testing.T, k *kit) (old refresher.Pair) {
		k.start()
		k.await(time.Second)
		var refresh []string
		for g := 1; g <= generations; g++ {
			_, token, ok := k.box.Current("s1")
			if !ok {
				t.Fatal("the sandbox knows no such session")
			}
			refresh = append(refresh, token)
			for k.session.Status().Generation == uint64(g) {
				k.await(time.Second)
			}
		}
		k.await(5 * time.Second)              // written, and at rest
		return pairOf("whatever", refresh[1]) // the first came from a source, and is remembered as that, too
	}
	refused := func(t *testing.T, k *kit, old refresher.Pair) {
		t.Helper()
		if err := k.session.Import(t.Context(), old, "import"); !errors.Is(err, refresher.ErrSpent) {
			t.Errorf("imported a pair that was used %d rotations ago: %v", generations-2, err)
		}
	}
	bubble(t, "is refused", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		old := longAgo(t, k)
		refused(t, k, old)
		k.await(10 * time.Minute)
		refused(t, k, old)
		k.end()
		k.start()
		k.await(time.Second)
		refused(t, k, old)
		k.wantUnharmed()
	})
	bubble(t, "is refused after the keys were changed", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		old := longAgo(t, k)
		k.cfg.Keys = keyring(t, "another key")
		next, err := k.session.Attach(k.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer next()
		k.detach()
		k.await(time.Second)
		refused(t, k, old)
		k.end()
		k.start()
		k.await(time.Second)
		refused(t, k, old)
		k.wantUnharmed()
	})
	bubble(t, "is known again when the journal can be read again", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		old := longAgo(t, k)
		hidden := filepath.Join(k.dir, "..", filepath.Base(k.dir)+"-hidden")
		if err := os.Mkdir(hidden, 0o700); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(hidden)
		move := func(from, to string) {
			t.Helper()
			slots, _ := filepath.Glob(filepath.Join(from, "*.j?"))
			if len(slots) != 2 {
				t.Fatalf("found %v", slots)
			}
			for _, path := range slots {
				if err := os.Rename(path, filepath.Join(to, filepath.Base(path))); err != nil {
					t.Fatal(err)
				}
			}
		}
		move(k.dir, hidden)
		k.await(2 * time.Minute) // rotations
		if status := k.get("/whoami"); status != 200 {
			t.Errorf("status %d while the journal is away", status)
		}
		if k.notes.count(refresher.NoteJournalFailed) == 0 {
			t.Error("nobody was told that the journal is away")
		}
		move(hidden, k.dir)
		k.await(2 * time.Minute)
		refused(t, k, old)
		k.end()
		k.start()
		k.await(time.Second)
		refused(t, k, old)
		k.wantUnharmed()
	})
	bubble(t, "is forgotten with a damaged journal, and the session goes on", func(t *testing.T) {
		k := newKit(t, minute, seeded)
		defer k.finish()
		longAgo(t, k)
		slots, _ := filepath.Glob(filepath.Join(k.dir, "*.j?"))
		for _, path := range slots {
			if err := os.WriteFile(path, fmt.Appendf(nil, "%0131072d", 1), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		k.await(2 * time.Minute)
		if k.notes.count(refresher.NoteJournalFailed) == 0 {
			t.Error("nobody was told of it")
		}
		before := k.session.Status()
		k.end()
		k.start()
		k.await(time.Second)
		if st := k.wantState(refresher.PhaseFresh, ""); st.Generation != before.Generation {
			t.Errorf("generation %d after a restart, %d before", st.Generation, before.Generation)
		}
		k.wantUnharmed()
	})
}
