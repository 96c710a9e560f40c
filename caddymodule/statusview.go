package caddymodule

import (
	"cmp"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// overview is all that the status page shows, and its JSON. There is no token in
// it.
type overview struct {
	Summary  summary       `json:"summary"`
	Sessions []sessionView `json:"sessions"`
	Unlisted int           `json:"unlisted"` // further sessions, which are well
	Pools    []poolView    `json:"pools"`
	Events   []eventView   `json:"events"` // the newest first
	Key      keyView       `json:"key"`
	Store    storeView     `json:"store"`
	Version  versionView   `json:"version"`
	Actions  bool          `json:"actions"`

	// ActionToken has to come with each action: another site's page cannot read
	// it.
	ActionToken string `json:"action_token,omitempty"`
}

// sessionView is a session as the admin API has it, and what people want to know
// beside.
type sessionView struct {
	refresher.Status
	Level    level      `json:"level"`
	Words    string     `json:"words"`
	Advice   string     `json:"advice,omitempty"`
	Commands []string   `json:"commands,omitempty"` // that would help
	SignsIn  bool       `json:"signs_in"`           // by itself, when it is lost
	Waits    []heldBack `json:"waits"`              // of the latest generations
}

type poolView struct {
	refresher.PoolCounts
	Level  level  `json:"level"`
	Words  string `json:"words"`
	Advice string `json:"advice,omitempty"`
	Error  string `json:"last_error,omitempty"` // of those that fail
}

// keyView says what seals the stored pairs.
type keyView struct {
	Made bool   `json:"made"` // in state_dir, as none is configured
	Text string `json:"text"`
}

type storeView struct {
	Kind    string         `json:"kind"` // empty: none is shared
	Text    string         `json:"text"`
	Trouble []storeTrouble `json:"trouble"`
}

type storeTrouble struct {
	Session string    `json:"session"`
	Since   time.Time `json:"since"`
	Error   string    `json:"error"`
}

type versionView struct {
	Module string `json:"module"`
	Caddy  string `json:"caddy"`
}

const (
	maxShown  = 500 // sessions; those in trouble come first
	maxEvents = 30
)

// overview looks at everything at this moment.
func (a *App) overview() overview {
	happened := hub.lately()
	o := overview{
		Sessions: []sessionView{}, Pools: []poolView{}, Events: eventViews(happened),
		Key: a.keyView(), Store: a.storeView(), Version: version(),
	}
	for _, name := range slices.Sorted(maps.Keys(a.Sessions)) {
		cfg := a.Sessions[name]
		st := cfg.shared.Status()
		st.Name = name
		signsIn := cfg.returns(st)
		o.Sessions = append(o.Sessions, sessionView{
			Status: st, Level: levelOf(st.State), SignsIn: signsIn,
			Words: wordsOf(st, signsIn), Advice: cfg.adviceOn(st, signsIn), Commands: cfg.commandsFor(st, signsIn),
			Waits: cfg.shared.watch.waits.all(),
		})
		if t := cfg.shared.watch.store.Load(); t != nil {
			o.Store.Trouble = append(o.Store.Trouble, storeTrouble{Session: name, Since: t.since, Error: t.text})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.Pools)) {
		o.Pools = append(o.Pools, viewPool(a.Pools[name].shared.Counts(), latelyOf(happened, name)))
	}
	o.Summary = summarize(o.Sessions, o.Pools, o.Store.Trouble)
	slices.SortStableFunc(o.Sessions, func(a, b sessionView) int {
		return cmp.Compare(levelOrder[a.Level], levelOrder[b.Level])
	})
	if n := len(o.Sessions); n > maxShown {
		o.Sessions, o.Unlisted = o.Sessions[:maxShown], n-maxShown
	}
	return o
}

// returns reports whether a session that has no usable pair gets one by itself.
func (s *Session) returns(st refresher.Status) bool {
	switch {
	case st.Reason == refresher.ReasonLoggedOut, st.Reason == refresher.ReasonUndecryptable,
		st.Reason != "" && s.policy().NoReauthenticate:
		return false
	}
	return slices.ContainsFunc(s.sources, refresher.Source.SignsIn)
}

func (a *App) keyView() keyView {
	if len(a.EncryptionKeys) == 0 {
		return keyView{Made: true, Text: "No encryption_key is configured: the pairs are sealed with a key that was made in state_dir, beside them. That protects copies of what is stored elsewhere, but not state_dir itself."}
	}
	return keyView{Text: "The pairs are sealed with the configured encryption_key."}
}

func (a *App) storeView() storeView {
	v := storeView{Text: "None is shared: one process keeps each session, in a sealed journal in state_dir.", Trouble: []storeTrouble{}}
	if mod, ok := a.store.(caddy.Module); ok {
		v.Kind = mod.CaddyModule().ID.Name()
		v.Text = "The instances share their sessions through " + v.Kind + "; each keeps a sealed journal in its state_dir beside it."
	}
	return v
}

// version is the one that was built in.
var version = sync.OnceValue(func() versionView {
	const module = "github.com/tokenrefresh/caddy-token-refresh"
	v := versionView{Module: "unknown"}
	v.Caddy, _ = caddy.Version()
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == module && m.Version != "" {
			v.Module = strings.Trim(m.Version, "()")
		}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && info.Main.Path == module {
			v.Module += " (" + s.Value[:min(len(s.Value), 12)] + ")"
		}
	}
	return v
})
