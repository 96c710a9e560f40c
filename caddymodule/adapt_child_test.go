package caddymodule_test

import (
	"os"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
)

// The test binary, started again with this variable set, is the real `caddy`
// with its arguments. Not in TestMain, as all modules are registered by now.
func init() {
	if os.Getenv("RULE_CADDY_CHILD") != "" {
		os.Args[0] = "caddy"
		caddycmd.Main()
		os.Exit(0)
	}
}
