package sandbox_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func TestAnExchange(t *testing.T) {
	t.Run("issues a new pair and revokes the previous access token at once", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		first := login(s)
		wantStatus(t, "first access token", call(s, first.Access), 200)
		second := mustExchange(t, s, first)
		if second.Access == first.Access || second.Refresh == first.Refresh {
			t.Error("both tokens must be new")
		}
		wantStatus(t, "first access token", call(s, first.Access), 401)
		wantStatus(t, "second access token", call(s, second.Access), 200)
		wantStats(t, s, sandbox.Stats{
			Sessions: 1, Logins: 1, Attempts: 1, Exchanges: 1, Served: 2, Unauthorized: 1, StaleAccess: 1,
		})
	})
	t.Run("ends the session when the refresh token was spent", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		first, bystander := login(s), login(s)
		second := mustExchange(t, s, first)
		status, _ := exchange(t, s, first)
		wantStatus(t, "reuse", status, 400)
		wantStatus(t, "newest access token", call(s, second.Access), 401)
		status, _ = exchange(t, s, second)
		wantStatus(t, "newest pair", status, 401)
		wantStatus(t, "another session", call(s, bystander.Access), 200)
		status, _ = exchange(t, s, first)
		wantStatus(t, "reuse of a session that is over", status, 400)
		stats := s.Stats()
		if stats.Reuses != 2 || stats.SessionsKilled != 1 || stats.Sessions != 1 || stats.Exchanges != 1 {
			t.Errorf("stats %+v", stats)
		}
	})
	t.Run("sees a reuse even with the newest access token beside it", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		first := login(s)
		second := mustExchange(t, s, first)
		status, _ := exchange(t, s, pair{Access: second.Access, Refresh: first.Refresh})
		wantStatus(t, "reuse", status, 400)
		wantStatus(t, "newest access token", call(s, second.Access), 401)
	})
	t.Run("refuses a refresh token of another session", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		a, b := login(s), login(s)
		status, _ := exchange(t, s, pair{Access: a.Access, Refresh: b.Refresh})
		wantStatus(t, "mixed pair", status, 400)
		mustExchange(t, s, a)
		mustExchange(t, s, b)
	})
	t.Run("refuses an unknown refresh token without harm", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		p := login(s)
		status, _ := exchange(t, s, pair{Access: p.Access, Refresh: "nonsense"})
		wantStatus(t, "unknown refresh token", status, 400)
		mustExchange(t, s, p)
	})
	t.Run("refuses an access token that was revoked by itself", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		p := login(s)
		if !s.Revoke(p.Access) || s.Revoke(p.Access) {
			t.Error("Revoke must tell whether the token was good")
		}
		wantStatus(t, "API", call(s, p.Access), 401)
		status, _ := exchange(t, s, p)
		wantStatus(t, "exchange", status, 401)
	})
	t.Run("succeeds once however many try at the same time", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		p := login(s)
		var group sync.WaitGroup
		for range 20 {
			group.Go(func() { serve(s, exchangeRequest("", p)) })
		}
		group.Wait()
		stats := s.Stats()
		if stats.Exchanges != 1 || stats.Reuses != 19 || stats.Attempts != 20 || stats.SessionsKilled != 1 {
			t.Errorf("stats %+v", stats)
		}
	})
	t.Run("is in the ledger with its generations", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		first := login(s)
		mustExchange(t, s, first)
		exchange(t, s, first)
		exchange(t, s, pair{Access: "x", Refresh: "y"})
		list := s.Ledger()
		if len(list) != 3 {
			t.Fatalf("%d entries, want 3", len(list))
		}
		e := list[0]
		if e.Session != "s1" || e.Generation != 1 || e.Issued != 2 || !e.Delivered || e.Reuse || e.Status != 200 ||
			e.CommittedAt.Before(e.At) {
			t.Errorf("exchange: %+v", e)
		}
		e = list[1]
		if e.Session != "s1" || e.Generation != 1 || e.Issued != 0 || e.Delivered || !e.Reuse || e.Status != 400 ||
			!e.CommittedAt.IsZero() {
			t.Errorf("reuse: %+v", e)
		}
		e = list[2]
		if e.Session != "" || e.Status != 401 {
			t.Errorf("unknown tokens: %+v", e)
		}
	})
}

