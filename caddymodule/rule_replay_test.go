package caddymodule

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// The ten rules for a handler that runs those behind it twice.

func TestRule1EachRunHasItsOwnRequest(t *testing.T) {
	t.Run("uri strip_prefix does not strip twice", func(t *testing.T) {
		c, up, _ := ruleReplay(t, nil, func(upstream string) string {
			return "route {\ntoken_refresh s\nuri strip_prefix /api\nreverse_proxy " + upstream + "\n}"
		})
		if status, body := c.get("/api/api/x?q=1"); status != 200 {
			t.Errorf("got %d %q", status, body)
		}
		for _, seen := range up.requests() {
			ruleEqual(t, "path at the upstream", seen.Path, "/api/x")
		}
		ruleEqual(t, "requests", len(up.requests()), 2)
	})
	t.Run("a header added behind us is not added twice", func(t *testing.T) {
		c, up, _ := ruleReplay(t, nil, func(upstream string) string {
			return "route {\ntoken_refresh s\nrequest_header +X-Added 1\nmethod PUT\nreverse_proxy " + upstream + "\n}"
		})
		if status, _ := c.get("/"); status != 200 {
			t.Errorf("got %d", status)
		}
		for _, seen := range up.requests() {
			ruleEqual(t, "X-Added", strings.Join(seen.Header["X-Added"], ","), "1")
			ruleEqual(t, "method", seen.Method, "PUT")
		}
	})
	t.Run("handlers before us see the caller's own header", func(t *testing.T) {
		c, _, sb := ruleReplay(t, nil, func(upstream string) string {
			return "header X-Saw \"{http.request.header.Authorization}\"\ntoken_refresh s\nreverse_proxy " + upstream
		})
		_, _, header := c.do("GET", "/", nil, "Authorization", "Bearer the caller's")
		ruleEqual(t, "the placeholder", header.Get("X-Saw"), "Bearer the caller's")
		access, _, _ := sb.Current("s1")
		if strings.Contains(fmt.Sprint(header), access) {
			t.Error("the answer holds the token")
		}
	})
}

func TestRule2TheAnswersHeaderIsRestoredBeforeTheSecondRun(t *testing.T) {
	c, up, _ := ruleReplay(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-From", "second")
		_, _ = io.WriteString(w, "the second, longer answer")
	}, func(upstream string) string {
		return "header +X-Before kept\nheader +X-Before too\ntoken_refresh s\nreverse_proxy " + upstream
	})
	up.refuse = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-From", "first")
		w.Header().Set("X-Stale", "1")
		w.Header().Set("Set-Cookie", "stale=1")
		w.Header().Set("WWW-Authenticate", "Bearer")
		w.WriteHeader(401)
		_, _ = io.WriteString(w, "first")
	}
	answer := ruleRaw(t, c.Addr, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(answer, "\r\n\r\nthe second, longer answer") {
		t.Errorf("answer:\n%s", answer)
	}
	for want, n := range map[string]int{"Content-Length:": 1, "X-From: second\r\n": 1, "X-From:": 1, "X-Stale": 0, "Set-Cookie": 0, "Www-Authenticate": 0, "X-Before: kept\r\n": 1, "X-Before: too\r\n": 1, "Via:": 1} {
		if got := strings.Count(answer, want); got != n {
			t.Errorf("%s stands %d times, want %d:\n%s", want, got, n, answer)
		}
	}
}

