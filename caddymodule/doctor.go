package caddymodule

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func doctorVerb() *cobra.Command {
	cmd := verb("doctor", "Checks a configuration, its issuers, the clock and storage, and says what is wrong", cobra.NoArgs, cmdDoctor)
	cmd.Long = `
Loads the configuration as "caddy validate" does (without --config, the Caddyfile
in this directory), and looks at what it needs: issuers, certificates, the clock,
state_dir, keys, the shared store, token sources and handlers. Where an instance
is running, it asks that how its sessions are doing.

It signs in nowhere, exchanges nothing, and changes no session. Run it as the user
and with the environment that Caddy has.

The exit code is 0 where there is no problem (there may be warnings), 1 where there
is one, and 2 where the command itself cannot be understood.`
	return cmd
}

// doctorTime bounds all that the doctor waits for.
const doctorTime = 40 * time.Second

// How much a finding matters. A problem keeps something from working, now or
// soon, or hands tokens out; a warning is what works, but less safely than it
// could.
const (
	doctorOK      = "ok"
	doctorWarning = "warning"
	doctorProblem = "problem"
)

var doctorOrder = map[string]int{doctorProblem: 0, doctorWarning: 1, doctorOK: 2}

// finding is what one check found. It holds no secret.
type finding struct {
	Check   string `json:"check"`
	Level   string `json:"level"`
	Session string `json:"session,omitempty"` // or the pool, or several
	Text    string `json:"text"`
}

// doctor is one run of all checks.
type doctor struct {
	mu       sync.Mutex
	findings []finding
}

func (d *doctor) add(check, level, session, format string, args ...any) {
	text := format
	if len(args) > 0 {
		text = fmt.Sprintf(format, args...)
	}
	text = strings.ReplaceAll(text, "\n", "; ") // several errors: a finding is one line
	d.mu.Lock()
	defer d.mu.Unlock()
	d.findings = append(d.findings, finding{check, level, session, text})
}

func (d *doctor) ok(check, session, format string, args ...any) {
	d.add(check, doctorOK, session, format, args...)
}

func (d *doctor) warn(check, session, format string, args ...any) {
	d.add(check, doctorWarning, session, format, args...)
}

func (d *doctor) problem(check, session, format string, args ...any) {
	d.add(check, doctorProblem, session, format, args...)
}

func (d *doctor) count(level string) (n int) {
	for _, f := range d.findings {
		if f.Level == level {
			n++
		}
	}
	return n
}

func cmdDoctor(fl caddycmd.Flags) (int, error) {
	file, adapter := fl.String("config"), fl.String("adapter")
	switch {
	case adapter != "" && caddyconfig.GetAdapter(adapter) == nil:
		return exitMisused, fmt.Errorf("--adapter: there is no config adapter %q", adapter)
	case adapter != "" && file == "":
		return exitMisused, errors.New("--adapter: it goes with --config")
	}
	input, found, _, err := caddycmd.LoadConfig(file, adapter)
	if err == nil && found == "" {
		return exitMisused, errors.New("no configuration: name one with --config, there is no Caddyfile in this directory")
	}
	ctx, cancel := context.WithTimeout(context.Background(), doctorTime)
	defer cancel()
	d := new(doctor)
	if err != nil {
		d.refused(cmp.Or(file, "Caddyfile")+" cannot be read as a configuration", err)
	} else {
		d.examine(ctx, input, fl.String("address"))
	}
	if err := d.print(os.Stdout, fl.Bool("json")); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if n := d.count(doctorProblem); n > 0 {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("problems found: %d", n)
	}
	return caddy.ExitCodeSuccess, nil
}

// examine does all checks. Those of the configuration's text go on where it
// cannot be provisioned.
func (d *doctor) examine(ctx context.Context, input []byte, address string) {
	text, err := readDoctorConfig(input)
	if err != nil {
		d.problem("config", "", "The configuration cannot be read: %v.", err)
		return
	}
	d.routes(text)
	d.unused(input, text)
	running := d.running(ctx, address, input, text)
	app, err := provisionForDoctor(input)
	d.health(app, running)
	if err != nil {
		d.refused("The configuration does not load", err)
		return
	}
	if app == nil {
		d.problem("config", "", "The configuration has no token_refresh app, so there is nothing to keep fresh: add the global option `token_refresh`.")
		return
	}
	d.ok("config", "", "The configuration loads.")
	var issuers sync.WaitGroup
	issuers.Go(func() { d.issuers(ctx, app, text) })
	stored := d.storage(ctx, app)
	d.sessions(app, stored, running)
	issuers.Wait()
}

// print shows what was found, the worst first.
func (d *doctor) print(out io.Writer, asJSON bool) error {
	slices.SortStableFunc(d.findings, func(a, b finding) int {
		return cmp.Or(cmp.Compare(doctorOrder[a.Level], doctorOrder[b.Level]),
			strings.Compare(a.Check, b.Check), strings.Compare(a.Session, b.Session), strings.Compare(a.Text, b.Text))
	})
	problems, warnings := d.count(doctorProblem), d.count(doctorWarning)
	if asJSON {
		return json.NewEncoder(out).Encode(struct {
			Problems int       `json:"problems"`
			Warnings int       `json:"warnings"`
			Findings []finding `json:"findings"`
		}{problems, warnings, d.findings})
	}
	for _, f := range d.findings {
		about := f.Check
		if f.Session != "" {
			about += " (" + f.Session + ")"
		}
		if _, err := fmt.Fprintf(out, "%-8s %s: %s\n", f.Level, about, f.Text); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(out, "problems: %d, warnings: %d\n", problems, warnings)
	return err
}
