package issuer

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

const password = "canary-password-Hj2"

func newLogin(t *testing.T, url string) *Login {
	t.Helper()
	l, err := NewLogin(LoginConfig{
		URL:      url,
		Username: refresher.NewSecret("billing"),
		Password: refresher.NewSecret(password),
		Header:   http.Header{"Version": {"2.0"}},
		Timeout:  5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestALoginSendsItsBodyAndReadsThePair(t *testing.T) {
	tests := []struct {
		name string
		cfg  LoginConfig
		want string
	}{
		{
			name: "from a user name and a password",
			cfg:  LoginConfig{Username: refresher.NewSecret("billing"), Password: refresher.NewSecret(`p"<&`)},
			want: `{"password":"p\"<&","username":"billing"}`,
		},
		{
			name: "from a body as it is",
			cfg:  LoginConfig{Body: refresher.NewSecret(`{ "key": "k" }`), Header: http.Header{"Authorization": {"Basic x"}}},
			want: `{ "key": "k" }`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if string(body) != tt.want || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
					t.Errorf("got %s %v %q", r.Method, r.Header, body)
				}
				if r.Header.Get("Authorization") != tt.cfg.Header.Get("Authorization") {
					t.Errorf("got Authorization %q", r.Header.Get("Authorization"))
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, goodBody)
			}))
			defer srv.Close()
			tt.cfg.URL = srv.URL + "/User/Login?x=y"
			l, err := NewLogin(tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			p, err := l.Fetch(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			wantNewPair(t, p)
			if !l.SignsIn() || l.String() != "login "+srv.URL+"/User/Login" {
				t.Errorf("it is called %q", l)
			}
		})
	}
}

func TestWhenALoginIsTriedAgain(t *testing.T) {
	json := "Content-Type: application/json\r\n"
	tests := []struct {
		name, answer string
		slow         bool
		after        time.Duration
	}{
		{name: "soon after no answer", answer: ""},
		{name: "soon after half an answer", answer: "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"},
		{name: "soon after 408", answer: "HTTP/1.1 408 x\r\nContent-Length: 0\r\n\r\n"},
		{name: "as asked after 429", answer: "HTTP/1.1 429 x\r\nRetry-After: 90\r\nContent-Length: 0\r\n\r\n", after: 90 * time.Second},
		{name: "soon after 500", answer: "HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n"},
		{name: "soon after 502", answer: "HTTP/1.1 502 x\r\nContent-Length: 0\r\n\r\n"},
		{name: "as asked after 503", answer: "HTTP/1.1 503 x\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n", after: 5 * time.Second},
		{name: "slowly after a redirect", answer: "HTTP/1.1 302 x\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", slow: true},
		{name: "slowly after 400", answer: "HTTP/1.1 400 x\r\nContent-Length: 0\r\n\r\n", slow: true},
		{name: "slowly after 400 invalid_grant", answer: "HTTP/1.1 400 x\r\nContent-Length: 25\r\n\r\n" + `{"error":"invalid_grant"}`, slow: true},
		{name: "slowly after 401", answer: "HTTP/1.1 401 x\r\nContent-Length: 0\r\n\r\n", slow: true},
		{name: "slowly after 403", answer: "HTTP/1.1 403 x\r\nContent-Length: 0\r\n\r\n", slow: true},
		{name: "slowly after 404", answer: "HTTP/1.1 404 x\r\nContent-Length: 0\r\n\r\n", slow: true},
		{name: "slowly after a success that says otherwise", answer: "HTTP/1.1 200 OK\r\n" + json + "\r\n" + `{"result":false,"message":"wrong password"}`, slow: true},
		{name: "slowly after a pair without a refresh token", answer: "HTTP/1.1 200 OK\r\n" + json + "\r\n" + `{"accessToken":"a"}`, slow: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serveRaw(t, func(s *rawServer, conn net.Conn, _ int) {
				if s.readRequest(conn) {
					_, _ = io.WriteString(conn, tt.answer)
				}
			})
			_, err := newLogin(t, s.url()).Fetch(context.Background())
			retry, ok := errors.AsType[*refresher.RetryError](err)
			if !ok {
				t.Fatalf("got %v", err)
			}
			if retry.Slow != tt.slow || retry.After != tt.after {
				t.Errorf("slow %v, after %v (%v)", retry.Slow, retry.After, err)
			}
			if strings.Contains(err.Error(), password) || strings.Contains(err.Error(), "wrong") {
				t.Errorf("error %q tells too much", err)
			}
			if n := s.requests.Load(); n != 1 {
				t.Errorf("the server saw %d requests", n)
			}
		})
	}
}

func TestALoginIsTriedAgainSoonWhileTheServerIsNotUp(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	_, err = newLogin(t, "http://"+ln.Addr().String()).Fetch(context.Background())
	if retry, ok := errors.AsType[*refresher.RetryError](err); !ok || retry.Slow {
		t.Errorf("got %#v", err)
	}
}
