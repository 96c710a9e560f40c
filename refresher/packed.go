package refresher

import "sync"

// packed is what a state knows, in a tenth of its memory: a session at rest
// keeps nothing else of it, and others can read it at any time. It is not
// changed once made.
type packed struct {
	access, refresh string // as they are: they are the bulk, and others hold them, too
	rest            string // squeezed
}

// pack leaves out what only an attempt under way has, see whole, what is known of
// the process anyway, and what the journal can tell, see sparse.
func (s *state) pack() *packed {
	b, _ := scratch.Get().(*buffers)
	defer scratch.Put(b)
	c := codec{bytes: b.plain[:0], boot: s.env.bootID}
	spent, sparse := s.rec.Spent, s.sparse
	s.thin(spentAtRest)
	s.carry(&c)
	s.rec.Spent, s.sparse = spent, sparse
	b.plain, b.squeezed = c.bytes, squeeze(b.squeezed[:0], c.bytes)
	return &packed{access: s.rec.Access, refresh: s.rec.Refresh, rest: string(b.squeezed)}
}

// unpack overwrites a state.
func (p *packed) unpack(s *state, env environment) {
	b, _ := scratch.Get().(*buffers)
	defer scratch.Put(b)
	b.plain = stretch(b.plain[:0], p.rest)
	*s = state{env: env}
	s.carry(&codec{bytes: b.plain, reading: true, boot: env.bootID})
	s.rec.Access, s.rec.Refresh = p.access, p.refresh
}

// Sessions that wake for a moment leave next to no garbage: each tick of
// thousands would be some kilobytes.
var (
	scratch = sync.Pool{New: func() any { return new(buffers) }}
	states  = sync.Pool{New: func() any { return new(state) }}
)

type buffers struct{ plain, squeezed []byte }

// whole reports whether pack leaves nothing out: nobody waits for a reply, and
// nothing is at hand that was opened or read.
func (s *state) whole() bool {
	return s.attempt.conn == nil && s.pending == nil && s.waiting == nil && s.ending == nil && s.fleet.held == nil
}

func (s *state) carry(c *codec) {
	flags(c, &s.signsIn, &s.running, &s.closing, &s.opened, &s.byWall, &s.degraded, &s.aging, &s.stretched, &s.refused,
		&s.witnessed, &s.upstream401, &s.triggered, &s.looking, &s.lookAgain, &s.writing, &s.sparse)
	instants(c, &s.received, &s.born, &s.failing, &s.next, &s.quietUntil, &s.quietAt, &s.stepped, &s.endSince, &s.saveRetry, &s.catchUp)
	s.policy.carry(c)
	s.profile.carry(c)
	s.rec.carry(c)
	s.sched.carry(c)
	number(c, &s.drift)
	number(c, &s.offset)
	number(c, &s.stage)
	s.attempt.carry(c)
	text(c, &s.wanted)
	number(c, &s.failures)
	text(c, &s.lastErr)
	number(c, &s.lastClass)
	list(c, &s.routes, func(c *codec, q *quarantined) {
		text(c, &q.route)
		instants(c, &q.until)
	})
	fraction(c, &s.budget.used)
	instants(c, &s.budget.at)
	s.signIn.carry(c)
	s.fleet.carry(c)
	s.telling.carry(c)
	text(c, &s.origin)
	number(c, &s.version)
	number(c, &s.saved)
	text(c, &s.saveErr)
	s.shown.carry(c)
}

func (p *Policy) carry(c *codec) {
	flags(c, &p.NoReauthenticate, &p.Swap)
	fraction(c, &p.RefreshPercent)
	number(c, &p.RefreshBefore)
	number(c, &p.Lifetime)
	number(c, &p.Wait)
	number(c, &p.Drain)
}

func (p *Profile) carry(c *codec) {
	flags(c, &p.RevokesPrevious, &p.NeedsAccess, &p.AcceptsExpired, &p.SendsAccess)
	number(c, &p.ReuseInterval)
	number(c, &p.RefreshLifetime)
	number(c, &p.HoldOff)
	number(c, &p.Timeout)
}