func TestRule3AHeld401IsCappedAndThenStreamed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		size   int
		flush  bool
		replay bool
	}{
		{"no body", 0, false, true},
		{"a small body", 100, false, true},
		{"a small body, flushed", 100, true, true},
		{"just at the limit", maxHeld401, false, true},
		{"one byte more", maxHeld401 + 1, false, false},
		{"much more, flushed", 5 * maxHeld401, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, up, sb := ruleReplay(t, nil, nil)
			body := strings.Repeat("x", tt.size)
			up.refuse = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Refused", "yes")
				w.WriteHeader(401)
				if tt.flush {
					w.(http.Flusher).Flush()
				}
				_, _ = io.WriteString(w, body)
			}
			status, got, header := c.do("GET", "/", nil)
			if tt.replay {
				ruleEqual(t, "status", status, 200)
				ruleEqual(t, "body", got, "fine")
				ruleEqual(t, "requests", fmt.Sprint(up.statuses()), "[401 200]")
				return
			}
			ruleEqual(t, "status", status, 401)
			if got != body || header.Get("X-Refused") != "yes" {
				t.Errorf("the 401's body came with %d bytes, want %d", len(got), len(body))
			}
			// Not for this request, but for those that come after.
			ruleEventually(t, "an exchange", func() bool { return sb.Stats().Exchanges == 1 })
			ruleEqual(t, "requests", fmt.Sprint(up.statuses()), "[401]")
			status, _ = c.get("/")
			ruleEqual(t, "the next one's status", status, 200)
		})
	}
	t.Run("its beginning is passed on before its end", func(t *testing.T) {
		c, up, _ := ruleReplay(t, nil, nil)
		rest := make(chan struct{})
		up.refuse = func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(401)
			_, _ = io.WriteString(w, strings.Repeat("x", 4*maxHeld401))
			w.(http.Flusher).Flush()
			<-rest
			_, _ = io.WriteString(w, "end")
		}
		defer func() {
			select {
			case <-rest:
			default:
				close(rest)
			}
		}()
		resp, err := c.client.Get("http://" + c.Addr + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.ReadFull(resp.Body, make([]byte, 2*maxHeld401)); err != nil {
			t.Fatal(err)
		}
		close(rest)
		got, err := io.ReadAll(resp.Body)
		if err != nil || !bytes.HasSuffix(got, []byte("xend")) {
			t.Errorf("the rest: %d bytes, %v", len(got), err)
		}
	})
}

func TestRule4OnlyAWritten401Counts(t *testing.T) {
	t.Run("Caddy's own error 401 passes", func(t *testing.T) {
		c, _, sb := ruleReplay(t, nil, func(string) string {
			return "route {\ntoken_refresh s\nerror \"not you\" 401\n}\nhandle_errors {\nrespond \"by handle_errors\" {err.status_code}\n}"
		})
		status, body := c.get("/")
		ruleEqual(t, "status", status, 401)
		ruleEqual(t, "body", body, "by handle_errors")
		ruleEqual(t, "attempts", sb.Stats().Attempts, 0)
	})
	t.Run("a 401 that a handler writes counts", func(t *testing.T) {
		c, _, sb := ruleReplay(t, nil, func(string) string { return "route {\ntoken_refresh s\nrespond \"no\" 401\n}" })
		status, body := c.get("/")
		ruleEqual(t, "status", status, 401)
		ruleEqual(t, "body", body, "no")
		ruleEqual(t, "exchanges", sb.Stats().Exchanges, 1)
	})
	for _, code := range []int{400, 402, 403, 407, 419, 500} {
		t.Run(fmt.Sprintf("a %d passes", code), func(t *testing.T) {
			c, up, sb := ruleReplay(t, nil, nil)
			up.refuse = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
			status, _ := c.get("/")
			ruleEqual(t, "status", status, code)
			ruleEqual(t, "attempts", sb.Stats().Attempts, 0)
		})
	}
}

