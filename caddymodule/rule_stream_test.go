package caddymodule

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// ruleZeros is a body that is made as it is read, and looks at the heap on the
// way.
type ruleZeros struct {
	left, next int64
	peak       *uint64
}

func (z *ruleZeros) Read(p []byte) (int, error) {
	if z.left <= 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), z.left))
	clear(p[:n])
	z.left -= int64(n)
	if z.left <= z.next {
		z.next -= 4 << 20
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		*z.peak = max(*z.peak, m.HeapInuse)
	}
	return n, nil
}

func TestALargeUploadIsStreamedInConstantMemory(t *testing.T) {
	const size = 200 << 20
	counted := make(chan int64, 2)
	c, up, _ := ruleReplay(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		counted <- n
	}, nil)
	up.refuse = func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401) }
	if status, _ := c.get("/"); status != 200 { // the token is good from here on
		t.Fatalf("got %d", status)
	}
	<-counted
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, length := range map[string]int64{"of known length": size, "of unknown length": -1} {
		var peak uint64
		req, _ := http.NewRequest("POST", "http://"+c.Addr+"/upload", &ruleZeros{left: size, next: size, peak: &peak})
		req.ContentLength = length
		resp, err := c.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		ruleEqual(t, "status", resp.StatusCode, 200)
		ruleEqual(t, "bytes at the upstream", <-counted, int64(size))
		const ceiling = 24 << 20
		if grown := int64(peak) - int64(before.HeapInuse); grown > ceiling {
			t.Errorf("%s: the heap grew by %d MiB", name, grown>>20)
		} else {
			t.Logf("%s: the heap grew by %d KiB", name, grown>>10)
		}
	}
}

func TestServerSentEventsArriveOneByOne(t *testing.T) {
	sent := make(chan struct{})
	c, _, _ := ruleReplay(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 5 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			select { // the next event only once this one has arrived
			case <-sent:
			case <-r.Context().Done():
				return
			}
		}
	}, nil)
	for range 2 { // sent again, then at once
		req, _ := http.NewRequestWithContext(ruleTimeout(t), "GET", "http://"+c.Addr+"/events", nil)
		resp, err := c.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(resp.Body)
		for i := range 5 {
			if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", i) || !lines.Scan() {
				t.Fatalf("event %d: %q, %v", i, lines.Text(), lines.Err())
			}
			sent <- struct{}{}
		}
		resp.Body.Close()
	}
}

func TestACallerWhoLeavesAStreamEndsItAtTheUpstream(t *testing.T) {
	gone := make(chan struct{})
	c, _, _ := ruleReplay(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "data: 1\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(gone)
	}, nil)
	ctx, cancel := context.WithCancel(ruleTimeout(t))
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+c.Addr+"/events", nil)
	resp, err := c.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("the upstream still sends")
	}
}

