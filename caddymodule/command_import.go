package caddymodule

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func importVerb() *cobra.Command {
	cmd := verb("import <session> [<file>] | --lines [<file>]", "Gives a session a token pair, or many theirs, from a file or standard input", cobra.ArbitraryArgs, cmdImport)
	cmd.Long = `
Reads a pair as JSON, accessToken and refreshToken or the spellings of RFC 6749
and FusionAuth, from a file or standard input. With the name of a pool it becomes a
new session of that pool.

With --lines, each line is such an object that also has "session": the name of the
session or pool. All lines are tried; what fails is said with the line's number.`
	cmd.Flags().Bool("lines", false, `Read JSON Lines, each with a "session"`)
	return cmd
}

func cmdImport(fl caddycmd.Flags) (int, error) {
	lines := fl.Bool("lines")
	names, most := 1, 2
	if lines {
		names, most = 0, 1
	}
	if fl.NArg() < names || fl.NArg() > most {
		return exitMisused, errors.New("want a session, and a file if it is not standard input; with --lines, a file at most")
	}
	in := io.Reader(os.Stdin)
	if path := fl.Arg(names); path != "" && path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return caddy.ExitCodeFailedStartup, fmt.Errorf("reading the pair: %w", err)
		}
		defer f.Close()
		in = f
	}
	if lines {
		return importLines(fl, in)
	}
	answer, err := call(fl, http.MethodPut, sessionPath(fl), in)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	return show(fl, answer)
}

// progressEvery is how often a long import says how far it is.
const progressEvery = 2 * time.Second

// importLines imports line by line. No message repeats what a line holds beyond
// the session's name.
func importLines(fl caddycmd.Flags, in io.Reader) (int, error) {
	address, err := caddycmd.DetermineAdminAPIAddress(fl.String("address"), nil, fl.String("config"), fl.String("adapter"))
	if err != nil {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("finding the admin API: %w", err)
	}
	scan := bufio.NewScanner(in)
	scan.Buffer(nil, refresher.MaxAnswer+1)
	done, failures, told := 0, 0, time.Now()
	for n := 1; scan.Scan(); n++ {
		line := bytes.TrimSpace(scan.Bytes())
		if len(line) == 0 {
			continue
		}
		if err := importLine(address, line); err != nil {
			failures++
			fmt.Fprintf(os.Stderr, "line %d: %v\n", n, err)
		} else {
			done++
		}
		if time.Since(told) >= progressEvery {
			told = time.Now()
			fmt.Fprintf(os.Stderr, "%d imported, %d failed so far\n", done, failures)
		}
	}
	if err := scan.Err(); err != nil {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("%d imported, %d failed; then reading stopped: %w", done, failures, err)
	}
	if fl.Bool("json") {
		fmt.Printf("{\"imported\":%d,\"failed\":%d}\n", done, failures)
	} else {
		fmt.Printf("%d imported, %d failed\n", done, failures)
	}
	if failures > 0 {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("%d of %d pairs were not imported", failures, done+failures)
	}
	return caddy.ExitCodeSuccess, nil
}

func importLine(address string, line []byte) error {
	members, err := refresher.ParseStrings(line, "session")
	if err != nil {
		return err
	}
	name := members["session"]
	if name == "" {
		return errors.New(`"session" is missing`)
	}
	if _, err := callAt(address, http.MethodPut, "/"+url.PathEscape(name), bytes.NewReader(line)); err != nil {
		return fmt.Errorf("%.64q: %w", name, err)
	}
	return nil
}
