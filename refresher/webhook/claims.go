package webhook

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

const maxClaim = 255 // bytes of a claim's value that is passed on

// claims are the text claims of a JWT, numbers included. They are read without
// verifying the token: it came from the issuer itself a moment ago, and they are
// only passed on. What is not a JWT has none.
type claims map[string]string

func readClaims(token refresher.Secret) claims {
	text := token.Reveal()
	if len(text) > refresher.MaxAccessToken || strings.Count(text, ".") != 2 {
		return nil
	}
	_, rest, _ := strings.Cut(text, ".")
	part, _, _ := strings.Cut(rest, ".")
	body, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(part, "="))
	if err != nil {
		return nil
	}
	defer clear(body)
	obj, err := parseStrict(body)
	if err != nil {
		return nil
	}
	found := claims{}
	for name, value := range obj {
		switch v := value.(type) {
		case string:
			found.keep(name, v)
		case json.Number:
			found.keep(name, v.String())
		}
	}
	return found
}

func (c claims) keep(name, value string) {
	if len(value) <= maxClaim && plain(value) {
		c[name] = value
	}
}

// id returns a claim that is a UUID, as FusionAuth's are. Another issuer's "sub"
// may be a mail address, which a receiver that expects a UUID would refuse.
func (c claims) id(name string) string {
	if value := c[name]; validID(value) {
		return value
	}
	return ""
}

// plain reports whether text is not empty and printable ASCII.
func plain(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' || text[i] >= 0x7f {
			return false
		}
	}
	return text != ""
}
