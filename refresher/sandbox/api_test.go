package sandbox_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func TestTheAPIRefuses(t *testing.T) {
	tests := []struct {
		name   string
		header func(access string) []string
	}{
		{"no token", func(string) []string { return nil }},
		{"an unknown token", func(string) []string { return []string{"Bearer x"} }},
		{"a bare token", func(a string) []string { return []string{a} }},
		{"another scheme", func(a string) []string { return []string{"Basic " + a} }},
		{"two headers", func(a string) []string { return []string{"Bearer " + a, "Bearer " + a} }},
		{"a token with something behind it", func(a string) []string { return []string{"Bearer " + a + " "} }},
		{"an empty token", func(string) []string { return []string{"Bearer "} }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := sandbox.New(sandbox.Config{})
			p := login(s)
			r := httptest.NewRequest("GET", "/anything", nil)
			r.Header["Authorization"] = test.header(p.Access)
			w := serve(s, r)
			wantStatus(t, "API", w.Code, 401)
			if got := w.Header().Get("WWW-Authenticate"); got != `Bearer error="invalid_token"` {
				t.Errorf("WWW-Authenticate %q", got)
			}
			wantStats(t, s, sandbox.Stats{Sessions: 1, Logins: 1, Unauthorized: 1})
		})
	}
	t.Run("before it reads the body", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		wantStatus(t, "upload", serve(s, apiRequest("", "POST", "/upload", "x", unreadable{t})).Code, 401)
	})
	t.Run("everybody at /always401", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		w := serve(s, apiRequest("", "GET", "/always401", login(s).Access, nil))
		wantStatus(t, "API", w.Code, 401)
		wantStats(t, s, sandbox.Stats{Sessions: 1, Logins: 1, Unauthorized: 1})
	})
	t.Run("everybody when all sessions were killed", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		a, b, c := login(s), login(s), login(s)
		if !s.KillSession("s1") || s.KillSession("s1") || s.Kill() != 2 {
			t.Error("one and two sessions were live")
		}
		for _, p := range []pair{a, b, c} {
			wantStatus(t, "API", call(s, p.Access), 401)
		}
		if s.Stats().SessionsKilled != 3 || s.Stats().StaleAccess != 0 {
			t.Errorf("stats %+v", s.Stats())
		}
	})
}

// unreadable is a body that must not be touched.
type unreadable struct{ t *testing.T }

func (u unreadable) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

func TestTheAPITells(t *testing.T) {
	s, server := start(t, sandbox.Config{})
	p := mustExchange(t, s, login(s))
	sum := sha256.Sum256([]byte("hello"))
	hello := hex.EncodeToString(sum[:])

	t.Run("who calls", func(t *testing.T) {
		_, body := do(t, server, apiRequest(server.URL, "GET", "/whoami", p.Access, nil))
		var got struct {
			User, Session string
			Generation    int
			Now           time.Time
			ExpiresAt     time.Time `json:"expires_at"`
		}
		decode(t, strings.NewReader(body), &got)
		if got.User != "demo" || got.Session != "s1" || got.Generation != 2 || !got.ExpiresAt.After(got.Now) {
			t.Errorf("got %+v", got)
		}
		if strings.Contains(body, p.Access) {
			t.Error("the answer must not hold the token")
		}
		known, ok := s.Lookup(p.Access)
		if want := (sandbox.Session{ID: "s1", User: "demo", Generation: 2, ExpiresAt: known.ExpiresAt}); !ok || known != want {
			t.Errorf("Lookup %+v", known)
		}
	})
	t.Run("what arrived at an upload", func(t *testing.T) {
		_, body := do(t, server, apiRequest(server.URL, "POST", "/upload", p.Access, strings.NewReader("hello")))
		if want := `{"bytes":5,"sha256":"` + hello + `"}`; body != want {
			t.Errorf("got %s", body)
		}
	})
	t.Run("what arrived anywhere else", func(t *testing.T) {
		_, body := do(t, server, apiRequest(server.URL, "PUT", "/some/thing?x=y", p.Access, strings.NewReader("hello")))
		if want := `{"method":"PUT","path":"/some/thing","session":"s1","generation":2,"bytes":5,"sha256":"` + hello + `"}`; body != want {
			t.Errorf("got %s", body)
		}
	})
	t.Run("that a parameter makes no sense", func(t *testing.T) {
		for _, path := range []string{
			"/slow?delay=x", "/slow?delay=-1s", "/late?delay=x", "/download?bytes=-1", "/events?interval=x", "/events?count=x",
		} {
			resp, _ := do(t, server, apiRequest(server.URL, "GET", path, p.Access, nil))
			wantStatus(t, path, resp.StatusCode, 400)
		}
	})
	t.Run("early hints first", func(t *testing.T) {
		var links []string
		trace := &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			links = append(links, h.Get("Link"))
			return nil
		}}
		r := apiRequest(server.URL, "GET", "/hints", p.Access, nil)
		resp, _ := do(t, server, r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
		wantStatus(t, "hints", resp.StatusCode, 200)
		if len(links) != 1 || links[0] == "" {
			t.Errorf("links %q", links)
		}
	})
}

func TestAStream(t *testing.T) {
	s, server := start(t, sandbox.Config{})
	p := login(s)

	t.Run("of events comes one by one", func(t *testing.T) {
		resp, err := server.Client().Do(apiRequest(server.URL, "GET", "/events?interval=1h&count=2", p.Access, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Scan()
		if lines.Text() != "id: 1" || resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Errorf("got %q", lines.Text())
		}
	})
	t.Run("of events ends", func(t *testing.T) {
		_, body := do(t, server, apiRequest(server.URL, "GET", "/events?interval=1ms&count=3", p.Access, nil))
		if strings.Count(body, "data: ") != 3 || strings.Count(body, "\n\n") != 3 {
			t.Errorf("got %q", body)
		}
	})
	t.Run("down is the pattern", func(t *testing.T) {
		resp, body := do(t, server, apiRequest(server.URL, "GET", "/download?bytes=100000", p.Access, nil))
		want, _ := io.ReadAll(sandbox.Pattern(100_000))
		if !bytes.Equal([]byte(body), want) || resp.ContentLength != 100_000 {
			t.Errorf("%d bytes, length %d", len(body), resp.ContentLength)
		}
	})
	t.Run("comes back as it is sent, with its trailers", func(t *testing.T) {
		reader, writer := io.Pipe()
		r := apiRequest(server.URL, "POST", "/echo", p.Access, reader)
		r.ContentLength = -1
		r.Trailer = http.Header{"X-Sum": nil}
		resp, err := server.Client().Do(r) // answers before anything was sent
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for _, text := range []string{"one", "two", "three"} {
			io.WriteString(writer, text)
			got := make([]byte, len(text))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != text {
				t.Fatalf("got %q, %v", got, err)
			}
		}
		r.Trailer.Set("X-Sum", "42")
		writer.Close()
		if rest, err := io.ReadAll(resp.Body); len(rest) != 0 || err != nil {
			t.Errorf("rest %q, %v", rest, err)
		}
		if got := resp.Trailer.Get("X-Sum"); got != "42" {
			t.Errorf("trailer %q", got)
		}
	})
	t.Run("is asked for with 100 Continue", func(t *testing.T) {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST /echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n", p.Access)
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		reader := bufio.NewReader(conn)
		line, _ := reader.ReadString('\n')
		if line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("got %q", line)
		}
		reader.ReadString('\n')
		io.WriteString(conn, "ok")
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); string(body) != "ok" || err != nil {
			t.Errorf("got %q, %v", body, err)
		}
	})
}
