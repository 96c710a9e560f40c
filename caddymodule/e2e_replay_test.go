package caddymodule_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// pickyUpstream is an API that has its own ideas about when to look at a token.
type pickyUpstream struct {
	*site
	requests atomic.Int32  // to the paths below
	arrived  chan struct{} // one for each request whose header has come
}

const (
	deniedBody      = "go away\x00\xff" // neither JSON nor text
	deniedChallenge = `Bearer realm="picky", error="invalid_token"`
)

func pickySite(t *testing.T, b *bench, name string) *pickyUpstream {
	p := &pickyUpstream{
		site:    b.site(t, name, sandbox.Config{AccessLifetime: 30 * time.Second}),
		arrived: make(chan struct{}, 1<<12),
	}
	// The token is looked at when the body has come.
	p.handle("/late-upload", func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, err := io.Copy(hash, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if _, ok := p.sandbox.Lookup(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")); !ok {
			deny(w)
			return
		}
		fmt.Fprintf(w, `{"bytes":%d,"sha256":%q}`, n, hex.EncodeToString(hash.Sum(nil)))
	})
	// The first request is refused at once, whatever its token.
	var denied sync.Map
	p.handle("/once/{path...}", func(w http.ResponseWriter, r *http.Request) {
		if _, again := denied.LoadOrStore(r.PathValue("path"), true); !again {
			deny(w)
			return
		}
		r.URL.Path = "/upload"
		p.sandbox.ServeHTTP(w, r)
	})
	p.handle("/late", p.sandbox.ServeHTTP)
	p.handle("/denied/", func(w http.ResponseWriter, _ *http.Request) { deny(w) })
	return p
}

func (p *pickyUpstream) handle(path string, h http.HandlerFunc) {
	p.extra.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		p.requests.Add(1)
		p.arrived <- struct{}{}
		h(w, r)
	})
}

func deny(w http.ResponseWriter) {
	w.Header().Set("WWW-Authenticate", deniedChallenge)
	w.Header().Set("Content-Type", "application/x-denied")
	w.Header().Add("X-Denied", "one")
	w.Header().Add("X-Denied", "two")
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = io.WriteString(w, deniedBody)
}

// wantDenied wants the upstream's 401 as it was.
func wantDenied(t *testing.T, a answer) {
	t.Helper()
	if a.status != http.StatusUnauthorized || a.body != deniedBody ||
		a.header.Get("WWW-Authenticate") != deniedChallenge ||
		a.header.Get("Content-Type") != "application/x-denied" ||
		strings.Join(a.header["X-Denied"], " ") != "one two" {
		t.Errorf("the caller got %v %v, not the upstream's 401", a, a.header)
	}
}

func (p *pickyUpstream) wantRequests(t *testing.T, n int32) {
	t.Helper()
	if got := p.requests.Load(); got != n {
		t.Errorf("the upstream got %d requests, want %d", got, n)
	}
}

// slowUpload sends a body in two halves; between them the pair is exchanged.
func (p *pickyUpstream) slowUpload(t *testing.T, body []byte, chunked bool) answer {
	t.Helper()
	src, dst := io.Pipe()
	req := request(t.Context(), http.MethodPost, p.url("/late-upload"), src)
	if !chunked {
		req.ContentLength = int64(len(body))
	}
	type result struct {
		answer
		error
	}
	done := make(chan result, 1)
	go func() {
		a, err := send(newClient(t, 1), req)
		src.CloseWithError(io.ErrClosedPipe)
		done <- result{a, err}
	}()
	half := len(body) / 2
	if _, err := dst.Write(body[:half]); err != nil {
		t.Fatal(err)
	}
	<-p.arrived
	p.refresh(t)
	if _, err := dst.Write(body[half:]); err != nil {
		t.Fatal(err)
	}
	dst.Close()
	res := <-done
	if res.error != nil {
		t.Fatal(res.error)
	}
	return res.answer
}

