package issuer

import (
	"net/http"
	"time"
)

const (
	// dateTick: a Date field has whole seconds, cut off. Its middle is half a
	// second later, and half a second is how far that can be wrong.
	dateTick = time.Second

	// maxSampleTrip is the longest round trip whose answer still tells a clock.
	maxSampleTrip = 2 * time.Second
)

// clockOffset estimates the issuer's clock minus ours from the answer's Date
// field (RFC 9110 section 6.6.1), taken to have been set half way between sent
// and received, and how far that can be wrong. Both are 0 where there is nothing
// to go by: no Date, a slow answer, or one out of a cache (Age).
func clockOffset(h http.Header, sent, received time.Time) (offset, uncertainty time.Duration) {
	date, err := http.ParseTime(h.Get("Date"))
	trip := received.Sub(sent)
	if err != nil || h.Get("Age") != "" || trip < 0 || trip > maxSampleTrip {
		return 0, 0
	}
	middle := sent.Add(trip / 2)
	return date.Add(dateTick / 2).Sub(middle), dateTick/2 + trip/2
}
