package webhook

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// dispatch starts deliveries as they are due, until the outbox is closed.
func (o *Outbox) dispatch(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next, closed := o.startDue(ctx)
		if closed {
			return
		}
		var due <-chan time.Time
		if !next.IsZero() {
			timer.Reset(time.Until(next))
			due = timer.C
		}
		select {
		case <-o.wake:
		case <-due:
		case <-ctx.Done():
			return
		}
	}
}

// startDue starts what may be sent now and returns when it is worth looking
// again; zero: when woken.
func (o *Outbox) startDue(ctx context.Context) (next time.Time, closed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return time.Time{}, true
	}
	now := time.Now()
	for _, r := range o.receivers {
		for {
			l, at := r.take(now)
			if l == nil {
				if !at.IsZero() && (next.IsZero() || at.Before(next)) {
					next = at
				}
				break
			}
			e, hook, ring := l.row[0], r.hook, o.ring
			text, err := openEntry(ring, r.key, e)
			o.users.Go(func() {
				if err == nil {
					err = hook.post(ctx, text)
					clear(text)
				}
				o.settle(ctx, r, l, e, hook, now, err)
				o.nudge()
			})
		}
	}
	return next, false
}

// settle notes how a delivery ended and lets its lane go on.
func (o *Outbox) settle(ctx context.Context, r *receiver, l *lane, e *entry, hook *Hook, begun time.Time, err error) {
	if err == nil {
		o.deliveredTo(r, l, e, hook)
		return
	}
	now := time.Now()
	o.mu.Lock()
	if ctx.Err() != nil {
		r.back(l, now)
		o.mu.Unlock()
		return
	}
	var answer *refusal
	asked := time.Duration(0)
	if errors.As(err, &answer) {
		asked = answer.after
	}
	news := r.failed(l, begun, now, asked, err.Error())
	next, again := r.paused, r.failures
	r.back(l, now)
	o.mu.Unlock()

	log := o.log.Debug
	if news {
		log = o.log.Warn
	}
	log("a webhook did not take an event (it is sent again)", zap.String("webhook", hook.name), zap.String("event", e.id),
		zap.String("session", e.session), zap.Int("failures", again), zap.Time("next", next), zap.Error(err))
}

// deliveredTo writes down that the receiver has answered 2xx before the session's
// next event is sent. Where that fails, the event is sent once more after a
// restart, under the same id.
func (o *Outbox) deliveredTo(r *receiver, l *lane, e *entry, hook *Hook) {
	var release []func()
	at := time.Now().UTC()
	finish := func() { release = append(release, o.finished(r, e.id, at)...) }
	frames, err := appendFrame(nil, logRecord{Done: &doneRecord{ID: e.id, Hook: r.key, At: at}})
	if err == nil {
		// Not with the context of the delivery: what was answered is to be known.
		err = o.commit(context.Background(), frames, false, finish)
	}
	o.mu.Lock()
	if err != nil {
		finish()
	}
	ended := r.succeeded(l)
	r.back(l, time.Now())
	o.mu.Unlock()

	if err != nil {
		o.log.Error("writing down a webhook's delivery (the event may be sent once more after a restart)",
			zap.String("webhook", hook.name), zap.String("event", e.id), zap.Error(err))
	}
	if ended > 0 {
		o.log.Info("a webhook takes events again", zap.String("webhook", hook.name), zap.Int("failures", ended))
	}
	for _, done := range release {
		done()
	}
}
