package caddymodule

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// isRefresh reports whether that is a refresh token of one of the pool's sessions.
func (p *Pool) isRefresh(token string) bool {
	_, kind, known, _ := p.shared.Find(token, 0)
	return known && kind == refresher.RefreshToken
}

// search looks for a refresh token of the pool's in a text that is not, or not
// quite, what a refresh call looks like: names in another case, one twice, a form
// or a query instead of JSON, XML. An issuer may well take it, and a spent one
// that gets there ends the session. It is far from a parser: whatever could be a
// token is looked up.
func (p *Pool) search(asked *askedExchange, text []byte) {
	look := func(token string) {
		if len(token) < leastToken {
			return
		}
		_, kind, known, _ := p.shared.Find(token, 0)
		switch {
		case !known:
		case kind == refresher.RefreshToken:
			asked.refresh = token
		case asked.access == "":
			asked.access = token
		}
	}
	dec := json.NewDecoder(bytes.NewReader(text)) // which may spell a token in many ways
	for {
		token, err := dec.Token()
		if err != nil {
			break
		}
		if s, ok := token.(string); ok {
			look(s)
		}
	}
	for _, word := range strings.FieldsFunc(string(text), func(c rune) bool {
		return c <= ' ' || c > '~' || strings.ContainsRune(`"'<>,;{}[]()&=`, c)
	}) {
		look(word)
		if strings.ContainsAny(word, "%+") {
			if s, err := url.QueryUnescape(word); err == nil {
				look(s)
			}
		}
	}
	for pair := range strings.SplitSeq(string(text), "&") { // where "=" is part of the token
		if _, value, ok := strings.Cut(pair, "="); ok {
			look(value)
			if s, err := url.QueryUnescape(value); err == nil {
				look(s)
			}
		}
	}
}

// leastToken is how long a token is at least that is looked for.
const leastToken = 8