func TestAWebSocketEchoes(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	c := ruleStart(t, ruleConfig{App: ruleSession(issuer, rulePair(t, access, refresh)), Site: "token_refresh s\nreverse_proxy " + issuer})
	echo := func() {
		t.Helper()
		ws, err := websocket.Dial("ws://"+c.Addr+"/websocket", "", "http://"+c.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		_ = ws.SetDeadline(time.Now().Add(10 * time.Second))
		for i := range 3 {
			text := fmt.Sprintf("hello %d", i)
			if err := websocket.Message.Send(ws, text); err != nil {
				t.Fatal(err)
			}
			var got string
			if err := websocket.Message.Receive(ws, &got); err != nil {
				t.Fatal(err)
			}
			ruleEqual(t, "echo", got, text)
		}
	}
	echo()
	ws, err := websocket.Dial("ws://"+c.Addr+"/websocket", "", "http://"+c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	// An exchange does not wait for open sockets, nor end them.
	began := time.Now()
	if status, body := c.admin("POST", "/token_refresh/sessions/s/refresh", ""); status != 200 {
		t.Errorf("refresh: %d %s", status, body)
	}
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("the exchange waited %s for an open socket", took)
	}
	_ = ws.SetDeadline(time.Now().Add(10 * time.Second))
	var got string
	if err := websocket.Message.Send(ws, "still here"); err != nil {
		t.Error(err)
	}
	if err := websocket.Message.Receive(ws, &got); err != nil || got != "still here" {
		t.Errorf("the open socket after an exchange: %q, %v", got, err)
	}
	echo()
}

func TestAWebSocketHandshakeIsSentAgain(t *testing.T) {
	c, up, _ := ruleReplay(t, func(w http.ResponseWriter, r *http.Request) {
		websocket.Server{Handler: func(ws *websocket.Conn) { _, _ = io.Copy(ws, ws) }}.ServeHTTP(w, r)
	}, nil)
	ws, err := websocket.Dial("ws://"+c.Addr+"/", "", "http://"+c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	_ = ws.SetDeadline(time.Now().Add(10 * time.Second))
	var got string
	if err := websocket.Message.Send(ws, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := websocket.Message.Receive(ws, &got); err != nil || got != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	ruleEqual(t, "requests", fmt.Sprint(up.statuses()), "[401 200]")
}

// ruleHTTP2 is a client that speaks HTTP/2 without TLS.
func ruleHTTP2(t *testing.T) *http.Client {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func TestHTTP2CallersAreServed(t *testing.T) {
	got := make(chan string, 4)
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	up := newRuleUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- string(body)
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "fine")
		w.Header().Set("X-Sum", "42")
	}, access)
	c := ruleStart(t, ruleConfig{Global: "servers {\nprotocols h1 h2c\n}", App: ruleSession(issuer, rulePair(t, access, refresh)), Site: "token_refresh s\nreverse_proxy " + up.URL})
	client := ruleHTTP2(t)
	for i, body := range []io.Reader{struct{ io.Reader }{strings.NewReader("of unknown length")}, strings.NewReader("of known length"), nil} {
		req, _ := http.NewRequest("POST", "http://"+c.Addr+"/", body)
		req.Header["authorization"] = []string{"Bearer EVIL"}
		req.Header.Add("Authorization", "Bearer EVIL")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		ruleEqual(t, "protocol", resp.Proto, "HTTP/2.0")
		ruleEqual(t, "status", resp.StatusCode, 200)
		ruleEqual(t, "body", string(answer), "fine")
		ruleEqual(t, "trailer", resp.Trailer.Get("X-Sum"), "42")
		ruleEqual(t, "body at the upstream", <-got, []string{"of unknown length", "of known length", ""}[i])
	}
	ruleEqual(t, "requests", fmt.Sprint(up.statuses()), "[401 200 200 200]")
	for _, seen := range up.requests() {
		if values := seen.Header["Authorization"]; len(values) != 1 || strings.Contains(values[0], "EVIL") {
			t.Errorf("the upstream saw %q", values)
		}
	}
}

// An HTTP/2 caller may go on sending long after the 401.
func TestAnHTTP2BodyThatIsStillBeingSentIsSentAgainWhole(t *testing.T) {
	got := make(chan string, 1)
	refused := make(chan struct{})
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	up := newRuleUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- string(body)
	}, access)
	up.refuse = func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Connection", "close")
		_, _ = io.ReadFull(r.Body, make([]byte, 5))
		w.WriteHeader(401)
		w.(http.Flusher).Flush()
		close(refused)
	}
	c := ruleStart(t, ruleConfig{Global: "servers {\nprotocols h1 h2c\n}", App: ruleSession(issuer, rulePair(t, access, refresh)), Site: "token_refresh s\nreverse_proxy " + up.URL})
	body, send := io.Pipe()
	go func() {
		_, _ = io.WriteString(send, "begin")
		<-refused
		for _, part := range []string{" and", " so", " on"} {
			_, _ = io.WriteString(send, part)
		}
		send.Close()
	}()
	req, _ := http.NewRequest("POST", "http://"+c.Addr+"/", body)
	resp, err := ruleHTTP2(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	ruleEqual(t, "status", resp.StatusCode, 200)
	ruleEqual(t, "body", <-got, "begin and so on")
}

func TestTrailersPassInBothDirections(t *testing.T) {
	for _, tt := range []struct {
		name         string
		again, token bool
	}{
		{"sent once", false, false},
		{"sent again", true, false},
		{"sent once, with a token among them", false, true},
		{"sent again, with a token among them", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := make(chan http.Header, 1)
			c, up, _ := ruleReplay(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				select {
				case seen <- r.Trailer:
				default:
				}
				w.Header().Set("Trailer", "X-Answer-Sum")
				_, _ = w.Write(body)
				w.Header().Set("X-Answer-Sum", "yes")
				w.Header().Set(http.TrailerPrefix+"X-Unannounced", "too")
			}, nil)
			if !tt.again {
				up.mu.Lock()
				clear(up.dead)
				up.mu.Unlock()
			}
			req, _ := http.NewRequest("POST", "http://"+c.Addr+"/", struct{ io.Reader }{strings.NewReader("body")})
			req.Trailer = http.Header{"X-Request-Sum": {"1"}}
			if tt.token {
				req.Trailer["Authorization"] = []string{"Bearer EVIL"}
			}
			resp, err := c.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			ruleEqual(t, "status", resp.StatusCode, 200)
			ruleEqual(t, "body", string(body), "body")
			ruleEqual(t, "X-Answer-Sum", resp.Trailer.Get("X-Answer-Sum"), "yes")
			ruleEqual(t, "X-Unannounced", resp.Trailer.Get("X-Unannounced"), "too")
			trailer := <-seen
			ruleEqual(t, "X-Request-Sum at the upstream", trailer.Get("X-Request-Sum"), "1")
			if values, ok := trailer["Authorization"]; ok {
				t.Errorf("the upstream saw the trailer Authorization %q", values)
			}
		})
	}
}

