package issuer

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// captured returns a dialler whose far end reads one request and closes.
func captured() (<-chan string, func(context.Context, string, string) (net.Conn, error)) {
	got := make(chan string, 4)
	return got, func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			buf := make([]byte, 64<<10)
			n, _ := far.Read(buf) // one Write is one Read on a pipe
			got <- string(buf[:n])
			far.Close()
		}()
		return near, nil
	}
}

func TestTheOAuth2RequestByteForByte(t *testing.T) {
	secret := refresher.NewSecret
	const form = "application/x-www-form-urlencoded"
	odd := refresher.Pair{Access: secret("a"), Refresh: secret("r+/=%&é 1")}
	tests := []struct {
		name                string
		cfg                 OAuth2Config
		pair                refresher.Pair
		authorization, kind string
		body                string
	}{
		{
			name: "of a client without a secret", pair: oldPair(), kind: form,
			cfg:  OAuth2Config{ClientID: "app"},
			body: "client_id=app&grant_type=refresh_token&refresh_token=" + oldRefresh,
		},
		{
			name: "with Basic, form-encoded first", pair: oldPair(), kind: form,
			cfg:           OAuth2Config{ClientID: "a:b c", ClientSecret: secret("p%+/é")},
			authorization: "Basic YSUzQWIrYzpwJTI1JTJCJTJGJUMzJUE5", // a%3Ab+c:p%25%2B%2F%C3%A9
			body:          "grant_type=refresh_token&refresh_token=" + oldRefresh,
		},
		{
			name: "with the secret in the form, and odd characters", pair: odd, kind: form,
			cfg:  OAuth2Config{ClientID: "app", ClientSecret: secret("p&=+"), AuthMethod: ClientSecretPost},
			body: "client_id=app&client_secret=p%26%3D%2B&grant_type=refresh_token&refresh_token=r%2B%2F%3D%25%26%C3%A9+1",
		},
		{
			name: "as JSON", pair: odd, kind: "application/json",
			cfg:  OAuth2Config{ClientID: "app", ClientSecret: secret(`<"&>`), AuthMethod: ClientSecretPost, JSON: true, Audience: "https://api"},
			body: `{"audience":"https://api","client_id":"app","client_secret":"<\"&>","grant_type":"refresh_token","refresh_token":"r+/=%&é 1"}`,
		},
		{
			name: "with all that can be asked for", pair: oldPair(), kind: form,
			cfg: OAuth2Config{
				ClientID: "app", Scope: "openid api:read", Audience: "https://api",
				Parameters: url.Values{"resource": {"https://a", "https://b"}, "tenant": {"t"}},
			},
			body: "audience=https%3A%2F%2Fapi&client_id=app&grant_type=refresh_token&refresh_token=" + oldRefresh +
				"&resource=https%3A%2F%2Fa&resource=https%3A%2F%2Fb&scope=openid+api%3Aread&tenant=t",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, dial := captured()
			tt.cfg.TokenURL, tt.cfg.Dial = "http://127.0.0.1:8080/token?v=2", dial
			tt.cfg.Header = http.Header{"X-Key": {"k"}}
			wantClass(t, exchangeOnce(t, newOAuth2(t, tt.cfg), tt.pair), refresher.ClassUnknown)
			want := "POST /token?v=2 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: caddy-token-refresh\r\nConnection: close\r\n" +
				contentLength(tt.body) + "\r\nAccept: application/json\r\nAccept-Encoding: identity\r\n"
			if tt.authorization != "" {
				want += "Authorization: " + tt.authorization + "\r\n"
			}
			want += "Content-Type: " + tt.kind + "\r\nX-Key: k\r\n\r\n" + tt.body
			if text := <-got; text != want {
				t.Errorf("got\n%s\nwant\n%s", text, want)
			}
		})
	}
}

