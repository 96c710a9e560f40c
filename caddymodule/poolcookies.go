package caddymodule

import (
	"net/http"
	"slices"
	"strings"
	"sync"

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

// setCookies sets a pair's cookies with the path and domain that the last login
// at the same host had: others would stand beside those of the login, not in their
// place.
func (h *Handler) setCookies(w http.ResponseWriter, r *http.Request, pair refresher.Pair) {
	w.Header().Add("Cache-Control", "no-store") // whatever the upstream says beside it
	for _, c := range []struct {
		name  string
		value refresher.Secret
	}{{h.pool.Cookies.Access, pair.Access}, {h.pool.Cookies.Refresh, pair.Refresh}} {
		if c.name == "" || c.value.IsZero() {
			continue
		}
		cookie := h.pool.shared.cookies.form(r.Host, c.name)
		cookie.Name, cookie.Value = c.name, c.value.Reveal()
		cookie.Secure = cookie.Secure || r.TLS != nil
		w.Header().Add("Set-Cookie", cookie.String())
	}
}

// cookieForms are the attributes of the cookies that logins set, by host and
// name. How long a cookie lives is left out: that was its caller's choice.
type cookieForms struct {
	mu    sync.Mutex
	forms map[[2]string]http.Cookie
}

// maxCookieForms bounds the hosts; past it the default serves.
const maxCookieForms = 1000

func (f *cookieForms) form(host, name string) http.Cookie {
	f.mu.Lock()
	defer f.mu.Unlock()
	if form, ok := f.forms[[2]string{host, name}]; ok {
		return form
	}
	return http.Cookie{Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode}
}

func (f *cookieForms) remember(host string, header http.Header, names ...string) {
	for _, c := range (&http.Response{Header: header}).Cookies() {
		if !slices.Contains(names, c.Name) || c.Value == "" {
			continue
		}
		form := http.Cookie{
			Path: c.Path, Domain: c.Domain, Secure: c.Secure, HttpOnly: c.HttpOnly, SameSite: c.SameSite, Partitioned: c.Partitioned,
		}
		if c.Path == "" {
			form.Path = "/" // what the login's own path would make of it is not known here
		}
		f.mu.Lock()
		if f.forms == nil {
			f.forms = map[[2]string]http.Cookie{}
		}
		if at := [2]string{host, c.Name}; len(f.forms) < maxCookieForms || f.forms[at].Path != "" {
			f.forms[at] = form
		}
		f.mu.Unlock()
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
