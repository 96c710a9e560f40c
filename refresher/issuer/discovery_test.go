package issuer

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func mustURL(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestWhichMetadataAreTaken(t *testing.T) {
	const issuer = "https://issuer.example/tenant"
	tests := []struct {
		name, issuer, body string
		want               string // part of the error
		token, revoke      string
	}{
		{name: "the least", body: `{"issuer":"https://issuer.example/tenant","token_endpoint":"https://issuer.example/t"}`, token: "https://issuer.example/t"},
		{name: "a revocation endpoint, and a default port", body: `{"issuer":"https://issuer.example/tenant","token_endpoint":"https://issuer.example:443/t","revocation_endpoint":"https://ISSUER.example/r","x":[{}]}`,
			token: "https://issuer.example:443/t", revoke: "https://ISSUER.example/r"},
		{name: "a slash that was left out", body: `{"issuer":"https://issuer.example/tenant/","token_endpoint":"https://issuer.example/t"}`, token: "https://issuer.example/t"},
		{name: "an issuer on this machine", issuer: "http://127.0.0.1:8080", body: `{"issuer":"http://127.0.0.1:8080","token_endpoint":"http://127.0.0.1:8080/t"}`, token: "http://127.0.0.1:8080/t"},
		{name: "another issuer", body: `{"issuer":"https://issuer.example/other","token_endpoint":"https://issuer.example/t"}`, want: "another issuer"},
		{name: "an issuer in other case", body: `{"issuer":"https://issuer.example/Tenant","token_endpoint":"https://issuer.example/t"}`, want: "another issuer"},
		{name: "no issuer", body: `{"token_endpoint":"https://issuer.example/t"}`, want: "another issuer"},
		{name: "the issuer twice", body: `{"issuer":"https://issuer.example/tenant","issuer":"https://issuer.example/tenant","token_endpoint":"https://issuer.example/t"}`, want: "each name once"},
		{name: "no token endpoint", body: `{"issuer":"https://issuer.example/tenant"}`, want: "no token_endpoint"},
		{name: "a token endpoint elsewhere", body: `{"issuer":"https://issuer.example/tenant","token_endpoint":"https://evil.example/t"}`, want: "not at the issuer's host"},
		{name: "a token endpoint at another port", body: `{"issuer":"https://issuer.example/tenant","token_endpoint":"https://issuer.example:444/t"}`, want: "not at the issuer's host"},
		{name: "a token endpoint in the clear", body: `{"issuer":"https://issuer.example/tenant","token_endpoint":"http://issuer.example/t"}`, want: "not at the issuer's host"},
		{name: "a token endpoint with a user", body: `{"issuer":"https://issuer.example/tenant","token_endpoint":"https://canary@issuer.example/t"}`, want: "user name"},
		{name: "a token endpoint that is no string", body: `{"issuer":"https://issuer.example/tenant","token_endpoint":["canary"]}`, want: "not a string"},
		{name: "without a revocation endpoint that is elsewhere", body: `{"issuer":"https://issuer.example/tenant","token_endpoint":"https://issuer.example/t","revocation_endpoint":"https://evil.example/t"}`, token: "https://issuer.example/t"},
		{name: "no JSON", body: `<canary>`, want: "not a JSON object"},
		{name: "a list", body: `["canary"]`, want: "not a JSON object"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.issuer == "" {
				tt.issuer = issuer
			}
			m, err := parseMetadata(refresher.NewSecret(tt.body), mustURL(t, tt.issuer))
			check(t, "metadata", err, tt.want)
			if err != nil {
				return
			}
			revoke := ""
			if m.revoke.url != nil {
				revoke = m.revoke.url.String()
			}
			if m.token.String() != tt.token || revoke != tt.revoke {
				t.Errorf("got %s and %q", m.token, revoke)
			}
		})
	}
}

