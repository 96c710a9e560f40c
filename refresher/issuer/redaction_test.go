package issuer

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// assertSilent prints v in every way there is and looks for a canary, also in
// the forms that encoders make of it.
func assertSilent(t *testing.T, what string, v any) {
	t.Helper()
	var texts []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		texts = append(texts, fmt.Sprintf(verb, v))
	}
	if enc, err := json.Marshal(v); err == nil {
		texts = append(texts, string(enc))
	}
	for _, text := range texts {
		for _, form := range []string{
			"canary",
			fmt.Sprintf("%x", "canary"),
			strings.Trim(fmt.Sprint([]byte("canary")), "[]"),
			base64.StdEncoding.EncodeToString([]byte("canary"))[:8],
		} {
			if strings.Contains(strings.ToLower(text), strings.ToLower(form)) {
				t.Errorf("%s prints %q", what, text)
			}
		}
	}
}

func TestNothingPrintsASecret(t *testing.T) {
	key := http.Header{"X-Key": {"canary-key"}}
	secret := refresher.NewSecret("canary")
	b := newBearer(t, "https://issuer.example/?key=canary", func(c *BearerConfig) { c.Header = key })
	l, err := NewLogin(LoginConfig{URL: "https://issuer.example/?key=canary", Body: refresher.NewSecret(`"canary"`), Header: key})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{
		b, l,
		BearerConfig{Header: key}, LoginConfig{Password: secret, Header: key}, &LoginConfig{Username: secret},
		Request{Authorization: secret, Header: key, Body: secret},
		Outcome{Header: key, Body: secret},
	} {
		assertSilent(t, fmt.Sprintf("%T", v), v)
	}
}

// An issuer that repeats what it was sent, wherever an error text might pick it
// up: each of these is an error of net/http's that quotes its input.
func TestNoAnswerPrintsASecret(t *testing.T) {
	const echo = oldRefresh + " " + newAccess
	answers := []string{
		goodHead + goodBody,
		"HTTP/1.1 200 " + echo + "\r\n\r\n" + echo,
		"HTTP/1.1 400 " + echo + "\r\nX: " + echo + "\r\n\r\n" + `{"error":"` + echo + `","error_description":"` + echo + `"}`,
		"HTTP/1.1 400 x\r\n\r\n" + `{"error":"invalid_grant","error_description":"` + echo + `"}`,
		"HTTP/1.1 307 x\r\nLocation: https://host.example/" + url.PathEscape(echo) + "\r\n\r\n",
		"HTTP/1.1 307 x\r\nLocation: https://" + echo + "/\r\n\r\n",
		"HTTP/1.1 " + echo + "\r\n\r\n",
		echo + "\r\n\r\n",
		"HTTP/" + newAccess + " 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\n" + echo + "\r\n\r\n",
		"HTTP/1.1 200 OK\r\n" + newAccess + ": x\r\n " + echo + "\r\nContent-Length: " + newAccess + "\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + newAccess + "\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + echo + "\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + echo + "\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Type: " + echo + "\r\n\r\n" + goodBody,
		"HTTP/1.1 200 OK\r\nContent-Encoding: " + echo + "\r\n\r\n" + goodBody,
		"HTTP/1.1 200 OK\r\nRetry-After: " + echo + "\r\nDate: " + echo + "\r\n\r\n" + echo,
		goodHead + `{"accessToken":["` + echo + `"]}`,
		goodHead + `{"accessToken":"` + echo + `"}`,
		goodHead + `{"` + echo + `":1,"` + echo + `":2}`,
		goodHead + `{"accessToken":"` + echo,
	}
	for _, answer := range answers {
		s := serveRaw(t, func(s *rawServer, conn net.Conn, _ int) {
			if s.readRequest(conn) {
				_, _ = io.WriteString(conn, answer)
			}
		})
		a := send(t, newBearer(t, s.url()))
		assertSilent(t, "the answer", a)
		assertSilent(t, "its pointer", &a)
		if a.Err != nil {
			assertSilent(t, "its error", a.Err)
		}
		_, err := newLogin(t, s.url()).Fetch(t.Context())
		assertSilent(t, "the login's error", err)
	}
}
