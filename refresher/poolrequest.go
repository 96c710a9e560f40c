package refresher

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/slab"
)

// Member is one session of a pool, as a request or an operator found it.
type Member struct {
	pool *Pool
	member
}

// ErrOtherCaller says that a token is bound to another caller than the one that
// presents it.
var ErrOtherCaller = errors.New("this token belongs to another caller")

// Find returns the session that a presented token belongs to, of whatever
// generation. With who, the token is bound to its first user: another gets
// [ErrOtherCaller]. ok is false for a token that no session of the pool has, or
// no longer.
func (p *Pool) Find(token string, who Caller) (m Member, kind TokenKind, ok bool, err error) {
	if token == "" || len(token) > MaxAccessToken || !p.opened.over() {
		return m, 0, false, nil
	}
	sum := p.sums.sum(token)
	found, given, ok := p.table.find(sum)
	if !ok || given.kind == 0 {
		if p.spent.has(sum) {
			return m, SpentToken, true, nil
		}
		return m, 0, false, nil
	}
	m = Member{pool: p, member: found}
	if who == 0 || given.who == who {
		return m, given.kind, true, nil
	}
	if given.who != 0 || !p.bind(found, sum, who) {
		return m, given.kind, true, ErrOtherCaller
	}
	return m, given.kind, true, nil
}

// bind ties a token to its first user; false if somebody else was faster.
func (p *Pool) bind(m member, sum slab.Sum, who Caller) bool {
	part, i := p.table.part(m.number)
	part.Lock()
	defer part.Unlock()
	s, packed, ok := part.entry(i, m.serial)
	if !ok {
		return true
	}
	at := packed.find(sum)
	if at < 0 {
		return true
	}
	switch packed.given(at).who {
	case who:
		return true
	case 0:
	default:
		return false
	}
	packed.bind(at, who)
	packed.setUsed(s.usedAt(p.now()))
	p.log.Enqueue(putRecord(packed)) // goes with the next that somebody waits for
	return true
}

// Enter is [Session.Enter] for a session of a pool. [ErrForgotten] says that it
// has ended meanwhile.
func (m Member) Enter(ctx context.Context, repeatable bool) (Pass, error) {
	for {
		pass, live, err := m.glance(repeatable)
		switch {
		case err != nil:
			return Pass{}, err
		case live == nil && pass.snap != nil:
			return pass, nil
		case live == nil:
			if live, err = m.pool.liveSession(m.member); err != nil {
				return Pass{}, err
			}
		}
		pass, err = live.Enter(ctx, repeatable)
		if err == nil || !live.ended() {
			return pass, err
		}
		if err := m.pool.gone(ctx); err != nil {
			return Pass{}, err
		}
	}
}

// gone is why there is no use in looking for the successor of a session that has
// ended.
func (p *Pool) gone(ctx context.Context) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case p.ctx.Err() != nil:
		return p.ending()
	}
	return nil
}

// glance gives a request the token of a session that is but an entry. A request
// that cannot be sent again needs the gate, and so a live session.
func (m Member) glance(repeatable bool) (pass Pass, live *Session, err error) {
	now := m.pool.now()
	wait := m.pool.wait()
	part, i := m.pool.table.part(m.number)
	stale := false
	defer func() { // behind the read lock
		if stale {
			m.keepUse()
		}
	}()
	part.RLock()
	defer part.RUnlock()
	s, packed, ok := part.entry(i, m.serial)
	if !ok {
		return pass, nil, ErrForgotten
	}
	s.use(int64(now.Boot))
	if cfg := m.pool.config.Load(); cfg != nil {
		stale = now.Wall.Sub(time.Unix(int64(packed.used()), 0)) > cfg.idleTimeout()/4
	}
	if live = part.live[i]; live != nil {
		return pass, live, nil
	}
	if s.due-int64(soon) <= int64(now.Boot) {
		return pass, nil, nil // the exchange that is coming shall know of it
	}
	if !repeatable || packed.unsettled() || packed.expires() && int64(now.Boot) >= s.notAfter {
		return pass, nil, nil
	}
	access := packed.access()
	header := make([]byte, 0, len(bearerPrefix)+len(access))
	header = append(append(header, bearerPrefix...), access...)
	snap := &snapshot{
		view:   view{mode: modeReady, epoch: packed.epoch(), generation: packed.generation(), wait: wait},
		header: string(header),
	}
	pass, _ = snap.pass(true)
	return pass, nil, nil
}

// keepUse writes now and then that a session is in use: one whose token is seldom
// replaced would have been idle since then after a restart.
func (m Member) keepUse() {
	p := m.pool
	part, i := p.table.part(m.number)
	part.Lock()
	defer part.Unlock()
	s, packed, ok := part.entry(i, m.serial)
	if !ok {
		return
	}
	if used := s.usedAt(p.now()); used != packed.used() { // else another request was faster
		packed.setUsed(used)
		p.log.Enqueue(useRecord(packed.id(), used)) // nobody waits for it
	}
}

