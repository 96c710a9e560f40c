package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/webhook"
)

// Place is where the request came from that caused an exchange, for webhooks:
// placeholders, of whatever GeoIP module sets them.
type Place struct {
	City      string `json:"city,omitempty"`
	Country   string `json:"country,omitempty"`
	Latitude  string `json:"latitude,omitempty"`
	Longitude string `json:"longitude,omitempty"`
	Region    string `json:"region,omitempty"`
	Zipcode   string `json:"zipcode,omitempty"`
}

// sharedOutbox keeps the events of all configurations of a state directory.
type sharedOutbox struct {
	key    string
	ctx    context.Context
	cancel context.CancelFunc
	opened chan struct{}                  // closed when box is there, or never will be
	box    atomic.Pointer[webhook.Outbox] // nil: not open yet

	mu    sync.Mutex
	hooks []*hookSet // the newest is in force
	used  bool       // it is being opened, or was
}

// hookSet are the webhooks of one configuration.
type hookSet struct {
	hooks  []*webhook.Hook
	keys   *journal.Keyring
	logger *zap.Logger
}

var sharedOutboxes = caddy.NewUsagePool()

func holdOutbox(dir string) (*sharedOutbox, error) {
	v, _, err := sharedOutboxes.LoadOrNew(dir, func() (caddy.Destructor, error) {
		o := &sharedOutbox{key: dir, opened: make(chan struct{})}
		o.ctx, o.cancel = context.WithCancel(context.Background())
		return o, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*sharedOutbox), nil
}

func (o *sharedOutbox) release() error {
	_, err := sharedOutboxes.Delete(o.key)
	return err
}

// Destruct ends the outbox. What was not delivered is delivered by the next
// process.
func (o *sharedOutbox) Destruct() error {
	o.cancel()
	o.mu.Lock()
	used := o.used
	o.mu.Unlock()
	if !used {
		return nil
	}
	<-o.opened
	box := o.box.Load()
	if box == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return box.Close(ctx)
}

// attach puts a configuration's webhooks into force. The first one opens the
// outbox, which another process may still have: until it is there, announcing
// fails and is tried again.
func (o *sharedOutbox) attach(set *hookSet) (detach func(), err error) {
	o.mu.Lock()
	first := !o.used
	o.used = true
	o.hooks = append(o.hooks, set)
	o.mu.Unlock()
	detach = sync.OnceFunc(func() {
		o.mu.Lock()
		o.hooks = slices.DeleteFunc(o.hooks, func(s *hookSet) bool { return s == set })
		o.mu.Unlock()
		_ = o.configure()
	})
	if first {
		go o.open(set)
		return detach, nil
	}
	if err := o.configure(); err != nil {
		detach()
		return nil, err
	}
	return detach, nil
}

// configure gives the outbox the newest webhooks and keys.
func (o *sharedOutbox) configure() error {
	o.mu.Lock()
	var set *hookSet
	if n := len(o.hooks); n > 0 {
		set = o.hooks[n-1]
	}
	o.mu.Unlock()
	box := o.box.Load()
	if box == nil || set == nil {
		return nil
	}
	if err := box.Configure(set.hooks...); err != nil {
		return err
	}
	return box.Reseal(o.ctx, set.keys)
}

// open tries until it succeeds or the outbox is not wanted any more.
func (o *sharedOutbox) open(set *hookSet) {
	defer close(o.opened)
	told := false
	for {
		box, err := webhook.Open(webhook.Config{Dir: filepath.Join(o.key, "webhooks"), Keyring: set.keys, Logger: set.logger})
		if err == nil {
			err = box.Configure(set.hooks...) // before anybody announces
			o.box.Store(box)
			if err == nil {
				err = o.configure() // what came meanwhile
			}
			if err != nil {
				set.logger.Error("configuring the webhooks", zap.Error(err))
			}
			return
		}
		if !told || !errors.Is(err, journal.ErrLocked) {
			set.logger.Warn("opening the webhooks' outbox (retrying)", zap.Error(err))
			told = true
		}
		select {
		case <-o.ctx.Done():
			return
		case <-time.After(200 * time.Millisecond):
		}
		o.mu.Lock()
		if n := len(o.hooks); n > 0 {
			set = o.hooks[n-1]
		}
		o.mu.Unlock()
	}
}

// announcer tells the outbox of a configuration's sessions.
type announcer struct {
	outbox   *sharedOutbox
	required bool
}

// Required implements refresher.Announcer.
func (a announcer) Required() bool { return a.required }

// Announce implements refresher.Announcer.
func (a announcer) Announce(ctx context.Context, what refresher.Announcement, done func()) (pending bool, err error) {
	box := a.outbox.box.Load()
	if box == nil {
		return false, errors.New("the webhooks' outbox is not open yet")
	}
	ev := webhook.Event{
		Session: what.Session, ID: what.ID, CreateInstant: what.At,
		Original: what.Original, RefreshToken: what.Presented, Token: what.Token,
	}
	if len(what.Origin) > 0 {
		ev.Info = new(webhook.Info)
		if err := json.Unmarshal(what.Origin, ev.Info); err != nil {
			ev.Info = nil // of another version: it goes without
		}
	}
	pending, err = box.Announce(ctx, ev, done)
	if errors.Is(err, webhook.ErrFull) {
		err = nil // the outbox has said so in the log; to try again would not help
	}
	return pending, err
}

// provisionWebhooks checks the webhooks, and holds the outbox until the
// configuration is cleaned up.
func (a *App) provisionWebhooks(ctx caddy.Context) error {
	if len(a.Webhooks) == 0 {
		return nil
	}
	seen := map[string]bool{}
	for _, w := range a.Webhooks {
		if w == nil || seen[w.URL] {
			return errors.New("webhook: none, or one URL twice")
		}
		seen[w.URL] = true
		if err := w.provision(ctx); err != nil {
			return fmt.Errorf("webhook: %w", err)
		}
	}
	outbox, err := holdOutbox(a.stateDir)
	if err != nil {
		return err
	}
	a.outbox = outbox
	return nil
}

// startWebhooks opens the outbox and returns what tells it of rotations.
func (a *App) startWebhooks() (refresher.Announcer, error) {
	if len(a.Webhooks) == 0 {
		return nil, nil
	}
	set := &hookSet{keys: a.keys, logger: a.logger}
	to := announcer{outbox: a.outbox}
	for _, w := range a.Webhooks {
		set.hooks = append(set.hooks, w.hook)
		to.required = to.required || w.hook.Required()
	}
	detach, err := a.outbox.attach(set)
	if err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	a.detach = append(a.detach, detach)
	return to, nil
}

// origin describes the request that an exchange is made for.
func (a *App) origin(r *http.Request) []byte {
	peer := r.RemoteAddr
	if ip, ok := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string); ok && ip != "" {
		peer = ip
	}
	addr, err := netip.ParseAddr(peer)
	if err != nil {
		if port, err := netip.ParseAddrPort(peer); err == nil {
			addr = port.Addr()
		}
	}
	info := webhook.Describe(addr, r.UserAgent())
	if a.Location != nil {
		if info == nil {
			info = new(webhook.Info)
		}
		info.Location = a.Location.of(r)
	}
	if info == nil {
		return nil
	}
	text, err := json.Marshal(info)
	if err != nil {
		return nil
	}
	return text
}

// of fills the placeholders in for a request; nil where all are empty.
func (p *Place) of(r *http.Request) *webhook.Location {
	repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return nil
	}
	l := webhook.Location{
		City: repl.ReplaceAll(p.City, ""), Country: repl.ReplaceAll(p.Country, ""), Region: repl.ReplaceAll(p.Region, ""),
		Latitude: repl.ReplaceAll(p.Latitude, ""), Longitude: repl.ReplaceAll(p.Longitude, ""), Zipcode: repl.ReplaceAll(p.Zipcode, ""),
	}
	if l == (webhook.Location{}) {
		return nil
	}
	return &l
}

// Interface guards
var (
	_ refresher.Announcer = announcer{}
	_ caddy.Destructor    = (*sharedOutbox)(nil)
)
