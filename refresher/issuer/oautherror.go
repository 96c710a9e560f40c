package issuer

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// registered are the codes that error texts may repeat, out of IANA's registry
// of OAuth extension errors. Any other text of an issuer could hold a token.
var registered = []string{
	"access_denied", "account_selection_required", "authorization_pending",
	"consent_required", "expired_token", "insufficient_scope",
	"insufficient_user_authentication", "interaction_required",
	"invalid_authorization_details", "invalid_client", "invalid_dpop_proof",
	"invalid_grant", "invalid_request", "invalid_scope", "invalid_target",
	"invalid_token", "login_required", "request_denied", "server_error",
	"slow_down", "temporarily_unavailable", "unauthorized_client",
	"unsupported_grant_type", "unsupported_token_type", "use_dpop_nonce",
}

// oauthError returns the registered code under "error" in a JSON object
// (RFC 6749 section 5.2), else "". Names are exact: encoding/json would take
// "ERROR" for a struct field. A name given twice counts as none.
func oauthError(body refresher.Secret) string {
	text := body.Reveal()
	if !json.Valid([]byte(text)) {
		return ""
	}
	dec := json.NewDecoder(strings.NewReader(text))
	if tok, _ := dec.Token(); tok != json.Delim('{') {
		return ""
	}
	code, seen := "", false
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return ""
		}
		var value json.RawMessage
		if dec.Decode(&value) != nil {
			return ""
		}
		if name != "error" {
			continue
		}
		if seen || json.Unmarshal(value, &code) != nil {
			return ""
		}
		seen = true
	}
	if !slices.Contains(registered, code) {
		return ""
	}
	return code
}
