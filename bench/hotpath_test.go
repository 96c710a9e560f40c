package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/tokenrefresh/caddy-token-refresh/caddymodule"
	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func testPair() refresher.Pair {
	access, refresh := sandbox.New(sandbox.Config{AccessLifetime: time.Hour}).Login()
	return refresher.Pair{Access: refresher.NewSecret(access), Refresh: refresher.NewSecret(refresh)}
}

func BenchmarkEnter(b *testing.B) {
	keys, err := journal.NewKeyring(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	is, err := issuer.NewBearer(issuer.BearerConfig{URL: "https://issuer.invalid/", Profile: refresher.Profile{RevokesPrevious: true}})
	if err != nil {
		b.Fatal(err)
	}
	s := refresher.New("bench", refresher.Options{Dir: b.TempDir()})
	defer s.Close(context.Background())
	detach, err := s.Attach(refresher.Config{Issuer: is, Keys: keys})
	if err != nil {
		b.Fatal(err)
	}
	defer detach()
	if err := s.Import(b.Context(), testPair(), "import"); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		ctx := context.Background()
		for pb.Next() {
			p, err := s.Enter(ctx, true)
			if err != nil {
				b.Fatal(err)
			}
			p.Settle()
		}
	})
}

// nothing is what stands behind the handler.
var nothing caddyhttp.HandlerFunc = func(w http.ResponseWriter, _ *http.Request) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func BenchmarkEmptyHandler(b *testing.B) {
	benchmarkHandler(b, func(w http.ResponseWriter, r *http.Request) error { return nothing.ServeHTTP(w, r) })
}

func BenchmarkHandler(b *testing.B) {
	handler := provision(b)
	benchmarkHandler(b, func(w http.ResponseWriter, r *http.Request) error { return handler.ServeHTTP(w, r, nothing) })
}

// provision makes a handler with a session that has a pair.
func provision(b *testing.B) *caddymodule.Handler {
	app, err := json.Marshal(map[string]any{
		"state_dir": b.TempDir(),
		"sessions": map[string]any{"bench": map[string]any{
			"issuer": map[string]any{"kind": "bearer", "url": "https://issuer.invalid/"},
			"tokens": []any{map[string]any{"from": "env", "access": "BENCH_ACCESS", "refresh": "BENCH_REFRESH"}},
		}},
	})
	if err != nil {
		b.Fatal(err)
	}
	pair := testPair()
	b.Setenv("BENCH_ACCESS", pair.Access.Reveal())
	b.Setenv("BENCH_REFRESH", pair.Refresh.Reveal())
	ctx, err := caddy.ProvisionContext(&caddy.Config{
		Admin:   &caddy.AdminConfig{Disabled: true},
		AppsRaw: caddy.ModuleMap{"token_refresh": app},
	})
	if err != nil {
		b.Fatal(err)
	}
	loaded, err := ctx.App("token_refresh")
	if err != nil {
		b.Fatal(err)
	}
	if err := loaded.(caddy.App).Start(); err != nil {
		b.Fatal(err)
	}
	mod, err := ctx.LoadModuleByID("http.handlers.token_refresh", json.RawMessage(`{"session": "bench"}`))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = loaded.(caddy.App).Stop()
		_ = loaded.(caddy.CleanerUpper).Cleanup()
	})
	return mod.(*caddymodule.Handler)
}

func benchmarkHandler(b *testing.B, serve func(http.ResponseWriter, *http.Request) error) {
	w := &discard{header: http.Header{"Server": {"Caddy"}}}
	bare := httptest.NewRequest(http.MethodGet, "http://localhost/whoami", nil)
	bare.RemoteAddr = "127.0.0.1:1234"
	bare.Header = http.Header{
		"User-Agent": {"bench"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip"},
		"X-Request-Id": {"1"}, "Authorization": {"Bearer of-the-caller"},
	}
	server := new(caddyhttp.Server)
	r := caddyhttp.PrepareRequest(bare, caddy.NewReplacer(), w, server)
	if err := serve(w, r); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := serve(w, r); err != nil {
			b.Fatal(err)
		}
	}
}

// discard is a response that goes nowhere.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}
