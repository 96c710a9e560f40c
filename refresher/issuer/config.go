package issuer

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// ours are the fields that belong to the connection or to this package. A
// configured Accept-Encoding, say, would make every answer unusable.
var ours = []string{
	"Accept-Encoding", "Connection", "Content-Encoding", "Content-Length", "Expect", "Host",
	"Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Referer", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade", "User-Agent",
}

// checkHeader returns given with canonical names, without the fields that may
// not be set: ours and also. Its errors do not repeat values.
func checkHeader(given http.Header, also ...string) (http.Header, error) {
	h := http.Header{}
	for name, values := range given {
		if !fieldName(name) {
			return nil, fmt.Errorf("%q is not the name of a header field", name)
		}
		canonical := http.CanonicalHeaderKey(name)
		if slices.Contains(ours, canonical) || slices.Contains(also, canonical) {
			return nil, fmt.Errorf("the header field %s cannot be set", canonical)
		}
		for _, value := range values {
			if !fieldSafe(value) {
				return nil, fmt.Errorf("the value for the header field %s holds a control character or is not ASCII", canonical)
			}
		}
		if _, ok := h[canonical]; ok {
			return nil, fmt.Errorf("the header field %s is given in two spellings", canonical)
		}
		h[canonical] = slices.Clone(values)
	}
	return h, nil
}

// fieldName reports whether text is a token (RFC 9110 section 5.6.2).
func fieldName(text string) bool {
	for i := range len(text) {
		switch c := text[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return text != ""
}

// withDefaults fills the lists of names that were not given.
func withDefaults(f refresher.Fields) refresher.Fields {
	d := refresher.DefaultFields()
	if len(f.Access) == 0 {
		f.Access = d.Access
	}
	if len(f.Refresh) == 0 {
		f.Refresh = d.Refresh
	}
	if len(f.ExpiresIn) == 0 {
		f.ExpiresIn = d.ExpiresIn
	}
	if len(f.ID) == 0 {
		f.ID = d.ID
	}
	if len(f.Scope) == 0 {
		f.Scope = d.Scope
	}
	if len(f.RefreshID) == 0 {
		f.RefreshID = d.RefreshID
	}
	return f
}
