package caddymodule

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "token-refresh",
		Usage: "<verb>",
		Short: "Shows and steers the sessions that token_refresh keeps fresh",
		Long: `
Talks to the admin API of a running Caddy about its token_refresh sessions.
No verb prints a token.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Args = cobra.NoArgs // an unknown verb is an error
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			cmd.PersistentFlags().String("address", "", "Address of the administration API listener (if --config is not used)")
			cmd.PersistentFlags().StringP("config", "c", "", "Configuration file (if --address is not used)")
			cmd.PersistentFlags().StringP("adapter", "a", "", "Name of config adapter to apply (if --config is used)")
			cmd.PersistentFlags().Bool("json", false, "Print the admin API's answer as it is")
			cmd.AddCommand(
				verb("list", "Lists the sessions", cobra.NoArgs, cmdList),
				verb("show <session>", "Shows a session and its last rotations", cobra.ExactArgs(1), cmdShow),
				verb("import <session> [<file>]", "Gives a session a token pair, from a JSON file or standard input", cobra.RangeArgs(1, 2), cmdImport),
				verb("refresh <session>", "Exchanges a session's pair now, and waits for it", cobra.ExactArgs(1), cmdRefresh),
				verb("revoke <session>", "Ends a session and forgets its pair, in every instance that shares it", cobra.ExactArgs(1), cmdRevoke),
			)
		},
	})
}

func verb(usage, short string, args cobra.PositionalArgs, run caddycmd.CommandFunc) *cobra.Command {
	return &cobra.Command{Use: usage, Short: short, Args: args, RunE: caddycmd.WrapCommandFuncForCobra(run)}
}

// call asks the admin API and returns the answer's body.
func call(fl caddycmd.Flags, method, path string, body io.Reader) ([]byte, error) {
	address, err := caddycmd.DetermineAdminAPIAddress(fl.String("address"), nil, fl.String("config"), fl.String("adapter"))
	if err != nil {
		return nil, fmt.Errorf("finding the admin API: %w", err)
	}
	header := http.Header{}
	if body != nil {
		header.Set("Content-Type", "application/json")
	}
	resp, err := caddycmd.AdminAPIRequest(address, method, adminPath+path, header, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, 64<<20))
}

func sessionPath(fl caddycmd.Flags) string { return "/" + url.PathEscape(fl.Arg(0)) }

func cmdList(fl caddycmd.Flags) (int, error) {
	answer, err := call(fl, http.MethodGet, "", nil)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if fl.Bool("json") {
		return print(answer)
	}
	var list struct{ Sessions []refresher.Status }
	if err := json.Unmarshal(answer, &list); err != nil {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("reading the answer: %w", err)
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(out, "SESSION\tSTATE\tGENERATION\tEXPIRES\tEXCHANGE\tERROR")
	for _, st := range list.Sessions {
		fmt.Fprintf(out, "%s\t%s\t%d.%d\t%s\t%s\t%s\n", st.Name, describe(st), st.Epoch, st.Generation, until(st.ExpiresAt), until(st.RefreshAt), st.LastError)
	}
	return caddy.ExitCodeSuccess, out.Flush()
}

func cmdShow(fl caddycmd.Flags) (int, error) {
	answer, err := call(fl, http.MethodGet, sessionPath(fl), nil)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	return show(fl, answer)
}

func cmdRefresh(fl caddycmd.Flags) (int, error) {
	answer, err := call(fl, http.MethodPost, sessionPath(fl)+"/refresh", nil)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	return show(fl, answer)
}

func cmdRevoke(fl caddycmd.Flags) (int, error) {
	answer, err := call(fl, http.MethodDelete, sessionPath(fl), nil)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if fl.Bool("json") {
		return print(answer)
	}
	var ended endedSession
	if err := json.Unmarshal(answer, &ended); err != nil {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("reading the answer: %w", err)
	}
	fmt.Printf("%s: %s\n", ended.Name, ended.Note)
	return caddy.ExitCodeSuccess, nil
}

func cmdImport(fl caddycmd.Flags) (int, error) {
	in := io.Reader(os.Stdin)
	if path := fl.Arg(1); path != "" && path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return caddy.ExitCodeFailedStartup, fmt.Errorf("reading the pair: %w", err)
		}
		defer f.Close()
		in = f
	}
	answer, err := call(fl, http.MethodPut, sessionPath(fl), in)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	return show(fl, answer)
}

// show prints one session for people, or as it came.
func show(fl caddycmd.Flags, answer []byte) (int, error) {
	if fl.Bool("json") {
		return print(answer)
	}
	var st refresher.Status
	if err := json.Unmarshal(answer, &st); err != nil {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("reading the answer: %w", err)
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(out, "%s\t%s\n", name, value)
		}
	}
	row("session", st.Name)
	row("state", describe(st))
	row("generation", fmt.Sprintf("%d (login %d, from %s)", st.Generation, st.Epoch, st.Source))
	row("access token", st.Fingerprint)
	row("expires", until(st.ExpiresAt))
	row("next exchange", until(st.RefreshAt))
	row("next attempt", until(st.NextAttempt))
	row("hold-off", st.HoldOffText)
	row("error", st.LastError)
	for i := len(st.Rotations) - 1; i >= 0; i-- {
		r := st.Rotations[i]
		row(r.At.Local().Format(time.DateTime), strings.TrimSpace(fmt.Sprintf("%d.%d %s %s %s", r.Epoch, r.Generation, r.Outcome, r.Took.Round(time.Millisecond), r.Error)))
	}
	return caddy.ExitCodeSuccess, out.Flush()
}

func print(answer []byte) (int, error) {
	_, err := os.Stdout.Write(answer)
	return caddy.ExitCodeSuccess, err
}

func describe(st refresher.Status) string {
	if st.Reason != "" {
		return fmt.Sprintf("%s (%s)", st.State, st.Reason)
	}
	return string(st.State)
}

func until(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	left := time.Until(t).Round(time.Second)
	if left < 0 {
		return fmt.Sprintf("%s ago", -left)
	}
	return "in " + left.String()
}
