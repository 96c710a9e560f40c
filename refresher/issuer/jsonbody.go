package issuer

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/url"
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

// place is a URL without its query.
func place(u *url.URL) string { return u.Scheme + "://" + u.Host + u.EscapedPath() }
