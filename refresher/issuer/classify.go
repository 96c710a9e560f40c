package issuer

import (
	"net/http"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// dialect is what an endpoint means by an answer that HTTP leaves open.
type dialect uint8

const (
	// tokenEndpoint: 401 is about the client's own credentials (RFC 6749
	// section 5.2).
	tokenEndpoint dialect = iota
	// bearerEndpoint: 401 is about the access token that the request carried
	// (RFC 6750 section 3.1).
	bearerEndpoint
	// fusionEndpoint: errors have FusionAuth's form.
	fusionEndpoint
)

// errorCode is what the body of an answer says went wrong, in words that error
// texts may repeat; "" where it says nothing of the kind.
func (d dialect) errorCode(body refresher.Secret) string {
	if d == fusionEndpoint {
		return fusionError(body)
	}
	return oauthError(body)
}

// classify says what an outcome means for the refresh token that was sent
// (rotation.md 7.1, contract 3b). code is the OAuth error of a 4xx answer, ""
// without one; pairErr says why a 2xx answer holds no usable pair. It is a pure
// function: its table is the test.
//
// 500 and 503 count as "not done" although an issuer may have committed before
// it failed: a known risk that the contract takes.
func classify(d dialect, o Outcome, code string, pairErr error) refresher.Class {
	switch {
	case o.Err != nil && o.Written == 0:
		return refresher.ClassNotSent
	case o.Err != nil:
		return refresher.ClassUnknown
	case o.Status < 300:
		if pairErr == nil {
			return refresher.ClassOK
		}
		if class, ok := classOfCode[code]; ok && d == tokenEndpoint {
			return class // GitHub and others answer errors with 200
		}
		return refresher.ClassUnknown // probably committed, but to what?
	case o.Status < 400:
		return refresher.ClassRedirect
	case o.Status < 500:
		if class, ok := classOfCode[code]; ok {
			return class
		}
		if d == tokenEndpoint && (code == "invalid_token" || code == "token_inactive") {
			return refresher.ClassRejected // the only token in the request: UAA and Spring, Hydra before 2.3
		}
		return classOfClientError(d, o.Status)
	case o.Status == http.StatusInternalServerError, o.Status == http.StatusServiceUnavailable, code == fusionWebhook:
		return refresher.ClassRetry
	default:
		return refresher.ClassQuiet
	}
}

// classOfCode are the OAuth errors that decide, whatever the 4xx status: Auth0
// answers invalid_grant with 403. invalid_request is not among them; some
// issuers use it for what others call invalid_grant.
var classOfCode = map[string]refresher.Class{
	"invalid_grant": refresher.ClassRejected,

	"invalid_client":         refresher.ClassConfig,
	"unauthorized_client":    refresher.ClassConfig,
	"unsupported_grant_type": refresher.ClassConfig,
	"invalid_scope":          refresher.ClassConfig,

	"temporarily_unavailable": refresher.ClassRetry,
	"server_error":            refresher.ClassRetry,
	"slow_down":               refresher.ClassRetry, // RFC 8628 section 3.5
	"use_dpop_nonce":          refresher.ClassRetry, // RFC 9449 section 8

	"bad_refresh_token":            refresher.ClassRejected, // GitHub's invalid_grant
	"incorrect_client_credentials": refresher.ClassConfig,   // and its invalid_client

	fusionToken: refresher.ClassRejected,
}

// classOfClientError is for a 4xx whose body says nothing. A 400 may be the end
// of the token, too; the session knows whether an earlier attempt makes that
// likely, this function does not.
func classOfClientError(d dialect, status int) refresher.Class {
	switch status {
	case http.StatusUnauthorized:
		if d == bearerEndpoint {
			return refresher.ClassUnauthorized
		}
		return refresher.ClassConfig
	case http.StatusRequestTimeout, http.StatusConflict:
		return refresher.ClassQuiet
	case http.StatusMisdirectedRequest, http.StatusTooEarly, http.StatusTooManyRequests:
		return refresher.ClassRetry
	default:
		return refresher.ClassConfig
	}
}
