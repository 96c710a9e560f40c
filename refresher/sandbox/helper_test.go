package sandbox_test

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// pair is what clients get.
type pair struct {
	Access    string `json:"accessToken"`
	Refresh   string `json:"refreshToken"`
	ExpiresIn *int   `json:"expires_in"`
}

func login(s *sandbox.Sandbox) pair {
	access, refresh := s.Login()
	return pair{Access: access, Refresh: refresh}
}

// exchangeRequest is a flawless one.
func exchangeRequest(base string, p pair) *http.Request {
	r := httptest.NewRequest("POST", base+"/User/RefreshToken", strings.NewReader(`{"refreshToken":"`+p.Refresh+`"}`))
	r.Header.Set("Authorization", "Bearer "+p.Access)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Version", "2.0")
	if base != "" {
		r.RequestURI = "" // for a client
	}
	return r
}

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// exchange returns the status and, where there is one, the new pair.
func exchange(t *testing.T, s *sandbox.Sandbox, p pair) (int, pair) {
	t.Helper()
	w := serve(s, exchangeRequest("", p))
	var next pair
	if w.Code == 200 {
		decode(t, w.Body, &next)
	}
	return w.Code, next
}

func mustExchange(t *testing.T, s *sandbox.Sandbox, p pair) pair {
	t.Helper()
	status, next := exchange(t, s, p)
	if status != 200 {
		t.Fatalf("exchange: status %d, want 200", status)
	}
	return next
}

// call returns the API's status for an access token.
func call(s *sandbox.Sandbox, access string) int {
	return serve(s, apiRequest("", "GET", "/whoami", access, nil)).Code
}

func apiRequest(base, method, path, access string, body io.Reader) *http.Request {
	r := httptest.NewRequest(method, base+path, body)
	r.Header.Set("Authorization", "Bearer "+access)
	if base != "" {
		r.RequestURI = ""
	}
	return r
}

func decode(t *testing.T, r io.Reader, v any) {
	t.Helper()
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Fatal(err)
	}
}

func wantStatus(t *testing.T, what string, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("%s: status %d, want %d", what, got, want)
	}
}

func wantStats(t *testing.T, s *sandbox.Sandbox, want sandbox.Stats) {
	t.Helper()
	if got := s.Stats(); got != want {
		t.Errorf("stats\n got %+v\nwant %+v", got, want)
	}
}

// start serves a sandbox on a socket.
func start(t *testing.T, cfg sandbox.Config) (*sandbox.Sandbox, *httptest.Server) {
	t.Helper()
	s := sandbox.New(cfg)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, server
}

// do sends a request and returns the answer with its body read.
func do(t *testing.T, server *httptest.Server, r *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func with(h http.Header, add map[string][]string) http.Header {
	maps.Copy(h, add)
	return h
}