// withLive does something with the live session, again if that one ended
// meanwhile.
func (m Member) withLive(ctx context.Context, do func(*Session) error) error {
	for {
		s, err := m.pool.liveSession(m.member)
		if err != nil {
			return err
		}
		if err := s.ready(ctx); err != nil {
			return err
		}
		if err := do(s); err == nil || !s.ended() {
			return err
		}
		if err := m.pool.gone(ctx); err != nil {
			return err
		}
	}
}

// errAgain has withLive look whether the session ended.
var errAgain = errors.New("the session ended meanwhile")

// Unauthorized is [Session.Unauthorized].
func (m Member) Unauthorized(ctx context.Context, p Pass, route string) (next Pass, ok bool, err error) {
	failed := m.withLive(ctx, func(s *Session) error {
		next, ok, err = s.Unauthorized(ctx, p, route)
		if err == nil && !ok && s.ended() {
			return errAgain
		}
		return err
	})
	if errors.Is(failed, ErrForgotten) {
		return Pass{}, false, nil // the caller gets the 401, and signs in again
	}
	return next, ok, failed
}

// NoteUnauthorized is [Session.NoteUnauthorized].
func (m Member) NoteUnauthorized(ctx context.Context, p Pass, route string, again bool) {
	if s, err := m.pool.liveSession(m.member); err == nil {
		s.NoteUnauthorized(ctx, p, route, again)
	}
}

// Accepted is [Session.Accepted].
func (m Member) Accepted(p Pass) {
	if !p.snap.watch {
		return
	}
	if s, err := m.pool.liveSession(m.member); err == nil {
		s.Accepted(p)
	}
}

// Learn opens a session with a pair that an issuer has just answered to a
// caller, and returns when it is durable. The handle is what the caller gets in
// place of the refresh token where the pool withholds that; else it is empty. A
// pair whose refresh token belongs to a session already is another access token
// of that session. former is what the caller presented for it, if it was an
// exchange that passed by: whoever else has that is of the same session. Its
// access token counts only where the issuer has looked at it.
func (p *Pool) Learn(ctx context.Context, pair, former Pair) (m Member, handle Secret, err error) {
	if err := p.Ready(ctx); err != nil {
		return m, handle, err
	}
	cfg := p.settings()
	switch {
	case cfg == nil:
		return m, handle, ErrNotNow
	case pair.Refresh.IsZero():
		return m, handle, ErrNoRefresh
	}
	given := []givenToken{{sum: p.sums.sum(pair.Access.Reveal()), kind: AccessToken}}
	if !former.Refresh.IsZero() && !former.Refresh.Equal(pair.Refresh) {
		given = append(given, givenToken{sum: p.sums.sum(former.Refresh.Reveal()), kind: RefreshToken})
		if !former.Access.IsZero() && cfg.Issuer.Profile().NeedsAccess {
			given = append(given, givenToken{sum: p.sums.sum(former.Access.Reveal()), kind: AccessToken})
		}
	}
	if cfg.Withhold {
		handle = NewSecret(newHandle())
		given = append(given, givenToken{sum: p.sums.sum(handle.Reveal()), kind: RefreshToken})
	}
	refresh := p.sums.sum(pair.Refresh.Reveal())
	m, wait := p.learn(cfg, pair, refresh, given)
	if err := wait(); err != nil {
		return m, handle, fmt.Errorf("pool %q: keeping what was learned: %w", p.name, err)
	}
	return m, handle, nil
}

// learn finds the session of a refresh token, or adds one, which would be two if
// two came at once: issuers answer the same pair twice. The refresh token itself
// is known also where it is withheld, in case that it reaches a caller after all.
func (p *Pool) learn(cfg *PoolConfig, pair Pair, refresh slab.Sum, given []givenToken) (Member, func() error) {
	lock := &p.learns[refresh[15]%poolParts]
	lock.Lock()
	defer lock.Unlock()
	if known, token, ok := p.table.find(refresh); ok && token.kind == RefreshToken {
		m := Member{pool: p, member: known}
		return m, m.give(given...)
	}
	return p.add(cfg, pair, append(given, givenToken{sum: refresh, kind: RefreshToken}))
}

// newHandle draws what stands for a refresh token.
func newHandle() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return "trh_" + base64.RawURLEncoding.EncodeToString(b[:])
}

// add makes an entry of a pair.
func (p *Pool) add(cfg *PoolConfig, pair Pair, given []givenToken) (m Member, durable func() error) {
	now := p.now()
	e := poolEntry{id: newID(), created: uint32(now.Wall.Unix()), used: uint32(now.Wall.Unix()), given: given}
	e.rec = record{
		Epoch: 1, Generation: 1,
		Access: pair.Access.Reveal(), Refresh: pair.Refresh.Reveal(), ID: pair.ID.Reveal(), RefreshID: pair.RefreshID,
		Received: now.Wall, ReceivedBoot: now.Boot, BootID: p.clock.BootID(),
	}
	e.boot = bootSum(e.rec.BootID)
	e.rec.Left, e.rec.Expires = measure(pair, now, 0, cfg.Policy.Lifetime)
	text := e.pack(nil)
	s := slot{used: int64(now.Boot)}
	p.settle(&s, &e, now, cfg.Policy, cfg.Issuer.Profile())
	s.due = min(s.due, p.endOf(text))
	m = Member{pool: p}
	m.member = p.table.add(text, s, func() { durable = p.log.Enqueue(putRecord(text)) })
	p.table.index(packedEntry(text).sums(), m.number)
	p.stir()
	return m, durable
}

