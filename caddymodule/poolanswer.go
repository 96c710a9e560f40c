package caddymodule

import (
	"net/http"
	"strings"

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