func TestInterimAnswersPassAtOnce(t *testing.T) {
	c, up, _ := ruleReplay(t, nil, nil)
	goOn := make(chan struct{}, 1)
	serve := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			w.WriteHeader(http.StatusProcessing)
			if status == 200 {
				<-goOn // the final answer comes once the hint has arrived
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "final")
		}
	}
	up.serve, up.refuse = serve(200), serve(401)
	for _, want := range []string{"[103 102 103 102]", "[103 102]"} { // the first is sent again
		var mu sync.Mutex
		var codes []int
		var links []string
		ctx := httptrace.WithClientTrace(ruleTimeout(t), &httptrace.ClientTrace{Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			mu.Lock()
			defer mu.Unlock()
			codes = append(codes, code)
			if code == 103 {
				links = append(links, header.Get("Link"))
				if len(links)*len(codes) > 0 && (want == "[103 102]" || len(links) == 2) {
					goOn <- struct{}{}
				}
			}
			return nil
		}})
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+c.Addr+"/", nil)
		resp, err := c.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		ruleEqual(t, "status", resp.StatusCode, 200)
		ruleEqual(t, "body", string(body), "final")
		mu.Lock()
		ruleEqual(t, "interim answers", fmt.Sprint(codes), want)
		if slices.Contains(links, "") {
			t.Errorf("the hints: %q", links)
		}
		mu.Unlock()
		if resp.Header.Get("Link") != "" {
			t.Error("the interim answer's header is in the final one")
		}
	}
}

// An upload that waits for 100 Continue gets it, and its answer is what it is
// without us.
func TestExpectContinueIsAnswered(t *testing.T) {
	c, up, _ := ruleReplay(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }, func(upstream string) string {
		return "route {\n@plain path /plain\nreverse_proxy @plain " + upstream + "\ntoken_refresh s\nreverse_proxy " + upstream + "\n}"
	})
	upload := func(path string) string {
		conn, err := net.Dial("tcp", c.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n", path)
		in := bufio.NewReader(conn)
		line, err := in.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 100") {
			t.Fatalf("%q, %v", line, err)
		}
		fmt.Fprint(conn, "body")
		rest, err := io.ReadAll(in)
		if err != nil || strings.Count(string(rest), "HTTP/1.1 200") != 1 || strings.Count(string(rest), "Content-Length:") != 1 || !strings.HasSuffix(string(rest), "\r\n\r\nbody") {
			t.Errorf("%q, %v", rest, err)
		}
		// How many more interim answers come depends on how fast the upstream is.
		final := rest[bytes.Index(rest, []byte("HTTP/1.1 200")):]
		return string(regexp.MustCompile(`Date: [^\r]*`).ReplaceAll(final, nil))
	}
	upload("/") // sent again
	ruleEqual(t, "the answer", upload("/"), upload("/plain"))
	ruleEqual(t, "requests", fmt.Sprint(up.statuses()), "[401 200 200 200]")
}

func TestALongDownloadPassesUnchanged(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	c := ruleStart(t, ruleConfig{App: ruleSession(issuer, rulePair(t, access, refresh)), Site: "token_refresh s\nreverse_proxy " + issuer})
	resp, err := c.client.Get("http://" + c.Addr + "/download?bytes=20000000")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	want, got := bufio.NewReader(sandbox.Pattern(20000000)), bufio.NewReader(resp.Body)
	a, b := make([]byte, 1<<16), make([]byte, 1<<16)
	for {
		n, errA := io.ReadFull(want, a)
		m, errB := io.ReadFull(got, b)
		if n != m || !bytes.Equal(a[:n], b[:m]) || errA != errB {
			t.Fatalf("%d and %d bytes, %v and %v", n, m, errA, errB)
		}
		if errA != nil {
			break
		}
	}
}

// An upstream that breaks off its answer must not look as if it were complete.
func TestABrokenAnswerStaysBroken(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(srv.Close)
	c, _, _ := ruleReplay(t, nil, func(string) string { return "token_refresh s\nreverse_proxy " + srv.URL })
	resp, err := c.client.Get("http://" + c.Addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("got %q and no error", body)
	}
}
