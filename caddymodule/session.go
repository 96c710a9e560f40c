package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// Rotation is how the pairs of a session, or of a pool's, are exchanged.
type Rotation struct {
	// Who exchanges the pair for the next one. Required.
	IssuerRaw json.RawMessage `json:"issuer,omitempty" caddy:"namespace=token_refresh.issuers inline_key=kind"`

	// How long before the access token's expiry the exchange is due: percent of
	// its life (`20%`) or a duration (`5m`). Default: a fifth of its life, at
	// least 75 s, at most 15 min and at most half. Spread makes it at most a
	// fifth earlier.
	RefreshBefore string `json:"refresh_before,omitempty"`

	// The access token's life where neither it nor the issuer's answer says.
	Lifetime caddy.Duration `json:"lifetime,omitempty"`

	// The longest that a request waits for a token. Default: 10s.
	Wait caddy.Duration `json:"wait,omitempty"`

	// The longest that an exchange waits for requests under way that could not
	// be sent again. Default: 2s.
	Drain caddy.Duration `json:"drain,omitempty"`

	issuer  refresher.Issuer
	limiter refresher.Limiter
	percent float64
	before  time.Duration
}

// Session is one login at one issuer.
type Session struct {
	Rotation

	// Where the first pair comes from, tried in this order. Required.
	TokensRaw []json.RawMessage `json:"tokens,omitempty" caddy:"namespace=token_refresh.sources inline_key=from"`

	// Whether a lost session signs in again if a source can. Default: true.
	Reauthenticate *bool `json:"reauthenticate,omitempty"`

	shared  *sharedSession
	sources []refresher.Source
	swap    bool // a handler swaps its tokens
}

// limited is an issuer whose exchanges are bounded over all sessions.
type limited interface {
	Limiter(session string) refresher.Limiter
}

// provision sets the rotation up; in is what it stands in.
func (r *Rotation) provision(ctx caddy.Context, in any, name string) (err error) {
	if r.percent, r.before, err = parseRefreshBefore(r.RefreshBefore); err != nil {
		return err
	}
	for option, d := range map[string]caddy.Duration{"lifetime": r.Lifetime, "wait": r.Wait, "drain": r.Drain} {
		if d < 0 {
			return fmt.Errorf("%s: must not be negative", option)
		}
	}
	if err := checkInlineKey(r.IssuerRaw, "issuer", "kind"); err != nil {
		return err
	}
	mod, err := ctx.LoadModule(in, "IssuerRaw")
	if err != nil {
		return fmt.Errorf("loading the issuer: %w", err)
	}
	issuer, ok := mod.(refresher.Issuer)
	if !ok {
		return fmt.Errorf("module %T is not an issuer", mod)
	}
	r.issuer = issuer
	if l, ok := mod.(limited); ok {
		r.limiter = l.Limiter(name)
	}
	return nil
}

func (s *Session) provision(ctx caddy.Context, name string) error {
	if err := s.Rotation.provision(ctx, s, name); err != nil {
		return err
	}
	if len(s.TokensRaw) == 0 {
		return errors.New("no tokens source: say where the first pair comes from, if only `tokens import`")
	}
	for _, raw := range s.TokensRaw {
		if err := checkInlineKey(raw, "tokens", "from"); err != nil {
			return err
		}
	}
	mods, err := ctx.LoadModule(s, "TokensRaw")
	if err != nil {
		return fmt.Errorf("loading the tokens sources: %w", err)
	}
	for _, mod := range mods.([]any) {
		src, ok := mod.(refresher.Source)
		if !ok {
			return fmt.Errorf("module %T is not a tokens source", mod)
		}
		if b, ok := mod.(issuerBound); ok {
			b.bindIssuer(s.issuer)
		}
		s.sources = append(s.sources, src)
	}
	return nil
}

// issuerBound is a source whose defaults depend on the session's issuer.
type issuerBound interface{ bindIssuer(refresher.Issuer) }

// checkInlineKey sees to it that a module object names its module. Caddy's own
// error prints the whole object, secrets included.
func checkInlineKey(raw json.RawMessage, option, key string) error {
	if len(raw) == 0 {
		return fmt.Errorf("%s: missing", option)
	}
	var obj map[string]json.RawMessage
	if json.Unmarshal(raw, &obj) != nil {
		return fmt.Errorf("%s: not a JSON object", option)
	}
	var name string
	if json.Unmarshal(obj[key], &name) != nil || name == "" {
		return fmt.Errorf("%s: the member %q, which names the module, is missing", option, key)
	}
	return nil
}

func (r *Rotation) policy() refresher.Policy {
	return refresher.Policy{
		RefreshPercent: r.percent,
		RefreshBefore:  r.before,
		Lifetime:       time.Duration(r.Lifetime),
		Wait:           time.Duration(r.Wait),
		Drain:          time.Duration(r.Drain),
	}
}

func (s *Session) policy() refresher.Policy {
	p := s.Rotation.policy()
	p.NoReauthenticate = s.Reauthenticate != nil && !*s.Reauthenticate
	p.Swap = s.swap
	return p
}

// parseRefreshBefore reads "20%" or "5m"; the empty string is the default.
func parseRefreshBefore(text string) (percent float64, before time.Duration, err error) {
	if text == "" {
		return 0, 0, nil
	}
	if number, ok := strings.CutSuffix(text, "%"); ok {
		percent, err = strconv.ParseFloat(number, 64)
		if err != nil || !(percent > 0 && percent < 100) {
			return 0, 0, fmt.Errorf("refresh_before: %q is not a percentage between 0%% and 100%%", text)
		}
		return percent, 0, nil
	}
	before, err = caddy.ParseDuration(text)
	if err != nil || before <= 0 {
		return 0, 0, fmt.Errorf("refresh_before: %q is neither a percentage (20%%) nor a duration (5m)", text)
	}
	return 0, before, nil
}