func TestARequestIsSentAgain(t *testing.T) {
	b := newBench(t)
	tests := map[string]func(*testing.T){}
	for _, chunked := range []bool{true, false} {
		name := map[bool]string{true: "chunked", false: "sized"}[chunked]
		for i, size := range []int{40_000, 1 << 20} {
			p := pickySite(t, b, fmt.Sprint(name, i))
			tests[fmt.Sprintf("with a %s body of %d bytes that is slower than the rotation", name, size)] = func(t *testing.T) {
				body := bytes.Repeat(blob, 8)[:size]
				if err := p.slowUpload(t, body, chunked).wantUpload(body); err != nil {
					t.Error(err)
				}
				p.wantRequests(t, 2)
				p.wantStats(t, map[string]int{"attempts": 1, "exchanges": 1, "reuses": 0})
			}
		}
	}
	past := pickySite(t, b, "past")
	past.handler = "replay_limit 64KiB"
	tests["but not with more of its body read than the limit"] = func(t *testing.T) {
		wantDenied(t, past.slowUpload(t, append(blob[:64<<10:64<<10], 1), true))
		past.wantRequests(t, 1)
	}
	limit := pickySite(t, b, "limit")
	limit.handler = "replay_limit 64KiB"
	tests["with exactly the limit"] = func(t *testing.T) {
		if err := limit.slowUpload(t, blob[:64<<10], true).wantUpload(blob[:64<<10]); err != nil {
			t.Error(err)
		}
		limit.wantRequests(t, 2)
	}
	off := pickySite(t, b, "off")
	off.handler = "replay_limit 0"
	tests["but not with replay_limit 0"] = func(t *testing.T) {
		wantDenied(t, off.do(t, http.MethodPost, "/once/a", bytes.NewReader(blob[:100])))
		off.wantRequests(t, 1)
		// The exchange is made all the same, for those that come after.
		eventually(t, 3*time.Second, "the exchange", off.at(t, 1, 2))
	}
	late := pickySite(t, b, "late")
	tests["when the upstream looks at the token after the rotation"] = func(t *testing.T) {
		done := make(chan error, 1)
		go func() {
			a, err := send(newClient(t, 1), request(t.Context(), http.MethodGet, late.url("/late?delay=1s"), nil))
			if err == nil {
				err = a.want(`"generation":2`)
			}
			done <- err
		}()
		<-late.arrived
		late.refresh(t)
		if err := <-done; err != nil {
			t.Error(err)
		}
		late.wantStats(t, map[string]int{"exchanges": 1, "stale": 1, "unauthorized": 1, "served": 1})
	}
	early := pickySite(t, b, "early")
	tests["after an exchange when a live token is refused"] = func(t *testing.T) {
		if err := early.do(t, http.MethodPost, "/once/a", bytes.NewReader(blob[:50_000])).wantUpload(blob[:50_000]); err != nil {
			t.Error(err)
		}
		early.wantRequests(t, 2)
		early.wantStats(t, map[string]int{"attempts": 1, "exchanges": 1})
	}
	expect := pickySite(t, b, "expect")
	tests["with Expect: 100-continue"] = func(t *testing.T) {
		for i, path := range []string{"/upload", "/once/a"} {
			req := request(t.Context(), http.MethodPost, expect.url(path), bytes.NewReader(blob[:50_000]))
			req.Header.Set("Expect", "100-continue")
			transport := &http.Transport{ExpectContinueTimeout: 20 * time.Second}
			defer transport.CloseIdleConnections()
			a, err := send(&http.Client{Transport: transport}, req)
			if err == nil {
				err = a.wantUpload(blob[:50_000])
			}
			if err != nil {
				t.Errorf("%s: %v", path, err)
			}
			if a.took > 10*time.Second {
				t.Errorf("%s: it took %v: no 100 came", path, a.took)
			}
			expect.wantStats(t, map[string]int{"attempts": i, "exchanges": i})
		}
	}
	denied := pickySite(t, b, "denied")
	tests["once at most"] = func(t *testing.T) {
		wantDenied(t, denied.do(t, http.MethodPost, "/denied/a", bytes.NewReader(blob[:5000])))
		denied.wantRequests(t, 2)
		wantDenied(t, denied.do(t, http.MethodPost, "/denied/a", bytes.NewReader(blob[:5000])))
		denied.wantRequests(t, 3) // that route is known now
		denied.wantStats(t, map[string]int{"attempts": 1, "exchanges": 1})
	}
	revoked := b.loginSite(t, "revoked", sandbox.Config{AccessLifetime: 12 * time.Second})
	tests["with a new login when its session was revoked"] = func(t *testing.T) {
		revoked.whoami(t)
		pause(t.Context(), 1500*time.Millisecond) // a token younger than a tenth of its life is given time
		revoked.revoke(t)
		if err := revoked.do(t, http.MethodPost, "/upload", bytes.NewReader(blob)).wantUpload(blob); err != nil {
			t.Error(err)
		}
		revoked.wantStats(t, map[string]int{"logins": 2, "attempts": 1, "exchanges": 0, "reuses": 0, "unauthorized": 1})
	}
	young := b.loginSite(t, "young", sandbox.Config{AccessLifetime: 20 * time.Second})
	// Before: the request that was sent again with the same token, as the upstream
	// might not know it yet, had its route quarantined as one that refuses newer
	// tokens, too. No 401 there led to an exchange for ten minutes.
	tests["with a new login when its session was revoked at once"] = func(t *testing.T) {
		young.whoami(t)
		young.revoke(t)
		young.get(t, "/whoami") // may be 401
		pause(t.Context(), 2500*time.Millisecond)
		if err := young.get(t, "/whoami").want(`"session":"s2"`); err != nil {
			t.Error(err)
		}
		young.wantStats(t, map[string]int{"logins": 2, "attempts": 1, "exchanges": 0, "reuses": 0})
	}
	b.start(t)
	atOnce(t, tests)
}

