package refresher

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// idleIssuer is never asked.
type idleIssuer struct{}

func (idleIssuer) Profile() Profile                          { return Profile{RevokesPrevious: true} }
func (idleIssuer) Prepare(context.Context) (Exchange, error) { return nil, errors.New("not now") }

// restingPool has one session, which a request has made live.
func restingPool(t *testing.T) (*Pool, Member, *Session) {
	t.Helper()
	keys, err := journal.NewKeyring(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	p := NewPool("portal", Options{Dir: t.TempDir(), Clock: NewProcessClock()})
	if _, err := p.Attach(PoolConfig{Config: Config{Issuer: idleIssuer{}, Keys: keys}}); err != nil {
		t.Fatal(err)
	}
	pair := Pair{Access: NewSecret("access"), Refresh: NewSecret("refresh"), ExpiresIn: time.Hour}
	m, _, err := p.Learn(t.Context(), pair, Pair{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.liveSession(m.member)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return p, m, s
}

// A request that found a session just before it became an entry again is not let
// through by a gate that no exchange looks at.
func TestTheGateOfASessionThatIsAnEntryAgainIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, m, before := restingPool(t)
		defer p.Close(context.Background())
		time.Sleep(5 * time.Second)
		if !before.ended() {
			t.Fatal("it is still live")
		}
		for _, repeatable := range []bool{true, false} {
			if _, err := before.Enter(t.Context(), repeatable); err == nil {
				t.Errorf("repeatable %t: it let a request through", repeatable)
			}
		}
		pass, err := m.Enter(t.Context(), false)
		if err != nil || pass.Token() != "access" {
			t.Fatalf("the successor: %v", err)
		}
		if live, err := p.liveSession(m.member); err != nil || live.cur.Load() != pass.snap {
			t.Errorf("the request passed by another gate: %v", err)
		}
		pass.Settle()
	})
}

// What comes at the moment at which a session would become an entry keeps it as
// it is, with an open gate.
func TestASessionThatIsNeededAtTheLastMomentStaysLive(t *testing.T) {
	for name, come := range map[string]func(*Session) func(){
		"an event": func(s *Session) func() {
			s.queue.events = append(s.queue.events, evTick{})
			return func() {}
		},
		"a request": func(s *Session) func() {
			pass, err := s.Enter(context.Background(), false)
			if err != nil {
				return nil
			}
			return pass.Settle
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, _, s := restingPool(t)
				defer p.Close(context.Background())
				a := &s.actor
				s.queue.busy = true // the actor runs: it is this test
				a.wake()
				a.retiring = true
				settle := come(s)
				if settle == nil {
					t.Fatal("no token")
				}
				if a.mayRetire() {
					t.Fatal("it became an entry")
				}
				pass, err := s.Enter(t.Context(), false)
				if err != nil || pass.Waited > 0 {
					t.Fatalf("the gate stays closed: %v", err)
				}
				pass.Settle()
				settle()
				a.run()
				time.Sleep(5 * time.Second)
				if !s.ended() {
					t.Error("it never becomes an entry")
				}
			})
		})
	}
}

// A session that takes no event any more has ended, although its place in the pool
// is yet to be given up: a 401 that is told it in that moment is not passed on.
func TestASessionHasEndedAsSoonAsItTakesNoEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, s := restingPool(t)
		defer p.Close(context.Background())
		if s.ended() || !s.queue.end() {
			t.Fatal("it is not at rest")
		}
		told := make(chan bool, 1)
		go func() { told <- s.ended() }()
		synctest.Wait()
		select {
		case is := <-told:
			t.Errorf("told %t before its place was given up", is)
		default:
		}
		s.pooled.retired(s, schedule{})
		s.done.happen()
		if !<-told {
			t.Error("told that it goes on")
		}
	})
}

// Metrics are asked for at any time, also while the log is read.
func TestThePoolIsCountedWhileItReadsItsLog(t *testing.T) {
	p := NewPool("portal", Options{Dir: t.TempDir()})
	r := replayer{pool: p, logger: zap.NewNop()}
	put := func(n byte) {
		e := poolEntry{id: poolID{n % 4}}
		e.rec.Access = strings.Repeat("x", int(n))
		if err := r.record(putRecord(e.pack(nil))); err != nil {
			t.Fatal(err)
		}
	}
	put(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 200 {
			p.Counts()
		}
	}()
	for n := range byte(200) {
		put(n)
	}
	<-done
	if c := p.Counts(); c.Sessions != 4 {
		t.Errorf("%d sessions", c.Sessions)
	}
}
