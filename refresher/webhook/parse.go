package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// Kind is what an event that was received asks for.
type Kind string

// The kinds of events. FusionAuth says that all of a user's or an application's
// tokens are revoked with the same type as for a single one: the fields that are
// there tell them apart.
const (
	// KindIgnored is any type that is not known here. It is to be answered 2xx:
	// who subscribes to more than is read must not be sent the same again.
	KindIgnored Kind = "ignored"

	KindRefreshed          Kind = "refreshed"           // jwt.refresh: Token is new, RefreshToken was presented
	KindRevokedToken       Kind = "revoked_token"       // one refresh token: RefreshToken or RefreshTokenID, UserID
	KindRevokedUser        Kind = "revoked_user"        // all of UserID
	KindRevokedUserInApp   Kind = "revoked_user_in_app" // all of UserID in ApplicationID
	KindRevokedApplication Kind = "revoked_application" // all in ApplicationID
	KindUserDeactivated    Kind = "user_deactivated"    // user.deactivate
	KindUserDeleted        Kind = "user_deleted"        // user.delete, user.delete.complete
)

const (
	maxIDLength   = 255
	maxTypeLength = 128
)

// Received is an event that was received. Ids are at most 255 characters of
// printable ASCII, in the sender's spelling. It prints as its type and id.
//
// jwt.refresh, jwt.refresh-token.revoke, user.deactivate and user.delete are
// transactional at FusionAuth: they come before the change is made, and another
// receiver can still prevent it. user.delete.complete comes after. There is no
// event for many users at a time but user.bulk.create, which says nothing about
// tokens.
type Received struct {
	Kind          Kind
	Type          string // as it was sent
	ID            string // of the event
	CreateInstant time.Time

	TenantID       string
	ApplicationID  string
	UserID         string
	RefreshTokenID string

	RefreshToken refresher.Secret
	Token        refresher.Secret
	Original     refresher.Secret
}

// Format implements [fmt.Formatter].
func (r Received) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "webhook.Received[%q %q]", r.Type, r.ID)
}

// Parse reads a body of at most [MaxBody] bytes: one JSON object with the member
// event, as FusionAuth sends it. Names are exact, a name that stands twice is an
// error, objects nest at most 32 deep, tokens and ids have their type, length
// and characters; members that are not known are ignored. An event of another
// type is no error but [KindIgnored]; of it only the type is read. No error
// repeats any of the text.
func Parse(body []byte) (Received, error) {
	top, err := parseStrict(body)
	if err != nil {
		return Received{}, fmt.Errorf("reading a webhook's body: %w", err)
	}
	r, err := parseEvent(top)
	if err != nil {
		return Received{}, fmt.Errorf("reading a webhook's event: %w", err)
	}
	return r, nil
}

func parseEvent(top map[string]any) (Received, error) {
	obj, ok := top["event"].(map[string]any)
	if !ok {
		return Received{}, errors.New("there is no object under the name event")
	}
	f := fields{obj: obj}
	r := Received{Kind: KindIgnored, Type: f.text("type", maxTypeLength)}
	if f.err == nil && r.Type == "" {
		f.err = errors.New("the type is missing")
	}
	switch r.Type {
	case TypeRefresh, "jwt.refresh-token.revoke", "user.deactivate", "user.delete", "user.delete.complete":
	default:
		return r, f.err
	}
	r.ID = f.needed("id")
	r.CreateInstant = f.instant("createInstant")
	r.TenantID = f.text("tenantId", maxIDLength)
	switch r.Type {
	case TypeRefresh:
		f.refreshed(&r)
	case "jwt.refresh-token.revoke":
		f.revoked(&r)
	case "user.deactivate":
		r.Kind = KindUserDeactivated
		r.UserID = f.user()
	default:
		r.Kind = KindUserDeleted
		r.UserID = f.user()
	}
	if f.err != nil {
		return Received{}, f.err
	}
	return r, nil
}

// fields reads members of an object and keeps the first error.
type fields struct {
	obj map[string]any
	err error
}

func (f *fields) fail(format string, args ...any) {
	if f.err == nil {
		f.err = fmt.Errorf(format, args...)
	}
}

// text returns a member that is a string; empty where it is missing or null.
func (f *fields) text(name string, limit int) string {
	value, there := f.obj[name]
	if !there || value == nil {
		return ""
	}
	s, ok := value.(string)
	switch {
	case !ok:
		f.fail("%s is not a string", name)
	case s == "":
		f.fail("%s is empty", name)
	case len(s) > limit:
		f.fail("%s is longer than %d bytes", name, limit)
	case !plain(s):
		f.fail("%s holds a character that it cannot have", name)
	default:
		return s
	}
	return ""
}

func (f *fields) needed(name string) string {
	s := f.text(name, maxIDLength)
	if s == "" {
		f.fail("%s is missing", name)
	}
	return s
}

func (f *fields) secret(name string, limit int) refresher.Secret {
	return refresher.NewSecret(f.text(name, limit))
}

// instant reads milliseconds since 1970, up to the year 9999.
func (f *fields) instant(name string) time.Time {
	number, _ := f.obj[name].(json.Number)
	ms, err := strconv.ParseInt(number.String(), 10, 64)
	if err != nil || ms <= 0 || ms >= 253402300800_000 {
		f.fail("%s is not an instant in milliseconds", name)
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func (f *fields) refreshed(r *Received) {
	r.Kind = KindRefreshed
	r.ApplicationID = f.text("applicationId", maxIDLength)
	r.UserID = f.text("userId", maxIDLength)
	r.RefreshToken = f.secret("refreshToken", refresher.MaxRefreshToken)
	r.Token = f.secret("token", refresher.MaxAccessToken)
	r.Original = f.secret("original", refresher.MaxAccessToken)
	if r.RefreshToken.IsZero() || r.Token.IsZero() {
		f.fail("a token is missing")
	}
}

// revoked tells the shapes of jwt.refresh-token.revoke apart.
func (f *fields) revoked(r *Received) {
	r.ApplicationID = f.text("applicationId", maxIDLength)
	r.UserID = f.text("userId", maxIDLength)
	if r.UserID == "" && f.obj["user"] != nil {
		r.UserID = f.user()
	}
	switch token := f.obj["refreshToken"].(type) {
	case nil:
	case map[string]any:
		inner := fields{obj: token}
		r.RefreshTokenID = inner.text("id", maxIDLength)
		r.RefreshToken = inner.secret("token", refresher.MaxRefreshToken)
		if inner.err == nil && r.RefreshTokenID == "" && r.RefreshToken.IsZero() {
			inner.fail("it has neither token nor id")
		}
		if inner.err != nil {
			f.fail("refreshToken: %w", inner.err)
		}
		r.Kind = KindRevokedToken
		return
	default:
		f.fail("refreshToken is not an object")
		return
	}
	switch {
	case r.UserID != "" && r.ApplicationID != "":
		r.Kind = KindRevokedUserInApp
	case r.UserID != "":
		r.Kind = KindRevokedUser
	case r.ApplicationID != "":
		r.Kind = KindRevokedApplication
	default:
		f.fail("it names neither a token nor a user nor an application")
	}
}

// user is the id in the member user.
func (f *fields) user() string {
	user, ok := f.obj["user"].(map[string]any)
	if !ok {
		f.fail("user is not an object")
		return ""
	}
	inner := fields{obj: user}
	id := inner.needed("id")
	if inner.err != nil {
		f.fail("user: %w", inner.err)
	}
	return id
}
