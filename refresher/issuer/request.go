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

// Request is what a connection sends: always a POST, always with a body. It
// does not print its contents.
type Request struct {
	// Authorization is the whole value of that field; empty: none is sent.
	Authorization refresher.Secret

	// Header holds further fields. Content-Type and Accept are application/json
	// unless they stand here.
	Header http.Header `json:"-"`

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
	h.Set("Content-Type", "application/json")
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
	body := r.Body.Reveal()
	req := &http.Request{
		Method:        http.MethodPost,
		URL:           u,
		Host:          u.Host,
		Header:        h,
		Body:          io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)),
		Close:         true,
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
