package issuer

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// fusionToken5 is an access token of application 5.
const fusionToken5 = "eyJhbGciOiJSUzI1NiJ9.eyJhcHBsaWNhdGlvbklkIjoiNSJ9.x"

// wantRevocation revokes the old pair; the error is as wanted, and silent.
func wantRevocation(t *testing.T, r refresher.Revoker, want string, later bool) {
	t.Helper()
	err := r.Revoke(t.Context(), oldPair())
	check(t, "revoking", err, want)
	var retry *refresher.RetryError
	if errors.As(err, &retry) != later || later && retry.After.Seconds() != 9 {
		t.Errorf("to be tried again: %v", err)
	}
	if err != nil {
		assertSilent(t, "the error", err)
	}
}

func newFusionAuth(t *testing.T, url string, change ...func(*FusionAuthConfig)) *FusionAuth {
	t.Helper()
	cfg := FusionAuthConfig{URL: url}
	for _, f := range change {
		f(&cfg)
	}
	f, err := NewFusionAuth(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestTheFusionAuthRequestByteForByte(t *testing.T) {
	got, dial := captured()
	f := newFusionAuth(t, "http://127.0.0.1:9011/auth/", func(c *FusionAuthConfig) {
		c.TenantID, c.APIKey, c.ApplicationID, c.Dial = "t-1", refresher.NewSecret("canary-key"), "7", dial
	})
	wantClass(t, exchangeOnce(t, f, oldPair()), refresher.ClassUnknown)
	body := `{"refreshToken":"` + oldRefresh + `","token":"` + oldAccess + `"}`
	want := "POST /auth/api/jwt/refresh HTTP/1.1\r\nHost: 127.0.0.1:9011\r\nUser-Agent: caddy-token-refresh\r\nConnection: close\r\n" +
		contentLength(body) + "\r\nAccept: application/json\r\nAccept-Encoding: identity\r\nContent-Type: application/json\r\nX-Fusionauth-Tenantid: t-1\r\n\r\n" + body
	if text := <-got; text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	other := refresher.Pair{Access: refresher.NewSecret(fusionToken5), Refresh: refresher.NewSecret(oldRefresh)}
	wantClass(t, exchangeOnce(t, f, other), refresher.ClassConfig) // another application's
	wantClass(t, exchangeOnce(t, f, refresher.Pair{Access: other.Access}), refresher.ClassConfig)
}

func TestWhatAFusionAuthAnswerMeans(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		class  refresher.Class
	}{
		{"a pair", 200, `{"token":"` + newAccess + `","refreshToken":"` + newRefresh + `","refreshTokenId":"id-1"}`, refresher.ClassOK},
		{"a refresh token that is unknown", 400, `{"fieldErrors":{"refreshToken":[{"code":"[invalid]refreshToken","message":"x"}]},"generalErrors":[]}`, refresher.ClassRejected},
		{"a refresh token that is revoked", 400, `{"fieldErrors":{"refreshToken":[{"code":"[revoked]refreshToken"}]}}`, refresher.ClassRejected},
		{"a refresh token that did not arrive", 400, `{"fieldErrors":{"refreshToken":[{"code":"[blank]refreshToken"}]}}`, refresher.ClassConfig},
		{"a tenant that is missing", 400, `{"fieldErrors":{"tenantId":[{"code":"[missing]tenantId"}]}}`, refresher.ClassConfig},
		{"an empty 400", 400, ``, refresher.ClassConfig},
		{"an OAuth error, which is not FusionAuth's form", 400, `{"error":"invalid_grant"}`, refresher.ClassConfig},
		{"401", 401, ``, refresher.ClassConfig},
		{"404", 404, ``, refresher.ClassConfig},
		{"500", 500, ``, refresher.ClassRetry},
		{"503", 503, ``, refresher.ClassRetry},
		{"504 of a webhook: nothing was saved", 504, `{"generalErrors":[{"code":"[WebhookTransactionException]"}]}`, refresher.ClassRetry},
		{"504 of a gateway", 504, `<html>`, refresher.ClassQuiet},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			}))
			defer srv.Close()
			a := exchangeOnce(t, newFusionAuth(t, srv.URL), oldPair())
			wantClass(t, a, tt.class)
			if a.Class == refresher.ClassOK {
				wantNewPair(t, a.Pair)
				if a.Pair.RefreshID != "id-1" {
					t.Errorf("the refresh token's name is %q", a.Pair.RefreshID)
				}
			}
			assertSilent(t, "the answer", a)
		})
	}
}

func TestAFusionAuthRevocation(t *testing.T) {
	var got, authorization string
	status := 200
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, authorization = r.Method+" "+r.RequestURI, r.Header.Get("Authorization")
		w.Header().Set("Retry-After", "9")
		w.WriteHeader(status)
	}))
	defer srv.Close()
	keyed := newFusionAuth(t, srv.URL, func(c *FusionAuthConfig) { c.APIKey = refresher.NewSecret("canary-key") })
	bare := newFusionAuth(t, srv.URL)
	named := oldPair()
	named.RefreshID = "id 1"
	for _, tt := range []struct {
		name          string
		issuer        *FusionAuth
		pair          refresher.Pair
		uri           string
		authorization string
	}{
		{"by the token", keyed, oldPair(), "?token=" + oldRefresh, "canary-key"},
		{"by its name", keyed, named, "/id%201", "canary-key"},
		{"by its name and the access token", bare, named, "/id%201", "Bearer " + oldAccess},
	} {
		for status = range map[int]bool{200: true, 404: true} {
			if err := tt.issuer.Revoke(t.Context(), tt.pair); err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			if want := "DELETE /api/jwt/refresh" + tt.uri; got != want || authorization != tt.authorization {
				t.Errorf("%s: got %q as %q, want %q", tt.name, got, authorization, want)
			}
		}
	}
	wantRevocation(t, bare, "no call to revoke", false)
	status = 401
	wantRevocation(t, keyed, "401", false)
	status = 503
	wantRevocation(t, keyed, "503", true)
}

func TestWhichFusionAuthConfigurationsAreTaken(t *testing.T) {
	const u = "https://auth.example.com"
	for _, tt := range []struct {
		name string
		cfg  FusionAuthConfig
		want string
	}{
		{"nothing", FusionAuthConfig{}, "missing"},
		{"enough", FusionAuthConfig{URL: u}, ""},
		{"the call's own URL", FusionAuthConfig{URL: u + "/api/jwt/refresh"}, "without /api"},
		{"a query", FusionAuthConfig{URL: u + "?canary"}, "without a query"},
		{"a tenant with a line break", FusionAuthConfig{URL: u, TenantID: "canary\n"}, "tenant_id"},
		{"a key with a line break", FusionAuthConfig{URL: u, APIKey: refresher.NewSecret("canary\n")}, "api_key"},
		{"the tenant's field", FusionAuthConfig{URL: u, Options: Options{Header: http.Header{"x-fusionauth-tenantid": {"canary"}}}}, "cannot be set"},
	} {
		_, err := NewFusionAuth(tt.cfg)
		check(t, tt.name, err, tt.want)
	}
}
