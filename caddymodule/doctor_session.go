package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// running asks the instance that the configuration belongs to, if there is one.
// The answer is by names in lower case.
func (d *doctor) running(ctx context.Context, address string, input []byte, text doctorConfig) map[string]refresher.Status {
	if address == "" && text.Admin.Disabled {
		return nil
	}
	address, err := caddycmd.DetermineAdminAPIAddress(address, input, "-", "") // reads no file, as it has what is in it
	if err != nil {
		d.warn("instance", "", "Whether an instance is running cannot be found out: %v.", err)
		return nil
	}
	list, err := askInstance(ctx, address)
	switch {
	case err != nil && strings.HasPrefix(err.Error(), "performing request: "): // Caddy's client wraps no cause
		d.ok("instance", "", "No instance is running at %s.", address)
		return nil
	case err != nil:
		d.warn("instance", "", "The instance at %s does not tell how its sessions are: %v.", address, err)
		return nil
	}
	known := map[string]refresher.Status{}
	for _, st := range list.Sessions {
		if _, _, ours := lookup(pointers(text.Apps.Ours.Sessions), st.Name); ours {
			known[strings.ToLower(st.Name)] = st
		}
	}
	for _, pool := range list.Pools {
		if pool.Problem != "" {
			d.problem("instance", pool.Pool, "The running instance says of this pool: %s.", strings.TrimSuffix(pool.Problem, "."))
		}
	}
	if len(known) == 0 && len(text.Apps.Ours.Sessions) > 0 {
		d.warn("instance", "", "An instance is running at %s, but has none of these sessions: reload it, or name the right one with --address.", address)
	}
	return known
}

// askInstance reads all pages. The client of the admin API knows no context.
func askInstance(ctx context.Context, address string) (all sessionList, err error) {
	for after := ""; ; {
		bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
		answer, err := getInTime(bounded, address, "?after="+url.QueryEscape(after))
		cancel()
		if err != nil {
			return all, err
		}
		var page sessionList
		if json.Unmarshal(answer, &page) != nil {
			return all, errors.New("its answer cannot be read")
		}
		all.Sessions = append(all.Sessions, page.Sessions...)
		all.Pools = append(all.Pools, page.Pools...)
		if after = page.Next; after == "" {
			return all, nil
		}
	}
}

// getInTime is a call that may be given up.
func getInTime(ctx context.Context, address, path string) ([]byte, error) {
	type outcome struct {
		answer []byte
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		answer, err := callAt(address, http.MethodGet, path, nil)
		done <- outcome{answer, err}
	}()
	select {
	case o := <-done:
		return o.answer, o.err
	case <-ctx.Done():
		return nil, errors.New("it does not answer in time")
	}
}

// health tells how the running sessions are. The app is nil where the
// configuration does not load.
func (d *doctor) health(app *App, running map[string]refresher.Status) {
	for _, name := range sortedKeys(running) {
		st, signsIn := running[name], false
		if app != nil {
			cfg, ok := app.session(name)
			signsIn = ok && cfg.returns(st)
		}
		d.healthOf(st, signsIn)
	}
}

func (d *doctor) healthOf(st refresher.Status, signsIn bool) {
	said := wordsOf(st, signsIn) + "."
	if advice := strings.TrimSuffix(adviceOf(st, signsIn), newPair); advice != "" {
		said += " " + strings.TrimSpace(advice)
	}
	if commands := commandsOf(st, signsIn); len(commands) > 0 {
		said += " Give it a new pair: " + strings.Join(commands, ", or ") + "."
	}
	if st.LastError != "" {
		said += " The last error: " + st.LastError
	}
	switch {
	case st.State == refresher.PhaseLost, st.State == refresher.PhaseExpired, st.State == refresher.PhaseDegraded:
		d.problem("instance", st.Name, "In the running instance: %s", said)
	case levelOf(st.State) != levelGood:
		d.warn("instance", st.Name, "In the running instance: %s", said)
	default:
		d.ok("instance", st.Name, "In the running instance: %s", said)
	}
}

