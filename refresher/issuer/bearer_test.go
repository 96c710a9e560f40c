package issuer

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// capture answers one request and returns its bytes.
func capture(t *testing.T, change func(*BearerConfig), p refresher.Pair) string {
	t.Helper()
	got, dial := captured()
	b := newBearer(t, "http://127.0.0.1:8080/User/RefreshToken?v=2", change)
	b.client.Dial = dial
	wantClass(t, prepare(t, b).Send(context.Background(), p), refresher.ClassUnknown)
	return <-got
}

func TestTheRequestByteForByte(t *testing.T) {
	const start = "POST /User/RefreshToken?v=2 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: caddy-token-refresh\r\nConnection: close\r\n"
	const length = "Content-Length: 43\r\nAccept: application/json\r\nAccept-Encoding: identity\r\n"
	bare, word := "", "Token"
	tests := []struct {
		name   string
		change func(*BearerConfig)
		pair   refresher.Pair
		want   string
	}{
		{
			name: "by default", pair: oldPair(),
			want: start + length + "Authorization: Bearer " + oldAccess + "\r\nContent-Type: application/json\r\nVersion: 2.0\r\n\r\n" +
				`{"refreshToken":"` + oldRefresh + `"}`,
		},
		{
			name: "with a bare token", pair: oldPair(),
			change: func(c *BearerConfig) { c.Scheme = &bare },
			want: start + length + "Authorization: " + oldAccess + "\r\nContent-Type: application/json\r\nVersion: 2.0\r\n\r\n" +
				`{"refreshToken":"` + oldRefresh + `"}`,
		},
		{
			name: "with another scheme", pair: oldPair(),
			change: func(c *BearerConfig) { c.Scheme = &word },
			want: start + length + "Authorization: Token " + oldAccess + "\r\nContent-Type: application/json\r\nVersion: 2.0\r\n\r\n" +
				`{"refreshToken":"` + oldRefresh + `"}`,
		},
		{
			name: "with headers of the caller's", pair: oldPair(),
			change: func(c *BearerConfig) {
				c.Header = http.Header{"version": {"3.0"}, "X-Api-Key": {"k"}, "Content-Type": {"application/json; charset=utf-8"}}
			},
			want: start + length + "Authorization: Bearer " + oldAccess + "\r\nContent-Type: application/json; charset=utf-8\r\nVersion: 3.0\r\nX-Api-Key: k\r\n\r\n" +
				`{"refreshToken":"` + oldRefresh + `"}`,
		},
		{
			name: "without the version", pair: oldPair(),
			change: func(c *BearerConfig) { c.Header = http.Header{"Version": nil} },
			want: start + length + "Authorization: Bearer " + oldAccess + "\r\nContent-Type: application/json\r\n\r\n" +
				`{"refreshToken":"` + oldRefresh + `"}`,
		},
		{
			name:   "with characters that JSON and HTML escape",
			change: func(c *BearerConfig) { c.RequestField = "rt" },
			pair:   refresher.Pair{Access: refresher.NewSecret("1|a,b"), Refresh: refresher.NewSecret(`a+/=<&>"\`)},
			want: start + "Content-Length: 20\r\nAccept: application/json\r\nAccept-Encoding: identity\r\nAuthorization: Bearer 1|a,b\r\nContent-Type: application/json\r\nVersion: 2.0\r\n\r\n" +
				`{"rt":"a+/=<&>\"\\"}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			change := tt.change
			if change == nil {
				change = func(*BearerConfig) {}
			}
			got := capture(t, change, tt.pair)
			if body := `{"refreshToken":"` + oldRefresh + `"}`; strings.HasSuffix(tt.want, body) {
				tt.want = strings.Replace(tt.want, "Content-Length: 43", contentLength(body), 1)
			}
			if got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestAPairThatCannotBeSent(t *testing.T) {
	tests := []struct {
		name            string
		access, refresh string
	}{
		{"lacks the access token", "", "r"},
		{"lacks the refresh token", "a", ""},
		{"has a line break in the access token", "a\r\nX: y", "r"},
		{"has a byte above ASCII in the access token", "a\xff", "r"},
		{"has a refresh token that is not UTF-8", "a", "r\xff"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			read := make(chan int64, 1)
			s := serveRaw(t, func(_ *rawServer, conn net.Conn, _ int) {
				n, _ := io.Copy(io.Discard, conn)
				read <- n
			})
			a := prepare(t, newBearer(t, s.url())).Send(context.Background(), refresher.Pair{
				Access: refresher.NewSecret(tt.access), Refresh: refresher.NewSecret(tt.refresh),
			})
			wantClass(t, a, refresher.ClassConfig)
			if n := <-read; n != 0 {
				t.Errorf("%d bytes were sent", n)
			}
		})
	}
}

func TestAnExchangeOverTLSHappensExactlyOnce(t *testing.T) {
	var requests atomic.Int32
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		body, _ := io.ReadAll(r.Body)
		if r.Header.Get("Authorization") != "Bearer "+oldAccess || string(body) != `{"refreshToken":"`+oldRefresh+`"}` {
			t.Errorf("got %v and %q", r.Header, body)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"accessToken":"`+newAccess+`","refreshToken":"`+newRefresh+`","expires_in":1200}`)
	}))
	defer srv.Close()
	_, roots := testCertificate(t)
	b := newBearer(t, srv.URL, func(c *BearerConfig) { c.TLS = tlsWith(roots) })
	a := send(t, b)
	wantClass(t, a, refresher.ClassOK)
	wantNewPair(t, a.Pair)
	if a.Status != 200 || a.Pair.ExpiresIn != 20*time.Minute || requests.Load() != 1 {
		t.Errorf("status %d, life %v, %d requests", a.Status, a.Pair.ExpiresIn, requests.Load())
	}
	if a.OffsetError == 0 || a.Offset.Abs() > 2*time.Second {
		t.Errorf("clock sample %v ± %v", a.Offset, a.OffsetError)
	}
}

// crypto/tls would send a request of this size as several records, of which the
// first may arrive and the others not.
func TestALargeRequestLeavesAtOnce(t *testing.T) {
	access := strings.Repeat("A", 15<<10)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+access {
			t.Errorf("the header arrived with %d bytes", len(r.Header.Get("Authorization")))
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"accessToken":"`+access+`"}`)
	}))
	defer srv.Close()
	_, roots := testCertificate(t)
	b := newBearer(t, srv.URL, func(c *BearerConfig) { c.TLS = tlsWith(roots) })
	var wire *countedConn
	b.client.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		wire = &countedConn{Conn: conn}
		return wire, err
	}
	ex := prepare(t, b)
	wire.writes.Store(0)
	a := ex.Send(context.Background(), refresher.Pair{Access: refresher.NewSecret(access), Refresh: refresher.NewSecret("r")})
	wantClass(t, a, refresher.ClassOK)
	if n := wire.writes.Load(); n != 1 {
		t.Errorf("the request left in %d writes", n)
	}
}

type countedConn struct {
	net.Conn
	writes atomic.Int32
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

func TestTheProfileOfABearerIssuer(t *testing.T) {
	b, err := NewBearer(BearerConfig{URL: "https://issuer.example/", Profile: refresher.Profile{RevokesPrevious: true, HoldOff: time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	want := refresher.Profile{RevokesPrevious: true, NeedsAccess: true, HoldOff: time.Second, Timeout: DefaultTimeout}
	if b.Profile() != want {
		t.Errorf("got %+v", b.Profile())
	}
	if (&Client{}).timeout() != DefaultTimeout {
		t.Error("a client without a timeout has another")
	}
}
