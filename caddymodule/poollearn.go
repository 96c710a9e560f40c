package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// learn passes a request on and opens a session with the pair that its answer
// holds.
//
// former is what was presented for it, where it is a caller's own refresh call.
func (h *Handler) learn(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, former refresher.Pair) error {
	ctx := r.Context()
	r = r.Clone(ctx)
	r.Header.Set("Accept-Encoding", "identity") // the answer is to be read
	var held *heldAnswer
	held = newHeldAnswer(w, func() error { return h.learnFrom(ctx, r.Host, held, former) })
	return held.serve(r, next)
}

// learnFrom learns from an answer before it goes on. Where refresh tokens are
// withheld, none goes on that is not: an error is answered in its place.
func (h *Handler) learnFrom(ctx context.Context, host string, held *heldAnswer, former refresher.Pair) error {
	withhold := h.pool.withholds()
	text, unreadable := held.text()
	if withhold && unreadable != nil {
		return h.notWithheld(unreadable)
	}
	pair := h.learned(held.Header(), text)
	switch {
	case !pair.Access.IsZero():
	case withhold && h.pool.holdsRefresh(held.Header(), text):
		return h.notWithheld(errors.New("it holds a refresh token, but no pair where one is looked for (see fields and cookies)"))
	case unreadable != nil:
		h.logger.Warn("a login passed by that is not learned: its answer cannot be read", zap.String("pool", h.Session), zap.Error(unreadable))
		return nil
	default:
		return nil
	}
	if h.pool.jwks != nil {
		if err := h.pool.jwks.VerifyToken(ctx, pair.Access); err != nil {
			if withhold {
				return h.notWithheld(err)
			}
			h.logger.Warn("a login passed by that is not learned", zap.String("pool", h.Session), zap.Error(err))
			return nil
		}
	}
	_, handle, err := h.pool.shared.Learn(ctx, pair, former)
	if err != nil {
		if withhold && handle.IsZero() {
			return h.notWithheld(err)
		}
		h.logger.Error("a login passed by that could not be learned", zap.String("pool", h.Session), zap.Error(err))
		if handle.IsZero() { // the caller has the true tokens and can go on by itself
			return nil
		}
	}
	h.pool.shared.cookies.remember(host, held.Header(), h.pool.Cookies.Access, h.pool.Cookies.Refresh)
	if !handle.IsZero() {
		h.withhold(held, text, pair.Refresh, handle)
	}
	held.Header().Set("Cache-Control", "no-store")
	return nil
}

// notWithheld is what a caller gets in place of an answer whose refresh token
// would have reached it.
func (h *Handler) notWithheld(why error) error {
	h.logger.Error("a login's answer was not passed on: with withhold_refresh_token its refresh token must not reach the caller, and it could not be replaced",
		zap.String("pool", h.Session), zap.Error(why))
	return caddyhttp.Error(http.StatusBadGateway,
		fmt.Errorf("pool %q: an answer whose refresh token could not be withheld is not passed on: %w", h.Session, why))
}

func (p *Pool) withholds() bool { return p.WithholdRefreshToken != nil && *p.WithholdRefreshToken }

// refreshMember finds a member with one of those names, wherever it stands, that
// holds a text.
func refreshMember(names []string) *regexp.Regexp {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = regexp.QuoteMeta(name)
	}
	return regexp.MustCompile(`(?i)"(?:` + strings.Join(quoted, "|") + `)"\s*:\s*"[^"]`)
}

// holdsRefresh reports whether an answer that is not learned seems to hold a
// refresh token all the same: nested deeper, or without an access token.
func (p *Pool) holdsRefresh(header http.Header, text []byte) bool {
	for _, c := range (&http.Response{Header: header}).Cookies() {
		if c.Name == p.Cookies.Refresh && c.Value != "" && c.MaxAge >= 0 {
			return true
		}
	}
	return p.refreshMember.Match(text)
}

// learned reads the pair of an answer: of its JSON, else of its cookies.
func (h *Handler) learned(header http.Header, text []byte) (pair refresher.Pair) {
	if strings.Contains(header.Get("Content-Type"), "json") {
		pair, err := refresher.ParsePair(text, h.pool.fields)
		if err == nil && !pair.Refresh.IsZero() {
			return pair
		}
	}
	for _, c := range (&http.Response{Header: header}).Cookies() {
		switch c.Name {
		case h.pool.Cookies.Access:
			pair.Access = refresher.NewSecret(c.Value)
		case h.pool.Cookies.Refresh:
			pair.Refresh = refresher.NewSecret(c.Value)
		}
	}
	if pair.Access.IsZero() || pair.Refresh.IsZero() {
		return refresher.Pair{}
	}
	return pair
}

// withhold puts the handle in the refresh token's place, wherever in the answer
// that stands: issuers send it as JSON and as a cookie at once.
func (h *Handler) withhold(held *heldAnswer, text []byte, refresh, handle refresher.Secret) {
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
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var body any
	if dec.Decode(&body) == nil && h.pool.replaced(&body, refresh.Reveal(), handle.Reveal()) {
		held.body, _ = json.Marshal(body)
	} else if bytes.Contains(text, []byte(refresh.Reveal())) { // a page, say
		held.body = bytes.ReplaceAll(text, []byte(refresh.Reveal()), []byte(handle.Reveal()))
	} else {
		return
	}
	if header.Get("Content-Length") != "" {
		header.Set("Content-Length", strconv.Itoa(len(held.body)))
	}
	for _, name := range []string{"Content-Encoding", "Etag", "Digest", "Content-Digest", "Repr-Digest", "Content-Md5"} {
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
