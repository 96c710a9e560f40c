package caddymodule

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
)

func cmdRefresh(fl caddycmd.Flags) (int, error) {
	answer, err := call(fl, http.MethodPost, sessionPath(fl)+"/refresh", nil)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	return show(fl, answer)
}

// cmdToken prints the bare token, so that a script needs no parser.
func cmdToken(fl caddycmd.Flags) (int, error) {
	answer, err := call(fl, http.MethodPost, sessionPath(fl)+"/token", nil)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if fl.Bool("json") {
		return print(answer)
	}
	var taken takenToken
	if json.Unmarshal(answer, &taken) != nil || taken.AccessToken == "" {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("the answer holds no access token")
	}
	return print([]byte(taken.AccessToken + "\n"))
}

// cmdRevoke fails where the issuer could have revoked the pair, and did not.
func cmdRevoke(fl caddycmd.Flags) (int, error) {
	answer, err := call(fl, http.MethodDelete, sessionPath(fl), nil)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	var ended endedSession
	if err := json.Unmarshal(answer, &ended); err != nil {
		return unreadable(err)
	}
	code := caddy.ExitCodeSuccess
	if ended.Revocation == pairNotRevoked {
		code = caddy.ExitCodeFailedStartup
		err = fmt.Errorf("%s: %s", ended.Name, ended.Note)
	}
	switch {
	case fl.Bool("json"):
		_, failed := os.Stdout.Write(answer)
		if err == nil {
			err = failed
		}
	case err == nil:
		fmt.Printf("%s: %s\n", ended.Name, ended.Note)
	}
	return code, err
}

func cmdKeygen(caddycmd.Flags) (int, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return print([]byte(base64.StdEncoding.EncodeToString(key) + "\n"))
}
