package sandbox_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// local is a request from the same machine.
func local(method, path, body string) *http.Request {
	r := httptest.NewRequest(method, "http://127.0.0.1:9000/sandbox/"+path, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:54321"
	return r
}

func TestControl(t *testing.T) {
	t.Run("tells the stats", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		mustExchange(t, s, login(s))
		var got sandbox.Stats
		decode(t, serve(s, local("GET", "stats", "")).Body, &got)
		wantStats(t, s, got)
		if got.Exchanges != 1 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("tells the ledger, without any token", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		p := mustExchange(t, s, login(s))
		w := serve(s, local("GET", "ledger", ""))
		if strings.Contains(w.Body.String(), p.Access) || strings.Contains(w.Body.String(), p.Refresh) {
			t.Error("there is a token in the ledger")
		}
		var got []sandbox.Entry
		decode(t, w.Body, &got)
		if len(got) != 1 || got[0].Issued != 2 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("ends all sessions", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		p := login(s)
		wantStatus(t, "revoke", serve(s, local("POST", "revoke", "")).Code, 200)
		wantStatus(t, "API", call(s, p.Access), 401)
	})
	t.Run("queues faults", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		p := login(s)
		w := serve(s, local("POST", "faults", `{"times":2,"status":429,"header":{"retry-after":"3"},"body":"later","content_type":"text/plain","delay_before":"1ms"}`))
		wantStatus(t, "fault", w.Code, 200)
		for range 2 {
			begin := time.Now()
			w := serve(s, exchangeRequest("", p))
			if w.Code != 429 || w.Header().Get("Retry-After") != "3" || w.Body.String() != "later" || time.Since(begin) < time.Millisecond {
				t.Errorf("answer %d %q", w.Code, w.Body)
			}
		}
		mustExchange(t, s, p)
	})
	t.Run("sets and clears a fault", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		p := login(s)
		serve(s, local("POST", "faults", `{"persistent":true,"status":503}`))
		for range 3 {
			status, _ := exchange(t, s, p)
			wantStatus(t, "exchange", status, 503)
		}
		serve(s, local("DELETE", "faults", ""))
		mustExchange(t, s, p)
	})
	t.Run("refuses a fault that it does not understand", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		for _, body := range []string{
			``, `[]`, `{"stauts":500}`, `{"status":100}`, `{"times":-1}`, `{"delay_before":"soon"}`, `{"path":"/other"}`, `{} {}`,
		} {
			w := serve(s, local("POST", "faults", body))
			wantStatus(t, body, w.Code, 400)
			if !json.Valid(w.Body.Bytes()) {
				t.Errorf("answer %q", w.Body)
			}
		}
		mustExchange(t, s, login(s))
	})
	t.Run("knows nothing else", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		wantStatus(t, "GET revoke", serve(s, local("GET", "revoke", "")).Code, 404)
		wantStatus(t, "GET tokens", serve(s, local("GET", "tokens", "")).Code, 404)
	})
}

func TestControlAnswersOnly(t *testing.T) {
	tests := []struct {
		name   string
		change func(r *http.Request)
		status int
	}{
		{"this machine", func(*http.Request) {}, 200},
		{"this machine over IPv6", func(r *http.Request) { r.RemoteAddr, r.Host = "[::1]:1", "[::1]:9000" }, 200},
		{"this machine by name", func(r *http.Request) { r.Host = "localhost" }, 200},
		{"no other machine", func(r *http.Request) { r.RemoteAddr = "192.0.2.1:1" }, 403},
		{"no caller without an address", func(r *http.Request) { r.RemoteAddr = "@" }, 403},
		{"no other host name", func(r *http.Request) { r.Host = "rebound.example" }, 403},
		{"no proxy", func(r *http.Request) { r.Header.Set("X-Forwarded-For", "127.0.0.1") }, 403},
		{"no other site's page", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403},
		{"no other origin", func(r *http.Request) { r.Header.Set("Origin", "https://other.example") }, 403},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := local("POST", "revoke", "")
			test.change(r)
			wantStatus(t, "control", serve(sandbox.New(sandbox.Config{}), r).Code, test.status)
		})
	}
}
