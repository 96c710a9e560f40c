package issuer

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// jsonBody renders a JSON object. encoding/json would put U+FFFD in the place of
// bytes that are not UTF-8, and <, > and & as escapes: the first sends another
// secret than the one given, the second trips naive servers.
func jsonBody(members map[string]string) (refresher.Secret, error) {
	for _, value := range members {
		if !utf8.ValidString(value) {
			return refresher.Secret{}, errors.New("a secret is not valid UTF-8")
		}
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(members); err != nil {
		return refresher.Secret{}, err
	}
	return refresher.NewSecret(string(bytes.TrimSuffix(buf.Bytes(), []byte("\n")))), nil
}

// jsonMembers takes the named members out of a JSON object. Names are exact:
// encoding/json would take "ERROR" for a struct field. Of text that is no JSON
// object, or in which one of the names stands twice, nothing is taken.
func jsonMembers(body refresher.Secret, names ...string) (map[string]json.RawMessage, bool) {
	text := strings.TrimPrefix(body.Reveal(), "\ufeff")
	if !json.Valid([]byte(text)) {
		return nil, false
	}
	dec := json.NewDecoder(strings.NewReader(text))
	if tok, _ := dec.Token(); tok != json.Delim('{') {
		return nil, false
	}
	members := map[string]json.RawMessage{}
	for dec.More() {
		tok, err := dec.Token()
		var value json.RawMessage
		if err != nil || dec.Decode(&value) != nil {
			return nil, false
		}
		name, _ := tok.(string)
		if !slices.Contains(names, name) {
			continue
		}
		if _, twice := members[name]; twice {
			return nil, false
		}
		members[name] = value
	}
	return members, true
}

// place is a URL without its query.
func place(u *url.URL) string { return u.Scheme + "://" + u.Host + u.EscapedPath() }
