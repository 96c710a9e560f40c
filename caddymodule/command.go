package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "token-refresh",
		Usage: "<verb>",
		Short: "Shows and steers the sessions that token_refresh keeps fresh",
		Long: `
Talks to the admin API of a running Caddy about its token_refresh sessions.
No verb but "token" prints a token.

The exit code is 0 where all went well, 1 where something failed, and 2 where the
command itself cannot be understood.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Args = cobra.ArbitraryArgs
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) > 0 {
					return misused(cmd, fmt.Errorf("there is no verb %q", args[0]))
				}
				return cmd.Help()
			}
			cmd.SetFlagErrorFunc(misused)
			cmd.PersistentFlags().String("address", "", "Address of the administration API listener (if --config is not used)")
			cmd.PersistentFlags().StringP("config", "c", "", "Configuration file (if --address is not used)")
			cmd.PersistentFlags().StringP("adapter", "a", "", "Name of config adapter to apply (if --config is used)")
			cmd.PersistentFlags().Bool("json", false, "Print the admin API's answer as it is")
			cmd.AddCommand(
				listVerb(),
				verb("show <session>", "Shows a session and its last rotations, or how a pool is doing", cobra.ExactArgs(1), cmdShow),
				importVerb(),
				loginVerb(),
				verb("refresh <session>", "Exchanges a session's pair now, and waits for it", cobra.ExactArgs(1), cmdRefresh),
				verb("token <session>", "Prints a session's access token, for scripts on this machine", cobra.ExactArgs(1), cmdToken),
				verb("revoke <session>", "Ends a session in every instance, and revokes its pair at the issuer", cobra.ExactArgs(1), cmdRevoke),
				doctorVerb(),
				verb("keygen", "Prints a new encryption_key: 32 random bytes in base64", cobra.NoArgs, cmdKeygen),
			)
		},
	})
}

// exitMisused is the exit code of a command that cannot be understood.
const exitMisused = 2

func verb(usage, short string, args cobra.PositionalArgs, run caddycmd.CommandFunc) *cobra.Command {
	return &cobra.Command{
		Use: usage, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, given []string) error {
			if err := args(cmd, given); err != nil {
				return misused(cmd, err)
			}
			return caddycmd.WrapCommandFuncForCobra(run)(cmd, given)
		},
	}
}

// misused ends the command with its own exit code.
func misused(cmd *cobra.Command, err error) error {
	return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
		return exitMisused, fmt.Errorf("%w; see caddy help %s", err, strings.TrimPrefix(cmd.CommandPath(), "caddy "))
	})(cmd, nil)
}

// call asks the admin API and returns the answer's body.
func call(fl caddycmd.Flags, method, path string, body io.Reader) ([]byte, error) {
	address, err := caddycmd.DetermineAdminAPIAddress(fl.String("address"), nil, fl.String("config"), fl.String("adapter"))
	if err != nil {
		return nil, fmt.Errorf("finding the admin API: %w", err)
	}
	return callAt(address, method, path, body)
}

func callAt(address, method, path string, body io.Reader) ([]byte, error) {
	header := http.Header{}
	if body != nil {
		header.Set("Content-Type", "application/json")
	}
	resp, err := caddycmd.AdminAPIRequest(address, method, adminPath+path, header, body)
	if err != nil {
		return nil, plainly(err)
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, 64<<20))
}

// plainly is an error of the admin API in its own words alone, where it has any.
func plainly(err error) error {
	_, body, ok := strings.Cut(err.Error(), ": {")
	var answer struct{ Error string }
	if !ok || json.Unmarshal([]byte("{"+body), &answer) != nil || answer.Error == "" {
		return err
	}
	return errors.New(answer.Error)
}

func sessionPath(fl caddycmd.Flags) string { return "/" + url.PathEscape(fl.Arg(0)) }

func print(answer []byte) (int, error) {
	_, err := os.Stdout.Write(answer)
	return caddy.ExitCodeSuccess, err
}

func unreadable(err error) (int, error) {
	return caddy.ExitCodeFailedStartup, fmt.Errorf("reading the answer: %w", err)
}
