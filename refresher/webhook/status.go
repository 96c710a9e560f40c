package webhook

import (
	"cmp"
	"slices"
	"time"
)

// HookStatus is how a hook is doing. It holds no token.
type HookStatus struct {
	Name     string `json:"name"` // without the URL's query
	Required bool   `json:"required"`

	Pending int        `json:"pending"`          // events that wait
	Bytes   int64      `json:"bytes"`            // about what they take
	Oldest  *time.Time `json:"oldest,omitempty"` // instant of the oldest one

	Failures  int        `json:"failures"` // in a row
	LastError string     `json:"last_error,omitempty"`
	Next      *time.Time `json:"next,omitempty"` // nothing is sent before

	Delivered uint64 `json:"delivered"` // since the process began
	Refused   uint64 `json:"refused"`   // by the bounds, since the process began
}

// Status lists the configured hooks by name.
func (o *Outbox) Status() []HookStatus {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []HookStatus
	for _, r := range o.receivers {
		if r.hook == nil {
			continue
		}
		s := HookStatus{
			Name: r.hook.name, Required: r.hook.cfg.Required,
			Pending: len(r.entries), Bytes: r.weight,
			Failures: r.failures, LastError: r.lastErr,
			Delivered: r.delivered, Refused: r.refused,
		}
		for _, e := range r.entries {
			if s.Oldest == nil || e.at.Before(*s.Oldest) {
				at := e.at
				s.Oldest = &at
			}
		}
		if !r.paused.IsZero() {
			next := r.paused
			s.Next = &next
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b HookStatus) int { return cmp.Compare(a.Name, b.Name) })
	return list
}
