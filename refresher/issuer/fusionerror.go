package issuer

import (
	"encoding/json"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// What of FusionAuth's errors decides, named as FusionAuth names it.
const (
	fusionToken   = "[invalid]refreshToken"         // unknown, expired or revoked
	fusionWebhook = "[WebhookTransactionException]" // a webhook vetoed: nothing was saved
)

// fusionError reads FusionAuth's error object, {"fieldErrors": {"refreshToken":
// [{"code": …}]}, "generalErrors": [{"code": …}]}.
func fusionError(body refresher.Secret) string {
	members, ok := jsonMembers(body, "fieldErrors", "generalErrors")
	if !ok {
		return ""
	}
	type failure struct {
		Code string `json:"code"`
	}
	var general []failure
	_ = json.Unmarshal(members["generalErrors"], &general)
	for _, f := range general {
		if f.Code == fusionWebhook {
			return fusionWebhook
		}
	}
	var byField map[string][]failure
	_ = json.Unmarshal(members["fieldErrors"], &byField)
	for _, f := range byField["refreshToken"] {
		// The code tells what is wrong with it: [invalid], [expired], [revoked].
		// Only one that was not there is no fault of the token's.
		if strings.HasPrefix(f.Code, "[") && !strings.HasPrefix(f.Code, "[missing]") && !strings.HasPrefix(f.Code, "[blank]") {
			return fusionToken
		}
	}
	return ""
}
