package issuer

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func tlsWith(roots *x509.CertPool) *tls.Config { return &tls.Config{RootCAs: roots} }

func contentLength(body string) string { return fmt.Sprintf("Content-Length: %d", len(body)) }

func TestWhichURLsAreTaken(t *testing.T) {
	tests := []struct {
		name, url string
		insecure  bool
		want      string // part of the error
	}{
		{name: "https", url: "https://issuer.example/User/RefreshToken"},
		{name: "https with a port and a query", url: "https://issuer.example:8443/x?tenant=1"},
		{name: "http to localhost", url: "http://LocalHost:8080/x"},
		{name: "http to 127.0.0.0/8", url: "http://127.9.9.9/x"},
		{name: "http to ::1", url: "http://[::1]:8080/x"},
		{name: "http anywhere where it is allowed", url: "http://issuer.example/x", insecure: true},
		{name: "nothing", url: "", want: "missing"},
		{name: "http elsewhere", url: "http://issuer.example/x", want: "plain http"},
		{name: "http to a name that begins like loopback", url: "http://127.0.0.1.example/x", want: "plain http"},
		{name: "http to a name that begins like localhost", url: "http://localhost.example/x", want: "plain http"},
		{name: "another scheme", url: "ftp://issuer.example/x", want: "https://"},
		{name: "a path alone", url: "/User/RefreshToken", want: "https://"},
		{name: "a host alone", url: "issuer.example", want: "https://"},
		{name: "no host", url: "https:///x", want: "no host"},
		{name: "a port alone", url: "https://:443/x", want: "no host"},
		{name: "a user name", url: "https://u:canary@issuer.example/x", want: "user name"},
		{name: "a fragment", url: "https://issuer.example/x#y", want: "fragment"},
		{name: "an empty fragment", url: "https://issuer.example/x#", want: "fragment"},
		{name: "an empty port", url: "https://issuer.example:/x", want: "port"},
		{name: "port 0", url: "https://issuer.example:0/x", want: "port"},
		{name: "port 65536", url: "https://issuer.example:65536/x", want: "port"},
		{name: "an international name", url: "https://bücher.example/x", want: "xn--"},
		{name: "an unresolved placeholder", url: "https://{env.canary}/x", want: "cannot be read"},
		{name: "what is no URL", url: "https://issuer.example:canary/x", want: "cannot be read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewBearer(BearerConfig{URL: tt.url, InsecureHTTP: tt.insecure})
			_, lerr := NewLogin(LoginConfig{URL: tt.url, InsecureHTTP: tt.insecure, Body: refresher.NewSecret("{}")})
			if fmt.Sprint(err) != fmt.Sprint(lerr) {
				t.Errorf("bearer says %v, login %v", err, lerr)
			}
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want an error with %q", err, tt.want)
			case err != nil && strings.Contains(err.Error(), "canary"):
				t.Errorf("error %q repeats the URL", err)
			}
		})
	}
}

func TestWhichHeadersAreTaken(t *testing.T) {
	tests := []struct {
		name   string
		header http.Header
		bearer string // part of the error
		login  string
	}{
		{name: "none"},
		{name: "others", header: http.Header{"X-Api-Key": {"a"}, "Cookie": {"b"}, "Accept": {"*/*"}}},
		{name: "Authorization is the token's", header: http.Header{"authorization": {"canary"}}, bearer: "Authorization cannot be set"},
		{name: "Host", header: http.Header{"host": {"x"}}, bearer: "Host cannot", login: "Host cannot"},
		{name: "Content-Length", header: http.Header{"Content-Length": {"1"}}, bearer: "Content-Length cannot", login: "Content-Length cannot"},
		{name: "Accept-Encoding", header: http.Header{"Accept-Encoding": {"gzip"}}, bearer: "cannot be set", login: "cannot be set"},
		{name: "User-Agent", header: http.Header{"User-Agent": {"x"}}, bearer: "cannot be set", login: "cannot be set"},
		{name: "two spellings", header: http.Header{"X-Key": {"a"}, "x-key": {"b"}}, bearer: "two spellings", login: "two spellings"},
		{name: "a name with a space", header: http.Header{"X Key": {"a"}}, bearer: "not the name", login: "not the name"},
		{name: "an empty name", header: http.Header{"": {"a"}}, bearer: "not the name", login: "not the name"},
		{name: "a line break", header: http.Header{"X-Key": {"canary\r\nX: y"}}, bearer: "control character", login: "control character"},
		{name: "a NUL", header: http.Header{"X-Key": {"canary\x00"}}, bearer: "control character", login: "control character"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewBearer(BearerConfig{URL: "https://issuer.example", Header: tt.header})
			check(t, "bearer", err, tt.bearer)
			_, err = NewLogin(LoginConfig{URL: "https://issuer.example", Header: tt.header, Body: refresher.NewSecret("{}")})
			check(t, "login", err, tt.login)
		})
	}
}

func check(t *testing.T, what string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", what, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: got %v, want an error with %q", what, err, want)
	case err != nil && strings.Contains(err.Error(), "canary"):
		t.Errorf("%s: error %q repeats the value", what, err)
	}
}

func TestWhatElseIsRefused(t *testing.T) {
	twoWords := "Bearer x"
	_, err := NewBearer(BearerConfig{URL: "https://issuer.example", Scheme: &twoWords})
	check(t, "scheme", err, "one word")
	_, err = NewBearer(BearerConfig{URL: "https://issuer.example", Profile: refresher.Profile{Timeout: -1}})
	check(t, "bearer", err, "negative")
	secret := refresher.NewSecret
	for name, tt := range map[string]struct {
		cfg  LoginConfig
		want string
	}{
		"nothing to send":         {LoginConfig{}, "needed"},
		"no password":             {LoginConfig{Username: secret("canary")}, "needed"},
		"no user name":            {LoginConfig{Password: secret("canary")}, "needed"},
		"both":                    {LoginConfig{Username: secret("u"), Password: secret("canary"), Body: secret("{}")}, "either"},
		"a body that is not JSON": {LoginConfig{Body: secret("{canary")}, "not valid JSON"},
		"a password not in UTF-8": {LoginConfig{Username: secret("u"), Password: secret("canary\xff")}, "UTF-8"},
		"a negative timeout":      {LoginConfig{Body: secret("{}"), Timeout: -time.Second}, "negative"},
	} {
		tt.cfg.URL = "https://issuer.example"
		_, err := NewLogin(tt.cfg)
		check(t, name, err, tt.want)
	}
}
