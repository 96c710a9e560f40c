package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// TypeRefresh is the one type of event that is sent: a refresh token was
// exchanged for a new access token.
const TypeRefresh = "jwt.refresh"

const maxInfoData = 4 << 10 // bytes of [Info.Data]

// Event is FusionAuth's event "jwt.refresh", field by field, and the session
// that it belongs to. Fields that are empty are left out of the JSON. It prints
// as its type and id: its text is made only where it is sealed and sent.
type Event struct {
	// Session orders events: those of one session reach a receiver one after the
	// other. It is not sent. Required.
	Session string

	// ID is a UUID in its usual form, from [NewID]. A receiver knows an event
	// that it got twice by it. Required.
	ID string

	// CreateInstant is sent in milliseconds since 1970. Required.
	CreateInstant time.Time

	// ApplicationID, TenantID and UserID are filled in by each [Hook] where they
	// are empty.
	ApplicationID string
	TenantID      string
	UserID        string

	// Original is the access token that the exchange carried; empty where it
	// carried none.
	Original refresher.Secret

	// RefreshToken is the one that was presented. Required.
	RefreshToken refresher.Secret

	// Token is the new access token. Required.
	Token refresher.Secret

	// Info tells whose request caused the exchange; nil where a schedule did.
	Info *Info
}

// Info is the circumstances of an event. See [Describe].
type Info struct {
	// Data is a JSON object of at most 4 KiB that goes along unread.
	Data json.RawMessage `json:",omitempty"`

	DeviceDescription string
	DeviceName        string
	DeviceType        string // one of FusionAuth's: BROWSER, MOBILE, TABLET, OTHER, …
	IPAddress         string
	Location          *Location
	OS                string
	UserAgent         string
}

// Location is a place on earth. Latitude and longitude are text, as in the
// documentation of the event.
type Location struct {
	City      string `json:"city,omitempty"`
	Country   string `json:"country,omitempty"`
	Latitude  string `json:"latitude,omitempty"`
	Longitude string `json:"longitude,omitempty"`
	Region    string `json:"region,omitempty"`
	Zipcode   string `json:"zipcode,omitempty"`
}

// NewID returns a random UUID (version 4).
func NewID() string { return uuid.NewString() }

func validID(text string) bool { return len(text) == 36 && uuid.Validate(text) == nil }

// Format implements [fmt.Formatter].
func (e Event) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "webhook.Event[%s %s]", TypeRefresh, e.ID)
}

// MarshalJSON refuses: what holds tokens is not to be encoded in passing.
func (e Event) MarshalJSON() ([]byte, error) {
	return nil, errors.New("an event is encoded by its outbox only")
}

// Format implements [fmt.Formatter]: addresses and user agents are personal data.
func (i Info) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "webhook.Info[redacted]") }

// check names what is missing. It repeats no value but the id.
func (e Event) check() error {
	switch {
	case !validID(e.ID):
		return errors.New("the event's id is not a UUID")
	case e.Session == "":
		return errors.New("the event names no session")
	case e.CreateInstant.UnixMilli() <= 0:
		return errors.New("the event has no instant")
	case e.Token.IsZero() || e.RefreshToken.IsZero():
		return errors.New("the event lacks a token")
	case e.Info != nil && len(e.Info.Data) > maxInfoData:
		return fmt.Errorf("the event's info.data is longer than %d bytes", maxInfoData)
	case e.Info != nil && len(e.Info.Data) > 0 && !isObject(e.Info.Data):
		return errors.New("the event's info.data is not a JSON object")
	}
	return nil
}

func isObject(text []byte) bool {
	return json.Valid(text) && bytes.HasPrefix(bytes.TrimLeft(text, " \t\r\n"), []byte("{"))
}

type wireEvent struct {
	ApplicationID string    `json:"applicationId,omitempty"`
	CreateInstant int64     `json:"createInstant"`
	ID            string    `json:"id"`
	Info          *wireInfo `json:"info,omitempty"`
	Original      string    `json:"original,omitempty"`
	RefreshToken  string    `json:"refreshToken"`
	TenantID      string    `json:"tenantId,omitempty"`
	Token         string    `json:"token"`
	Type          string    `json:"type"`
	UserID        string    `json:"userId,omitempty"`
}

type wireInfo struct {
	Data              json.RawMessage `json:"data,omitempty"`
	DeviceDescription string          `json:"deviceDescription,omitempty"`
	DeviceName        string          `json:"deviceName,omitempty"`
	DeviceType        string          `json:"deviceType,omitempty"`
	IPAddress         string          `json:"ipAddress,omitempty"`
	Location          *Location       `json:"location,omitempty"`
	OS                string          `json:"os,omitempty"`
	UserAgent         string          `json:"userAgent,omitempty"`
}

// encode makes the request's body. The caller clears it after use.
func (e Event) encode() ([]byte, error) {
	wire := wireEvent{
		ApplicationID: e.ApplicationID,
		CreateInstant: e.CreateInstant.UnixMilli(),
		ID:            e.ID,
		Original:      e.Original.Reveal(),
		RefreshToken:  e.RefreshToken.Reveal(),
		TenantID:      e.TenantID,
		Token:         e.Token.Reveal(),
		Type:          TypeRefresh,
		UserID:        e.UserID,
	}
	if e.Info != nil {
		info := wireInfo(*e.Info)
		wire.Info = &info
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(map[string]wireEvent{"event": wire}); err != nil {
		return nil, fmt.Errorf("encoding event %s: %w", e.ID, err)
	}
	return bytes.TrimRight(buf.Bytes(), "\n"), nil
}

// Interface guards
var (
	_ fmt.Formatter  = Event{}
	_ json.Marshaler = Event{}
	_ fmt.Formatter  = Info{}
)
