package issuer

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// FuzzResponse reads arbitrary bytes as an issuer's answer. Whatever they are,
// the answer has a class, a usable pair comes only with header-safe tokens, and
// nothing that comes back is larger than promised.
func FuzzResponse(f *testing.F) {
	for _, seed := range []string{
		goodHead + goodBody,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{\"token\":\r\n4\r\n\"a\"}\r\n0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"token\":\"a\"}",
		"HTTP/1.1 400 Bad Request\r\nContent-Length: 25\r\n\r\n{\"error\":\"invalid_grant\"}",
		"HTTP/1.1 503 x\r\nRetry-After: 5\r\nDate: Sun, 22 Nov 2026 04:00:00 GMT\r\n\r\n",
		"HTTP/1.1 307 x\r\nLocation: https://a/\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx",
		"HTTP/1.0 204 x\n\n",
		"",
	} {
		f.Add([]byte(seed))
	}
	now := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	r := reader{host: "issuer.example", dialect: bearerEndpoint, fields: refresher.DefaultFields()}
	f.Fuzz(func(t *testing.T, data []byte) {
		o := Outcome{Written: 1, SentAt: now}
		readAnswer(bytes.NewReader(data), &o)
		a := r.answer(o)
		if a.Class == 0 || a.Class == refresher.ClassNotSent || (a.Err == nil) != (a.Class == refresher.ClassOK) {
			t.Fatalf("class %v with error %v", a.Class, a.Err)
		}
		if len(a.Raw.Reveal()) > refresher.MaxAnswer || a.RetryAfter < 0 || a.RetryAfter > maxRetryAfter {
			t.Fatalf("kept %d bytes, retry after %v", len(a.Raw.Reveal()), a.RetryAfter)
		}
		if a.Class != refresher.ClassOK {
			return
		}
		access := a.Pair.Access.Reveal()
		if access == "" || !fieldSafe(access) || strings.ContainsAny(access, " \t,\"") {
			t.Fatalf("the access token %q is not safe in a header", access)
		}
	})
}

// FuzzRetryAfter: never negative, never above a day, and never a guess.
func FuzzRetryAfter(f *testing.F) {
	for _, seed := range []string{"", "5", "-5", "1e3", "99999999999999999999", "Sun, 22 Nov 2026 04:00:00 GMT", "Sunday, 22-Nov-26 04:00:00 GMT"} {
		f.Add(seed, "Sun, 22 Nov 2026 03:59:00 GMT")
		f.Add(seed, "")
	}
	now := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, value, date string) {
		d := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}, now)
		if d < 0 || d > maxRetryAfter || d%time.Second != 0 {
			t.Fatalf("%q gives %v", value, d)
		}
		if d > 0 && !strings.ContainsAny(value, "0123456789") {
			t.Fatalf("%q gives %v", value, d)
		}
	})
}
