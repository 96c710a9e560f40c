package webhook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

// Defaults of a [HookConfig].
const (
	DefaultTimeout  = 10 * time.Second
	DefaultParallel = 4
)

// maxDrained is how much of an answer is read so that its connection can be used
// again.
const (
	maxDrained   = 64 << 10
	maxDrainTime = 100 * time.Millisecond
)

// HookConfig says where events go, and how. It does not print its contents.
type HookConfig struct {
	// URL is the receiver's: https, or http on this machine. It names the hook:
	// events that wait for it find it again by its URL.
	URL string

	// Events are the types of events that are sent; empty: all there are. The
	// one there is is [TypeRefresh]; another name is an error.
	Events []string

	// Header holds further fields of the request.
	Header http.Header

	// Required: an exchange's pair is not to be used before this hook has
	// answered 2xx (FusionAuth's transactional webhook).
	Required bool

	// ApplicationID and TenantID are UUIDs to send. Where they are empty, the
	// claims "applicationId" and "tid" of the new access token are taken, if
	// they are UUIDs.
	ApplicationID string
	TenantID      string

	// UserClaim is the claim of the new access token that is the userId, taken
	// as it is. Empty: "sub", if it is a UUID.
	UserClaim string

	// Timeout bounds one delivery, connecting included; 0 is [DefaultTimeout].
	Timeout time.Duration

	// Parallel is how many sessions' events are sent at a time; 0 is
	// [DefaultParallel]. A hook that has just failed gets one at a time.
	Parallel int

	// TLS holds roots and client certificates; nil takes the system's roots.
	TLS *tls.Config

	// InsecureHTTP lets plain http leave the machine.
	InsecureHTTP bool

	// Username and Password are sent as basic authentication if one is set.
	Username string
	Password refresher.Secret

	// Signer signs each body; nil: it is not signed.
	Signer *Signer

	// Dial replaces the TCP dialer, and with it the check of the resolved
	// address; nil dials.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Format implements [fmt.Formatter]: header fields and the URL can hold keys.
func (c HookConfig) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "webhook.HookConfig[redacted]")
}

// Hook is one receiver of events, made by [NewHook]. It prints as its name.
type Hook struct {
	cfg    HookConfig
	key    string // names it on disk
	name   string // for logs
	url    *url.URL
	header http.Header
	client *http.Client
}

// ours are the fields that belong to the connection or to this package.
var ours = []string{
	"Accept-Encoding", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Expect", "Host",
	"Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Referer", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade", "User-Agent", SignatureHeader,
}

// NewHook checks a configuration. Nothing is dialled. Its errors repeat no value
// that can be secret.
func NewHook(cfg HookConfig) (*Hook, error) {
	u, err := endpoint.Parse(cfg.URL, cfg.InsecureHTTP)
	if err != nil {
		return nil, err
	}
	for _, name := range cfg.Events {
		if name != TypeRefresh {
			return nil, fmt.Errorf("unknown event %.80q: the one there is is %s", name, TypeRefresh)
		}
	}
	for option, id := range map[string]string{"application id": cfg.ApplicationID, "tenant id": cfg.TenantID} {
		if id != "" && !validID(id) {
			return nil, fmt.Errorf("the %s is not a UUID such as 10000000-0000-0002-0000-000000000001", option)
		}
	}
	if cfg.Timeout < 0 || cfg.Parallel < 0 {
		return nil, errors.New("timeout and parallel cannot be negative")
	}
	header, err := checkHeader(cfg.Header)
	if err != nil {
		return nil, err
	}
	if (cfg.Username != "" || !cfg.Password.IsZero()) && header.Get("Authorization") != "" {
		return nil, errors.New("basic authentication and a header field Authorization exclude each other")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = DefaultParallel
	}
	sum := sha256.Sum256([]byte(cfg.URL))
	return &Hook{
		cfg:    cfg,
		key:    hex.EncodeToString(sum[:8]),
		name:   u.Scheme + "://" + u.Host + u.EscapedPath(),
		url:    u,
		header: header,
		client: newClient(u, cfg.TLS, cfg.InsecureHTTP, cfg.Dial),
	}, nil
}

