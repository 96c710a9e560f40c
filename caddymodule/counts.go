package caddymodule

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// counts are what happened to one session or pool since the process began. They
// are told when somebody asks: a vector of Prometheus's own collectors would cost
// thirty times as much, and there are thousands of sessions.
type counts struct {
	passed, waited, replayed, unavailable, refused atomic.Uint64 // requests

	exchanges   [refresher.ClassUnknown + 1]atomic.Uint64 // by class; 0 is none
	storeErrors atomic.Uint64

	wait, took histogram
}

// allCounts is by name. They stay when a session goes: what went down would be a
// restart, to Prometheus.
var allCounts sync.Map // of *counts

func countsOf(name string) *counts {
	if c, ok := allCounts.Load(name); ok {
		return c.(*counts)
	}
	c, _ := allCounts.LoadOrStore(name, new(counts))
	return c.(*counts)
}

// note counts what happened to the session.
func (c *counts) note(n refresher.Note) {
	if n.Kind == refresher.NoteStoreFailed {
		c.storeErrors.Add(1)
	}
	if n.Class <= 0 || int(n.Class) >= len(c.exchanges) {
		return
	}
	c.exchanges[n.Class].Add(1)
	if n.Took > 0 {
		c.took.observe(n.Took)
	}
}

// histogramBounds are the upper ends of a histogram's buckets, in seconds; the
// last has none.
var histogramBounds = [...]float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// histogram counts durations.
type histogram struct {
	buckets [len(histogramBounds) + 1]atomic.Uint64
	sum     atomic.Int64 // a time.Duration
}

func (h *histogram) observe(d time.Duration) {
	i, _ := slices.BinarySearch(histogramBounds[:], d.Seconds())
	h.buckets[i].Add(1)
	h.sum.Add(int64(d))
}

func (h *histogram) metric(desc *prometheus.Desc, name string) prometheus.Metric {
	below := make(map[float64]uint64, len(histogramBounds))
	var all uint64
	for i := range h.buckets {
		if all += h.buckets[i].Load(); i < len(histogramBounds) {
			below[histogramBounds[i]] = all
		}
	}
	return prometheus.MustNewConstHistogram(desc, all, time.Duration(h.sum.Load()).Seconds(), below, name)
}

// countMetrics tells the counts.
type countMetrics struct{ exchanges, took, requests, storeErrors, wait *prometheus.Desc }

var counted = countMetrics{
	exchanges: newDesc("exchanges_total", "Exchanges with the issuer, by what came of them.", "session", "outcome"),
	took:      newDesc("exchange_duration_seconds", "How long exchanges took from the first byte sent to the end of the answer.", "session"),
	requests:  newDesc("requests_total", "Requests that asked for a session's token, by what became of them.", "session", "outcome"),
	storeErrors: newDesc("store_errors_total",
		"Times that a session could not use the store it shares with other instances.", "session"),
	wait: newDesc("wait_seconds", "How long requests were held back for a token, of those that were.", "session"),
}

// Describe implements prometheus.Collector.
func (m countMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{m.exchanges, m.took, m.requests, m.storeErrors, m.wait} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector. All are there from the beginning: a
// counter that is not there before it is 1 does not increase, to Prometheus.
func (m countMetrics) Collect(ch chan<- prometheus.Metric) {
	allCounts.Range(func(key, v any) bool {
		name, c := key.(string), v.(*counts)
		counter := func(desc *prometheus.Desc, n *atomic.Uint64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n.Load()), labels...)
		}
		for class := refresher.ClassOK; int(class) < len(c.exchanges); class++ {
			counter(m.exchanges, &c.exchanges[class], name, class.String())
		}
		counter(m.requests, &c.passed, name, "passed")
		counter(m.requests, &c.waited, name, "waited")
		counter(m.requests, &c.replayed, name, "replayed")
		counter(m.requests, &c.unavailable, name, "unavailable")
		counter(m.requests, &c.refused, name, "refused")
		counter(m.storeErrors, &c.storeErrors, name)
		ch <- c.wait.metric(m.wait, name)
		ch <- c.took.metric(m.took, name)
		return true
	})
}
