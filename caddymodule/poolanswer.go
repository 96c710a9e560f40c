package caddymodule

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// heldAnswer keeps a short answer back until it is released; a longer one goes
// on as it comes.
type heldAnswer struct {
	caddyhttp.ResponseWriterWrapper
	status int
	body   []byte
	passed bool // too long, or switched away
}

func newHeldAnswer(w http.ResponseWriter) *heldAnswer {
	return &heldAnswer{ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
}

// successful reports whether a 2xx answer waits.
func (w *heldAnswer) successful() bool { return w.status >= 200 && w.status < 300 }

// whole reports whether all of the body is kept.
func (w *heldAnswer) whole() bool { return !w.passed }

// WriteHeader implements http.ResponseWriter.
func (w *heldAnswer) WriteHeader(status int) {
	switch {
	case status < 200 && status != http.StatusSwitchingProtocols:
		w.ResponseWriter.WriteHeader(status)
	case w.status != 0:
	case status < 200 || status >= 300:
		w.status, w.passed = status, true
		w.ResponseWriter.WriteHeader(status)
	default:
		w.status = status
	}
}

// Write implements io.Writer.
func (w *heldAnswer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.passed && len(w.body)+len(p) <= refresher.MaxAnswer {
		w.body = append(w.body, p...)
		return len(p), nil
	}
	if err := w.release(); err != nil {
		return 0, err
	}
	return w.ResponseWriter.Write(p)
}

// release lets go of what waits.
func (w *heldAnswer) release() error {
	if w.passed {
		return nil
	}
	w.passed = true
	if w.status == 0 {
		return nil
	}
	body := w.body
	w.body = nil
	w.ResponseWriter.WriteHeader(w.status)
	if len(body) == 0 {
		return nil
	}
	_, err := w.ResponseWriter.Write(body)
	return err
}

// Flush implements http.Flusher: what is held stays so.
func (w *heldAnswer) Flush() { _ = w.FlushError() }

// FlushError is what http.ResponseController calls to flush.
func (w *heldAnswer) FlushError() error {
	if !w.passed {
		return nil
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// withhold puts the handle in the refresh token's place.
func (h *Handler) withhold(held *heldAnswer, handle refresher.Secret, cookies bool) {
	if cookies {
		old := (&http.Response{Header: held.Header()}).Cookies()
		held.Header().Del("Set-Cookie")
		for _, c := range old {
			if c.Name == h.pool.Cookies.Refresh {
				c.Value = handle.Reveal()
			}
			held.Header().Add("Set-Cookie", c.String())
		}
		return
	}
	var obj map[string]json.RawMessage
	if json.Unmarshal(held.body, &obj) != nil {
		return // it was parsed before
	}
	text, _ := json.Marshal(handle.Reveal())
	for _, name := range h.pool.fields.Refresh {
		if _, ok := obj[name]; ok {
			obj[name] = text
		}
	}
	held.body, _ = json.Marshal(obj)
	header := held.Header()
	if header.Get("Content-Length") != "" {
		header.Set("Content-Length", strconv.Itoa(len(held.body)))
	}
	header.Del("Etag")
	header.Del("Digest")
	header.Del("Content-Digest")
	header.Del("Content-Md5")
}

// renewCookies gives a browser the current pair in place of the one it came
// with.
func (h *Handler) renewCookies(w http.ResponseWriter, r *http.Request, found presented) {
	held := refresher.Secret{}
	if c, err := r.Cookie(h.pool.Cookies.Refresh); err == nil {
		held = refresher.NewSecret(c.Value)
	}
	pair, err := found.member.Pair(r.Context(), held)
	if err != nil {
		return // it goes on with the one it has
	}
	h.setCookies(w, r, pair)
}

func (h *Handler) setCookies(w http.ResponseWriter, r *http.Request, pair refresher.Pair) {
	for _, c := range []struct {
		name  string
		value refresher.Secret
	}{{h.pool.Cookies.Access, pair.Access}, {h.pool.Cookies.Refresh, pair.Refresh}} {
		if c.value.IsZero() {
			continue
		}
		w.Header().Add("Set-Cookie", (&http.Cookie{
			Name: c.name, Value: c.value.Reveal(), Path: "/",
			HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteLaxMode,
		}).String())
	}
}

// swapCookie returns the Cookie fields with another access token and without the
// refresh token, which is the sidecar's business.
func (c carrier) swapCookie(values []string, token string) string {
	var out []string
	for _, value := range values {
		for part := range strings.SplitSeq(value, ";") {
			name, _, _ := strings.Cut(strings.TrimSpace(part), "=")
			switch name {
			case "":
			case c.cookie:
				out = append(out, name+"="+token)
			case c.other:
			default:
				out = append(out, strings.TrimSpace(part))
			}
		}
	}
	return strings.Join(out, "; ")
}
