package issuer

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func TestHowLongAnIssuerAsksToBeLeftAlone(t *testing.T) {
	now := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	at := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	tests := []struct {
		name, value, date string
		want              time.Duration
	}{
		{name: "nothing said"},
		{name: "seconds", value: "120", want: 2 * time.Minute},
		{name: "seconds between spaces", value: " 7 ", want: 7 * time.Second},
		{name: "zero seconds", value: "0"},
		{name: "a day and a second is a day", value: "86401", want: 24 * time.Hour},
		{name: "more digits than an integer holds is a day", value: "99999999999999999999999999", want: 24 * time.Hour},
		{name: "a date by our clock", value: at(time.Minute), want: time.Minute},
		{name: "a date by the issuer's clock, an hour ahead", value: at(61 * time.Minute), date: at(time.Hour), want: time.Minute},
		{name: "a date by our clock, since Date is no date", value: at(time.Minute), date: "soon", want: time.Minute},
		{name: "a date that has passed", value: at(-time.Minute)},
		{name: "a date next month is a day", value: at(30 * 24 * time.Hour), want: 24 * time.Hour},
		{name: "a date in RFC 850's form", value: now.Add(time.Minute).Format("Monday, 02-Jan-06 15:04:05 GMT"), want: time.Minute},
		{name: "a date in asctime's form", value: now.Add(time.Minute).Format(time.ANSIC), want: time.Minute},
		{name: "a negative number", value: "-5"},
		{name: "a signed number", value: "+5"},
		{name: "a fraction", value: "1.5"},
		{name: "a list", value: "1, 2"},
		{name: "digits that are not ASCII", value: "٣"},
		{name: "garbage", value: "later"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{}
			h.Set("Retry-After", tt.value)
			if tt.date != "" {
				h.Set("Date", tt.date)
			}
			if got := retryAfter(h, now); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestRetryAfterIsKeptWithEveryFailure(t *testing.T) {
	for _, status := range []int{307, 403, 429, 500, 502, 503} {
		a := reader{}.answer(Outcome{Written: 9, Status: status, Header: http.Header{"Retry-After": {"3600"}}})
		if a.RetryAfter != time.Hour {
			t.Errorf("%d: %v", status, a.RetryAfter)
		}
	}
}

func TestWhenARateLimitEnds(t *testing.T) {
	now := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	tests := []struct {
		name, field, value, date string
		want                     time.Duration
	}{
		{name: "nothing said", field: "X-Ratelimit-Reset"},
		{name: "seconds from now", field: "X-Ratelimit-Reset", value: "30", want: 30 * time.Second},
		{name: "Unix time", field: "X-Ratelimit-Reset", value: fmt.Sprint(now.Unix() + 40), want: 40 * time.Second},
		{name: "Unix time, as Okta spells it", field: "X-Rate-Limit-Reset", value: fmt.Sprint(now.Unix() + 40), want: 40 * time.Second},
		{name: "Unix time in milliseconds", field: "X-Ratelimit-Reset", value: fmt.Sprint(now.UnixMilli() + 40000), want: 40 * time.Second},
		{name: "Unix time by the issuer's clock, an hour ahead", field: "X-Ratelimit-Reset", value: fmt.Sprint(now.Unix() + 3640), date: "Sun, 22 Nov 2026 05:00:00 GMT", want: 40 * time.Second},
		{name: "Unix time that has passed", field: "X-Ratelimit-Reset", value: fmt.Sprint(now.Unix() - 1)},
		{name: "next month", field: "Ratelimit-Reset", value: "2592000", want: 24 * time.Hour},
		{name: "a negative number", field: "X-Ratelimit-Reset", value: "-5"},
		{name: "more digits than an integer holds", field: "X-Ratelimit-Reset", value: "99999999999999999999"},
		{name: "garbage", field: "X-Ratelimit-Reset", value: "soon"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{}
			h.Set(tt.field, tt.value)
			if tt.date != "" {
				h.Set("Date", tt.date)
			}
			if got := rateLimitReset(h, now); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestTheIssuersClock(t *testing.T) {
	sent := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	tests := []struct {
		name        string
		date, age   string
		trip        time.Duration
		offset      time.Duration
		uncertainty time.Duration
	}{
		{name: "is ours to within half a second", date: "Sun, 22 Nov 2026 04:00:00 GMT", trip: 200 * time.Millisecond, offset: 400 * time.Millisecond, uncertainty: 600 * time.Millisecond},
		{name: "is an hour ahead", date: "Sun, 22 Nov 2026 05:00:00 GMT", offset: time.Hour + 500*time.Millisecond, uncertainty: 500 * time.Millisecond},
		{name: "is an hour behind", date: "Sun, 22 Nov 2026 03:00:00 GMT", trip: time.Second, offset: -time.Hour, uncertainty: time.Second},
		{name: "shows at a round trip of two seconds", date: "Sun, 22 Nov 2026 04:00:00 GMT", trip: 2 * time.Second, offset: -500 * time.Millisecond, uncertainty: 1500 * time.Millisecond},
		{name: "does not show above two seconds", date: "Sun, 22 Nov 2026 04:00:00 GMT", trip: 2*time.Second + 1},
		{name: "does not show in a cached answer", date: "Sun, 22 Nov 2026 04:00:00 GMT", age: "0"},
		{name: "does not show without Date"},
		{name: "does not show in a broken Date", date: "2026-11-22"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{}
			h.Set("Date", tt.date)
			if tt.age != "" {
				h.Set("Age", tt.age)
			}
			a := reader{}.answer(Outcome{Written: 9, Status: 403, Header: h, SentAt: sent, ReceivedAt: sent.Add(tt.trip)})
			wantClass(t, a, refresher.ClassConfig)
			if a.Offset != tt.offset || a.OffsetError != tt.uncertainty {
				t.Errorf("got %v ± %v, want %v ± %v", a.Offset, a.OffsetError, tt.offset, tt.uncertainty)
			}
		})
	}
}
