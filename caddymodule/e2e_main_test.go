package caddymodule_test

import (
	"io"
	"os"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"go.uber.org/goleak"

	_ "github.com/tokenrefresh/caddy-token-refresh/caddymodule"
)

// childConfig is set in a process that shall be Caddy rather than run tests; it
// holds the path of the Caddyfile.
const childConfig = "TOKEN_REFRESH_E2E_CADDYFILE"

// TestMain lets the test binary be started again as the real `caddy run`, which
// can then be killed, and looks for goroutines that outlived their Caddy.
func TestMain(m *testing.M) {
	if path := os.Getenv(childConfig); path != "" {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(3) // the test that started this process is gone
		}()
		os.Args = []string{"caddy", "run", "--config", path, "--adapter", "caddyfile"}
		caddycmd.Main()
		return
	}
	goleak.VerifyTestMain(m,
		// The admin endpoint of the last configuration goes on after caddy.Stop:
		// only the process's end or a further configuration closes it.
		goleak.IgnoreAnyFunction("github.com/caddyserver/caddy/v2.replaceLocalAdminServer.func2"),
	)
}
