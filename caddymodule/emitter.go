package caddymodule

import (
	"context"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// emitter hands a configuration's events to Caddy's events app. Handlers there
// may take their time, so a session leaves its event in a queue, and one
// goroutine empties it; what does not fit is dropped, counted and logged.
type emitter struct {
	ctx    caddy.Context // of the app: it is the events' origin
	events *caddyevents.App
	logger *zap.Logger

	queue   chan happening
	dropped atomic.Uint64 // since it was last told
	begin   event         // the events app has its subscriptions
	closing event         // the configuration is about to end: streams end with it
	started bool
	stop    chan struct{}
	done    chan struct{}
}

const (
	maxQueued    = 1024
	emitterGrace = 2 * time.Second // for what is queued when the configuration ends
)

// event is something that happens once.
type event struct{ ch chan struct{} }

func newOnce() event { return event{make(chan struct{})} }

func (e event) happen() {
	select {
	case <-e.ch:
	default:
		close(e.ch) // only Caddy tells, one thing after the other
	}
}

// eventHandler is a function as a handler of Caddy's events.
type eventHandler func()

// Handle implements caddyevents.Handler.
func (f eventHandler) Handle(context.Context, caddy.Event) error {
	f()
	return nil
}

// MarshalJSON keeps the events app's debug log from failing on a function.
func (eventHandler) MarshalJSON() ([]byte, error) { return []byte(`"` + appName + `"`), nil }

func newEmitter(ctx caddy.Context, logger *zap.Logger) (*emitter, error) {
	mod, err := ctx.App("events")
	if err != nil {
		return nil, fmt.Errorf("loading the events app: %w", err)
	}
	e := &emitter{
		ctx: ctx, events: mod.(*caddyevents.App), logger: logger, queue: make(chan happening, maxQueued),
		begin: newOnce(), closing: newOnce(), stop: make(chan struct{}), done: make(chan struct{}),
	}
	// Until all apps have started, the events app takes subscriptions and must
	// not be given events at the same time.
	if err := e.events.On("started", eventHandler(e.begin.happen)); err != nil {
		return nil, err
	}
	return e, e.events.On("stopping", eventHandler(e.closing.happen))
}

// start begins to empty the queue.
func (e *emitter) start() {
	e.started = true
	go e.run()
}

// offer leaves an event in the queue. It never waits.
func (e *emitter) offer(h happening) {
	select {
	case e.queue <- h:
	default:
		eventsDropped.Inc()
		if e.dropped.Add(1) == 1 {
			e.logger.Warn("a handler of token_refresh's events is slow: events are being dropped", zap.Int("queued", maxQueued))
		}
	}
}

func (e *emitter) run() {
	defer close(e.done)
	select {
	case <-e.begin.ch:
	case <-e.stop:
		return
	}
	for {
		select {
		case h := <-e.queue:
			e.emit(h)
		case <-e.stop:
			for {
				select {
				case h := <-e.queue:
					e.emit(h)
				default:
					return
				}
			}
		}
	}
}

func (e *emitter) emit(h happening) {
	if e.ctx.Err() != nil {
		return // its handlers are gone
	}
	e.events.Emit(e.ctx, appName+"."+h.name, maps.Clone(h.data))
	if n := e.dropped.Swap(0); n > 0 {
		e.logger.Warn("events were dropped: a handler was too slow", zap.Uint64("events", n))
	}
}

// end waits a little for what is queued. It may be called more than once.
func (e *emitter) end() {
	e.closing.happen()
	if !e.started {
		return
	}
	e.started = false
	close(e.stop)
	select {
	case <-e.done:
	case <-time.After(emitterGrace):
		e.logger.Warn("a handler of token_refresh's events does not return; events are lost", zap.Int("queued", len(e.queue)))
	}
}

// observer takes the notes of a session, or of a pool's, on its own goroutine:
// for the metrics, for those who follow events, for Caddy's events app.
func (a *App) observer(w *watch) func(refresher.Note) {
	emitter := a.emitter
	return func(n refresher.Note) {
		w.note(n)
		names := eventsOf(n)
		if len(names) == 0 {
			hub.publish() // it changes what the status page shows
			return
		}
		data := eventData(n)
		list := make([]happening, 0, len(names))
		for _, name := range names {
			list = append(list, happening{name: name, at: n.At, data: data})
		}
		hub.publish(list...)
		for _, h := range list {
			emitter.offer(h)
		}
	}
}

// Interface guard
var _ caddyevents.Handler = eventHandler(nil)
