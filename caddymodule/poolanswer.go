package caddymodule

import (
	"bytes"
	"encoding/json"
	"io"
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

// ReadFrom implements io.ReaderFrom: what is copied does not go around Write.
func (w *heldAnswer) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{w}, r)
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

// withhold puts the handle in the refresh token's place, wherever in the answer
// that stands: issuers send it as JSON and as a cookie at once.
func (h *Handler) withhold(held *heldAnswer, refresh, handle refresher.Secret) {
	header := held.Header()
	for i, line := range header["Set-Cookie"] {
		name, rest, _ := strings.Cut(line, "=")
		value, attributes, more := strings.Cut(rest, ";")
		if strings.TrimSpace(name) != h.pool.Cookies.Refresh || strings.Trim(value, ` "`) == "" {
			continue // the others stay as they are, to the byte
		}
		if line = name + "=" + handle.Reveal(); more {
			line += ";" + attributes
		}
		header["Set-Cookie"][i] = line
	}
	for _, values := range header {
		for i, value := range values {
			values[i] = strings.ReplaceAll(value, refresh.Reveal(), handle.Reveal())
		}
	}
	if !held.whole() {
		return // a pair in cookies, and its body has gone on
	}
	dec := json.NewDecoder(bytes.NewReader(held.body))
	dec.UseNumber()
	var body any
	if dec.Decode(&body) == nil && h.pool.replaced(&body, refresh.Reveal(), handle.Reveal()) {
		held.body, _ = json.Marshal(body)
	} else if bytes.Contains(held.body, []byte(refresh.Reveal())) { // a page, say
		held.body = bytes.ReplaceAll(held.body, []byte(refresh.Reveal()), []byte(handle.Reveal()))
	} else {
		return
	}
	if header.Get("Content-Length") != "" {
		header.Set("Content-Length", strconv.Itoa(len(held.body)))
	}
	for _, name := range []string{"Etag", "Digest", "Content-Digest", "Repr-Digest", "Content-Md5"} {
		header.Del(name)
	}
}

// replaced puts the handle in the place of each string that is the refresh token,
// or has its name at the top.
func (p *Pool) replaced(v *any, refresh, handle string) (found bool) {
	if obj, ok := (*v).(map[string]any); ok {
		for _, name := range p.fields.Refresh {
			if text, ok := obj[name].(string); ok && text != "" {
				obj[name], found = handle, true
			}
		}
	}
	return replaceStrings(v, refresh, handle) || found
}

func replaceStrings(v *any, old, with string) (found bool) {
	switch x := (*v).(type) {
	case string:
		if found = strings.Contains(x, old); found {
			*v = strings.ReplaceAll(x, old, with)
		}
	case []any:
		for i := range x {
			found = replaceStrings(&x[i], old, with) || found
		}
	case map[string]any:
		for name, value := range x {
			if replaceStrings(&value, old, with) {
				x[name], found = value, true
			}
		}
	}
	return found
}

// renewCookies gives a browser the current pair in place of the one it came
// with. One that came without a refresh token of the session gets none.
func (h *Handler) renewCookies(w http.ResponseWriter, r *http.Request, found presented) {
	held := refresher.Secret{}
	if c, err := r.Cookie(h.pool.Cookies.Refresh); err == nil {
		m, kind, known, err := h.pool.shared.Find(c.Value, h.caller(r))
		if known && err == nil && kind == refresher.RefreshToken && m.Same(found.member) {
			held = refresher.NewSecret(c.Value)
		}
	}
	pair, err := found.member.Pair(r.Context(), held)
	if err != nil {
		return // it goes on with the one it has
	}
	if held.IsZero() {
		pair.Refresh = held
	}
	h.setCookies(w, r, pair)
}

func (h *Handler) setCookies(w http.ResponseWriter, r *http.Request, pair refresher.Pair) {
	w.Header().Add("Cache-Control", "no-store") // whatever the upstream says beside it
	for _, c := range []struct {
		name  string
		value refresher.Secret
	}{{h.pool.Cookies.Access, pair.Access}, {h.pool.Cookies.Refresh, pair.Refresh}} {
		if c.name == "" || c.value.IsZero() {
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
