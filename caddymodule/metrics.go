package caddymodule

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// eventsDropped is made once for the process, and registered anew with every
// configuration's own registry, as all collectors are: made by each configuration
// it would start from zero at every reload.
var eventsDropped = prometheus.NewCounter(prometheus.CounterOpts{
	Namespace: "caddy", Subsystem: appName, Name: "events_dropped_total",
	Help: "Events that Caddy's event handlers did not get because an earlier one was slow.",
})

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("caddy", appName, name), help, labels, nil)
}

// liveMetrics reads the sessions when it is scraped.
type liveMetrics struct{ expiry, sessions, intents *prometheus.Desc }

var live = liveMetrics{
	expiry:   newDesc("expiry_timestamp_seconds", "When the session's access token expires, in seconds since 1970.", "session"),
	sessions: newDesc("sessions", "Sessions by their state.", "pool", "state"),
	intents:  newDesc("intents_open", "Exchanges under way or with an unknown outcome."),
}

// Describe implements prometheus.Collector.
func (l liveMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- l.expiry
	ch <- l.sessions
	ch <- l.intents
}

// Collect implements prometheus.Collector.
func (l liveMetrics) Collect(ch chan<- prometheus.Metric) {
	states := map[refresher.Phase]int{}
	named := map[string]bool{} // two of one name: while a reload moves state_dir
	open := 0
	sharedSessions.Range(func(_, v any) bool {
		shared, ok := v.(*sharedSession)
		if !ok {
			return true // being made
		}
		st := shared.Status()
		if named[st.Name] {
			return true
		}
		named[st.Name] = true
		states[st.State]++
		if st.IntentOpen {
			open++
		}
		if !st.ExpiresAt.IsZero() {
			ch <- prometheus.MustNewConstMetric(l.expiry, prometheus.GaugeValue, float64(st.ExpiresAt.UnixNano())/float64(time.Second), st.Name)
		}
		return true
	})
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(l.sessions, prometheus.GaugeValue, float64(n), "", string(state))
	}
	sharedPools.Range(func(_, v any) bool {
		shared, ok := v.(*sharedPool)
		if !ok || named[shared.Name()] {
			return true
		}
		named[shared.Name()] = true
		counts := shared.Counts()
		open += counts.Intents
		for state, n := range counts.States {
			ch <- prometheus.MustNewConstMetric(l.sessions, prometheus.GaugeValue, float64(n), shared.Name(), string(state))
		}
		return true
	})
	ch <- prometheus.MustNewConstMetric(l.intents, prometheus.GaugeValue, float64(open))
}

// collectors are all of them.
var collectors = []prometheus.Collector{counted, eventsDropped, live}

func registerMetrics(reg *prometheus.Registry) error {
	for _, c := range collectors {
		var already prometheus.AlreadyRegisteredError
		if err := reg.Register(c); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}
