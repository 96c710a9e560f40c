package caddymodule

import (
	"net/http"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// carrier is the header field that brings the token to the upstream.
type carrier struct {
	name   string // canonical
	folded string // as fold has it
	scheme string // "" for the bare token

	cookie string // set: the token is this cookie's value, the field is Cookie
	other  string // and this cookie goes no further
}

func newCarrier(name, scheme string) carrier {
	return carrier{name: name, folded: fold.Replace(name), scheme: scheme}
}

// fold is what some servers make of names: underscores and spaces are hyphens.
var fold = strings.NewReplacer("_", "-", " ", "-")

// clone copies a request's header with the token in its place, which is then the
// only instance of the field: what the caller sent under its name is left out,
// in every spelling that some server takes for it. The name also goes out of the
// Connection lists, as Caddy's reverse_proxy removes what they name.
func (c carrier) clone(src http.Header, value *[1]string, pass refresher.Pass) http.Header {
	all := make([]string, 0, len(src)+2) // one backing array for most values
	dst := make(http.Header, len(src)+1)
	if c.cookie != "" {
		value[0] = c.swapCookie(src["Cookie"], pass.Token())
	}
	for name, vv := range src {
		if c.folds(name) {
			continue
		}
		n := len(all)
		all = append(all, vv...)
		dst[name] = all[n:len(all):len(all)]
	}
	if list := dst["Connection"]; len(list) > 0 {
		c.unlist(dst, list)
	}
	switch {
	case c.cookie != "":
	case c.scheme == "Bearer":
		value[0] = pass.Bearer()
	case c.scheme == "":
		value[0] = pass.Token()
	default:
		value[0] = c.scheme + " " + pass.Token()
	}
	dst[c.name] = value[:]
	return dst
}

// folds reports whether a server may take name for the carrier's.
func (c carrier) folds(name string) bool {
	if len(name) != len(c.name) {
		return false
	}
	if name == c.name {
		return true
	}
	return strings.EqualFold(fold.Replace(name), c.folded)
}

// unlist takes the carrier's name out of the values of Connection.
func (c carrier) unlist(dst http.Header, list []string) {
	var kept []string
	changed := false
	for _, value := range list {
		var options []string
		for option := range strings.SplitSeq(value, ",") {
			if c.folds(strings.TrimSpace(option)) {
				changed = true
				continue
			}
			options = append(options, option)
		}
		if len(options) > 0 {
			kept = append(kept, strings.Join(options, ","))
		}
	}
	switch {
	case !changed:
	case len(kept) == 0:
		delete(dst, "Connection")
	default:
		dst["Connection"] = kept
	}
}

func isWebSocket(upgrade string) bool { return strings.EqualFold(upgrade, "websocket") }