func TestAnExchangeIsRefused(t *testing.T) {
	tests := []struct {
		name   string
		change func(r *http.Request, p pair)
		status int
	}{
		{"with GET", func(r *http.Request, _ pair) { r.Method = "GET" }, 405},
		{"without a content type", func(r *http.Request, _ pair) { r.Header.Del("Content-Type") }, 415},
		{"as a form", func(r *http.Request, _ pair) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }, 415},
		{"with two content types", func(r *http.Request, _ pair) { r.Header.Add("Content-Type", "application/json") }, 415},
		{"without a version", func(r *http.Request, _ pair) { r.Header.Del("Version") }, 400},
		{"with another version", func(r *http.Request, _ pair) { r.Header.Set("Version", "1.0") }, 400},
		{"without an access token", func(r *http.Request, _ pair) { r.Header.Del("Authorization") }, 401},
		{"with two access tokens", func(r *http.Request, p pair) { r.Header.Add("Authorization", "Bearer "+p.Access) }, 401},
		{"with a bare access token", func(r *http.Request, p pair) { r.Header.Set("Authorization", p.Access) }, 401},
		{"with the scheme in lower case", func(r *http.Request, p pair) { r.Header.Set("Authorization", "bearer "+p.Access) }, 401},
		{"with an altered access token", func(r *http.Request, p pair) { r.Header.Set("Authorization", "Bearer "+p.Access+"A") }, 401},
		{"with an empty body", body(``), 400},
		{"with another JSON value", body(`["x"]`), 400},
		{"without the member", body(`{}`), 400},
		{"with a member in other letters", body(`{"RefreshToken":"x"}`), 400},
		{"with one member more", body(`{"refreshToken":"x","other":"y"}`), 400},
		{"with the member twice", body(`{"refreshToken":"x","refreshToken":"x"}`), 400},
		{"with a number", body(`{"refreshToken":1}`), 400},
		{"with an empty refresh token", body(`{"refreshToken":""}`), 400},
		{"with something after the object", body(`{"refreshToken":"x"} x`), 400},
		{"with 256 characters", body(`{"refreshToken":"` + strings.Repeat("x", 256) + `"}`), 400},
		{"with invalid UTF-8", body("{\"refreshToken\":\"\xff\"}"), 400},
		{"with an endless body", body(`{"refreshToken":"` + strings.Repeat("x", 10_000) + `"}`), 413},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := sandbox.New(sandbox.Config{})
			p := login(s)
			r := exchangeRequest("", p)
			test.change(r, p)
			w := serve(s, r)
			wantStatus(t, "exchange", w.Code, test.status)
			if (w.Header().Get("WWW-Authenticate") != "") != (w.Code == 401) {
				t.Error("WWW-Authenticate goes with 401 and only with it")
			}
			var answer struct {
				Result      bool
				Message     string
				RecordCount int
				Data        any
			}
			decode(t, w.Body, &answer)
			if answer.Result || answer.Message == "" {
				t.Errorf("answer %+v", answer)
			}
			mustExchange(t, s, p) // nothing was spent
		})
	}
}

func body(text string) func(*http.Request, pair) {
	return func(r *http.Request, _ pair) { r.Body = io.NopCloser(strings.NewReader(text)) }
}

func TestASetting(t *testing.T) {
	t.Run("LaxHeaders does without content type and version", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{LaxHeaders: true})
		r := exchangeRequest("", login(s))
		r.Header.Del("Content-Type")
		r.Header.Del("Version")
		wantStatus(t, "exchange", serve(s, r).Code, 200)
	})
	t.Run("BareToken takes the token without its scheme", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{BareToken: true})
		p := login(s)
		r := exchangeRequest("", p)
		r.Header.Set("Authorization", p.Access)
		wantStatus(t, "exchange", serve(s, r).Code, 200)
	})
	t.Run("KeepRefreshToken answers the same refresh token", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{KeepRefreshToken: true})
		first := login(s)
		second := mustExchange(t, s, first)
		if second.Refresh != first.Refresh {
			t.Error("the refresh token must stay")
		}
		mustExchange(t, s, second)
		if list := s.Ledger(); list[1].Generation != 2 || list[1].Issued != 3 || !list[1].Delivered {
			t.Errorf("ledger %+v", list[1])
		}
	})
	t.Run("OmitRefreshToken answers none, and the one in use stays valid", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{OmitRefreshToken: true})
		first := login(s)
		second := mustExchange(t, s, first)
		if first.Refresh == "" || second.Refresh != "" {
			t.Error("only the login names a refresh token")
		}
		second.Refresh = first.Refresh
		mustExchange(t, s, second)
		if !s.Ledger()[0].Delivered {
			t.Error("the answer was delivered")
		}
	})
	t.Run("KeepPreviousAccess accepts superseded tokens", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{KeepPreviousAccess: true})
		first := login(s)
		mustExchange(t, s, first)
		wantStatus(t, "first access token", call(s, first.Access), 200)
	})
	t.Run("ExpiresIn adds whole seconds", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{ExpiresIn: true})
		p := mustExchange(t, s, login(s))
		if p.ExpiresIn == nil || *p.ExpiresIn < 28 || *p.ExpiresIn > 30 {
			t.Errorf("expires_in %v", p.ExpiresIn)
		}
	})
	t.Run("Statuses replaces answers", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{Statuses: sandbox.Statuses{
			BadRefresh:   sandbox.Refusal{Status: 403, Body: "no", ContentType: "text/plain"},
			Unauthorized: sandbox.Refusal{Status: 200},
		}})
		p := login(s)
		w := serve(s, exchangeRequest("", pair{Access: p.Access, Refresh: "x"}))
		if w.Code != 403 || w.Body.String() != "no" || w.Header().Get("Content-Type") != "text/plain" {
			t.Errorf("answer %d %q", w.Code, w.Body)
		}
		wantStatus(t, "API that says no with 200", call(s, "x"), 200)
		if stats := s.Stats(); stats.Unauthorized != 1 || stats.Served != 0 {
			t.Errorf("stats %+v", stats)
		}
	})
}

