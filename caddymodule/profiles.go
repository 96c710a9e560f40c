package caddymodule

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// profile is how an issuer treats what it issued, as far as that differs from
// one to the next.
type profile struct {
	revokes  bool          // the previous access token dies with the exchange
	reuse    time.Duration // how long a spent refresh token is accepted again
	lifetime time.Duration // of a refresh token that is not used; 0: not known, or none
}

const (
	day = 24 * time.Hour

	// forgiving stands for issuers to which a used refresh token is as good as
	// a new one: longer than any attempt is repeated.
	forgiving = day
)

// profiles are the issuers known by name, each in its rotating mode as it comes
// out of the box, whatever the kind of issuer by which it is spoken to. Where a
// product also has a mode without rotation, the values hold for that one, too:
// they are only more careful than need be. All are from documentation, none was
// tried.
var profiles = map[string]profile{
	// POST /User/RefreshToken: its documentation (30 days, the access token is
	// revoked), what it leaves open read strictly.
	"7g": {revokes: true, lifetime: 30 * day},
	// Auth0's refresh token rotation: "Rotation Overlap Period" 0 by default, a
	// second use ends the family; inactivity lifetime 15 days by default.
	"auth0": {lifetime: 15 * day},
	// Amazon Cognito's RefreshTokenRotationType: RetryGracePeriodSeconds 0 to
	// 60, none unless given; RefreshTokenValidity 30 days by default.
	"cognito": {lifetime: 30 * day},
	// Connect2id server 14.2: 5 s of grace by default.
	"connect2id": {reuse: 5 * time.Second},
	// Curity's configuration reference, refresh-token-revocation: grace-period
	// 0 by default.
	"curity": {},
	// Dex, expiry.refreshTokens: reuseInterval 3s in the documentation's
	// example, answered with the same successor; a later use is refused and ends
	// nothing (server/refreshhandlers.go), so that trying costs nothing.
	"dex": {reuse: 3 * time.Second},
	// Microsoft identity platform, "Refresh tokens": not revoked by use; 24 h in
	// single-page applications, 90 days otherwise.
	"entra": {reuse: forgiving, lifetime: 24 * time.Hour},
	// FusionAuth's JWT settings: OneTimeUse without gracePeriodInSeconds; 43,200
	// minutes.
	"fusionauth": {lifetime: 30 * day},
	// GenAuth's documentation: the answer holds the same refresh token until
	// that expires.
	"genauth": {reuse: forgiving},
	// GitHub Apps: the refresh token and the access token that it came with stop
	// working once it is used; 6 months.
	"github": {revokes: true, lifetime: 180 * day},
	// Ory Hydra's configuration schema: oauth2.grant.refresh_token
	// .rotation_grace_period 0s, ttl.refresh_token 720h; the access token issued
	// with the used refresh token is revoked.
	"hydra": {revokes: true, lifetime: 720 * time.Hour},
	// Keycloak's realm settings: "Revoke Refresh Token" with "Refresh Token Max
	// Reuse" 0, "SSO Session Idle" 30 minutes.
	"keycloak": {lifetime: 30 * time.Minute},
	// Okta, "Refresh token rotation": 30 s of grace by default, each use a new
	// successor; an access policy's default expires one that is unused for 7
	// days.
	"okta": {reuse: 30 * time.Second, lifetime: 7 * day},
	// Supabase Auth: refresh_token_reuse_interval 10 s by default; the parent of
	// the active token gets the active one.
	"supabase": {reuse: 10 * time.Second},
}

// never is the reuse_interval of 0 that was given: 0 itself is what was not.
const never = caddy.Duration(-1)

// profile is the issuer's: by its name, else the usual of its kind, and where an
// option says otherwise, by that.
func (o *IssuerOptions) profile(usual profile) (profile, error) {
	p := usual
	if o.ProfileName != "" {
		var ok bool
		if p, ok = profiles[o.ProfileName]; !ok {
			known := strings.Join(slices.Sorted(maps.Keys(profiles)), ", ")
			return p, fmt.Errorf("profile: %.40q is not known; these are: %s", o.ProfileName, known)
		}
	}
	if o.RevokesPrevious != nil {
		p.revokes = *o.RevokesPrevious
	}
	if o.ReuseInterval != 0 {
		p.reuse = max(0, time.Duration(o.ReuseInterval))
	}
	if o.RefreshLifetime != 0 {
		p.lifetime = time.Duration(o.RefreshLifetime)
	}
	return p, nil
}
