// Command bench compares token_refresh with plain Caddy, in processes of their
// own on loopback. See README.md.
package main

import (
	"fmt"
	"os"
	"os/exec"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/tokenrefresh/caddy-token-refresh/caddymodule"
)

func main() {
	if os.Getenv(roleVariable) != "" {
		runRole()
		return
	}
	benchmarks := map[string]func() error{"proxy": benchProxy, "rotation": benchRotation, "memory": benchMemory, "fleet": benchFleet, "pool": benchPool}
	if len(os.Args) != 2 || benchmarks[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: bench proxy|rotation|memory|fleet|pool")
		os.Exit(2)
	}
	if err := benchmarks[os.Args[1]](); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// roleVariable makes this program one of the processes of a benchmark.
const roleVariable = "BENCH_ROLE"

func runRole() {
	switch os.Getenv(roleVariable) {
	case "caddy":
		caddycmd.Main()
	case "upstream":
		serveUpstream(os.Args[1])
	case "issuer":
		serveIssuer(os.Args[1])
	case "instance":
		if err := runInstance(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// child starts this program in a role; stop ends it.
func child(role string, args ...string) (cmd *exec.Cmd, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd = exec.Command(self, args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	if os.Getenv("BENCH_VERBOSE") != "" {
		cmd.Stderr = os.Stderr
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	return cmd, func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}, nil
}
