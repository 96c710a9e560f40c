package caddymodule

import (
	"context"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// ruleSlowSource has its pair once it is let go.
type ruleSlowSource struct {
	asked, release chan struct{}
	pair           refresher.Pair
}

func (s *ruleSlowSource) String() string { return "slow" }
func (s *ruleSlowSource) SignsIn() bool  { return false }
func (s *ruleSlowSource) Fetch(context.Context) (refresher.Pair, error) {
	close(s.asked)
	<-s.release
	return s.pair, nil
}

// While the sources are looked at for the first time nothing is known yet: a
// request waits and is not told that there is no token. Before: a Caddy that had
// just started answered 503 now and then although its tokens file held a pair.
func TestARequestRightAfterTheStartWaitsForTheSources(t *testing.T) {
	sb, url := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	iss, err := issuer.NewBearer(issuer.BearerConfig{URL: url + "/User/RefreshToken", Profile: refresher.Profile{RevokesPrevious: true, NeedsAccess: true}})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := journal.NewKeyring(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	src := &ruleSlowSource{asked: make(chan struct{}), release: make(chan struct{}), pair: refresher.Pair{Access: refresher.NewSecret(access), Refresh: refresher.NewSecret(refresh)}}
	s := refresher.New("s", refresher.Options{Dir: t.TempDir()})
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	detach, err := s.Attach(refresher.Config{Issuer: iss, Sources: []refresher.Source{src}, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	defer detach()
	<-src.asked
	result := make(chan error, 1)
	go func() {
		_, err := s.Enter(ruleTimeout(t), true)
		result <- err
	}()
	select {
	case err := <-result:
		t.Errorf("before the source answered: %v", err)
		close(src.release)
		return
	case <-time.After(100 * time.Millisecond):
	}
	close(src.release)
	if err := <-result; err != nil {
		t.Error(err)
	}
}
