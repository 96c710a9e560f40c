package caddymodule

import (
	"net/http"
	"strings"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

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

// setCookies sets a pair's cookies as the last login of the pool had them: one
// with another path or domain would stand beside that one, not in its place.
func (h *Handler) setCookies(w http.ResponseWriter, r *http.Request, pair refresher.Pair) {
	w.Header().Add("Cache-Control", "no-store") // whatever the upstream says beside it
	for _, c := range []struct {
		name  string
		value refresher.Secret
	}{{h.pool.Cookies.Access, pair.Access}, {h.pool.Cookies.Refresh, pair.Refresh}} {
		if c.name == "" || c.value.IsZero() {
			continue
		}
		cookie := http.Cookie{Path: "/", HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteLaxMode}
		if form, ok := h.pool.shared.cookies.Load(c.name); ok {
			cookie = form.(http.Cookie)
		}
		cookie.Name, cookie.Value = c.name, c.value.Reveal()
		w.Header().Add("Set-Cookie", cookie.String())
	}
}

// rememberCookies remembers the attributes of a login's cookies, not what they
// hold.
func (p *Pool) rememberCookies(header http.Header) {
	for _, c := range (&http.Response{Header: header}).Cookies() {
		if c.Name != p.Cookies.Access && c.Name != p.Cookies.Refresh || c.Value == "" {
			continue
		}
		form := http.Cookie{
			Path: c.Path, Domain: c.Domain, MaxAge: c.MaxAge, Secure: c.Secure, HttpOnly: c.HttpOnly,
			SameSite: c.SameSite, Partitioned: c.Partitioned,
		}
		if c.MaxAge == 0 && !c.Expires.IsZero() {
			form.MaxAge = int(time.Until(c.Expires).Seconds())
		}
		if c.Path == "" {
			form.Path = "/" // what the login's own path would make of it is not known here
		}
		p.shared.cookies.Store(c.Name, form)
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
