package issuer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

const userAgent = "caddy-token-refresh"

// Request is what a connection sends. It does not print its contents.
type Request struct {
	// Method is GET, DELETE or POST; "" is POST.
	Method string

	// Authorization is the whole value of that field; empty: none is sent.
	Authorization refresher.Secret

	// Header holds further fields. Accept is application/json unless it stands
	// here, and so is Content-Type where there is a body.
	Header http.Header `json:"-"`

	// Body is what is sent; none if it is empty.
	Body refresher.Secret
}

// Format implements [fmt.Formatter]: headers can hold keys, too.
func (r Request) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "issuer.Request[redacted]") }

var errHeaderUnsafe = errors.New("the access token cannot stand in a header field")

// serialise renders the request in full, so that one Write sends it. There is
// no Accept-Encoding (a compressed answer has no bound on its size), no Referer,
// and no Expect.
func (r Request) serialise(u *url.URL) ([]byte, error) {
	h := http.Header{}
	h.Set("Accept", "application/json")
	h.Set("Accept-Encoding", "identity") // without it a server may compress (RFC 9110 section 12.5.3)
	if !r.Body.IsZero() {
		h.Set("Content-Type", "application/json")
	}
	for name, values := range r.Header {
		h[name] = values
	}
	if auth := r.Authorization.Reveal(); auth != "" {
		// net/http would replace a line break by a space and send the rest.
		if !fieldSafe(auth) {
			return nil, errHeaderUnsafe
		}
		h.Set("Authorization", auth)
	}
	h.Set("User-Agent", userAgent)
	method := r.Method
	if method == "" {
		method = http.MethodPost
	}
	req := &http.Request{
		Method: method,
		URL:    u,
		Host:   u.Host,
		Header: h,
		Body:   http.NoBody, // with POST: Content-Length: 0
		Close:  true,
	}
	if body := r.Body.Reveal(); body != "" {
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	}
	var buf bytes.Buffer
	if err := req.Write(&buf); err != nil {
		return nil, fmt.Errorf("serialise the request: %w", err)
	}
	return buf.Bytes(), nil
}

// fieldSafe reports whether text can be a field value (RFC 9110 section 5.5),
// narrowed to ASCII.
func fieldSafe(text string) bool {
	for i := range len(text) {
		if c := text[i]; (c < ' ' && c != '\t') || c >= 0x7f {
			return false
		}
	}
	return true
}
