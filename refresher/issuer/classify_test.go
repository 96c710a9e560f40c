package issuer

import (
	"errors"
	"net/http"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// The rows of rotation.md 7.1, as contract 3b changes them.
func TestWhatAnOutcomeMeans(t *testing.T) {
	broken := errors.New("broken")
	tests := []struct {
		name    string
		written int
		err     error
		status  int
		code    string
		pairErr error
		bearer  refresher.Class
		token   refresher.Class // 0: the same
	}{
		{name: "no connection, so nothing was written", err: broken, bearer: refresher.ClassNotSent},
		{name: "one byte written before the error", written: 1, err: broken, bearer: refresher.ClassUnknown},
		{name: "a success cut short", written: 9, err: broken, status: 200, bearer: refresher.ClassUnknown},
		{name: "a refusal cut short", written: 9, err: broken, status: 400, bearer: refresher.ClassUnknown},

		{name: "a pair", written: 9, status: 200, bearer: refresher.ClassOK},
		{name: "a pair with 201", written: 9, status: 201, bearer: refresher.ClassOK},
		{name: "a success without a usable pair", written: 9, status: 200, pairErr: broken, bearer: refresher.ClassUnknown},
		{name: "204", written: 9, status: 204, pairErr: broken, bearer: refresher.ClassUnknown},
		{name: "205", written: 9, status: 205, pairErr: broken, bearer: refresher.ClassUnknown},

		{name: "300", written: 9, status: 300, bearer: refresher.ClassRedirect},
		{name: "304", written: 9, status: 304, bearer: refresher.ClassRedirect},
		{name: "307", written: 9, status: 307, bearer: refresher.ClassRedirect},

		{name: "400 without a code", written: 9, status: 400, bearer: refresher.ClassConfig},
		{name: "400 invalid_request", written: 9, status: 400, code: "invalid_request", bearer: refresher.ClassConfig},
		{name: "400 invalid_grant", written: 9, status: 400, code: "invalid_grant", bearer: refresher.ClassRejected},
		{name: "401 invalid_grant", written: 9, status: 401, code: "invalid_grant", bearer: refresher.ClassRejected},
		{name: "403 invalid_grant, as Auth0 has it", written: 9, status: 403, code: "invalid_grant", bearer: refresher.ClassRejected},
		{name: "400 invalid_client", written: 9, status: 400, code: "invalid_client", bearer: refresher.ClassConfig},
		{name: "401 invalid_client", written: 9, status: 401, code: "invalid_client", bearer: refresher.ClassConfig},
		{name: "400 unauthorized_client", written: 9, status: 400, code: "unauthorized_client", bearer: refresher.ClassConfig},
		{name: "400 unsupported_grant_type", written: 9, status: 400, code: "unsupported_grant_type", bearer: refresher.ClassConfig},
		{name: "400 invalid_scope", written: 9, status: 400, code: "invalid_scope", bearer: refresher.ClassConfig},
		{name: "400 temporarily_unavailable", written: 9, status: 400, code: "temporarily_unavailable", bearer: refresher.ClassRetry},
		{name: "400 server_error", written: 9, status: 400, code: "server_error", bearer: refresher.ClassRetry},
		{name: "400 slow_down", written: 9, status: 400, code: "slow_down", bearer: refresher.ClassRetry},
		{name: "400 use_dpop_nonce", written: 9, status: 400, code: "use_dpop_nonce", bearer: refresher.ClassRetry},
		{name: "401 use_dpop_nonce", written: 9, status: 401, code: "use_dpop_nonce", bearer: refresher.ClassRetry},

		{name: "401", written: 9, status: 401, bearer: refresher.ClassUnauthorized, token: refresher.ClassConfig},
		{name: "401 invalid_token", written: 9, status: 401, code: "invalid_token", bearer: refresher.ClassUnauthorized, token: refresher.ClassRejected},
		{name: "401 token_inactive", written: 9, status: 401, code: "token_inactive", bearer: refresher.ClassUnauthorized, token: refresher.ClassRejected},
		{name: "402", written: 9, status: 402, bearer: refresher.ClassConfig},
		{name: "403", written: 9, status: 403, bearer: refresher.ClassConfig},
		{name: "404", written: 9, status: 404, bearer: refresher.ClassConfig},
		{name: "405", written: 9, status: 405, bearer: refresher.ClassConfig},
		{name: "408", written: 9, status: 408, bearer: refresher.ClassQuiet},
		{name: "409", written: 9, status: 409, bearer: refresher.ClassQuiet},
		{name: "410", written: 9, status: 410, bearer: refresher.ClassConfig},
		{name: "413", written: 9, status: 413, bearer: refresher.ClassConfig},
		{name: "414", written: 9, status: 414, bearer: refresher.ClassConfig},
		{name: "415", written: 9, status: 415, bearer: refresher.ClassConfig},
		{name: "421", written: 9, status: 421, bearer: refresher.ClassRetry},
		{name: "423", written: 9, status: 423, bearer: refresher.ClassConfig},
		{name: "425", written: 9, status: 425, bearer: refresher.ClassRetry},
		{name: "429", written: 9, status: 429, bearer: refresher.ClassRetry},
		{name: "431", written: 9, status: 431, bearer: refresher.ClassConfig},
		{name: "499", written: 9, status: 499, bearer: refresher.ClassConfig},

		{name: "500", written: 9, status: 500, bearer: refresher.ClassRetry},
		{name: "500 with a code, which 5xx do not heed", written: 9, status: 500, code: "invalid_grant", bearer: refresher.ClassRetry},
		{name: "501", written: 9, status: 501, bearer: refresher.ClassQuiet},
		{name: "502", written: 9, status: 502, bearer: refresher.ClassQuiet},
		{name: "503", written: 9, status: 503, bearer: refresher.ClassRetry},
		{name: "504", written: 9, status: 504, bearer: refresher.ClassQuiet},
		{name: "599", written: 9, status: 599, bearer: refresher.ClassQuiet},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := Outcome{Written: tt.written, Err: tt.err, Status: tt.status}
			if got := classify(bearerEndpoint, o, tt.code, tt.pairErr); got != tt.bearer {
				t.Errorf("bearer endpoint: %v, want %v", got, tt.bearer)
			}
			if tt.token == 0 {
				tt.token = tt.bearer
			}
			if got := classify(tokenEndpoint, o, tt.code, tt.pairErr); got != tt.token {
				t.Errorf("token endpoint: %v, want %v", got, tt.token)
			}
		})
	}
}

