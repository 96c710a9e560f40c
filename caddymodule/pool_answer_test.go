package caddymodule

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// poolBehind is a pool before an upstream of the test's own, which learns at
// POST /login and forgets at POST /logout.
func poolBehind(t *testing.T, issuer string, serve http.HandlerFunc, more ...string) (*ruleCaddy, string) {
	t.Helper()
	upstream := httptest.NewServer(serve)
	t.Cleanup(upstream.Close)
	cfg := poolConfig(issuer, append(more, "learn POST /login", "forget POST /logout")...)
	cfg.Site = "token_refresh portal\nreverse_proxy " + strings.TrimPrefix(upstream.URL, "http://")
	cfg.LogFile = filepath.Join(t.TempDir(), "log")
	return ruleStart(t, cfg), cfg.LogFile
}

// poolSessions is how many sessions the pool has.
func poolSessions(t *testing.T) int {
	t.Helper()
	app, err := activeApp()
	if err != nil {
		t.Fatal(err)
	}
	pool, _ := app.pool("portal")
	return pool.shared.Counts().Sessions
}

func compressed(t *testing.T, encoding, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&b)
	if encoding == "deflate" {
		w = zlib.NewWriter(&b)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestALoginWhoseAnswerIsCompressedUnaskedIsLearned(t *testing.T) {
	for _, withhold := range []string{"off", "on"} {
		for _, encoding := range []string{"gzip", "x-gzip", "deflate"} {
			t.Run(encoding+", withhold "+withhold, func(t *testing.T) {
				sb, issuer := ruleIssuer(t, sandbox.Config{})
				access, refresh := sb.Login()
				sent := compressed(t, encoding, fmt.Sprintf(`{"accessToken":%q,"refreshToken":%q}`, access, refresh))
				c, _ := poolBehind(t, issuer, func(w http.ResponseWriter, r *http.Request) {
					if got := r.Header.Get("Accept-Encoding"); got != "identity" {
						t.Errorf("the upstream was asked for %q", got)
					}
					w.Header().Set("Content-Encoding", encoding)
					w.Header().Set("Content-Type", "application/json")
					w.Header().Set("ETag", `"x"`)
					_, _ = w.Write(sent)
				}, "withhold_refresh_token "+withhold)
				status, body, header := c.do("POST", "/login", nil, "Accept-Encoding", "gzip, br")
				if status != 200 || poolSessions(t) != 1 {
					t.Fatalf("status %d, %d sessions", status, poolSessions(t))
				}
				if withhold == "off" {
					if body != string(sent) || header.Get("Content-Encoding") != encoding || header.Get("ETag") == "" {
						t.Errorf("the answer was changed: %v", header)
					}
					return
				}
				if strings.Contains(body, refresh) || !strings.Contains(body, "trh_") || !strings.Contains(body, access) ||
					header.Get("Content-Encoding") != "" || header.Get("ETag") != "" {
					t.Errorf("%v %s", header, body)
				}
			})
		}
	}
}

// With withhold_refresh_token on a refresh token that cannot be replaced does not
// reach the caller; with off the answer goes on as it came.
func TestAnAnswerWhoseRefreshTokenCannotBeWithheldDoesNotGoOn(t *testing.T) {
	const access, secret = "an-access-token-of-this-test", "a-refresh-token-of-this-test"
	pair := `{"accessToken":"` + access + `","refreshToken":"` + secret + `"}`
	long := strings.Repeat(" ", 70<<10)
	cookies := func(w http.ResponseWriter) {
		http.SetCookie(w, &http.Cookie{Name: "access_token", Value: access})
		http.SetCookie(w, &http.Cookie{Name: "refresh_token", Value: secret})
	}
	answer := func(kind, encoding, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			if encoding != "" {
				w.Header().Set("Content-Encoding", encoding)
			}
			_, _ = io.WriteString(w, body)
		}
	}
	for name, c := range map[string]struct {
		serve   http.HandlerFunc
		refused bool
	}{
		"compressed in another way": {answer("application/json", "br", pair), true},
		"compressed twice":          {answer("application/json", "gzip, gzip", pair), true},
		"not really compressed":     {answer("application/json", "gzip", pair), true},
		"broken off":                {answer("application/json", "gzip", string(compressed(t, "gzip", pair))[:30]), true},
		"far longer when unpacked":  {answer("application/json", "gzip", string(compressed(t, "gzip", pair+long))), true},
		"too long":                  {answer("application/json", "", long+pair), true},
		"a long page with cookies": {func(w http.ResponseWriter, r *http.Request) {
			cookies(w)
			answer("text/html", "", long)(w, r)
		}, true},
		"nested":                  {answer("application/json", "", `{"data":`+pair+`}`), true},
		"without an access token": {answer("application/json", "", `{"RefreshToken" : "`+secret+`"}`), true},
		"not JSON by its type":    {answer("text/plain", "", pair), true},
		"a cookie beside the token": {func(w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "refresh_token", Value: secret})
			answer("application/json", "", `{"accessToken":"`+access+`"}`)(w, r)
		}, true},
		"a stream of events": {func(w http.ResponseWriter, r *http.Request) {
			cookies(w)
			answer("text/event-stream", "", "data: "+secret+"\n\n")(w, r)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, true},
		"a second factor is asked for": {func(w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "refresh_token", Value: "deleted", MaxAge: -1})
			answer("application/json", "", `{"mfa":"required","accessToken":null,"refreshToken":null}`)(w, r)
		}, false},
		"a refusal": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, issuer := ruleIssuer(t, sandbox.Config{})
			p, logFile := poolBehind(t, issuer, c.serve, "withhold_refresh_token on")
			status, body, header := p.do("POST", "/login", nil)
			if strings.Contains(fmt.Sprint(body, header), secret) || (status == 502) != c.refused {
				t.Errorf("status %d, %v", status, header)
			}
			if got := len(header["Set-Cookie"]) + len(header["Content-Encoding"]); c.refused && got > 0 {
				t.Errorf("of the answer is left: %v", header)
			}
			log, err := os.ReadFile(logFile)
			if err != nil || bytes.Contains(log, []byte("a login's answer was not passed on")) != c.refused {
				t.Errorf("the log: %v\n%s", err, log)
			}
			if bytes.Contains(log, []byte(secret)) {
				t.Error("the log holds the token")
			}
			if poolSessions(t) != 0 {
				t.Error("a session was learned whose caller knows nothing of it")
			}
			if !c.refused || name == "a stream of events" {
				return
			}
			p, _ = poolBehind(t, issuer, c.serve)
			if status, body, header := p.do("POST", "/login", nil); status != 200 || len(body) == 0 || strings.Contains(name, "cookie") && len(header["Set-Cookie"]) == 0 {
				t.Errorf("with off: status %d, %d bytes, %v", status, len(body), header)
			}
		})
	}
}

// An event reaches the caller before the next is made.
func TestAStreamOfEventsIsNotHeldBack(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	read := make(chan struct{})
	c, _ := poolBehind(t, issuer, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		if r.URL.Path == "/login" {
			http.SetCookie(w, &http.Cookie{Name: "access_token", Value: access})
			http.SetCookie(w, &http.Cookie{Name: "refresh_token", Value: refresh})
		}
		for range 3 {
			_, _ = io.WriteString(w, "data: x\n\n")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-read:
			case <-r.Context().Done():
				return
			}
		}
	})
	for _, path := range []string{"/login", "/logout"} {
		want := map[string]int{"/login": 1, "/logout": 0}[path]
		req, err := http.NewRequestWithContext(ruleTimeout(t), "POST", "http://"+c.Addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+access)
		resp, err := c.client.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		lines := bufio.NewScanner(resp.Body)
		for n := 0; lines.Scan(); {
			if lines.Text() != "data: x" {
				continue
			}
			if n++; n == 1 && poolSessions(t) != want { // it is looked at before anything goes on
				t.Errorf("%s: %d sessions", path, poolSessions(t))
			}
			read <- struct{}{}
		}
		if err := lines.Err(); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		resp.Body.Close()
	}
}
