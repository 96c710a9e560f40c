package webhook

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// load reads the file and writes it anew: what an earlier process wrote may be in
// the page cache only, its last write may have been cut off, and much of it may
// be delivered.
func (o *Outbox) load() error {
	data, err := o.disk.load()
	if err != nil {
		return err
	}
	found, err := scanLog(data)
	if err != nil {
		return fmt.Errorf("outbox %s: %w", o.disk.path(logName), err)
	}
	for _, rec := range found.records {
		if rec.Add != nil {
			o.added(*rec.Add)
		} else if r := o.receivers[rec.Done.Hook]; r != nil {
			o.finished(r, rec.Done.ID, rec.Done.At)
		} else {
			o.delivered.keep(rec.Done.Hook, rec.Done.ID, rec.Done.At)
		}
	}
	for _, r := range o.receivers {
		r.compactLanes()
	}
	damaged := o.inspect()
	if found.damaged > 0 || damaged > 0 {
		o.log.Error("the webhook outbox is damaged; a copy is kept, and what can be read is used",
			zap.String("copy", o.disk.path(damagedName)), zap.Int("damaged_bytes", found.damaged), zap.Int("damaged_events", damaged))
		if err := o.disk.create(o.disk.path(damagedName), data); err != nil {
			return fmt.Errorf("keeping a copy of the damaged outbox: %w", err)
		}
	}
	if found.torn {
		o.log.Info("the last write to the webhook outbox was cut off; nobody was told that it was safe")
	}
	return o.compact()
}

// inspect opens each entry once, so that it is known now what cannot be
// delivered, and seals anew what a former key has sealed. It returns how many
// are damaged and were given up.
func (o *Outbox) inspect() (damaged int) {
	locked := 0
	for key, r := range o.receivers {
		for id, e := range r.entries {
			text, err := openEntry(o.ring, key, e)
			switch {
			case err == nil:
				fresh := sealEntry(o.ring, key, e.session, e.id, text)
				if !bytes.Equal(keyOf(fresh), keyOf(e.sealed)) {
					r.reseal(e, fresh)
				}
				clear(text)
			case errors.Is(err, journal.ErrWrongKey):
				locked++
			default:
				damaged++
				r.drop(id)
				o.log.Error("an event is damaged and cannot be delivered", zap.String("event", id),
					zap.String("session", e.session), zap.String("webhook_id", key))
			}
		}
		r.compactLanes()
	}
	if locked > 0 {
		o.log.Error("events were sealed with a key that is not in the keyring; they wait until it is added", zap.Int("events", locked))
	}
	return damaged
}

// keyOf is the part of a sealed text that names the key: see
// [journal.Keyring.Seal].
func keyOf(sealed []byte) []byte { return sealed[:min(len(sealed), 5)] }

// compactLanes takes out lanes that hold nothing. Nothing is under way yet.
func (r *receiver) compactLanes() {
	r.ready = slices.DeleteFunc(r.ready, func(l *lane) bool {
		if len(l.row) == 0 {
			r.forget(l)
			return true
		}
		return false
	})
}

// snapshot is what the file has to hold, in the order in which it came. The
// caller has the lock.
func (o *Outbox) snapshot() []logRecord {
	var records []logRecord
	for _, d := range o.delivered.order {
		records = append(records, logRecord{Done: &doneRecord{ID: d.id, Hook: d.hook, At: d.at}})
	}
	type placed struct {
		*entry
		hook string
	}
	var all []placed
	for key, r := range o.receivers {
		for _, e := range r.entries {
			all = append(all, placed{entry: e, hook: key})
		}
	}
	slices.SortFunc(all, func(a, b placed) int { return cmp.Compare(a.seq, b.seq) })
	for _, p := range all {
		records = append(records, logRecord{Add: &addRecord{
			ID: p.id, Session: p.session, At: p.at, To: []addTo{{Hook: p.hook, Sealed: p.sealed}},
		}})
	}
	return records
}

// liveSize is about what the file would take if it were written anew. The caller
// has the lock.
func (o *Outbox) liveSize() int64 {
	size := int64(len(o.delivered.order)) * rememberedWeight
	for _, r := range o.receivers {
		size += r.weight
	}
	return size
}
