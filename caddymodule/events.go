package caddymodule

import (
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// The events, as subscribers name them behind "token_refresh.".
const (
	eventRotated         = "rotated"
	eventExchangeFailed  = "exchange_failed"
	eventUncertain       = "uncertain"
	eventDegraded        = "degraded"
	eventLost            = "lost"
	eventReauthenticated = "reauthenticated"
	eventRevoked         = "revoked"
	eventRefreshExpiring = "refresh_token_expiring"
	eventReuseSuspected  = "reuse_suspected"
)

// happening is one event. Its data hold no token and are not changed once made.
type happening struct {
	name string
	at   time.Time
	data map[string]any
}

// eventsOf are the events that a note stands for: mostly one, at times none, or
// two.
func eventsOf(n refresher.Note) []string {
	switch n.Kind {
	case refresher.NoteRotated:
		return []string{eventRotated}
	case refresher.NoteExchangeFailed:
		return []string{eventExchangeFailed}
	case refresher.NoteUncertain:
		return []string{eventUncertain}
	case refresher.NoteDegraded:
		return []string{eventDegraded}
	case refresher.NoteReauthenticated:
		return []string{eventReauthenticated}
	case refresher.NoteRefreshExpiring:
		return []string{eventRefreshExpiring}
	case refresher.NoteEnded:
		return []string{eventRevoked}
	case refresher.NoteLost:
		switch {
		case n.Reason == refresher.ReasonLoggedOut:
			return []string{eventRevoked, eventLost}
		case suspicious(n):
			return []string{eventReuseSuspected, eventLost}
		}
		return []string{eventLost}
	}
	return nil
}

// suspicious reports whether a loss looks as if somebody else had used the
// refresh token: the issuer refused it, no attempt of ours explains that, and it
// was not too old. An issuer that ended the session by itself looks the same.
func suspicious(n refresher.Note) bool {
	return n.Reason == refresher.ReasonRejected && (n.RefreshEnds.IsZero() || n.At.Before(n.RefreshEnds))
}

// eventData are an event's data: numbers, truth values and texts only, which are
// good in placeholders, too. What a subscriber may rely on is always there.
func eventData(n refresher.Note) map[string]any {
	data := map[string]any{
		"session":     n.Session,
		"pool":        n.Pool,
		"epoch":       n.Epoch,
		"generation":  n.Generation,
		"at":          timeText(n.At),
		"outcome":     "",
		"error":       n.Err,
		"fingerprint": n.Fingerprint,
		"expires_at":  timeText(n.ExpiresAt),
	}
	if n.Class != 0 {
		data["outcome"] = n.Class.String()
	}
	for name, text := range map[string]string{
		"cause": n.Cause, "reason": string(n.Reason), "source": n.Source,
		"next_at": timeText(n.Next), "refresh_token_expires_at": timeText(n.RefreshEnds),
	} {
		if text != "" {
			data[name] = text
		}
	}
	if n.Status != 0 {
		data["status"] = n.Status
	}
	if n.Took > 0 {
		data["took_seconds"] = n.Took.Seconds()
	}
	if n.Whole > 0 {
		data["whole_seconds"] = n.Whole.Seconds()
	}
	if n.Kind == refresher.NoteLost {
		data["login_needed"] = !n.Signs
	}
	return data
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z07:00")
}