// sessions looks at where the pairs come from, and how long they will last.
func (d *doctor) sessions(app *App, k *kept, running map[string]refresher.Status) {
	for _, name := range sortedKeys(app.Sessions) {
		cfg := app.Sessions[name]
		st, stored := k.sessions[name]
		live, runs := running[strings.ToLower(name)]
		if runs && live.Generation > 0 && live.State != refresher.PhaseLost {
			st, stored = refresher.Stored{Pair: true, Received: live.ReceivedAt}, true
		}
		lasting := stored && st.Pair && st.Lost == ""
		signsIn := slices.ContainsFunc(cfg.sources, refresher.Source.SignsIn)
		d.sources(name, cfg, lasting || signsIn || k.unknown[name])
		if !runs && st.Lost != "" && !k.unknown[name] {
			d.lost(name, cfg, st)
		}
		if lasting && !st.Received.IsZero() {
			d.age(name, cfg, st.Received)
		}
	}
}

// sources says which of them have a pair. A session that goes on otherwise needs
// none of them.
func (d *doctor) sources(name string, cfg *Session, goesOn bool) {
	works := goesOn
	var missing []string
	for _, src := range cfg.sources {
		switch src := src.(type) {
		case *FileSource:
			d.tokensFile(name, src.path)
		case *LoginSource:
			continue
		}
		if src.SignsIn() {
			continue
		}
		// None of those that do not sign in asks anybody: a file, or variables.
		switch _, err := src.Fetch(context.Background()); {
		case err == nil:
			works = true
		case !errors.Is(err, refresher.ErrNoPair):
			d.problem("tokens-"+sourceKind(src), name, "%v.", err)
		case sourceKind(src) == "env":
			missing = append(missing, "the environment variables of `tokens "+src.String()+"` are not set here")
		case sourceKind(src) == "file":
			missing = append(missing, strings.TrimPrefix(src.String(), "file ")+" is not there")
		}
	}
	because := "."
	if len(missing) > 0 {
		because = ": " + strings.Join(missing, ", and ") + "."
	}
	switch {
	case !works:
		d.problem("no-pair", name, "The session has no stored pair, and no source that gives one%s Sign in with `caddy token-refresh login %s`, or give it a pair with `caddy token-refresh import %s`, once Caddy runs.", because, name, name)
	case len(missing) > 0 && !goesOn:
		d.warn("tokens-source", name, "A source of the session has nothing%s Another one has a pair.", because)
	default:
		d.ok("tokens-source", name, "The session has a pair, or can get one.")
	}
}

func sourceKind(src refresher.Source) string {
	kind, _, _ := strings.Cut(src.String(), " ")
	return kind
}

func (d *doctor) tokensFile(name, path string) {
	info, err := os.Stat(path)
	if err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o004 != 0 {
		d.warn("tokens-file", name, "Everybody on this machine can read the tokens in %s (mode %04o): chmod 600 it.", path, info.Mode().Perm())
	}
}

// lost tells of a stored session that cannot go on.
func (d *doctor) lost(name string, cfg *Session, st refresher.Stored) {
	status := refresher.Status{Name: name, State: refresher.PhaseLost, Reason: st.Lost}
	if cfg.returns(status) {
		d.warn("lost", name, "The stored pair is lost (%s); the session will sign in again when Caddy starts.", st.Lost)
		return
	}
	why := strings.TrimSpace(strings.TrimSuffix(adviceOf(status, false), newPair))
	d.problem("lost", name, "The stored pair is lost (%s). %s Give the session a new pair: `caddy token-refresh login %s` or `import %s`.", st.Lost, why, name, name)
}

// age compares a pair's with what the issuer's refresh tokens live, and warns as
// late as a session does.
func (d *doctor) age(name string, cfg *Session, received time.Time) {
	life := cfg.issuer.Profile().RefreshLifetime
	if life <= 0 {
		return // not known
	}
	signsIn := slices.ContainsFunc(cfg.sources, refresher.Source.SignsIn)
	left := time.Until(received.Add(life)).Round(time.Second)
	switch {
	case left <= 0 && !signsIn:
		d.problem("refresh-token", name, "The refresh token ended about %s ago by what the configuration says of the issuer. Sign in again: `caddy token-refresh login %s` or `import %s`.", -left, name, name)
	case left <= 0:
		d.warn("refresh-token", name, "The refresh token ended about %s ago by what the configuration says of the issuer; the session will have to sign in again.", -left)
	case left < life/4:
		d.warn("refresh-token", name, "The refresh token ends in %s unless an exchange succeeds before. See that Caddy runs and that the issuer can be reached.", left)
	default:
		d.ok("refresh-token", name, "The refresh token has %s left.", left)
	}
}
