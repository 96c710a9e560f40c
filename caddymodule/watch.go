package caddymodule

import (
	"crypto/sha256"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// watchInterval is how often watched files are looked at. Looking beats being
// told: it works on network file systems and through symbolic links that are
// swapped, as Kubernetes swaps them.
const watchInterval = time.Second

// watched is a source whose pair may change behind our back.
type watched interface {
	refresher.Source
	watchedPath() string
}

func (s *FileSource) watchedPath() string { return s.path }

// watchers look at the files of one running configuration.
type watchers struct {
	done chan struct{}
	wg   sync.WaitGroup
}

func newWatchers() *watchers { return &watchers{done: make(chan struct{})} }

// stop ends the watching and waits for it; nil has nothing to stop.
func (w *watchers) stop() {
	if w == nil {
		return
	}
	close(w.done)
	w.wg.Wait()
}

// watch has the session look at its sources when a file changes. A pair that was
// used before is no news to it.
func (w *watchers) watch(s *refresher.Session, src watched) {
	f := watchedFile{path: src.watchedPath()}
	w.wg.Go(func() {
		tick := time.NewTicker(watchInterval)
		defer tick.Stop()
		for {
			select {
			case <-w.done:
				return
			case <-tick.C:
			}
			if f.changed() {
				s.Look()
			}
		}
	})
}

// watchedFile notices when a file's content changes.
type watchedFile struct {
	path string
	info fs.FileInfo
	sum  [sha256.Size]byte
	idle int
}

// changed reports whether the content is not what it was. The file is read when
// its metadata say so, and every tenth time in case they lie.
func (f *watchedFile) changed() bool {
	info, err := os.Stat(f.path)
	if err != nil {
		f.info = nil
		return false
	}
	same := f.info != nil && os.SameFile(info, f.info) && info.Size() == f.info.Size() && info.ModTime().Equal(f.info.ModTime())
	if f.idle++; same && f.idle < 10 {
		return false
	}
	body, err := readBounded(f.path)
	if err != nil {
		return false
	}
	f.info, f.idle = info, 0
	sum := sha256.Sum256(body)
	if sum == f.sum {
		return false
	}
	f.sum = sum
	return true
}

// Interface guard
var _ watched = (*FileSource)(nil)