func TestWhatAnOAuth2AnswerMeans(t *testing.T) {
	const pair = `"access_token":"` + newAccess + `"`
	tests := []struct {
		name   string
		status int
		header http.Header
		body   string
		class  refresher.Class
		after  time.Duration
		check  func(refresher.Pair) bool
	}{
		{name: "no refresh token: the old one stays", status: 200, body: `{` + pair + `}`, class: refresher.ClassOK,
			check: func(p refresher.Pair) bool { return p.Refresh.IsZero() && p.ExpiresIn == 0 && p.ID.IsZero() }},
		{name: "all of it, the life in a string", status: 200, class: refresher.ClassOK,
			body: `{` + pair + `,"refresh_token":"` + newRefresh + `","expires_in":"60","id_token":"a.b.c","scope":"x y","token_type":"Bearer"}`,
			check: func(p refresher.Pair) bool {
				return p.Refresh.Reveal() == newRefresh && p.ExpiresIn == time.Minute && p.ID.Reveal() == "a.b.c" && p.Scope == "x y"
			}},
		{name: "another token_type", status: 200, body: `{` + pair + `,"token_type":"DPoP"}`, class: refresher.ClassOK},
		{name: "an ID token of no use", status: 200, body: `{` + pair + `,"id_token":{},"scope":["x"]}`, class: refresher.ClassOK,
			check: func(p refresher.Pair) bool { return p.ID.IsZero() && p.Scope == "" }},
		{name: "an error with 200", status: 200, body: `{"error":"bad_refresh_token"}`, class: refresher.ClassRejected},
		{name: "an unknown error with 200", status: 200, body: `{"error":"` + newAccess + `"}`, class: refresher.ClassUnknown},
		{name: "invalid_grant with 403", status: 403, body: `{"error":"invalid_grant"}`, class: refresher.ClassRejected},
		{name: "403 of a firewall", status: 403, body: `<html>`, class: refresher.ClassConfig},
		{name: "429 with seconds", status: 429, header: http.Header{"Retry-After": {"7"}, "X-Ratelimit-Reset": {"99"}}, class: refresher.ClassRetry, after: 7 * time.Second},
		{name: "429 with a reset", status: 429, header: http.Header{"X-Ratelimit-Reset": {"9"}}, class: refresher.ClassRetry, after: 9 * time.Second},
		{name: "a reset that goes with everything", status: 403, header: http.Header{"X-Ratelimit-Reset": {"9"}}, class: refresher.ClassConfig},
		{name: "an empty 400", status: 400, class: refresher.ClassConfig},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				for name, values := range tt.header {
					w.Header()[name] = values
				}
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			}))
			defer srv.Close()
			a := exchangeOnce(t, newOAuth2(t, OAuth2Config{TokenURL: srv.URL, ClientID: "app"}), oldPair())
			wantClass(t, a, tt.class)
			if a.RetryAfter != tt.after {
				t.Errorf("retry after %v", a.RetryAfter)
			}
			if a.Class == refresher.ClassOK && a.Pair.Access.Reveal() != newAccess || tt.check != nil && !tt.check(a.Pair) {
				t.Errorf("the pair is not as it should be: %q %q %v %q", a.Pair.Refresh.Reveal(), a.Pair.ID.Reveal(), a.Pair.ExpiresIn, a.Pair.Scope)
			}
			assertSilent(t, "the answer", a)
		})
	}
}

// Dex answers invalid_request to a spent refresh token, others an empty 400.
func TestA400ThatDoesNotSayWhyIsSettledByWhatWasSeen(t *testing.T) {
	for _, body := range []string{`{"error":"invalid_request"}`, ``} {
		good := true
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if !good {
				w.WriteHeader(400)
				_, _ = io.WriteString(w, body)
				return
			}
			_, _ = io.WriteString(w, `{"access_token":"`+newAccess+`"}`)
		}))
		o := newOAuth2(t, OAuth2Config{TokenURL: srv.URL, ClientID: "app"})
		other := refresher.Pair{Access: oldPair().Access, Refresh: refresher.NewSecret("other")}
		for i, step := range []struct {
			good bool
			pair refresher.Pair
			want refresher.Class
		}{
			{false, oldPair(), refresher.ClassConfig}, {false, oldPair(), refresher.ClassConfig}, // it never worked
			{true, other, refresher.ClassOK},
			{false, oldPair(), refresher.ClassConfig}, {false, other, refresher.ClassConfig},
			{true, other, refresher.ClassOK}, {false, other, refresher.ClassConfig}, // what was good since begins anew
			{false, oldPair(), refresher.ClassRejected}, {false, other, refresher.ClassRejected},
		} {
			good = step.good
			if a := exchangeOnce(t, o, step.pair); a.Class != step.want {
				t.Errorf("%q, step %d: %v, want %v", body, i, a.Class, step.want)
			}
		}
		srv.Close()
	}
}