// give has callers recognised by further tokens, and returns what waits until
// that is durable.
func (m Member) give(tokens ...givenToken) (durable func() error) {
	p := m.pool
	failed := func(err error) func() error { return func() error { return err } }
	part, i := p.table.part(m.number)
	part.Lock()
	s, packed, ok := part.entry(i, m.serial)
	if !ok {
		part.Unlock()
		return failed(ErrForgotten)
	}
	e, err := packed.unpack()
	if err != nil {
		part.Unlock()
		return failed(err)
	}
	var gone, came, spent []slab.Sum
	for _, token := range tokens {
		if packed.find(token.sum) >= 0 {
			continue
		}
		came = append(came, token.sum)
		for _, old := range e.give(token) {
			if gone = append(gone, old.sum); old.kind == RefreshToken {
				spent = append(spent, old.sum)
			}
		}
	}
	p.spend(spent)
	if len(came) == 0 {
		part.Unlock()
		return p.log.Enqueue() // who gave them may still be waiting for the disk
	}
	e.used = s.usedAt(p.now())
	text := e.pack(nil)
	part.replace(s, text)
	wait := p.log.Enqueue(putRecord(text))
	part.Unlock()
	p.table.unindex(gone, m.number)
	p.table.index(came, m.number)
	if !p.table.view(m.member, func(*slot, packedEntry) {}) {
		p.table.unindex(came, m.number) // it was forgotten meanwhile, and they were not in there yet
	}
	return wait
}

// Pair returns the session's current pair for a caller that refreshes for
// itself, fresh enough to be used: it waits as [Member.Enter] does. From now on
// the caller is recognised by it. The refresh token is the one that was
// presented where the pool withholds the true one.
func (m Member) Pair(ctx context.Context, presented Secret) (Pair, error) {
	p := m.pool
	cfg := p.settings()
	if cfg == nil {
		return Pair{}, ErrNotNow
	}
	for tries := 0; ; tries++ {
		pass, err := m.Enter(ctx, true)
		if err != nil {
			return Pair{}, err
		}
		pass.Settle()
		var e poolEntry
		if !p.table.view(m.member, func(_ *slot, packed packedEntry) { e, err = packed.unpack() }) {
			return Pair{}, ErrForgotten
		}
		if err != nil {
			return Pair{}, err
		}
		if e.rec.Generation != pass.Generation() { // it is just being replaced, or waits for somebody
			if tries == 100 {
				return Pair{}, &Unavailable{Session: p.name, RetryAfter: time.Second}
			}
			select {
			case <-time.After(10 * time.Millisecond):
				continue
			case <-ctx.Done():
				return Pair{}, context.Cause(ctx)
			}
		}
		pair := e.rec.pair()
		if e.rec.Expires {
			pair.ExpiresIn = m.left(e)
		}
		given := []givenToken{{sum: p.sums.sum(e.rec.Access), kind: AccessToken}}
		if cfg.Withhold {
			pair.Refresh = presented
		} else {
			given = append(given, givenToken{sum: p.sums.sum(e.rec.Refresh), kind: RefreshToken})
		}
		return pair, m.give(given...)()
	}
}

// left is how long the access token of an entry lives on.
func (m Member) left(e poolEntry) time.Duration {
	m.pool.bootOf(&e)
	now := m.pool.now()
	return max(time.Second, e.rec.Left-now.Sub(e.rec.restored(now, m.pool.clock.BootID())))
}

// Same reports whether two presented tokens belong to the same session.
func (m Member) Same(other Member) bool { return m == other }

// Forget ends the session: none of its tokens is recognised any more. It returns
// when that is durable. Where the issuer can, the pair is revoked there, too,
// which nobody waits for: revoked is told what came of it.
func (m Member) Forget(revoked func(error)) error {
	gone := m.pool.forgetSoon(m.member, "forget")
	if gone == nil {
		return ErrForgotten
	}
	err := gone.durable()
	e, broken := gone.unpack()
	cfg := m.pool.config.Load()
	if cfg == nil || broken != nil {
		return errors.Join(err, broken)
	}
	if cfg.Observe != nil {
		cfg.Observe(Note{
			Kind: NoteEnded, At: m.pool.now().Wall, Session: m.pool.sessionName(e.id), Pool: m.pool.name,
			Epoch: e.rec.Epoch, Generation: e.rec.Generation, Source: "learned",
			Fingerprint: NewSecret(e.rec.Access).Fingerprint(),
		})
	}
	if issuer, can := cfg.Issuer.(Revoker); can && revoked != nil {
		m.pool.work.Go(func() {
			pair := gone.pair(e)
			ctx, cancel := context.WithTimeout(context.Background(), orDefault(cfg.Issuer.Profile().Timeout, defaultTimeout))
			defer cancel()
			revoked(issuer.Revoke(ctx, pair))
		})
	}
	return err
}