func TestRule5ABodyIsSentAgainWhole(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		name      string
		size      int
		chunked   bool
		early     bool // the upstream answers 401 before it reads
		limit     string
		replayed  bool
		uncertain bool // either is right: how much was read is a race
	}{
		{name: "small", size: 1000, replayed: true},
		{name: "small, of unknown length", size: 1000, chunked: true, replayed: true},
		{name: "empty, of unknown length", size: 0, chunked: true, replayed: true},
		{name: "just at the limit", size: mib, replayed: true},
		{name: "just at the limit, of unknown length", size: mib, chunked: true, replayed: true},
		{name: "one byte more", size: mib + 1, replayed: false},
		{name: "one byte more, of unknown length", size: mib + 1, chunked: true, replayed: false},
		{name: "large, answered before it was read", size: 8 * mib, early: true, uncertain: true},
		{name: "large and of unknown length, answered before it was read", size: 8 * mib, early: true, chunked: true, uncertain: true},
		{name: "with a small limit", size: 101, limit: "100B", replayed: false},
		{name: "at a small limit", size: 100, limit: "100B", replayed: true},
		{name: "with replay_limit 0", size: 1, limit: "0", replayed: false},
		{name: "no body with replay_limit 0", size: 0, limit: "0", replayed: false},
		{name: "with a large limit", size: 3 * mib, limit: "4MiB", replayed: true},
		{name: "with a large limit, of unknown length", size: 3 * mib, limit: "4MiB", chunked: true, replayed: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := make([]byte, tt.size)
			fill := rand.New(rand.NewPCG(1, uint64(tt.size)))
			for i := range body {
				body[i] = byte(fill.Uint32())
			}
			var got []byte
			c, up, sb := ruleReplay(t, func(w http.ResponseWriter, r *http.Request) {
				got, _ = io.ReadAll(r.Body)
				if !tt.chunked && r.ContentLength != int64(tt.size) {
					t.Errorf("Content-Length of the second run: %d", r.ContentLength)
				}
				_, _ = io.WriteString(w, "fine")
			}, func(upstream string) string {
				limit := ""
				if tt.limit != "" {
					limit = "replay_limit " + tt.limit
				}
				return "token_refresh s {\n" + limit + "\n}\nreverse_proxy " + upstream
			})
			up.refuse = func(w http.ResponseWriter, r *http.Request) {
				if !tt.early {
					_, _ = io.Copy(io.Discard, r.Body)
				}
				w.WriteHeader(401)
			}
			var reader io.Reader = bytes.NewReader(body)
			if tt.chunked {
				reader = struct{ io.Reader }{reader}
			}
			before := captured.Load()
			req, _ := http.NewRequest("POST", "http://"+c.Addr+"/", reader)
			resp, err := c.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			replayed := resp.StatusCode == 200
			if !tt.uncertain && replayed != tt.replayed {
				t.Errorf("got %d, want it sent again: %v", resp.StatusCode, tt.replayed)
			}
			if replayed && !bytes.Equal(got, body) {
				t.Errorf("the second run got %d bytes that differ from the %d sent", len(got), len(body))
			}
			if !replayed {
				ruleEqual(t, "status", resp.StatusCode, 401)
			}
			ruleEventually(t, "an exchange", func() bool { return sb.Stats().Exchanges == 1 })
			ruleEventually(t, "all of the body's memory is given back", func() bool { return captured.Load() == before })
		})
	}
}

// The first run's reader may linger in a Read after the answer came; nothing it
// takes from the caller may be lost to the second run.
func TestRule5TheSecondRunWaitsForALingeringReader(t *testing.T) {
	src, caller := io.Pipe()
	c := newCapture(src, 100, -1)
	defer c.close()
	first := c.reader()
	lingering := make(chan error, 1)
	inside := make(chan struct{})
	go func() {
		buf := make([]byte, 16)
		n, err := first.Read(buf)
		if string(buf[:n]) != "one " || err != nil {
			t.Errorf("first read: %q, %v", buf[:n], err)
		}
		close(inside)
		_, err = first.Read(buf) // lingers
		lingering <- err
	}()
	if _, err := io.WriteString(caller, "one "); err != nil {
		t.Fatal(err)
	}
	<-inside
	if !c.rewind() {
		t.Fatal("it cannot be sent again")
	}
	if c.rewind() {
		t.Error("it can be sent a third time")
	}
	got := make(chan string, 1)
	go func() {
		all, err := io.ReadAll(c.reader())
		got <- fmt.Sprintf("%s%v", all, err)
	}()
	for _, part := range []string{"two ", "three"} {
		if _, err := io.WriteString(caller, part); err != nil {
			t.Fatal(err)
		}
	}
	caller.Close()
	ruleEqual(t, "the second run's body", <-got, "one two three<nil>")
	if err := <-lingering; err == nil {
		t.Error("the lingering reader was given what belongs to the second run")
	}
}

// However the two runs' reads interleave, the second sees the caller's bytes
// from the first to the last, in order.
func TestRule5TheSecondRunsBodyIsWholeHoweverTheReadsInterleave(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 7))
		body := make([]byte, r.IntN(3000))
		for i := range body {
			body[i] = byte(r.Uint32())
		}
		src := &ruleChunks{data: body, next: func() int { return 1 + r.IntN(400) }}
		c := newCapture(src, int64(r.IntN(4000)), map[bool]int64{true: int64(len(body)), false: -1}[r.IntN(2) == 0])
		first := c.reader()
		var wg sync.WaitGroup
		wg.Go(func() {
			buf := make([]byte, 333)
			for {
				if _, err := first.Read(buf); err != nil {
					return
				}
			}
		})
		if c.rewind() {
			got, err := io.ReadAll(c.reader())
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("seed %d: %d bytes of %d, %v", seed, len(got), len(body), err)
			}
		}
		wg.Wait()
		c.close()
		if n, err := c.reader().Read(make([]byte, 1)); n != 0 || !errors.Is(err, errStale) && err == nil {
			t.Fatalf("seed %d: a read after the end: %d, %v", seed, n, err)
		}
	}
	ruleEqual(t, "bytes still held", captured.Load(), 0)
}

