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
		st := running[name]
		var cfg *Session
		if app != nil {
			cfg, _ = app.session(name)
		}
		d.healthOf(st, cfg != nil && cfg.returns(st), pairFrom(st.Name, cfg))
	}
}

// pairFrom says how a session gets a pair from a person. The configuration is nil
// where it does not load.
func pairFrom(name string, cfg *Session) string {
	by := "`caddy token-refresh import " + name + "`, which reads accessToken and refreshToken as JSON"
	if cfg == nil {
		return by
	}
	if _, ok := cfg.issuer.(signsInPeople); ok {
		return "`caddy token-refresh login " + name + "`, or " + by
	}
	return by
}

func (d *doctor) healthOf(st refresher.Status, signsIn bool, ways string) {
	said := wordsOf(st, signsIn) + "."
	if advice := strings.TrimSuffix(adviceOf(st, signsIn), newPair); advice != "" {
		said += " " + strings.TrimSpace(advice)
	}
	if len(commandsOf(st, signsIn)) > 0 {
		said += " Give it a new pair with " + ways + "."
	}
	switch {
	case st.LastError != "":
		said += " The last error: " + strings.TrimSuffix(st.LastError, ".") + "."
	case st.State == refresher.PhaseHolding:
		said += " There is no error: another process has the session. End it, or give this one a state_dir and a login of its own."
	}
	switch {
	case st.State == refresher.PhaseLost, st.State == refresher.PhaseExpired, st.State == refresher.PhaseDegraded,
		st.State == refresher.PhaseEmpty && (!signsIn || st.LastError != ""),
		st.State == refresher.PhaseHolding && time.Now().After(st.ExpiresAt): // without a token
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
		state := live
		if !runs && st.Lost != "" && !k.unknown[name] {
			state = refresher.Status{Name: name, State: refresher.PhaseLost, Reason: st.Lost}
			d.lost(name, cfg, state)
		}
		lasting := stored && st.Pair && st.Lost == ""
		signsIn := slices.ContainsFunc(cfg.sources, refresher.Source.SignsIn)
		works, missing := d.sources(name, cfg)
		because := "."
		if len(missing) > 0 {
			because = ": " + strings.Join(missing, ", and ") + "."
		}
		switch {
		case state.State == refresher.PhaseLost && !cfg.returns(state), k.unknown[name]: // what is wrong was said
		case !works && !lasting && !signsIn:
			d.problem("no-pair", name, "The session has no stored pair, and no source that gives one%s Once Caddy runs, give it one with %s.", because, pairFrom(name, cfg))
		case len(missing) > 0 && !lasting && !signsIn:
			d.warn("tokens-source", name, "A source of the session has nothing%s Another one has a pair.", because)
		default:
			d.ok("tokens-source", name, "The session has a pair, or can get one.")
		}
		if lasting && !st.Received.IsZero() {
			d.age(name, cfg, st.Received)
		}
	}
}

// sources reports whether one of them has a pair at hand, and which have none.
func (d *doctor) sources(name string, cfg *Session) (works bool, missing []string) {
	for _, src := range cfg.sources {
		if src.SignsIn() {
			continue
		}
		// None of those that do not sign in asks anybody: a file, or variables.
		_, err := src.Fetch(context.Background())
		works = works || err == nil
		if err != nil && !errors.Is(err, refresher.ErrNoPair) {
			d.problem("tokens-"+sourceKind(src), name, "%v.", err)
			continue
		}
		switch src := src.(type) {
		case *FileSource:
			d.tokensFile(name, src.path)
			if err != nil {
				missing = append(missing, src.path+" is not there")
			}
		case *EnvSource:
			if err != nil {
				missing = append(missing, "the environment variables "+src.Access+" and "+src.Refresh+" are not set here")
			}
		}
	}
	return works, missing
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
func (d *doctor) lost(name string, cfg *Session, st refresher.Status) {
	if cfg.returns(st) {
		d.warn("lost", name, "The stored pair is lost (%s); the session will sign in again when Caddy starts.", st.Reason)
		return
	}
	why := strings.TrimSpace(strings.TrimSuffix(adviceOf(st, false), newPair))
	d.problem("lost", name, "The stored pair is lost (%s). %s Once Caddy runs, give the session a new pair with %s.", st.Reason, why, pairFrom(name, cfg))
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
		d.problem("refresh-token", name, "The refresh token ended about %s ago by what the configuration says of the issuer. Give the session a new pair with %s.", -left, pairFrom(name, cfg))
	case left <= 0:
		d.warn("refresh-token", name, "The refresh token ended about %s ago by what the configuration says of the issuer; the session will have to sign in again.", -left)
	case left < life/4:
		d.warn("refresh-token", name, "The refresh token ends in %s unless an exchange succeeds before. See that Caddy runs and that the issuer can be reached.", left)
	default:
		d.ok("refresh-token", name, "The refresh token has %s left.", left)
	}
}