// carry leaves the tokens to the caller.
func (r *record) carry(c *codec) {
	flags(c, &r.Expires, &r.Stays)
	text(c, &r.HashKey)
	number(c, &r.Epoch)
	number(c, &r.Generation)
	text(c, &r.Source)
	date(c, &r.Received)
	number(c, &r.Left)
	number(c, &r.Odd)
	bootID(c, &r.BootID)
	number(c, &r.Age)
	number(c, &r.ReceivedBoot)
	optional(c, &r.Intent, carryIntent)
	number(c, &r.Quiet)
	word(c, &r.Prev)
	text(c, &r.Lost)
	text(c, &r.Detail)
	list(c, &r.Seeds, word)
	list(c, &r.Spent, word)
	var before Rotation
	list(c, &r.History, func(c *codec, h *Rotation) {
		h.carry(c, before)
		before = *h
	})
	text(c, &r.Kept)
	text(c, &r.ID)
	text(c, &r.RefreshID)
	list(c, &r.Announce, carryAnnouncement)
	list(c, &r.Owned, word)
}

// carry spends little on one that succeeded like the one before it.
func (h *Rotation) carry(c *codec, before Rotation) {
	usual := h.Epoch == before.Epoch && h.Generation == before.Generation+1 && h.Outcome == before.Outcome && h.Error == "" && h.Times == 0
	c.moment(&h.At, &usual)
	number(c, &h.Took)
	switch {
	case !usual:
		number(c, &h.Epoch)
		number(c, &h.Generation)
		text(c, &h.Outcome)
		text(c, &h.Error)
		number(c, &h.Times)
	case c.reading:
		h.Epoch, h.Generation, h.Outcome = before.Epoch, before.Generation+1, before.Outcome
	}
}

func carryIntent(c *codec, in *intent) {
	flags(c, &in.Unknown, &in.Answered, &in.Shared)
	date(c, &in.At)
	number(c, &in.AtBoot)
	bootID(c, &in.BootID)
	number(c, &in.Retries)
}

func (s *schedule) carry(c *codec) {
	instants(c, &s.notAfter, &s.refreshAt)
	number(c, &s.life)
	number(c, &s.lead)
	number(c, &s.holdOff)
}

func (a *attempt) carry(c *codec) {
	flags(c, &a.gated, &a.unsaved)
	number(c, &a.id)
	text(c, &a.cause)
	text(c, &a.origin)
	instants(c, &a.began, &a.posted, &a.sent, &a.commit)
	number(c, &a.saving)
	optional(c, &a.prior, carryIntent)
}

func (s *signIn) carry(c *codec) {
	flags(c, &s.running, &s.fetching)
	number(c, &s.ask)
	text(c, &s.claim)
	instants(c, &s.at, &s.next)
	number(c, &s.failures)
	text(c, &s.lastErr)
}

func (p *position) carry(c *codec) {
	flags(c, &p.ended)
	number(c, &p.epoch)
	number(c, &p.generation)
}

func (f *fleet) carry(c *codec) {
	flags(c, &f.on, &f.opened, &f.pushes, &f.asking, &f.again, &f.news, &f.waiters, &f.sharing, &f.regressed,
		&f.locked, &f.barred, &f.looked, &f.others)
	number(c, &f.store)
	instants(c, &f.asked, &f.look, &f.wrote, &f.failing, &f.back, &f.next, &f.without, &f.shareNext, &f.sharedAt, &f.restored, &f.rest, &f.spread)
	number(c, &f.failures)
	text(c, &f.err)
	number(c, &f.slow)
	for _, p := range []*position{&f.newest, &f.stored, &f.known, &f.seen} {
		p.carry(c)
	}
	list(c, &f.intents, carrySighting)
	date(c, &f.plan)
	list(c, &f.garbage, text)
	list(c, &f.claims, carrySighting)
	text(c, &f.reading)
	text(c, &f.bad)
	number(c, &f.shareFailures)
	text(c, &f.owned)
	text(c, &f.said)
	optional(c, &f.doom, func(c *codec, d *doom) {
		text(c, &d.reason)
		text(c, &d.detail)
		instants(c, &d.at)
	})
}

func carrySighting(c *codec, s *sighting) {
	flags(c, &s.own, &s.mark)
	text(c, &s.name)
	instants(c, &s.first)
}

func (v *view) carry(c *codec) {
	flags(c, &v.watch)
	number(c, &v.mode)
	number(c, &v.epoch)
	number(c, &v.generation)
	number(c, &v.until)
	text(c, &v.reason)
	number(c, &v.wait)
}
