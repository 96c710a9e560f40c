//go:build chaos && unix

package chaos

import (
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/store/storetest/servers"
)

func (f *fleet) storeProcess() *servers.Process {
	if f.etcd != nil {
		return f.etcd.Process
	}
	return f.redis.Process
}

// outages of the store: nothing is lost, and as the access token outlives them,
// no caller notices.
func outages(t *testing.T, f *fleet) {
	server := f.storeProcess()
	f.outage(t, "restart", func() { server.Stop(); pause(t, time.Second); server.Start() })
	f.outage(t, "kill", func() { server.Kill(); server.Start() })
	f.outage(t, "pause of 3s", func() { server.Pause(); pause(t, 3*time.Second); server.Resume() })
}

// forgetting: the store comes back with nothing in it.
func forgetting(t *testing.T, f *fleet) {
	server := f.storeProcess()
	for range 2 {
		f.outage(t, "restart without persistence", func() {
			server.Kill()
			if f.etcd != nil {
				f.etcd.Wipe()
			}
			server.Start()
		})
	}
}

// outage begins when all have joined a rotation: what one has exchanged at that
// moment the others could not learn, and their callers would be refused.
func (f *fleet) outage(t *testing.T, what string, do func()) {
	t.Helper()
	f.awaitGeneration(f.generation()+1, f.params.rules.Recovery)
	if !f.isFresh(f.params.rules.Recovery) {
		t.Fatalf("not fresh: %s", f.describe())
	}
	f.fault(what)
	losses := f.losses()
	f.history.Add(Event{Op: OpCut, Result: "store"})
	do()
	f.history.Add(Event{Op: OpHeal, Result: "store"})
	f.over(t, what, losses, 0)
}

// over sees to it that a fault has cost no more sessions than it may.
func (f *fleet) over(t *testing.T, what string, losses, allowed int) {
	t.Helper()
	generation := f.generation()
	took := f.recover()
	f.awaitGeneration(generation+1, f.params.rules.Recovery)
	lost := f.losses() - losses
	if lost > allowed {
		t.Errorf("%s: %d sessions were lost", what, lost)
	}
	t.Logf("%s, %s: %d lost, fresh again after %v", f.params.store, what, lost, took.Round(10*time.Millisecond))
}

// partitions of one instance and of all, from the store and from the issuer. An
// exchange that they cut into is the one thing that can be lost.
func partitions(t *testing.T, f *fleet) {
	const lasting = 4 * time.Second
	one := f.members[:1]
	for _, p := range []struct {
		what    string
		from    string
		members []*instance
		silent  bool
		allowed int
	}{
		{"one without the store, silently", "store", one, true, 1},
		{"one without the store", "store", one, false, 1},
		{"all without the store, silently", "store", f.members, true, 0},
		{"one without the issuer, silently", "issuer", one, true, 1},
		{"all without the issuer", "issuer", f.members, false, 1},
	} {
		f.fault(p.what)
		losses := f.losses()
		for _, i := range p.members {
			i.cut(t, p.from, p.silent)
		}
		pause(t, lasting)
		for _, i := range p.members {
			i.mend(t, p.from)
		}
		f.over(t, p.what, losses, p.allowed)
	}
}

// toxics: bad networks rather than none. Their end ends connections: an answer
// that is on its way from the issuer is lost with them.
func toxics(t *testing.T, f *fleet) {
	const lasting = 5 * time.Second
	for _, x := range []struct {
		what    string
		on      string
		kind    string
		attrs   map[string]any
		allowed int
	}{
		{"a slow store", "store", "latency", map[string]any{"latency": 40, "jitter": 20}, 0},
		{"a very slow store", "store", "latency", map[string]any{"latency": 1500, "jitter": 400}, 0},
		{"a store in small pieces", "store", "slicer", map[string]any{"average_size": 40, "size_variation": 20, "delay": 200}, 0},
		{"a store that resets", "store", "reset_peer", map[string]any{"timeout": 100}, 0},
		{"a slow issuer", "issuer", "latency", map[string]any{"latency": 150, "jitter": 100}, 1},
		{"an issuer in small pieces", "issuer", "slicer", map[string]any{"average_size": 40, "size_variation": 20, "delay": 200}, 1},
		{"an issuer that resets", "issuer", "reset_peer", map[string]any{"timeout": 0}, 2},
	} {
		f.fault(x.what)
		losses := f.losses()
		for _, i := range f.members {
			f.history.Add(Event{Who: i.name, Op: OpCut, Result: x.on})
			i.link(x.on).add(t, x.kind, x.attrs)
		}
		pause(t, lasting)
		for _, i := range f.members {
			i.mend(t, x.on)
		}
		f.over(t, x.what, losses, x.allowed)
	}
}
