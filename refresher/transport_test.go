package refresher_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// onlyReader hides the reader's kind, so that net/http sets no GetBody.
type onlyReader struct{ io.Reader }

func TestTheTransportOfASession(t *testing.T) {
	box := sandbox.New(sandbox.Config{AccessLifetime: 8 * time.Second})
	api := httptest.NewServer(box)
	defer api.Close()
	s := transportSession(t, api.URL)
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	client := &http.Client{Transport: s.Transport(base)}

	for _, test := range []struct {
		name   string
		body   io.Reader
		kill   bool
		status int
	}{
		{"gives a request the token", nil, false, 200},
		{"gives a request with a body the token", strings.NewReader("hello"), false, 200},
		{"sends a request again with a new login", nil, true, 200},
		{"sends a body again that can be made anew", strings.NewReader("hello"), true, 200},
		{"passes the 401 of a body that cannot", onlyReader{strings.NewReader("hello")}, true, 401},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.kill {
				waitUntilOld(t, s)
				box.Kill()
			}
			req, err := http.NewRequest(http.MethodPost, api.URL+"/upload", test.body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer of-the-caller")
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != test.status {
				t.Errorf("status %d, want %d", resp.StatusCode, test.status)
			}
		})
	}
}

// waitUntilOld waits until the pair is older than a tenth of its life: before, a
// 401 may mean that the upstream does not know it yet.
func waitUntilOld(t *testing.T, s *refresher.Session) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if r := s.Status().Rotations; len(r) > 0 && time.Since(r[len(r)-1].At) > 900*time.Millisecond {
			return
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("the pair never grew old")
		}
	}
}

// A redirect to another host took the token along.
func TestTheTransportKeepsTheTokenFromOtherHosts(t *testing.T) {
	seen := make(chan http.Header, 1)
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header }))
	defer other.Close()
	box := sandbox.New(sandbox.Config{})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, other.URL, http.StatusFound)
			return
		}
		box.ServeHTTP(w, r)
	}))
	defer api.Close()
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	client := &http.Client{Transport: transportSession(t, api.URL).Transport(base)}
	resp, err := client.Get(api.URL + "/away")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if got := (<-seen).Get("Authorization"); got != "" {
		t.Error("the other host got the token")
	}
}

func TestTheTokenSourceOfASession(t *testing.T) {
	box := sandbox.New(sandbox.Config{})
	api := httptest.NewServer(box)
	defer api.Close()
	s := transportSession(t, api.URL)
	tok, err := s.TokenSource(t.Context()).Token()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := box.Lookup(tok.AccessToken); !ok || !tok.Valid() || tok.Type() != "Bearer" {
		t.Errorf("the token is not the current one, or not valid")
	}
}

func transportSession(t *testing.T, url string) *refresher.Session {
	t.Helper()
	exchange, err := issuer.NewBearer(issuer.BearerConfig{URL: url + "/User/RefreshToken", Profile: refresher.Profile{RevokesPrevious: true}})
	if err != nil {
		t.Fatal(err)
	}
	login, err := issuer.NewLogin(issuer.LoginConfig{
		URL: url + "/User/Login", Header: http.Header{"Version": {"2.0"}},
		Username: refresher.NewSecret("demo"), Password: refresher.NewSecret("demo"),
	})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := journal.NewKeyring(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	s := refresher.New("transport", refresher.Options{Dir: t.TempDir()})
	detach, err := s.Attach(refresher.Config{Issuer: exchange, Sources: []refresher.Source{login}, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		detach()
		_ = s.Close(context.Background())
	})
	return s
}
