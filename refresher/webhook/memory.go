package webhook

import "time"

// memory is the last deliveries: an event that is announced again is not sent
// again to whom has answered it. It is bounded by [remembered].
type memory struct {
	order []delivery
	known map[place]bool
}

type place struct{ hook, id string }

type delivery struct {
	place
	at time.Time
}

func (m *memory) has(hook, id string) bool { return m.known[place{hook, id}] }

func (m *memory) keep(hook, id string, at time.Time) {
	p := place{hook, id}
	if m.known[p] {
		return
	}
	if m.known == nil {
		m.known = map[place]bool{}
	}
	m.known[p] = true
	m.order = append(m.order, delivery{place: p, at: at})
	if len(m.order) > remembered {
		delete(m.known, m.order[0].place)
		m.order = m.order[1:]
	}
}
