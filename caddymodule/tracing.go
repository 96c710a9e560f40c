package caddymodule

import (
	"context"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// Traces, where Caddy's directive `tracing` stands before us: the request's span
// says which token it went on with, a span below it shows how long it was held
// back, and each exchange has a span of its own. An exchange serves many
// requests and hangs on none, so it is a trace of its own, to which those that
// waited for it are linked. Caddy's tracer can only be had from a request: the
// first one that is traced brings it along.

const tracerName = "github.com/tokenrefresh/caddy-token-refresh/caddymodule"

// The attributes.
const (
	attrSession    = attribute.Key("token_refresh.session")
	attrEpoch      = attribute.Key("token_refresh.epoch")
	attrGeneration = attribute.Key("token_refresh.generation")
	attrReplayed   = attribute.Key("token_refresh.replayed")
	attrWaited     = attribute.Key("token_refresh.waited_seconds")
	attrOutcome    = attribute.Key("token_refresh.outcome")
	attrCause      = attribute.Key("token_refresh.cause")
	attrReason     = attribute.Key("token_refresh.reason")
)

// traces is a session's part in them.
type traces struct {
	tracer atomic.Pointer[trace.Tracer] // nil: nobody traces
	last   atomic.Pointer[tracedExchange]
}

// tracedExchange is where the last rotation can be found.
type tracedExchange struct {
	session           string // in a pool there are many
	epoch, generation uint64
	span              trace.SpanContext
}

// recording returns a request's span if it is one that anybody will see.
func (t *traces) recording(ctx context.Context) (trace.Span, bool) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return nil, false
	}
	tracer := span.TracerProvider().Tracer(tracerName)
	if known := t.tracer.Load(); known == nil || *known != tracer {
		t.tracer.Store(&tracer) // after a reload it may be another
	}
	return span, true
}

// note shows an exchange that has ended, on the session's own goroutine: the
// tracer only keeps it.
func (t *traces) note(n refresher.Note) {
	tracer := t.tracer.Load()
	if tracer == nil || n.Class == 0 || n.Took == 0 {
		return
	}
	begin := n.At.Add(-max(n.Whole, n.Took))
	_, span := (*tracer).Start(context.Background(), "token_refresh.exchange",
		trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(begin),
		trace.WithAttributes(
			attrSession.String(n.Session), attrEpoch.Int64(int64(n.Epoch)), attrGeneration.Int64(int64(n.Generation)),
			attrOutcome.String(n.Class.String()), attrCause.String(n.Cause),
		))
	if n.Err != "" {
		span.SetStatus(codes.Error, n.Err)
	}
	span.End(trace.WithTimestamp(n.At))
	if n.Kind == refresher.NoteRotated { // told before requests get the token
		t.last.Store(&tracedExchange{n.Session, n.Epoch, n.Generation, span.SpanContext()})
	}
}

// waited shows how long a request was held back for its token.
func (t *traces) waited(ctx context.Context, session string, pass *refresher.Pass) {
	if pass.Waited <= 0 {
		return
	}
	parent, ok := t.recording(ctx)
	if !ok {
		return
	}
	now := time.Now()
	options := []trace.SpanStartOption{
		trace.WithTimestamp(now.Add(-pass.Waited)),
		trace.WithAttributes(
			attrSession.String(session), attrEpoch.Int64(int64(pass.Epoch())), attrGeneration.Int64(int64(pass.Generation())),
			attrWaited.Float64(pass.Waited.Seconds()),
		),
	}
	if by := t.last.Load(); by != nil && by.epoch == pass.Epoch() && by.generation == pass.Generation() && by.session == session {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: by.span}))
	}
	_, span := parent.TracerProvider().Tracer(tracerName).Start(ctx, "token_refresh.wait", options...)
	span.End(trace.WithTimestamp(now))
}

// unavailable tells the request's own span why it got no token.
func (t *traces) unavailable(ctx context.Context, session string, err error) {
	if span, ok := t.recording(ctx); ok {
		span.AddEvent("token_refresh.unavailable", trace.WithAttributes(attrSession.String(session), attrReason.String(err.Error())))
	}
}

// request tells the request's own span what became of it.
func (t *traces) request(a *attempt) {
	span, ok := t.recording(a.orig.Context())
	if !ok {
		return
	}
	span.SetAttributes(
		attrSession.String(a.h.Session), attrEpoch.Int64(int64(a.pass.Epoch())),
		attrGeneration.Int64(int64(a.pass.Generation())),
		attrReplayed.Bool(a.replayed), attrWaited.Float64(a.waited.Seconds()),
	)
}
