package issuer

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter bounds what an issuer can ask for: a typing error of its must
// not silence a session for good.
const maxRetryAfter = 24 * time.Hour

// leaveAlone is how long an answer asks to be left alone. The end of a rate limit
// is told with every answer by some; it counts where the limit was hit.
func leaveAlone(o Outcome) time.Duration {
	after := retryAfter(o.Header, o.ReceivedAt)
	if after == 0 && o.Status == http.StatusTooManyRequests {
		after = rateLimitReset(o.Header, o.ReceivedAt)
	}
	return after
}

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

// rateLimitReset reads when a rate limit ends: whole seconds, or an instant in seconds or milliseconds of Unix
// time (Auth0, Okta and others differ). An instant is measured as in
// [retryAfter].
func rateLimitReset(h http.Header, now time.Time) time.Duration {
	for _, name := range []string{"X-Ratelimit-Reset", "X-Rate-Limit-Reset", "Ratelimit-Reset"} {
		text := strings.TrimSpace(h.Get(name))
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n <= 0 {
			continue
		}
		var until time.Time
		switch {
		case n < 1e9: // as an instant that would be before 2001
			return min(time.Duration(n)*time.Second, maxRetryAfter)
		case n < 1e12:
			until = time.Unix(n, 0)
		default:
			until = time.UnixMilli(n)
		}
		if date, err := http.ParseTime(h.Get("Date")); err == nil {
			now = date
		}
		return min(max(until.Sub(now), 0), maxRetryAfter)
	}
	return 0
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
