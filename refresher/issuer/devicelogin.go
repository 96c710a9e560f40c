package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

// Bounds of what an issuer may say about a device's login.
const (
	deviceInterval    = 5 * time.Second // RFC 8628 section 3.2
	deviceSlower      = 5 * time.Second // section 3.5
	deviceMinInterval = time.Second
	deviceMaxInterval = time.Minute
	deviceLife        = 10 * time.Minute // where it says nothing
	deviceMaxLife     = 30 * time.Minute
	maxUserCode       = 64
)

// DeviceLogin is a login with a device code that has begun (RFC 8628): a person
// opens a page anywhere and enters a code. It does not print its contents.
type DeviceLogin struct {
	// What the person is shown. VerificationURIComplete holds the code, too, and
	// may be empty.
	UserCode, VerificationURI, VerificationURIComplete string

	// ExpiresAt is until when it can be done.
	ExpiresAt time.Time

	issuer *OAuth2
	at     metadata
	code   refresher.Secret

	mu       sync.Mutex
	interval time.Duration
	next     time.Time // not asked before
	done     bool
}

// Format implements [fmt.Formatter].
func (l *DeviceLogin) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "issuer.DeviceLogin["+l.issuer.name+"]")
}

// BeginDevice begins a login with a device code. An empty scope is the configured
// one.
func (o *OAuth2) BeginDevice(ctx context.Context, scope string) (*DeviceLogin, error) {
	scope, err := o.signInScope(scope)
	if err != nil {
		return nil, err
	}
	m, err := o.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.device.or("device authorization endpoint", "device_url"); err != nil {
		return nil, err
	}
	req, err := o.authorised(o.public(scope), m)
	if err != nil {
		return nil, err
	}
	out, err := o.call(ctx, m.device.url, req)
	if err != nil {
		return nil, fmt.Errorf("nothing was sent: %w", err)
	}
	if out.Err != nil || !successful(out) {
		code := ""
		if out.Err == nil && out.BodyErr == nil {
			code = oauthError(out.Body)
		}
		return nil, o.reader(m.device.url).explain(out, code, nil)
	}
	if out.BodyErr != nil {
		return nil, fmt.Errorf("%s: the answer cannot be used: %w", m.device.url.Host, out.BodyErr)
	}
	l := &DeviceLogin{issuer: o, at: m}
	if err := l.read(out.Body, o.client.InsecureHTTP); err != nil {
		return nil, fmt.Errorf("%s: the answer cannot be used: %w", m.device.url.Host, err)
	}
	return l, nil
}

// read takes the answer of RFC 8628 section 3.2. What people are shown must not
// be able to do anything to their terminal.
func (l *DeviceLogin) read(body refresher.Secret, insecure bool) error {
	members, ok := jsonMembers(body, "device_code", "user_code", "verification_uri", "verification_url",
		"verification_uri_complete", "expires_in", "interval")
	if !ok {
		return errors.New("it is not a JSON object with each name once")
	}
	if len(members["verification_uri"]) == 0 {
		members["verification_uri"] = members["verification_url"] // Google's
	}
	var code string
	for name, to := range map[string]*string{
		"device_code": &code, "user_code": &l.UserCode,
		"verification_uri": &l.VerificationURI, "verification_uri_complete": &l.VerificationURIComplete,
	} {
		if raw := members[name]; len(raw) > 0 && json.Unmarshal(raw, to) != nil {
			return fmt.Errorf("its %s is not a string", name)
		}
	}
	switch {
	case code == "" || len(code) > refresher.MaxRefreshToken:
		return errors.New("it holds no device_code")
	case l.UserCode == "" || len(l.UserCode) > maxUserCode || !fieldSafe(l.UserCode):
		return errors.New("it holds no user_code that can be shown")
	}
	l.code = refresher.NewSecret(code)
	if _, err := endpoint.Parse(l.VerificationURI, insecure); err != nil {
		return fmt.Errorf("its verification_uri: %w", err)
	}
	if l.VerificationURIComplete != "" {
		if _, err := endpoint.Parse(l.VerificationURIComplete, insecure); err != nil {
			l.VerificationURIComplete = "" // the other will do
		}
	}
	now := time.Now()
	l.ExpiresAt = now.Add(min(seconds(members["expires_in"], deviceLife), deviceMaxLife))
	l.interval = min(max(seconds(members["interval"], deviceInterval), deviceMinInterval), deviceMaxInterval)
	l.next = now.Add(l.interval)
	return nil
}

// seconds reads a number, which some servers write as a string.
func seconds(raw json.RawMessage, otherwise time.Duration) time.Duration {
	var n float64
	if json.Unmarshal([]byte(strings.Trim(string(raw), `"`)), &n) != nil || !(n > 0) {
		return otherwise
	}
	return time.Duration(min(n, math.MaxInt32) * float64(time.Second))
}

// Poll asks once whether the person is done, not more often than the issuer
// wants. As long as wait is more than zero they are not, and it is to be called
// again after that time. Its error ends the login.
func (l *DeviceLogin) Poll(ctx context.Context) (pair refresher.Pair, wait time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	switch {
	case l.done:
		return pair, 0, fmt.Errorf("%w: it is over already", ErrSignIn)
	case !now.Before(l.ExpiresAt):
		l.done = true
		return pair, 0, fmt.Errorf("%w: nobody entered the code in time", ErrSignIn)
	case now.Before(l.next):
		return pair, l.next.Sub(now), nil
	}
	a, code, err := l.issuer.grant(ctx, l.at, url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {l.code.Reveal()},
	})
	switch {
	case code == "slow_down":
		l.interval = min(l.interval+deviceSlower, deviceMaxInterval)
		fallthrough
	case code == "authorization_pending":
		return pair, l.pause(a.RetryAfter), nil
	case err != nil, a.Class == refresher.ClassNotSent, a.Class == refresher.ClassRetry, a.Class == refresher.ClassQuiet,
		a.Class == refresher.ClassUnknown && a.Status == 0:
		l.interval = min(2*l.interval, deviceMaxInterval) // RFC 8628 section 3.5 has it so for time-outs
		return pair, l.pause(a.RetryAfter), nil
	}
	l.done = true
	pair, err = granted(a)
	return pair, 0, err
}

// pause is how long to wait before the next question.
func (l *DeviceLogin) pause(asked time.Duration) time.Duration {
	wait := min(max(l.interval, asked), deviceMaxInterval)
	l.next = time.Now().Add(wait)
	return wait
}
