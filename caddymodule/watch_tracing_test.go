package caddymodule

import (
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// traceMiddleware stands for Caddy's directive `tracing`, whose exporter a test
// cannot reach: like it, it puts a span of a private provider into the request.
type traceMiddleware struct{}

var traceRecorder *tracetest.SpanRecorder

var traceProvider *sdktrace.TracerProvider

func init() {
	caddy.RegisterModule(traceMiddleware{})
	httpcaddyfile.RegisterHandlerDirective("test_tracing", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		return traceMiddleware{}, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("test_tracing", httpcaddyfile.Before, "tracing")
}

func (traceMiddleware) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.test_tracing", New: func() caddy.Module { return new(traceMiddleware) }}
}

func (traceMiddleware) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	ctx, span := traceProvider.Tracer("test").Start(r.Context(), r.URL.Path)
	defer span.End()
	return next.ServeHTTP(w, r.WithContext(ctx))
}

func traceSpans(name string) (list []sdktrace.ReadOnlySpan) {
	for _, s := range traceRecorder.Ended() {
		if s.Name() == name {
			list = append(list, s)
		}
	}
	return list
}

func traceAttributes(s sdktrace.ReadOnlySpan) map[attribute.Key]attribute.Value {
	m := map[attribute.Key]attribute.Value{}
	for _, a := range s.Attributes() {
		m[a.Key] = a.Value
	}
	return m
}

// A traced request shows its token's generation and what it waited for, linked to
// the exchange; nothing in a trace is a token.
func TestTracesShowExchangesAndWaits(t *testing.T) {
	traceRecorder = tracetest.NewSpanRecorder()
	traceProvider = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(traceRecorder))
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	up := newRuleUpstream(t, nil)
	c := ruleStart(t, ruleConfig{
		App:  ruleSession(issuer, rulePair(t, access, refresh)),
		Site: "handle /plain {\ntoken_refresh s\nreverse_proxy " + up.URL + "\n}\nhandle {\ntest_tracing\ntoken_refresh s\nreverse_proxy " + up.URL + "\n}",
	})
	refreshNow := func() { c.admin("POST", "/token_refresh/sessions/s/refresh", "") }
	exchange := func() <-chan struct{} {
		sb.Fault(sandbox.Fault{Commit: true, DelayBefore: 300 * time.Millisecond}, 1)
		attempts := sb.Stats().Attempts
		done := make(chan struct{})
		go func() { refreshNow(); close(done) }()
		ruleEventually(t, "the exchange's begin", func() bool { return sb.Stats().Attempts == attempts+1 })
		return done
	}
	// Without tracing nothing is made.
	done := exchange()
	c.get("/plain")
	<-done
	if n := len(traceRecorder.Ended()); n != 0 {
		t.Fatalf("%d spans without tracing", n)
	}

	c.get("/first") // brings the tracer along
	done = exchange()
	c.get("/waits")
	<-done
	ruleEventually(t, "the spans", func() bool { return len(traceSpans("token_refresh.exchange")) == 1 && len(traceSpans("/waits")) == 1 })
	ex := traceSpans("token_refresh.exchange")[0]
	if ex.Parent().IsValid() || ex.SpanKind() != trace.SpanKindClient || ex.EndTime().Sub(ex.StartTime()) < 300*time.Millisecond {
		t.Errorf("the exchange: parent %v, %v, %v", ex.Parent().IsValid(), ex.SpanKind(), ex.EndTime().Sub(ex.StartTime()))
	}
	has := traceAttributes(ex)
	if has[attrSession].AsString() != "s" || has[attrGeneration].AsInt64() != 3 || has[attrOutcome].AsString() != "ok" || has[attrCause].AsString() != "operator" {
		t.Errorf("the exchange: %v", has)
	}
	waits := traceSpans("token_refresh.wait")
	if len(waits) != 1 {
		t.Fatalf("%d waits", len(waits))
	}
	wait, request := waits[0], traceSpans("/waits")[0]
	has = traceAttributes(wait)
	if wait.Parent().SpanID() != request.SpanContext().SpanID() || has[attrGeneration].AsInt64() != 3 || has[attrWaited].AsFloat64() <= 0 || wait.EndTime().Before(wait.StartTime()) {
		t.Errorf("the wait: %v", has)
	}
	if links := wait.Links(); len(links) != 1 || links[0].SpanContext.SpanID() != ex.SpanContext().SpanID() {
		t.Errorf("the wait is linked to %v", links)
	}
	has = traceAttributes(request)
	if has[attrSession].AsString() != "s" || has[attrGeneration].AsInt64() != 3 || has[attrReplayed].AsBool() || has[attrWaited].AsFloat64() != traceAttributes(wait)[attrWaited].AsFloat64() {
		t.Errorf("the request: %v", has)
	}
	if traceAttributes(traceSpans("/first")[0])[attrWaited].AsFloat64() != 0 {
		t.Error("the first one waited")
	}

	// A failure, the end, and a request that gets no token.
	sb.Fault(sandbox.Fault{Status: 400, Body: `{"error":"invalid_grant"}`}, 1)
	refreshNow()
	c.get("/lost")
	ruleEventually(t, "the failed exchange", func() bool { return len(traceSpans("token_refresh.exchange")) == 2 && len(traceSpans("/lost")) == 1 })
	if failed := traceSpans("token_refresh.exchange")[1]; failed.Status().Code != codes.Error || traceAttributes(failed)[attrOutcome].AsString() != "rejected" {
		t.Errorf("the failed exchange: %v %v", failed.Status(), traceAttributes(failed))
	}
	if events := traceSpans("/lost")[0].Events(); !slices.ContainsFunc(events, func(e sdktrace.Event) bool { return e.Name == "token_refresh.unavailable" }) {
		t.Errorf("the request without a token: %v", events)
	}
	secrets := map[string]string{"access": access, "refresh": refresh}
	for i, seen := range up.requests() {
		secrets[string(rune('a'+i))] = seen.Token
	}
	for _, s := range tracetest.SpanStubsFromReadOnlySpans(traceRecorder.Ended()) {
		var all strings.Builder
		for _, a := range s.Attributes {
			all.WriteString(a.Value.String() + " ")
		}
		for _, e := range s.Events {
			for _, a := range e.Attributes {
				all.WriteString(a.Value.String() + " ")
			}
		}
		for _, found := range hygFind([]byte(all.String()+s.Status.Description+s.Name), secrets) {
			t.Errorf("a span: %s", found)
		}
	}
}

// Caddy's own directive can stand before us.
func TestCaddysTracingStandsBeforeUs(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	up := newRuleUpstream(t, nil)
	c := ruleStart(t, ruleConfig{
		App:     ruleSession(issuer, rulePair(t, access, refresh)),
		LogFile: filepath.Join(t.TempDir(), "log"),
		Site:    "tracing {\nspan request\n}\ntoken_refresh s\nreverse_proxy " + up.URL,
	})
	if status, _ := c.get("/"); status != 200 {
		t.Fatal(status)
	}
	app, err := activeApp()
	if err != nil {
		t.Fatal(err)
	}
	if app.Sessions["s"].shared.watch.traces.tracer.Load() == nil {
		t.Error("the request's tracer was not found")
	}
	if status, _ := c.admin("POST", "/token_refresh/sessions/s/refresh", ""); status != 200 {
		t.Fatal(status)
	}
	ruleEqual(t, "state", ruleStatus(t, "s").State, refresher.PhaseFresh)
}