// revoke makes the access token in use invalid.
func (s *site) revoke(t *testing.T) {
	t.Helper()
	access, _, _ := s.sandbox.Current("s1")
	if !s.sandbox.Revoke(access) {
		t.Fatal("the token in use is not the sandbox's current one")
	}
}

func TestCallersCannotRotateASessionAtWill(t *testing.T) {
	b := newBench(t)
	one := pickySite(t, b, "oneroute")
	many := pickySite(t, b, "manyroutes")
	b.start(t)

	t.Run("on a route that always answers 401", func(t *testing.T) {
		tr := one.traffic(t)
		one.hammer(t, 1000, func(int) string { return "/always401" }, func(t *testing.T, a answer) {
			if a.status != http.StatusUnauthorized || a.header.Get("WWW-Authenticate") == "" || !strings.Contains(a.body, `"result":false`) {
				t.Errorf("a caller got %v", a)
			}
		})
		tr.wantOnly(t, http.StatusOK)
		one.wantStats(t, map[string]int{"attempts": 1, "exchanges": 1, "logins": 1})
		if n := one.sandbox.Stats().Unauthorized; n < 1000 || n > 1000+20 {
			t.Errorf("the upstream answered 401 %d times to 1000 calls of 20 callers", n)
		}
	})
	t.Run("on ever new routes", func(t *testing.T) {
		tr := many.traffic(t)
		began := time.Now()
		many.hammer(t, 200, func(i int) string { return "/denied/" + letters(i) }, wantDenied)
		tr.wantOnly(t, http.StatusOK)
		many.checkLedger(t)
		// A generation has to be a tenth of its life old.
		if n, most := many.sandbox.Stats().Attempts, 1+int(time.Since(began)/(2900*time.Millisecond)); n < 1 || n > most {
			t.Errorf("%d exchanges in %v, want at most %d", n, time.Since(began), most)
		}
		if n := many.requests.Load(); n < 200 || n > 400 {
			t.Errorf("the upstream got %d requests of 200 calls", n)
		}
	})
}

// hammer makes so many calls by 20 callers.
func (p *pickyUpstream) hammer(t *testing.T, calls int32, path func(int) string, check func(*testing.T, answer)) {
	client := newClient(t, 20)
	var next atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for i := next.Add(1); i <= calls; i = next.Add(1) {
				a, err := send(client, request(context.Background(), http.MethodGet, p.url(path(int(i))), nil))
				if err != nil {
					t.Error(err)
					return
				}
				check(t, a)
			}
		})
	}
	wg.Wait()
}

// letters spells a number without digits, so that no two make the same route.
func letters(n int) string {
	return strings.Map(func(r rune) rune { return r - '0' + 'a' }, fmt.Sprint(n))
}
