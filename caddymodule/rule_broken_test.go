package caddymodule

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// net/http writes a request's trailers into its map when the body ends, also
// those that were not announced, and that may be while the request is sent again.
func TestTrailersOfRequestsThatAreSentAgain(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	var runs sync.Map // by the request's id
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, again := runs.LoadOrStore(r.Header.Get("X-Id"), true); !again {
			w.WriteHeader(401) // before the body has ended
			return
		}
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %v sum=%s token=%d %d", body, err, r.Trailer.Get("X-Sum"), len(r.Trailer["Authorization"]), len(r.Trailer["X_api_token"]))
	}))
	t.Cleanup(upstream.Close)
	c := ruleStart(t, ruleConfig{
		App:  ruleSession(issuer, rulePair(t, access, refresh)),
		Site: "token_refresh s\nreverse_proxy " + strings.TrimPrefix(upstream.URL, "http://"),
	})
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			conn, err := net.Dial("tcp", c.Addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprintf(conn, "POST /%d HTTP/1.1\r\nHost: %s\r\nX-Id: %d\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Authorization\r\nConnection: close\r\n\r\n3\r\nabc\r\n", i, c.Addr, i)
			<-time.After(time.Duration(i%20) * time.Millisecond) // some while the first run lasts, some later
			_, _ = io.WriteString(conn, "0\r\nX-Sum: 42\r\nAuthorization: Bearer EVIL\r\nX_Api_Token: EVIL\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(body) != "abc <nil> sum=42 token=0 0" {
				t.Errorf("%d %s %v", resp.StatusCode, body, err)
			}
		})
	}
	all.Wait()
}

// reverse_proxy panics when an answer breaks off; a 401 is one all the same.
func TestA401ThatBreaksOffIsSentAgain(t *testing.T) {
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer "+access || r.URL.Path == "/always" {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(401)
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(upstream.Close)
	c := ruleStart(t, ruleConfig{
		App:  ruleSession(issuer, rulePair(t, access, refresh)),
		Site: "token_refresh s\nreverse_proxy " + strings.TrimPrefix(upstream.URL, "http://"),
	})
	if status, body := c.get("/"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	if n := sb.Stats().Exchanges; n != 1 {
		t.Errorf("%d exchanges", n)
	}
	resp, err := c.client.Get("http://" + c.Addr + "/always")
	if err == nil {
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Error("half an answer passes as a whole one")
	}
}