func TestWhereMetadataLie(t *testing.T) {
	for issuer, want := range map[string]string{
		"https://a.example":      "https://a.example/.well-known/openid-configuration https://a.example/.well-known/oauth-authorization-server",
		"https://a.example/":     "https://a.example/.well-known/openid-configuration https://a.example/.well-known/oauth-authorization-server",
		"https://a.example/x/y/": "https://a.example/x/y/.well-known/openid-configuration https://a.example/.well-known/oauth-authorization-server/x/y",
		"https://a.example/x%2F": "https://a.example/x%2F/.well-known/openid-configuration https://a.example/.well-known/oauth-authorization-server/x%2F",
	} {
		var got []string
		for _, u := range metadataPlaces(mustURL(t, issuer)) {
			got = append(got, u.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q", issuer, got)
		}
	}
}

// wellKnown is an issuer whose metadata lie where serve says, and that counts
// who asks for them.
type wellKnown struct {
	*httptest.Server
	serve atomic.Value // string: a path, or "" for none
	asked atomic.Int32
	token atomic.Value // string: the path of the token endpoint
}

func newWellKnown(t *testing.T, place string) *wellKnown {
	w := new(wellKnown)
	w.serve.Store(place)
	w.token.Store("/token")
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Key") != "" && strings.Contains(r.URL.Path, "well-known") {
			t.Error("the configured header was sent to the metadata")
		}
		switch r.URL.Path {
		case w.serve.Load():
			w.asked.Add(1)
			rw.Header().Set("Content-Type", "application/json")
			_, _ = rw.Write([]byte(`{"issuer":"` + w.URL + `","token_endpoint":"` + w.URL + w.token.Load().(string) + `"}`))
		case w.token.Load():
			rw.Header().Set("Content-Type", "application/json")
			_, _ = rw.Write([]byte(`{"access_token":"` + newAccess + `"}`))
		default:
			rw.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(w.Close)
	return w
}

func (w *wellKnown) oauth2(t *testing.T) *OAuth2 {
	return newOAuth2(t, OAuth2Config{Issuer: w.URL, ClientID: "app", Options: Options{Header: http.Header{"X-Key": {"k"}}}})
}

func TestEndpointsAreDiscoveredOnceAndAnewWhereTheyMoved(t *testing.T) {
	for _, place := range []string{"/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"} {
		w := newWellKnown(t, place)
		o := w.oauth2(t)
		if n := w.asked.Load(); n != 0 {
			t.Fatalf("asked %d times before the first exchange", n)
		}
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if a := exchangeOnce(t, o, oldPair()); a.Class != refresher.ClassOK {
					t.Errorf("class %v: %v", a.Class, a.Err)
				}
			})
		}
		all.Wait()
		if n := w.asked.Load(); n != 1 {
			t.Errorf("asked %d times by eight exchanges", n)
		}
		w.token.Store("/moved")
		wantClass(t, exchangeOnce(t, o, oldPair()), refresher.ClassConfig) // 404
		wantClass(t, exchangeOnce(t, o, oldPair()), refresher.ClassOK)
		if n := w.asked.Load(); n != 2 {
			t.Errorf("asked %d times", n)
		}
	}
}

func TestADiscoveryThatFailsSendsNothing(t *testing.T) {
	w := newWellKnown(t, "")
	o := w.oauth2(t)
	for range 2 {
		_, err := o.Prepare(t.Context())
		if err == nil || !strings.Contains(err.Error(), "404") {
			t.Fatalf("prepared, error %v", err)
		}
	}
	w.serve.Store("/.well-known/openid-configuration")
	wantClass(t, exchangeOnce(t, o, oldPair()), refresher.ClassOK)

	// What is known outlives the document, and an issuer that hangs.
	w.serve.Store("")
	o.discovery.doubt()
	wantClass(t, exchangeOnce(t, o, oldPair()), refresher.ClassOK)
	if _, fresh := o.discovery.cached(); !fresh {
		t.Error("it is asked again at once")
	}
	dials := 0
	dial := o.discovery.caller.client.Dial
	hanging := *o.discovery.caller.client
	hanging.Timeout = 200 * time.Millisecond
	hanging.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if dials++; dials == 1 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return (&Client{Dial: dial}).dial(ctx, mustURL(t, w.URL))
	}
	o.discovery.caller.client = &hanging
	o.discovery.doubt()
	wantClass(t, exchangeOnce(t, o, oldPair()), refresher.ClassOK)
	if dials != 1 {
		t.Errorf("%d connections for the metadata", dials)
	}
}

// FuzzMetadata: whatever an issuer publishes, endpoints are on its host, and
// secure where it is.
func FuzzMetadata(f *testing.F) {
	for _, seed := range []string{
		`{"issuer":"https://issuer.example","token_endpoint":"https://issuer.example/t","revocation_endpoint":"https://issuer.example/r"}`,
		`{"issuer":"https://issuer.example/","token_endpoint":"https://issuer.example:443/t","revocation_endpoint":null}`,
		`{"issuer":"https://issuer.example","token_endpoint":"//evil.example"}`,
		`{"issuer":1,"token_endpoint":{}}`, `{`, ``,
	} {
		f.Add(seed)
	}
	issuer := mustURL(f, "https://issuer.example")
	f.Fuzz(func(t *testing.T, body string) {
		m, err := parseMetadata(refresher.NewSecret(body), issuer)
		if err != nil {
			return
		}
		for _, u := range []*url.URL{m.token, m.revoke.url} {
			if u == nil && u != m.token {
				continue
			}
			if u == nil || u.Scheme != "https" || !strings.EqualFold(u.Hostname(), "issuer.example") || port(u) != "443" || u.User != nil {
				t.Fatalf("%q leads to %v", body, u)
			}
		}
	})
}

// FuzzErrorCode: whatever a body says, an error text repeats only words that
// are known beforehand.
func FuzzErrorCode(f *testing.F) {
	for _, seed := range []string{
		`{"error":"invalid_grant"}`, `{"ERROR":"invalid_grant"}`, `{"error":"a","error":"b"}`,
		`{"fieldErrors":{"refreshToken":[{"code":"[invalid]refreshToken"}]},"generalErrors":[]}`,
		`{"generalErrors":[{"code":"[WebhookTransactionException]"}]}`, `{"fieldErrors":[]}`, `[`, ``,
	} {
		f.Add(seed)
	}
	known := map[string]bool{"": true, fusionToken: true, fusionWebhook: true}
	for _, code := range registered {
		known[code] = true
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, d := range []dialect{tokenEndpoint, fusionEndpoint} {
			if code := d.errorCode(refresher.NewSecret(body)); !known[code] {
				t.Fatalf("%q gives the code %q", body, code)
			}
		}
	})
}
