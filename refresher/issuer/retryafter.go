package issuer

import (
	"net/http"
	"strings"
	"time"
)

// maxRetryAfter bounds what an issuer can ask for: a typing error of its must
// not silence a session for good.
const maxRetryAfter = 24 * time.Hour

// retryAfter reads a Retry-After field (RFC 9110 section 10.2.3): whole seconds,
// or a date. A date is measured against the answer's own Date, so that our clock
// does not matter; now stands in where there is none. What cannot be read or has
// passed is 0.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := strings.TrimSpace(h.Get("Retry-After"))
	if text == "" {
		return 0
	}
	if strings.Trim(text, "0123456789") == "" {
		return secondsCapped(text)
	}
	until, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(until.Sub(now), 0), maxRetryAfter)
}

// secondsCapped reads digits, however many.
func secondsCapped(digits string) time.Duration {
	limit := int64(maxRetryAfter / time.Second)
	n := int64(0)
	for _, d := range digits {
		n = min(n*10+int64(d-'0'), limit)
	}
	return time.Duration(n) * time.Second
}
