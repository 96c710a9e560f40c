package caddymodule

import (
	"cmp"

	"github.com/caddyserver/caddy/v2"
)

// What callers of a pool that refresh for themselves know of its issuer.

func (b *BearerIssuer) exchangeURL() string { return b.URL }
func (b *BearerIssuer) answerNames() answerNames {
	return b.named(answerNames{access: "accessToken", refresh: "refreshToken"})
}

func (o *OAuth2Issuer) exchangeURL() string { return o.URL }
func (o *OAuth2Issuer) answerNames() answerNames {
	return o.named(answerNames{access: "access_token", refresh: "refresh_token", expiresIn: "expires_in"})
}

func (f *FusionAuthIssuer) exchangeURL() string { return f.URL + "/api/jwt/refresh" }
func (f *FusionAuthIssuer) answerNames() answerNames {
	return f.named(answerNames{access: "token", refresh: "refreshToken"})
}

// named puts configured names in the place of the usual ones.
func (o *IssuerOptions) named(n answerNames) answerNames {
	if f := o.Fields; f != nil {
		n.access = cmp.Or(f.Access, n.access)
		n.refresh = cmp.Or(f.Refresh, n.refresh)
		n.expiresIn = cmp.Or(f.ExpiresIn, n.expiresIn)
	}
	return n
}

// Interface guards
var (
	_ addressed        = (*BearerIssuer)(nil)
	_ addressed        = (*OAuth2Issuer)(nil)
	_ addressed        = (*FusionAuthIssuer)(nil)
	_ caddy.Destructor = (*sharedPool)(nil)
)