func TestWhichOAuth2ConfigurationsAreTaken(t *testing.T) {
	secret := refresher.NewSecret("canary")
	const u = "https://issuer.example/token"
	for _, tt := range []struct {
		name string
		cfg  OAuth2Config
		want string // part of the error
	}{
		{"nothing", OAuth2Config{}, "client_id"},
		{"no endpoint", OAuth2Config{ClientID: "a"}, "either"},
		{"both endpoint and issuer", OAuth2Config{ClientID: "a", TokenURL: u, Issuer: u}, "either"},
		{"an unknown method", OAuth2Config{ClientID: "a", TokenURL: u, AuthMethod: "client_secret_jwt"}, "auth_method"},
		{"a secret without use", OAuth2Config{ClientID: "a", TokenURL: u, ClientSecret: secret, AuthMethod: NoClientAuth}, "no use"},
		{"a secret that is missing", OAuth2Config{ClientID: "a", TokenURL: u, AuthMethod: ClientSecretPost}, "client_secret: missing"},
		{"a key that is missing", OAuth2Config{ClientID: "a", TokenURL: u, AuthMethod: PrivateKeyJWT}, "private_key: missing"},
		{"a key without use", OAuth2Config{ClientID: "a", TokenURL: u, KeyID: "canary"}, "no use"},
		{"the issuer's audience unknown", OAuth2Config{ClientID: "a", TokenURL: u, AuthMethod: PrivateKeyJWT, AssertionAudience: "issuer"}, "assertion_audience"},
		{"plain http", OAuth2Config{ClientID: "a", TokenURL: "http://issuer.example/"}, "plain http"},
		{"plain http to revoke", OAuth2Config{ClientID: "a", TokenURL: u, RevokeURL: "http://issuer.example/"}, "revoke_url"},
		{"an issuer with a query", OAuth2Config{ClientID: "a", Issuer: "https://issuer.example/?canary"}, "query"},
		{"a parameter of ours", OAuth2Config{ClientID: "a", TokenURL: u, Parameters: url.Values{"refresh_token": {"canary"}}}, "set already"},
		{"a parameter of the client's", OAuth2Config{ClientID: "a", TokenURL: u, Parameters: url.Values{"client_assertion": {"canary"}}}, "set already"},
		{"the scope twice", OAuth2Config{ClientID: "a", TokenURL: u, Scope: "s", Parameters: url.Values{"scope": {"canary"}}}, "set already"},
		{"a list in JSON", OAuth2Config{ClientID: "a", TokenURL: u, JSON: true, Parameters: url.Values{"x": {"canary", "b"}}}, "each name once"},
		{"the field of the client's secret", OAuth2Config{ClientID: "a", TokenURL: u, Options: Options{Header: http.Header{"Authorization": {"canary"}}}}, "cannot be set"},
		{"the type of the body", OAuth2Config{ClientID: "a", TokenURL: u, Options: Options{Header: http.Header{"Content-Type": {"canary"}}}}, "cannot be set"},
		{"a negative timeout", OAuth2Config{ClientID: "a", TokenURL: u, Options: Options{Profile: refresher.Profile{Timeout: -1}}}, "negative"},
		{"enough", OAuth2Config{ClientID: "a", TokenURL: u}, ""},
	} {
		_, err := NewOAuth2(tt.cfg)
		check(t, tt.name, err, tt.want)
	}
}

// A pair that cannot be sent spends nothing.
func TestAnOAuth2PairThatCannotBeSent(t *testing.T) {
	read := make(chan int64, 2)
	s := serveRaw(t, func(_ *rawServer, conn net.Conn, _ int) {
		n, _ := io.Copy(io.Discard, conn)
		read <- n
	})
	for _, tt := range []struct {
		cfg  OAuth2Config
		pair refresher.Pair
	}{
		{OAuth2Config{}, refresher.Pair{Access: refresher.NewSecret("a")}},
		{OAuth2Config{JSON: true}, refresher.Pair{Refresh: refresher.NewSecret("\xff")}},
	} {
		tt.cfg.TokenURL, tt.cfg.ClientID = s.url(), "app"
		wantClass(t, exchangeOnce(t, newOAuth2(t, tt.cfg), tt.pair), refresher.ClassConfig)
		if n := <-read; n != 0 {
			t.Errorf("%d bytes were sent", n)
		}
	}
}

func TestWhatARevocationsAnswerMeans(t *testing.T) {
	for _, tt := range []struct {
		name            string
		refresh, access string // status and body
		want            string // part of the error; "": none
		later           bool
	}{
		{name: "both are done", refresh: "200 ", access: "200 "},
		{name: "a server that cannot revoke access tokens", refresh: "200 ", access: `400 {"error":"unsupported_token_type"}`},
		{name: "a server that cannot revoke refresh tokens", refresh: `400 {"error":"unsupported_token_type"}`, want: "no call to revoke"},
		{name: "a wrong secret", refresh: `401 {"error":"invalid_client"}`, want: "the refresh token was not revoked"},
		{name: "a server that is busy", refresh: "503 ", want: "the refresh token was not revoked", later: true},
		{name: "a server that becomes busy", refresh: "200 ", access: "429 ", want: "but not the access token", later: true},
		{name: "a redirect", refresh: "307 ", want: "not followed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				answer := tt.refresh
				switch r.FormValue("token_type_hint") + " " + r.FormValue("token") {
				case "refresh_token " + oldRefresh:
				case "access_token " + oldAccess:
					answer = tt.access
				default:
					t.Errorf("got %v", r.Form)
				}
				if id, secret, _ := r.BasicAuth(); id != "app" || secret != "canary" {
					t.Errorf("authorised as %q", id)
				}
				var status int
				_, _ = fmt.Sscan(answer, &status)
				w.Header().Set("Retry-After", "9")
				w.WriteHeader(status)
				_, _ = io.WriteString(w, strings.TrimSpace(answer[3:]))
			}))
			defer srv.Close()
			o := newOAuth2(t, OAuth2Config{TokenURL: srv.URL + "/token", RevokeURL: srv.URL + "/revoke", ClientID: "app", ClientSecret: refresher.NewSecret("canary")})
			wantRevocation(t, o, tt.want, tt.later)
		})
	}
	wantRevocation(t, newOAuth2(t, OAuth2Config{TokenURL: "https://issuer.example/", ClientID: "app"}), "no call to revoke", false)
}
