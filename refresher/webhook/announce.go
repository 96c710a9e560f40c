package webhook

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// Announce takes an event for all hooks that are configured. When it returns
// without an error, the event is on the disk and will be delivered.
//
// Announcing is idempotent: an event that is there already, or was delivered to a
// hook lately (of the last 4,096 deliveries), is not added for it again. So
// whoever keeps the id with what the event tells of can announce again after a
// crash, and the receiver sees one id.
//
// pending says that required hooks have not answered 2xx yet: then done is called
// once, from another goroutine, perhaps before Announce has returned, when all of
// them have. done must not block; nil is allowed. Where pending is false, done
// is never called and nothing stands in the way. A restart forgets done:
// announce again.
//
// An error that wraps [ErrFull] means that hooks which are not required have
// refused the event, which it and the log name; for the others it is safe, and
// pending holds. After any other error, the end of ctx included, the event may or
// may not be delivered, and done may be called: announce again.
func (o *Outbox) Announce(ctx context.Context, ev Event, done func()) (pending bool, err error) {
	if err := ev.check(); err != nil {
		return false, err
	}
	if err := o.enter(); err != nil {
		return false, err
	}
	defer o.users.Done()

	plan := o.plan(ev)
	waits := new(bool) // the writer may set it after ctx has ended
	if len(plan.to) > 0 {
		rec := addRecord{ID: ev.ID, Session: ev.Session, At: ev.CreateInstant.UTC()}
		for _, h := range plan.to {
			body, err := h.body(ev)
			if err != nil {
				return false, err
			}
			rec.To = append(rec.To, addTo{Hook: h.key, Sealed: sealEntry(plan.ring, h.key, ev.Session, ev.ID, body)})
			clear(body)
		}
		frames, err := appendFrame(nil, logRecord{Add: &rec})
		if err != nil {
			return false, err
		}
		err = o.commit(ctx, frames, false, func() {
			o.added(rec)
			*waits = o.await(ev.ID, done)
		})
		if err != nil {
			return false, fmt.Errorf("announcing event %s: %w", ev.ID, err)
		}
		o.nudge()
	} else {
		o.mu.Lock()
		*waits = o.await(ev.ID, done)
		o.mu.Unlock()
	}
	if len(plan.refused) > 0 {
		return *waits, fmt.Errorf("announcing event %s to %s: %w", ev.ID, strings.Join(plan.refused, ", "), ErrFull)
	}
	return *waits, nil
}

// plan is what has to be written for an event.
type plan struct {
	ring    *journal.Keyring
	to      []*Hook
	refused []string // names of hooks whose bounds are reached
}

func (o *Outbox) plan(ev Event) plan {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := plan{ring: o.ring}
	for _, r := range o.configured(TypeRefresh) {
		if o.delivered.has(r.key, ev.ID) {
			continue
		}
		if e := r.entries[ev.ID]; e != nil {
			// One that cannot be opened is replaced by what can.
			if text, err := openEntry(o.ring, r.key, e); err == nil {
				clear(text)
				continue
			}
		} else if !r.hook.cfg.Required && o.full(r) {
			p.refused = append(p.refused, r.hook.name)
			o.refuse(r, ev.ID)
			continue
		}
		p.to = append(p.to, r.hook)
	}
	return p
}

func (o *Outbox) full(r *receiver) bool {
	return len(r.entries) >= o.cfg.MaxEvents || r.weight >= o.cfg.MaxBytes
}

// refuse says which event is refused: each one at debug level, one a minute as
// an error. The caller has the lock.
func (o *Outbox) refuse(r *receiver, id string) {
	r.refused++
	fields := []zap.Field{
		zap.String("webhook", r.hook.name), zap.String("event", id),
		zap.Int("pending", len(r.entries)), zap.Int("max_events", o.cfg.MaxEvents), zap.Int64("max_bytes", o.cfg.MaxBytes),
	}
	if skipped, ok := r.refusalLog.allow(time.Now()); ok {
		o.log.Error("the webhook's outbox is full: the event is refused and will not be delivered",
			append(fields, zap.Int("refused_since_last_said", skipped))...)
	} else {
		o.log.Debug("the webhook's outbox is full: the event is refused", fields...)
	}
}

// added makes true what was written. The caller has the lock.
func (o *Outbox) added(rec addRecord) {
	for _, to := range rec.To {
		r := o.receivers[to.Hook]
		if r == nil {
			r = newReceiver(to.Hook)
			o.receivers[to.Hook] = r
		}
		if e := r.entries[rec.ID]; e != nil {
			if e.session == rec.Session { // else it could not be opened
				r.reseal(e, to.Sealed)
			}
			continue
		}
		if o.delivered.has(to.Hook, rec.ID) {
			continue // announced twice at once
		}
		o.seq++
		r.add(&entry{id: rec.ID, session: rec.Session, at: rec.At, sealed: to.Sealed, seq: o.seq})
	}
}

// await notes whom an event's pair waits for. The caller has the lock.
func (o *Outbox) await(id string, done func()) (pending bool) {
	w := o.waiters[id]
	if w == nil {
		left := map[string]bool{}
		for _, r := range o.configured(TypeRefresh) {
			if r.hook.cfg.Required && r.entries[id] != nil {
				left[r.key] = true
			}
		}
		if len(left) == 0 {
			return false
		}
		w = &waiter{left: left}
		o.waiters[id] = w
	}
	if done != nil {
		w.done = append(w.done, done)
	}
	return true
}

// finished removes an entry and returns what is to be called, without the lock,
// as a result. The caller has the lock.
func (o *Outbox) finished(r *receiver, id string, at time.Time) (release []func()) {
	r.drop(id)
	o.delivered.keep(r.key, id, at)
	if w := o.waiters[id]; w != nil {
		if delete(w.left, r.key); len(w.left) == 0 {
			delete(o.waiters, id)
			release = w.done
		}
	}
	return release
}
