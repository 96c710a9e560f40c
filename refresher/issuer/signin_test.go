package issuer

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer/issuertest"
)

const testRedirect = "http://127.0.0.1:8765/callback"

// person starts a server at which people can sign in, and its client.
func person(t *testing.T, change ...func(*OAuth2Config)) (*issuertest.Provider, *OAuth2) {
	t.Helper()
	server := issuertest.Start(t, time.Hour, issuertest.Client{
		ID: "native", Secret: oddSecret, Kind: "native", Redirects: []string{"http://127.0.0.1/callback"},
	})
	cfg := OAuth2Config{
		Issuer: server.Issuer, ClientID: "native", ClientSecret: refresher.NewSecret(oddSecret),
		Scope: "openid offline_access api",
	}
	for _, f := range change {
		f(&cfg)
	}
	return server, newOAuth2(t, cfg)
}

func beginCode(t *testing.T, o *OAuth2) *CodeLogin {
	t.Helper()
	l, err := o.BeginCode(t.Context(), testRedirect, "")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func cameBack(u *url.URL) CodeAnswer {
	q := u.Query()
	return CodeAnswer{Code: refresher.NewSecret(q.Get("code")), State: q.Get("state"), Issuer: q.Get("iss"), Error: q.Get("error")}
}

func TestAPersonSignsInByABrowserAtARealServer(t *testing.T) {
	for name, change := range map[string]func(*OAuth2Config){
		"discovered": func(*OAuth2Config) {},
		"configured": func(c *OAuth2Config) {
			c.TokenURL, c.AuthorizationURL, c.Issuer = c.Issuer+"/token", c.Issuer+"/auth?prompt=consent", ""
		},
		"for a resource": func(c *OAuth2Config) { c.Parameters = url.Values{"resource": {"urn:test:jwt"}} },
	} {
		t.Run(name, func(t *testing.T) {
			server, o := person(t, change)
			l := beginCode(t, o)
			u, err := url.Parse(l.URL)
			if err != nil {
				t.Fatal(err)
			}
			if q := u.Query(); q.Get("code_challenge_method") != "S256" || len(q.Get("code_challenge")) != 43 || len(q.Get("state")) < 20 || strings.Contains(l.URL, l.verifier.Reveal()) || len(q["prompt"]) != 1 {
				t.Errorf("it sends the person to %s", l.URL)
			}
			back := server.Browse(t, l.URL)
			if back.Host != "127.0.0.1:8765" || back.Path != "/callback" {
				t.Fatalf("the browser went to %s%s", back.Host, back.Path)
			}
			pair, err := l.Finish(t.Context(), cameBack(back))
			if err != nil {
				t.Fatal(err)
			}
			if pair.Access.IsZero() || pair.Refresh.IsZero() || pair.ID.IsZero() || pair.ExpiresIn != time.Hour {
				t.Errorf("a pair without something: %v", pair.ExpiresIn)
			}
			a := exchangeOnce(t, o, pair)
			if a.Class != refresher.ClassOK && !strings.Contains(name, "resource") {
				t.Errorf("the pair cannot be exchanged: %v", a.Err)
			}
			// The code again: the server ends what it has led to.
			if _, err := l.Finish(t.Context(), cameBack(back)); !errors.Is(err, ErrSignIn) || !strings.Contains(err.Error(), "invalid_grant") {
				t.Errorf("a replayed code: %v", err)
			}
		})
	}
}

func TestAnAnswerThatIsNotToTheLoginIsRefused(t *testing.T) {
	server, o := person(t)
	for name, tt := range map[string]struct {
		change func(*CodeAnswer)
		want   string
	}{
		"another state":  {func(a *CodeAnswer) { a.State = "x" }, "state"},
		"no state":       {func(a *CodeAnswer) { a.State = "" }, "state"},
		"another issuer": {func(a *CodeAnswer) { a.Issuer = "https://evil.example" }, "iss"},
		"no issuer":      {func(a *CodeAnswer) { a.Issuer = "" }, "iss"},
		"no code":        {func(a *CodeAnswer) { a.Code = refresher.Secret{} }, "no code"},
		"another code":   {func(a *CodeAnswer) { a.Code = refresher.NewSecret("CANARY") }, "invalid_grant"},
		"an odd error":   {func(a *CodeAnswer) { a.Error = "CANARY" }, "not a registered one"},
	} {
		t.Run(name, func(t *testing.T) {
			before := server.Stats(t)
			l := beginCode(t, o)
			answer := cameBack(server.Browse(t, l.URL))
			tt.change(&answer)
			_, err := l.Finish(t.Context(), answer)
			if !errors.Is(err, ErrSignIn) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "CANARY") {
				t.Errorf("error %v", err)
			}
			if after := server.Stats(t); after.Exchanges != before.Exchanges {
				t.Error("something was exchanged")
			}
		})
	}
	t.Run("the verifier of another login", func(t *testing.T) {
		l, other := beginCode(t, o), beginCode(t, o)
		answer := cameBack(server.Browse(t, l.URL))
		answer.State = other.state
		if _, err := other.Finish(t.Context(), answer); err == nil || !strings.Contains(err.Error(), "invalid_grant") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("the person refuses", func(t *testing.T) {
		server.SetAgrees(t, false)
		defer server.SetAgrees(t, true)
		l := beginCode(t, o)
		_, err := l.Finish(t.Context(), cameBack(server.Browse(t, l.URL)))
		if !errors.Is(err, ErrSignIn) || !strings.Contains(err.Error(), "access_denied") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("without offline_access", func(t *testing.T) {
		l, err := o.BeginCode(t.Context(), testRedirect, "openid")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Finish(t.Context(), cameBack(server.Browse(t, l.URL))); !errors.Is(err, ErrSignIn) || !strings.Contains(err.Error(), "offline_access") {
			t.Errorf("error %v", err)
		}
	})
}

func TestWhatALoginCannotBeginWith(t *testing.T) {
	o := newOAuth2(t, OAuth2Config{TokenURL: "https://issuer.example/token", AuthorizationURL: "https://issuer.example/auth", ClientID: "a"})
	for _, redirect := range []string{
		"", "https://127.0.0.1:1/callback", "http://192.0.2.1:1/callback", "http://evil.localhost:1/callback", "http://127.0.0.1/callback",
		"http://127.0.0.1:1", "http://a@127.0.0.1:1/callback", "http://127.0.0.1:1/callback?x=y", "http://127.0.0.1:1/callback#x", "app:/callback",
	} {
		if _, err := o.BeginCode(t.Context(), redirect, ""); err == nil || !strings.Contains(err.Error(), "redirect_uri") {
			t.Errorf("%q: %v", redirect, err)
		}
	}
	for _, redirect := range []string{testRedirect, "http://[::1]:1/callback", "http://localhost:1/callback"} {
		if _, err := o.BeginCode(t.Context(), redirect, ""); err != nil {
			t.Errorf("%q: %v", redirect, err)
		}
	}
	if _, err := o.BeginCode(t.Context(), testRedirect, "a\nb"); err == nil || !strings.Contains(err.Error(), "scope") {
		t.Errorf("a scope with a line break: %v", err)
	}
	if _, err := o.BeginDevice(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "device_url") {
		t.Errorf("a device without an endpoint: %v", err)
	}
	bare := newOAuth2(t, OAuth2Config{TokenURL: "https://issuer.example/token", ClientID: "a"})
	if _, err := bare.BeginCode(t.Context(), testRedirect, ""); err == nil || !strings.Contains(err.Error(), "authorization_url") {
		t.Errorf("a browser without an endpoint: %v", err)
	}
}

// Endpoints for people on another host stop nothing but that login; the secrets of
// parameters stay out of the browser.
func TestEndpointsForPeopleAreOnTheIssuersHost(t *testing.T) {
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"issuer":"` + srv.URL + `","token_endpoint":"` + srv.URL + `/t","authorization_endpoint":"https://evil.example/a",
			"device_authorization_endpoint":"https://evil.example/d","authorization_response_iss_parameter_supported":true}`))
	}))
	defer srv.Close()
	cfg := OAuth2Config{Issuer: srv.URL, ClientID: "a", Parameters: url.Values{"key": {"CANARY"}, "resource": {"urn:r"}}, Audience: "aud"}
	o := newOAuth2(t, cfg)
	if _, err := o.Prepare(t.Context()); err != nil {
		t.Errorf("exchanges do not need them: %v", err)
	}
	if _, err := o.BeginCode(t.Context(), testRedirect, ""); err == nil || !strings.Contains(err.Error(), "evil.example") || !strings.Contains(err.Error(), "authorization_url") {
		t.Errorf("by browser: %v", err)
	}
	if _, err := o.BeginDevice(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "device_url") {
		t.Errorf("by device: %v", err)
	}
	cfg.AuthorizationURL = srv.URL + "/a?keep=1"
	l, err := newOAuth2(t, cfg).BeginCode(t.Context(), testRedirect, "")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(l.URL, "keep=1") || !strings.Contains(l.URL, "resource=urn") || !strings.Contains(l.URL, "audience=aud") || strings.Contains(l.URL, "CANARY") {
		t.Errorf("it sends the person to %s", l.URL)
	}
}

func TestAPersonEntersADeviceCodeAtARealServer(t *testing.T) {
	server, o := person(t)
	begin := func() *DeviceLogin {
		l, err := o.BeginDevice(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		l.next = time.Time{} // no need to wait here
		return l
	}
	l := begin()
	if l.UserCode == "" || !strings.HasPrefix(l.VerificationURI, server.Issuer) || !strings.Contains(l.VerificationURIComplete, l.UserCode) || l.interval != deviceInterval {
		t.Errorf("it shows %q, %q, %q", l.UserCode, l.VerificationURI, l.VerificationURIComplete)
	}
	if _, wait, err := l.Poll(t.Context()); wait != deviceInterval || err != nil {
		t.Fatalf("before: %v, %v", wait, err)
	}
	if _, wait, err := l.Poll(t.Context()); wait <= 0 || wait > deviceInterval || err != nil {
		t.Fatalf("too soon: %v, %v", wait, err)
	}
	if n := server.Stats(t).Refused["authorization_pending"]; n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
	server.EnterDeviceCode(t, l.UserCode)
	l.next = time.Time{}
	pair, wait, err := l.Poll(t.Context())
	if wait != 0 || err != nil || pair.Refresh.IsZero() {
		t.Fatalf("after: %v, %v", wait, err)
	}
	wantClass(t, exchangeOnce(t, o, pair), refresher.ClassOK)
	if _, _, err := l.Poll(t.Context()); !errors.Is(err, ErrSignIn) {
		t.Errorf("again: %v", err)
	}

	server.SetAgrees(t, false)
	l = begin()
	server.EnterDeviceCode(t, l.UserCode)
	if _, wait, err := l.Poll(t.Context()); wait != 0 || !errors.Is(err, ErrSignIn) || !strings.Contains(err.Error(), "access_denied") || strings.Contains(err.Error(), "CANARY") {
		t.Errorf("refused: %v, %v", wait, err)
	}
	l = begin()
	l.ExpiresAt = time.Now()
	if _, _, err := l.Poll(t.Context()); !errors.Is(err, ErrSignIn) || !strings.Contains(err.Error(), "in time") {
		t.Errorf("too late: %v", err)
	}
}

func TestADeviceSlowsDown(t *testing.T) {
	var answers atomic.Pointer[string]
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/token" && !strings.HasPrefix(*answers.Load(), `{"access`) {
			w.WriteHeader(http.StatusBadRequest)
		}
		_, _ = w.Write([]byte(*answers.Load()))
	}))
	defer srv.Close()
	answer := func(text string) { answers.Store(&text) }
	o := newOAuth2(t, OAuth2Config{TokenURL: srv.URL + "/token", DeviceURL: srv.URL + "/device", ClientID: "a"})

	answer(`{"device_code":"d","user_code":"AB-CD","verification_url":"https://issuer.example/device","expires_in":"600","interval":2}`)
	l, err := o.BeginDevice(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		answer string
		want   time.Duration
	}{
		{`{"error":"authorization_pending"}`, 2 * time.Second},
		{`{"error":"slow_down"}`, 7 * time.Second},
		{`{"error":"authorization_pending"}`, 7 * time.Second},
		{`{"error":"temporarily_unavailable"}`, 14 * time.Second},
	} {
		answer(tt.answer)
		l.next = time.Time{}
		if _, wait, err := l.Poll(t.Context()); wait != tt.want || err != nil {
			t.Errorf("%s: %v, %v", tt.answer, wait, err)
		}
	}
	answer(`{"access_token":"a","refresh_token":"r"}`)
	l.next = time.Time{}
	if pair, wait, err := l.Poll(t.Context()); wait != 0 || err != nil || pair.Refresh.IsZero() {
		t.Errorf("%v, %v", wait, err)
	}

	for _, bad := range []string{
		`{}`, `[]`, `{"device_code":"d"}`, `{"device_code":"d","user_code":"\u001b[2J","verification_uri":"https://issuer.example"}`,
		`{"device_code":"d","user_code":"A","verification_uri":"javascript:alert(1)"}`, `{"device_code":"d","user_code":"A","verification_uri":"http://issuer.example"}`,
		`{"device_code":1,"user_code":"A","verification_uri":"https://issuer.example"}`,
	} {
		answer(bad)
		if _, err := o.BeginDevice(t.Context(), ""); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}