func TestALogin(t *testing.T) {
	request := func(body string) *http.Request {
		r := httptest.NewRequest("POST", "/User/Login", strings.NewReader(body))
		r.Header = with(r.Header, map[string][]string{"Content-Type": {"application/json; charset=utf-8"}, "Version": {"2.0"}})
		return r
	}
	t.Run("answers a bare pair", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		w := serve(s, request(`{"username":"demo","password":"demo"}`))
		wantStatus(t, "login", w.Code, 200)
		var p pair
		decode(t, w.Body, &p)
		wantStatus(t, "API", call(s, p.Access), 200)
		mustExchange(t, s, p)
		if w.Header().Get("Cache-Control") != "no-store" {
			t.Error("a pair is not to be cached")
		}
	})
	t.Run("refuses a wrong password", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{Password: "secret"})
		wantStatus(t, "login", serve(s, request(`{"username":"demo","password":"demo"}`)).Code, 401)
		if s.Stats().Logins != 0 {
			t.Error("no session may be open")
		}
	})
	t.Run("refuses a body that is not the documented one", func(t *testing.T) {
		s := sandbox.New(sandbox.Config{})
		wantStatus(t, "login", serve(s, request(`{"username":"demo"}`)).Code, 400)
	})
}

func TestALogout(t *testing.T) {
	s := sandbox.New(sandbox.Config{})
	p := login(s)
	request := func() *http.Request {
		r := apiRequest("", "POST", "/User/Logout", p.Access, nil)
		r.Header.Set("Version", "2.0")
		return r
	}
	wantStatus(t, "logout", serve(s, request()).Code, 200)
	wantStatus(t, "API", call(s, p.Access), 401)
	wantStatus(t, "second logout", serve(s, request()).Code, 401)
	status, _ := exchange(t, s, p)
	wantStatus(t, "exchange", status, 401)
	wantStats(t, s, sandbox.Stats{Logins: 1, Logouts: 1, Attempts: 1, Unauthorized: 1})
}

func TestAnAccessToken(t *testing.T) {
	parts := func(cfg sandbox.Config) []string {
		access, _ := sandbox.New(cfg).Login()
		return strings.Split(access, ".")
	}
	t.Run("has the documents' claims, and neither iat nor nbf", func(t *testing.T) {
		raw, err := base64.RawURLEncoding.DecodeString(parts(sandbox.Config{})[1])
		if err != nil {
			t.Fatal(err)
		}
		var claims map[string]any
		if err := json.Unmarshal(raw, &claims); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{
			"http://schemas.xmlsoap.org/ws/2005/05/identity/claims/nameidentifier",
			"UserID", "InstanceID", "Roles", "exp", "iss", "aud", "jti",
		} {
			if claims[name] == nil {
				t.Errorf("claim %q is missing", name)
			}
			delete(claims, name)
		}
		if len(claims) > 0 {
			t.Errorf("more claims: %v", claims)
		}
	})
	t.Run("is signed, so that its last part is valid base64url", func(t *testing.T) {
		if _, err := base64.RawURLEncoding.DecodeString(parts(sandbox.Config{})[2]); err != nil {
			t.Error(err)
		}
	})
	t.Run("ends in something else with SeedSignature", func(t *testing.T) {
		if _, err := base64.RawURLEncoding.DecodeString(parts(sandbox.Config{SeedSignature: true})[2]); err == nil {
			t.Error("the signature must not be valid base64url")
		}
	})
	t.Run("has no parts with OpaqueAccess", func(t *testing.T) {
		if n := len(parts(sandbox.Config{OpaqueAccess: true})); n != 1 {
			t.Errorf("%d parts", n)
		}
	})
	t.Run("is accepted in every form, and is never issued twice", func(t *testing.T) {
		for _, cfg := range []sandbox.Config{{}, {SeedSignature: true}, {OpaqueAccess: true}} {
			s := sandbox.New(cfg)
			seen := []string{}
			p := login(s)
			for range 20 {
				wantStatus(t, "API", call(s, p.Access), 200)
				if slices.Contains(seen, p.Access) {
					t.Fatal("issued twice")
				}
				seen = append(seen, p.Access)
				p = mustExchange(t, s, p)
			}
		}
	})
}

func TestARefreshTokenIs52Alphanumerics(t *testing.T) {
	_, refresh := sandbox.New(sandbox.Config{}).Login()
	if !regexp.MustCompile(`^[0-9A-Za-z]{52}$`).MatchString(refresh) {
		t.Errorf("%d characters", len(refresh))
	}
}
