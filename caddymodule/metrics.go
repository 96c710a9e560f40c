package caddymodule

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// The collectors are made once for the process and registered anew with every
// configuration's own registry: made by each configuration they would start
// from zero at every reload, registered once they would vanish with the first.
var (
	exchanges = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: appName, Name: "exchanges_total",
		Help: "Exchanges with the issuer, by what came of them.",
	}, []string{"session", "outcome"})
	exchangeSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: appName, Name: "exchange_duration_seconds",
		Help:    "How long exchanges took from the first byte sent to the end of the answer.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"session"})
	requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: appName, Name: "requests_total",
		Help: "Requests that asked for a session's token, by what became of them.",
	}, []string{"session", "outcome"})
	storeErrors = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: appName, Name: "store_errors_total",
		Help: "Times that a session could not use the store it shares with other instances.",
	}, []string{"session"})
	eventsDropped = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: appName, Name: "events_dropped_total",
		Help: "Events that Caddy's event handlers did not get because an earlier one was slow.",
	})
	waitSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: appName, Name: "wait_seconds",
		Help:    "How long requests were held back for a token, of those that were.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"session"})
)

// sessionMetrics are one session's collectors, looked up once.
type sessionMetrics struct {
	name                                           string
	passed, waited, replayed, unavailable, refused prometheus.Counter
	wait, took                                     prometheus.Observer
}

func newSessionMetrics(name string) sessionMetrics {
	// A counter that is not there before it is 1 does not increase, to Prometheus.
	for class := refresher.ClassOK; class <= refresher.ClassUnknown; class++ {
		exchanges.WithLabelValues(name, class.String())
	}
	storeErrors.WithLabelValues(name)
	return sessionMetrics{
		name:        name,
		passed:      requests.WithLabelValues(name, "passed"),
		waited:      requests.WithLabelValues(name, "waited"),
		replayed:    requests.WithLabelValues(name, "replayed"),
		unavailable: requests.WithLabelValues(name, "unavailable"),
		refused:     requests.WithLabelValues(name, "refused"),
		wait:        waitSeconds.WithLabelValues(name),
		took:        exchangeSeconds.WithLabelValues(name),
	}
}

// note counts what happened to the session.
func (m sessionMetrics) note(n refresher.Note) {
	if n.Kind == refresher.NoteStoreFailed {
		storeErrors.WithLabelValues(m.name).Inc()
	}
	if n.Class == 0 {
		return
	}
	exchanges.WithLabelValues(m.name, n.Class.String()).Inc()
	if n.Took > 0 {
		m.took.Observe(n.Took.Seconds())
	}
}

// liveMetrics reads the sessions when it is scraped.
type liveMetrics struct{ expiry, sessions, intents *prometheus.Desc }

var live = liveMetrics{
	expiry: prometheus.NewDesc("caddy_token_refresh_expiry_timestamp_seconds",
		"When the session's access token expires, in seconds since 1970.", []string{"session"}, nil),
	sessions: prometheus.NewDesc("caddy_token_refresh_sessions",
		"Sessions by their state.", []string{"pool", "state"}, nil),
	intents: prometheus.NewDesc("caddy_token_refresh_intents_open",
		"Exchanges under way or with an unknown outcome.", nil, nil),
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
var collectors = []prometheus.Collector{exchanges, exchangeSeconds, requests, storeErrors, eventsDropped, waitSeconds, live}

func registerMetrics(reg *prometheus.Registry) error {
	for _, c := range collectors {
		var already prometheus.AlreadyRegisteredError
		if err := reg.Register(c); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}