type ruleChunks struct {
	data []byte
	next func() int
}

func (c *ruleChunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.data[:min(c.next(), len(c.data))])
	c.data = c.data[n:]
	return n, nil
}

func (c *ruleChunks) Close() error { return nil }

func TestRule5TheBodiesOfAllRequestsTogetherAreBounded(t *testing.T) {
	var all []*capture
	defer func() {
		for _, c := range all {
			c.close()
		}
		ruleEqual(t, "bytes still held", captured.Load(), 0)
	}()
	reserved := 0
	for range 200 {
		c := newCapture(io.NopCloser(strings.NewReader("")), 1<<20, 1<<20)
		all = append(all, c)
		if c.reserved(1 << 20) {
			reserved++
		}
	}
	ruleEqual(t, "captures of 1 MiB that fit", reserved, maxCaptured>>20)
	if captured.Load() > maxCaptured {
		t.Errorf("%d bytes are held", captured.Load())
	}
	c := newCapture(io.NopCloser(strings.NewReader("some more")), 1<<20, -1)
	all = append(all, c)
	if got, err := io.ReadAll(c.reader()); string(got) != "some more" || err != nil {
		t.Errorf("a body beyond the bound must pass: %q, %v", got, err)
	}
	if c.rewind() {
		t.Error("a body that was not kept would be sent again")
	}
}

func TestRule6WhatMayBeSentAgain(t *testing.T) {
	for _, tt := range []struct {
		method  string
		upgrade []string
		want    bool
	}{
		{"GET", nil, true},
		{"POST", nil, true},
		{"DELETE", nil, true},
		{"CONNECT", nil, false},
		{"CONNECT", []string{"websocket"}, false},
		{"GET", []string{"websocket"}, true},
		{"GET", []string{"WebSocket"}, true},
		{"GET", []string{"h2c"}, false},
		{"GET", []string{"websocket, h2c"}, false},
		{"GET", []string{"websocket", "h2c"}, false},
		{"GET", []string{""}, false},
		{"GET", []string{"spdy/3.1"}, false},
	} {
		r, _ := http.NewRequest(tt.method, "http://x/", nil)
		if tt.upgrade != nil {
			r.Header["Upgrade"] = tt.upgrade
		}
		if got := mayRepeat(r); got != tt.want {
			t.Errorf("%s with Upgrade %q: %v", tt.method, tt.upgrade, got)
		}
	}
}

func TestRule6NothingIsSentThreeTimes(t *testing.T) {
	c, up, sb := ruleReplay(t, nil, nil)
	up.mu.Lock()
	up.dead["*"] = true
	up.mu.Unlock()
	for i := range 4 {
		before := len(up.requests())
		status, body := c.get("/")
		ruleEqual(t, "status", status, 401)
		ruleEqual(t, "body", body, "no")
		if n := len(up.requests()) - before; n > 2 {
			t.Errorf("request %d was sent %d times", i, n)
		}
	}
	if n := sb.Stats().Exchanges; n != 1 {
		t.Errorf("an upstream that always says 401 led to %d exchanges, want 1", n)
	}
	// Another route is its own.
	before := len(up.requests())
	c.get("/other/route")
	if n := len(up.requests()) - before; n > 2 {
		t.Errorf("the other route's request was sent %d times", n)
	}
}

func TestRule6AnUpgradeOtherThanWebSocketIsNotSentAgain(t *testing.T) {
	c, up, sb := ruleReplay(t, nil, nil)
	answer := ruleRaw(t, c.Addr, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: something/1\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 401") {
		t.Errorf("answer: %s", answer)
	}
	ruleEqual(t, "requests", fmt.Sprint(up.statuses()), "[401]")
	ruleEventually(t, "an exchange for the next one", func() bool { return sb.Stats().Exchanges == 1 })
}