// checkHeader returns given with canonical names.
func checkHeader(given http.Header) (http.Header, error) {
	h := http.Header{}
	for name, values := range given {
		if !httpguts.ValidHeaderFieldName(name) {
			return nil, fmt.Errorf("%.80q is not the name of a header field", name)
		}
		canonical := http.CanonicalHeaderKey(name)
		if slices.ContainsFunc(ours, func(o string) bool { return http.CanonicalHeaderKey(o) == canonical }) {
			return nil, fmt.Errorf("the header field %s cannot be set", canonical)
		}
		if _, twice := h[canonical]; twice {
			return nil, fmt.Errorf("the header field %s is given in two spellings", canonical)
		}
		for _, value := range values {
			if !httpguts.ValidHeaderFieldValue(value) {
				return nil, fmt.Errorf("the value for the header field %s holds a control character", canonical)
			}
		}
		h[canonical] = slices.Clone(values)
	}
	return h, nil
}

// Name is the URL without its query, in which a secret may stand.
func (h *Hook) Name() string { return h.name }

// Required reports whether pairs wait for this hook.
func (h *Hook) Required() bool { return h.cfg.Required }

// Format implements [fmt.Formatter].
func (h *Hook) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "webhook.Hook[%s]", h.name) }

func (h *Hook) takes(kind string) bool {
	return len(h.cfg.Events) == 0 || slices.Contains(h.cfg.Events, kind)
}

// body is the event as this hook gets it.
func (h *Hook) body(ev Event) ([]byte, error) {
	c := readClaims(ev.Token)
	fill := func(to *string, configured, claimed string) {
		if *to == "" {
			*to = configured
		}
		if *to == "" {
			*to = claimed
		}
	}
	fill(&ev.ApplicationID, h.cfg.ApplicationID, c.id("applicationId"))
	fill(&ev.TenantID, h.cfg.TenantID, c.id("tid"))
	if h.cfg.UserClaim == "" {
		fill(&ev.UserID, "", c.id("sub"))
	} else {
		fill(&ev.UserID, "", c[h.cfg.UserClaim])
	}
	return ev.encode()
}

// refusal is an answer that is not 2xx.
type refusal struct {
	status int
	after  time.Duration // Retry-After; 0 where there is none
}

func (r *refusal) Error() string { return "answered " + strconv.Itoa(r.status) }

// post sends a body once. nil means that the receiver answered 2xx; a *refusal
// that it answered otherwise.
func (h *Hook) post(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.cfg.URL, bytes.NewReader(body))
	if err != nil {
		return errors.New("the request cannot be made")
	}
	for name, values := range h.header {
		req.Header[name] = slices.Clone(values)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", userAgent)
	if h.cfg.Username != "" || !h.cfg.Password.IsZero() {
		req.SetBasicAuth(h.cfg.Username, h.cfg.Password.Reveal())
	}
	if h.cfg.Signer != nil {
		signature, err := h.cfg.Signer.Sign(body)
		if err != nil {
			return err
		}
		req.Header.Set(SignatureHeader, signature)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return wireFault(err)
	}
	defer func() { _ = resp.Body.Close() }()
	// What the answer says is of no interest; its end lets the connection be
	// used again, if it comes soon. A failure here changes nothing: the status
	// was read.
	defer time.AfterFunc(maxDrainTime, cancel).Stop()
	_, _ = io.CopyN(io.Discard, resp.Body, maxDrained)
	if resp.StatusCode/100 != 2 {
		return &refusal{status: resp.StatusCode, after: retryAfter(resp.Header, time.Now())}
	}
	return nil
}

// retryAfter reads the field of RFC 9110 section 10.2.3; 0 where it says nothing
// usable.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// rest gives idle connections back.
func (h *Hook) rest() { h.client.CloseIdleConnections() }
