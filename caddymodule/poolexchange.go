package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// exchange answers a caller that refreshes for itself with the current pair of
// its session. A refresh token that the pool does not know passes through, and
// what it is exchanged for is learned.
func (h *Handler) exchange(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	asked, err := h.readExchange(r)
	if err != nil {
		return err
	}
	if asked.unread {
		return caddyhttp.Error(http.StatusRequestEntityTooLarge,
			fmt.Errorf("pool %q: a refresh call that cannot be looked at is not passed on", h.Session))
	}
	pool := h.pool.shared
	who := h.caller(r)
	m, kind, known, err := pool.Find(asked.refresh, who)
	switch {
	case kind == refresher.SpentToken:
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		return caddyhttp.Error(http.StatusUnauthorized, fmt.Errorf("pool %q: this refresh token is spent: sign in again", h.Session))
	case !known || kind != refresher.RefreshToken:
		return h.learn(w, r, next, refresher.Pair{Access: refresher.NewSecret(asked.access), Refresh: refresher.NewSecret(asked.refresh)})
	case err != nil:
		return h.otherCaller(r, err)
	}
	if h.pool.issuer.Profile().NeedsAccess || asked.access != "" {
		owner, kind, known, err := pool.Find(asked.access, who)
		if err != nil {
			return h.otherCaller(r, err)
		}
		if !known || kind != refresher.AccessToken || !owner.Same(m) {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			return caddyhttp.Error(http.StatusUnauthorized,
				fmt.Errorf("pool %q: a refresh token without an access token of its session", h.Session))
		}
	}
	pair, err := m.Pair(r.Context(), refresher.NewSecret(asked.refresh))
	var unavailable *refresher.Unavailable
	switch {
	case errors.Is(err, refresher.ErrForgotten), errors.As(err, &unavailable) && unavailable.Lost != "":
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		return caddyhttp.Error(http.StatusUnauthorized, fmt.Errorf("pool %q: this session has ended: sign in again", h.Session))
	case err != nil:
		if r.Context().Err() == nil && unavailable == nil {
			h.logger.Error("a caller's pair could not be kept", zap.String("pool", h.Session), zap.Error(err))
			err = &refresher.Unavailable{Session: h.Session, RetryAfter: time.Second}
		}
		return h.unavailable(w, err)
	}
	h.metrics.passed.Add(1)
	if asked.cookies {
		h.setCookies(w, r, pair)
	}
	return h.answerPair(w, pair)
}

// askedExchange is a caller's refresh call.
type askedExchange struct {
	refresh, access string
	cookies         bool // the refresh token came in one
	unread          bool // the body is too long, or encoded: who knows what is in it
}

// readExchange reads a refresh call as 7G, OAuth 2.0 and FusionAuth have it, and
// leaves the request as it was.
func (h *Handler) readExchange(r *http.Request) (asked askedExchange, err error) {
	if r.Body != nil {
		body, err := io.ReadAll(io.LimitReader(r.Body, refresher.MaxAnswer+1))
		if err != nil {
			return asked, caddyhttp.Error(http.StatusBadRequest, err)
		}
		rest := r.Body
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(body), rest), rest}
		text, err := decompressed(strings.Join(r.Header["Content-Encoding"], ","), body)
		asked.unread = err != nil || len(body) > refresher.MaxAnswer
		if !asked.unread {
			asked = h.parseExchange(r.Header.Get("Content-Type"), text)
			if !h.pool.isRefresh(asked.refresh) {
				h.pool.search(&asked, text)
			}
		}
	}
	if !h.pool.isRefresh(asked.refresh) {
		h.pool.search(&asked, []byte(r.URL.RawQuery))
	}
	if token, ok := h.carrier.token(r.Header); ok {
		asked.access = token
	}
	if c, err := r.Cookie(h.pool.Cookies.Access); err == nil && asked.access == "" {
		asked.access = c.Value
	}
	if c, err := r.Cookie(h.pool.Cookies.Refresh); err == nil && (asked.refresh == "" || !h.pool.isRefresh(asked.refresh) && h.pool.isRefresh(c.Value)) {
		asked.refresh, asked.cookies = c.Value, true
	}
	return asked, nil
}

func (h *Handler) parseExchange(contentType string, body []byte) (asked askedExchange) {
	kind, _, _ := mime.ParseMediaType(contentType)
	if kind == "application/x-www-form-urlencoded" {
		form, err := url.ParseQuery(string(body))
		if err == nil && form.Get("grant_type") == "refresh_token" {
			asked.refresh = form.Get("refresh_token")
		}
		return asked
	}
	asked.access, asked.refresh = refresher.ParseExchange(body, h.pool.fields)
	return asked
}

// answerPair answers as the issuer would.
func (h *Handler) answerPair(w http.ResponseWriter, pair refresher.Pair) error {
	names := h.pool.names
	answer := map[string]any{names.access: pair.Access.Reveal(), names.refresh: pair.Refresh.Reveal()}
	if names.expiresIn != "" {
		answer["token_type"] = "Bearer"
		if pair.ExpiresIn > 0 {
			answer[names.expiresIn] = int64(math.Floor(pair.ExpiresIn.Seconds()))
		}
		if !pair.ID.IsZero() {
			answer["id_token"] = pair.ID.Reveal()
		}
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
	_, err = w.Write(body)
	return err
}
