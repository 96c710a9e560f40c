package caddymodule

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// askedRefresh is what a program sends that refreshes for itself. Who it says
// that it is (client_id, client_secret, an Authorization field) does not matter:
// the handle decides.
type askedRefresh struct {
	handle string
	plain  bool // {"refreshToken"}, not OAuth 2.0
}

// badRefresh is what is wrong with it.
type badRefresh struct {
	status     int
	code, text string
}

func invalid(text string) *badRefresh {
	return &badRefresh{status: http.StatusBadRequest, code: "invalid_request", text: text}
}

func readRefresh(w http.ResponseWriter, r *http.Request) (askedRefresh, *badRefresh) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, refresher.MaxAnswer))
	defer clear(body)
	if err != nil {
		return askedRefresh{}, &badRefresh{
			status: http.StatusRequestEntityTooLarge, code: "invalid_request",
			text: fmt.Sprintf("at most %d bytes are read", refresher.MaxAnswer),
		}
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	isObject := bytes.HasPrefix(bytes.TrimSpace(body), []byte("{"))
	switch {
	case kind == "application/x-www-form-urlencoded", kind == "" && !isObject:
		return readRefreshForm(string(body))
	case kind == "application/json", kind == "text/json", strings.HasSuffix(kind, "+json"), kind == "":
		return readRefreshJSON(body)
	}
	return askedRefresh{}, &badRefresh{
		status: http.StatusUnsupportedMediaType, code: "invalid_request",
		text: "want application/x-www-form-urlencoded or application/json",
	}
}

func readRefreshForm(body string) (asked askedRefresh, bad *badRefresh) {
	form, err := url.ParseQuery(body)
	if err != nil {
		return asked, invalid("the form cannot be read")
	}
	for _, name := range []string{"grant_type", "refresh_token"} {
		if len(form[name]) > 1 { // RFC 6749 section 3.2
			return asked, invalid(name + " stands twice")
		}
	}
	return askedOAuth(form.Get("grant_type"), form.Get("refresh_token"))
}

func readRefreshJSON(body []byte) (asked askedRefresh, bad *badRefresh) {
	members, err := refresher.ParseStrings(body, "grant_type", "refresh_token", "refreshToken")
	switch {
	case err != nil:
		return asked, invalid("the JSON cannot be read, or is no object with each name once")
	case members["refreshToken"] != "":
		return askedRefresh{handle: members["refreshToken"], plain: true}, nil
	}
	return askedOAuth(members["grant_type"], members["refresh_token"])
}

func askedOAuth(grant, handle string) (asked askedRefresh, bad *badRefresh) {
	switch {
	case grant == "":
		return asked, invalid("grant_type is missing")
	case grant != "refresh_token":
		return asked, &badRefresh{status: http.StatusBadRequest, code: "unsupported_grant_type", text: "only refresh_token is answered here"}
	case handle == "":
		return asked, invalid("refresh_token is missing")
	}
	return askedRefresh{handle: handle}, nil
}
