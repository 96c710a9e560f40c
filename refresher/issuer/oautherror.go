package issuer

import (
	"encoding/json"
	"slices"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// registered are the codes that error texts may repeat, out of IANA's registry
// of OAuth extension errors, and GitHub's own. Any other text of an issuer could
// hold a token.
var registered = []string{
	"access_denied", "account_selection_required", "authorization_pending",
	"bad_refresh_token", "consent_required", "expired_token",
	"incorrect_client_credentials", "insufficient_scope",
	"insufficient_user_authentication", "interaction_required",
	"invalid_authorization_details", "invalid_client", "invalid_dpop_proof",
	"invalid_grant", "invalid_request", "invalid_scope", "invalid_target",
	"invalid_token", "login_required", "request_denied", "server_error",
	"slow_down", "temporarily_unavailable", "token_inactive", "unauthorized_client",
	"unsupported_grant_type", "unsupported_token_type", "use_dpop_nonce",
}

// oauthError returns the registered code under "error" in a JSON object
// (RFC 6749 section 5.2), else "".
func oauthError(body refresher.Secret) string {
	members, ok := jsonMembers(body, "error")
	if !ok {
		return ""
	}
	var code string
	if json.Unmarshal(members["error"], &code) != nil || !slices.Contains(registered, code) {
		return ""
	}
	return code
}