// What a 2xx has to be so that its pair is used.
func TestWhichSuccessHoldsAPair(t *testing.T) {
	tests := []struct {
		name        string
		status      int
		contentType string
		body        string
		bodyErr     error
		ok          bool
		refresh     string
	}{
		{name: "JSON", contentType: "application/json", body: goodBody, ok: true, refresh: newRefresh},
		{name: "JSON with a character set", contentType: "Application/JSON; charset=utf-8", body: goodBody, ok: true, refresh: newRefresh},
		{name: "JSON with a broken parameter", contentType: "application/json; charset", body: goodBody, ok: true, refresh: newRefresh},
		{name: "a +json type", contentType: "application/vnd.7g.token+json", body: goodBody, ok: true, refresh: newRefresh},
		{name: "no content type", body: goodBody, ok: true, refresh: newRefresh},
		{name: "no refresh token: the one in use is kept", body: `{"accessToken":"` + newAccess + `"}`, ok: true},
		{name: "a null refresh token: the one in use is kept", body: `{"accessToken":"` + newAccess + `","refreshToken":null}`, ok: true},
		{name: "the tokens that were sent", body: `{"accessToken":"` + oldAccess + `","refreshToken":"` + oldRefresh + `"}`, ok: true, refresh: oldRefresh},
		{name: "an empty refresh token: the one in use is kept", body: `{"accessToken":"` + newAccess + `","refreshToken":""}`, ok: true},
		{name: "a pair under the wrong content type", contentType: "text/html", body: goodBody, ok: true, refresh: newRefresh},
		{name: "a content type that is none", contentType: "json", body: goodBody, ok: true, refresh: newRefresh},
		{name: "a byte order mark", body: "\ufeff" + goodBody, ok: true, refresh: newRefresh},
		{name: "other members", body: `{"data":{"x":[1]},"token":"` + newAccess + `"}`, ok: true},

		{name: "HTML", contentType: "text/html", body: "<html>log in</html>"},
		{name: "nothing", contentType: "application/json"},
		{name: "204", status: 204},
		{name: "205", status: 205},
		{name: "a body that was too long", body: goodBody, bodyErr: errBodyTooLong},
		{name: "a name given twice", body: `{"accessToken":"a","accessToken":"b"}`},
		{name: "a name in another case", body: `{"ACCESSTOKEN":"a","refreshToken":"b"}`},
		{name: "data after the object", body: goodBody + "{}"},
		{name: "half an object", body: goodBody[:len(goodBody)-1]},
		{name: "a line break in the access token", body: `{"accessToken":"a\r\nX: y","refreshToken":"b"}`},
		{name: "a space in the access token", body: `{"accessToken":"a b","refreshToken":"b"}`},
		{name: "an empty access token", body: `{"accessToken":"","refreshToken":"` + newRefresh + `"}`},
		{name: "a refresh token without an access token", body: `{"refreshToken":"` + newRefresh + `"}`},
		{name: "7G's envelope of a failure", body: `{"result":false,"message":"no","recordCount":0,"data":null}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := Outcome{Written: 9, Status: tt.status, Header: http.Header{}, Body: refresher.NewSecret(tt.body), BodyErr: tt.bodyErr}
			if o.Status == 0 {
				o.Status = 200
			}
			if tt.contentType != "" {
				o.Header.Set("Content-Type", tt.contentType)
			}
			a := reader{host: "issuer.example", fields: refresher.DefaultFields()}.answer(o)
			if !tt.ok {
				wantClass(t, a, refresher.ClassUnknown)
				if a.Raw.Reveal() != tt.body {
					t.Errorf("%q was not kept", tt.body)
				}
				return
			}
			wantClass(t, a, refresher.ClassOK)
			if a.Pair.Refresh.Reveal() != tt.refresh {
				t.Errorf("refresh token %q, want %q", a.Pair.Refresh.Reveal(), tt.refresh)
			}
			if !a.Raw.IsZero() {
				t.Error("the body of a usable answer was kept")
			}
		})
	}
}

func TestWhatAFailureIsCalled(t *testing.T) {
	tests := []struct {
		name     string
		status   int
		location string
		body     string
		bodyErr  error
		want     string
	}{
		{name: "a status alone", status: 404, want: "issuer.example answered 404 Not Found"},
		{name: "a status without a name", status: 599, want: "issuer.example answered 599"},
		{name: "a registered code", status: 400, body: `{"error":"invalid_grant","error_description":"token x"}`, want: "issuer.example answered 400 Bad Request with the error invalid_grant"},
		{name: "a code of the issuer's own", status: 400, body: `{"error":"` + oldRefresh + `"}`, want: "issuer.example answered 400 Bad Request"},
		{name: "a body too long to be searched", status: 400, body: `{"error":"invalid_grant"}`, bodyErr: errBodyTooLong, want: "issuer.example answered 400 Bad Request"},
		{name: "a redirect to another host", status: 302, location: "https://login.example:8443/" + oldRefresh, want: "issuer.example answered 302 Found to login.example:8443, which is not followed"},
		{name: "a redirect within the host", status: 302, location: "/login", want: "issuer.example answered 302 Found, which is not followed"},
		{name: "a redirect to no host", status: 302, location: "https://a b/", want: "issuer.example answered 302 Found, which is not followed"},
		{name: "a redirect to something odd", status: 302, location: "https://a%20b/", want: "issuer.example answered 302 Found, which is not followed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{}
			h.Set("Location", tt.location)
			a := reader{host: "issuer.example"}.answer(Outcome{
				Written: 9, Status: tt.status, Header: h, Body: refresher.NewSecret(tt.body), BodyErr: tt.bodyErr,
			})
			if a.Err == nil || a.Err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", a.Err, tt.want)
			}
		})
	}
}

func TestWhichCodeABodyHolds(t *testing.T) {
	tests := []struct {
		name, body, want string
	}{
		{"a registered code", `{"error":"invalid_grant"}`, "invalid_grant"},
		{"a code among other members", `{"a":[{"error":"invalid_scope"}],"error":"slow_down","b":1}`, "slow_down"},
		{"an unknown code", `{"error":"token_is_abc"}`, ""},
		{"a code in another case", `{"ERROR":"invalid_grant"}`, ""},
		{"a nested code only", `{"data":{"error":"invalid_grant"}}`, ""},
		{"a code given twice", `{"error":"invalid_grant","error":"invalid_client"}`, ""},
		{"a code that is an object", `{"error":{"code":"invalid_grant"}}`, ""},
		{"an array", `["error","invalid_grant"]`, ""},
		{"a string", `"invalid_grant"`, ""},
		{"a form", `error=invalid_grant`, ""},
		{"data after the object", `{"error":"invalid_grant"}x`, ""},
		{"nothing", ``, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := oauthError(refresher.NewSecret(tt.body)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
