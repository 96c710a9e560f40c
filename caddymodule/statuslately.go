package caddymodule

import (
	"slices"
	"time"
)

// lately is what happened of late, the newest last. What happens to a session
// again and again is one entry, and so is what happens to many of a pool's: a few
// busy ones would otherwise push out what somebody looks for.
type lately []recent

type recent struct {
	happening
	number uint64
	count  int
	since  time.Time
}

const (
	maxLately = 64
	latelyGap = 10 * time.Minute // what is further apart is told apart
)

// of is whom it happened to: a pool, or a session of its own.
func (r *recent) of() (name string, pooled bool) {
	if pool, _ := r.data["pool"].(string); pool != "" {
		return pool, true
	}
	name, _ = r.data["session"].(string)
	return name, false
}

// like reports whether the same happened, and not long ago.
func (r *recent) like(before *recent) bool {
	return r.name == before.name && r.data["outcome"] == before.data["outcome"] && r.data["reason"] == before.data["reason"] &&
		r.at.Sub(before.at) < latelyGap
}

func (l *lately) add(e happening, number uint64) {
	r := recent{happening: e, number: number, count: 1, since: e.at}
	name, pooled := r.of()
	if pooled && e.name == eventRotated {
		return // of these there are thousands, and nobody misses one
	}
	for i, before := range slices.Backward(*l) {
		if of, _ := before.of(); of != name {
			continue
		}
		if r.like(&before) {
			r.count, r.since = before.count+1, before.since
			*l = slices.Delete(*l, i, i+1)
			break
		}
		if !pooled {
			break // something else happened to it in between
		}
	}
	if len(*l) == maxLately {
		*l = slices.Delete(*l, 0, 1)
	}
	*l = append(*l, r)
}

// lately returns what happened, the newest first.
func (h *eventHub) lately() []recent {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := slices.Clone(h.recent)
	slices.Reverse(list)
	return list
}

// eventView is an event, or several of a kind: then the newest.
type eventView struct {
	ID    string         `json:"id"`
	Name  string         `json:"name"`
	Count int            `json:"count"`
	Since string         `json:"since"` // the first of them
	Data  map[string]any `json:"data"`
}

func eventViews(list []recent) []eventView {
	views := []eventView{}
	for _, r := range list[:min(len(list), maxEvents)] {
		views = append(views, eventView{ID: hub.id(r.number), Name: r.name, Count: r.count, Since: timeText(r.since), Data: r.data})
	}
	return views
}

// poolLately is what happened to a pool's sessions in the last minutes.
type poolLately struct {
	lost             int
	within           time.Duration // so long ago the first of them
	outcome, problem string        // of the last exchange that failed
}

func latelyOf(list []recent, pool string) (p poolLately) {
	now := time.Now()
	for _, r := range list {
		if r.data["pool"] != pool || now.Sub(r.at) > latelyGap {
			continue
		}
		switch r.name {
		case eventLost:
			p.lost += r.count
			p.within = max(p.within, now.Sub(r.since))
		case eventExchangeFailed:
			if p.problem == "" {
				p.outcome, _ = r.data["outcome"].(string)
				p.problem, _ = r.data["error"].(string)
			}
		}
	}
	return p
}