func TestRule7RequestsWithAnOlderTokenAreSentAgainWithoutAnotherExchange(t *testing.T) {
	const n = 20
	var arrived atomic.Int32
	all := make(chan struct{})
	c, up, sb := ruleReplay(t, nil, nil)
	up.refuse = func(w http.ResponseWriter, _ *http.Request) {
		if arrived.Add(1) == n {
			close(all)
		}
		<-all // they all carry the first token
		w.WriteHeader(401)
	}
	statuses := make(chan int, n)
	for range n {
		go func() {
			resp, err := c.client.Get("http://" + c.Addr + "/")
			if err != nil {
				statuses <- -1
				return
			}
			resp.Body.Close()
			statuses <- resp.StatusCode
		}()
	}
	for range n {
		ruleEqual(t, "status", <-statuses, 200)
	}
	ruleEqual(t, "exchanges", sb.Stats().Exchanges, 1)
	ruleEqual(t, "requests", len(up.requests()), 2*n)
}

func TestRule7ATokenThatWasReplacedMeanwhileIsNotExchangedAgain(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	c, up, sb := ruleReplay(t, nil, nil)
	up.refuse = func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-goOn
		w.WriteHeader(401)
	}
	status := make(chan int, 1)
	go func() {
		s, _ := c.get("/")
		status <- s
	}()
	<-arrived
	if code, body := c.admin("POST", "/token_refresh/sessions/s/refresh", ""); code != 200 {
		t.Errorf("refresh: %d %s", code, body)
	}
	close(goOn)
	ruleEqual(t, "status", <-status, 200)
	ruleEqual(t, "exchanges", sb.Stats().Exchanges, 1)
}

func TestRule8AnExchangeOutlivesTheCallerThatCausedIt(t *testing.T) {
	c, _, sb := ruleReplay(t, nil, nil)
	sb.Fault(sandbox.Fault{Commit: true, DelayBefore: 150 * time.Millisecond, DelayAfter: 150 * time.Millisecond}, 1)
	conn, err := net.Dial("tcp", c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	ruleEventually(t, "the exchange's begin", func() bool { return sb.Stats().Attempts == 1 })
	conn.Close()
	ruleEventually(t, "the next generation", func() bool { return ruleStatus(t, "s").Generation == 2 })
	stats := sb.Stats()
	if stats.Attempts != 1 || stats.Exchanges != 1 || stats.Reuses != 0 {
		t.Errorf("the issuer's count: %+v", stats)
	}
	if entry := sb.Ledger()[0]; !entry.Delivered {
		t.Errorf("the pair was not delivered: %+v", entry)
	}
	status, _ := c.get("/")
	ruleEqual(t, "the next one's status", status, 200)
}

func TestRule8AnOperatorWhoHangsUpDoesNotEndTheExchange(t *testing.T) {
	c, _, sb := ruleReplay(t, nil, nil)
	sb.Fault(sandbox.Fault{Commit: true, DelayBefore: 150 * time.Millisecond}, 1)
	conn, err := net.Dial("tcp", c.Admin)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, "POST /token_refresh/sessions/s/refresh HTTP/1.1\r\nHost: "+c.Admin+"\r\nContent-Length: 0\r\n\r\n")
	ruleEventually(t, "the exchange's begin", func() bool { return sb.Stats().Attempts == 1 })
	conn.Close()
	ruleEventually(t, "the next generation", func() bool { return ruleStatus(t, "s").Generation == 2 })
	ruleEqual(t, "exchanges", sb.Stats().Exchanges, 1)
}

func TestRule10TheAnswerHasNoMarkOfOurs(t *testing.T) {
	serve := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Own", "1")
		_, _ = io.WriteString(w, "fine")
	}
	c, up, _ := ruleReplay(t, serve, func(upstream string) string {
		return "route {\n@plain path /plain\nreverse_proxy @plain " + upstream + "\ntoken_refresh s\nreverse_proxy " + upstream + "\n}"
	})
	names := func(path string) string {
		status, _, header := c.do("GET", path, nil)
		ruleEqual(t, "status", status, 200)
		var list []string
		for name, values := range header {
			list = append(list, name+strconv.Itoa(len(values)))
		}
		slices.Sort(list)
		return strings.Join(list, " ")
	}
	plain := names("/plain")
	ruleEqual(t, "the header of a request sent again", names("/x"), plain)
	ruleEqual(t, "the header of a request sent once", names("/x"), plain)
	ruleEqual(t, "requests", fmt.Sprint(up.statuses()), "[200 401 200 200]")
}
