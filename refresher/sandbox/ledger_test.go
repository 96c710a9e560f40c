package sandbox

import "testing"

func TestALedgerKeepsTheLastEntriesInOrder(t *testing.T) {
	s := New(Config{})
	for i := range maxEntries + 10 {
		s.ledger.add(&Entry{Generation: i})
	}
	list := s.Ledger()
	if len(list) != maxEntries {
		t.Fatalf("%d entries", len(list))
	}
	for i, e := range list {
		if e.Generation != i+10 {
			t.Fatalf("entry %d is %d", i, e.Generation)
		}
	}
}

func TestCurrentIsThePairOfALiveSession(t *testing.T) {
	s := New(Config{})
	access, refresh := s.LoginAs("somebody")
	known, ok := s.Lookup(access)
	if !ok || known.User != "somebody" {
		t.Fatalf("session %+v", known)
	}
	if a, r, ok := s.Current(known.ID); !ok || a != access || r != refresh {
		t.Error("not the pair of the login")
	}
	s.KillSession(known.ID)
	if _, _, ok := s.Current(known.ID); ok {
		t.Error("the session is over")
	}
	if _, ok := s.Lookup(access); ok {
		t.Error("the token is not good any more")
	}
}
