package caddymodule

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func listVerb() *cobra.Command {
	cmd := verb("list", "Lists the sessions and pools, or the sessions of a pool", cobra.NoArgs, cmdList)
	cmd.Flags().String("pool", "", "List the sessions of this pool")
	cmd.Flags().Int("limit", 0, "Stop after so many (with --json: the size of the page)")
	cmd.Flags().String("after", "", "Begin behind this session, as `next` in the answer has it")
	return cmd
}

// cmdList prints page after page. A pool can end sessions in between; one that
// was printed is not printed again.
func cmdList(fl caddycmd.Flags) (int, error) {
	limit, err := fl.GetInt("limit")
	if err != nil || limit < 0 {
		return exitMisused, fmt.Errorf("--limit: want a number from 1 up")
	}
	query := url.Values{}
	for _, name := range []string{"pool", "after"} {
		if value := fl.String(name); value != "" {
			query.Set(name, value)
		}
	}
	if limit > 0 {
		query.Set("limit", fmt.Sprint(limit))
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	printed := map[string]bool{}
	for first := true; ; first = false {
		answer, err := call(fl, http.MethodGet, "?"+query.Encode(), nil)
		if err != nil {
			_ = out.Flush()
			return caddy.ExitCodeFailedStartup, err
		}
		if fl.Bool("json") {
			return print(answer)
		}
		var list sessionList
		if err := json.Unmarshal(answer, &list); err != nil {
			return unreadable(err)
		}
		if first {
			fmt.Fprintln(out, "SESSION\tSTATE\tGENERATION\tEXPIRES\tEXCHANGE\tERROR")
		}
		more := false
		for _, st := range list.Sessions {
			if printed[st.Name] || limit > 0 && len(printed) == limit {
				continue
			}
			printed[st.Name], more = true, true
			expires, exchange := planned(st)
			fmt.Fprintf(out, "%s\t%s\t%d.%d\t%s\t%s\t%s\n", st.Name, describe(st), st.Epoch, st.Generation, expires, exchange, st.LastError)
		}
		for _, pool := range list.Pools {
			fmt.Fprintf(out, "%s\tpool of %d\t\t\t\t%s\n", pool.Pool, pool.Sessions, pool.Problem)
		}
		if list.Next == "" || !more || limit > 0 && len(printed) == limit {
			return caddy.ExitCodeSuccess, out.Flush()
		}
		query.Set("after", list.Next)
	}
}

func cmdShow(fl caddycmd.Flags) (int, error) {
	answer, err := call(fl, http.MethodGet, sessionPath(fl), nil)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	return show(fl, answer)
}

// show prints one session, or a pool's counts, for people, or as it came.
func show(fl caddycmd.Flags, answer []byte) (int, error) {
	if fl.Bool("json") {
		return print(answer)
	}
	var kind struct {
		Name string
		Pool string
	}
	if err := json.Unmarshal(answer, &kind); err != nil {
		return unreadable(err)
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	if kind.Name == "" && kind.Pool != "" {
		var counts refresher.PoolCounts
		if err := json.Unmarshal(answer, &counts); err != nil {
			return unreadable(err)
		}
		showPool(out, counts)
		return caddy.ExitCodeSuccess, out.Flush()
	}
	var st refresher.Status
	if err := json.Unmarshal(answer, &st); err != nil {
		return unreadable(err)
	}
	showSession(out, st)
	return caddy.ExitCodeSuccess, out.Flush()
}

func row(out io.Writer, name, value string) {
	if value != "" {
		fmt.Fprintf(out, "%s\t%s\n", name, value)
	}
}

func showSession(out io.Writer, st refresher.Status) {
	row(out, "session", st.Name)
	row(out, "state", describe(st))
	row(out, "generation", fmt.Sprintf("%d (login %d, from %s)", st.Generation, st.Epoch, st.Source))
	row(out, "access token", st.Fingerprint)
	expires, exchange := planned(st)
	row(out, "expires", expires)
	row(out, "next exchange", exchange)
	row(out, "next attempt", until(st.NextAttempt))
	row(out, "hold-off", shortly(st.HoldOffText))
	row(out, "error", st.LastError)
	for i := len(st.Rotations) - 1; i >= 0; i-- {
		r := st.Rotations[i]
		took, times := "", ""
		if r.Took > 0 {
			took = " in " + max(r.Took.Round(time.Millisecond), time.Millisecond).String()
		}
		if r.Times > 1 {
			times = fmt.Sprintf(", %d times,", r.Times)
		}
		row(out, r.At.Local().Format(time.DateTime), strings.TrimSpace(fmt.Sprintf("%d.%d %s%s%s %s", r.Epoch, r.Generation, r.Outcome, times, took, r.Error)))
	}
}

func showPool(out io.Writer, c refresher.PoolCounts) {
	row(out, "pool", c.Pool)
	row(out, "problem", c.Problem)
	row(out, "sessions", fmt.Sprint(c.Sessions))
	for _, state := range slices.Sorted(maps.Keys(c.States)) {
		row(out, "  "+string(state), fmt.Sprint(c.States[state]))
	}
	row(out, "live", fmt.Sprint(c.Live))
	row(out, "lost since the start", fmt.Sprint(c.Lost))
	row(out, "memory", fmt.Sprintf("%.1f MiB", float64(c.Bytes)/(1<<20)))
}

// planned is when the access token ends and the exchange is due. The pair of a
// lost session is good for nothing any more, whatever its times say.
func planned(st refresher.Status) (expires, exchange string) {
	if st.State == refresher.PhaseLost {
		return "", ""
	}
	return until(st.ExpiresAt), until(st.RefreshAt)
}

// shortly is a duration for people.
func shortly(text string) string {
	d, err := time.ParseDuration(text)
	if err != nil {
		return text
	}
	return d.Round(100 * time.Millisecond).String()
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
