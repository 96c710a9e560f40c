package refresher

import (
	"context"
	"errors"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/failpoint"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// perform carries out what a state wants: at once, or on a worker if it takes
// long.
func (a *actor) perform(effect any) {
	s := a.session
	switch eff := effect.(type) {
	case effWake:
		a.timer.Reset(max(eff.at.Boot-s.clock.Now().Boot, time.Millisecond))
	case effPublish:
		a.publish(eff)
	case effReply:
		eff.to <- eff.err
	case effEnded:
		s.last.Store(&eff.last)
	case effVerdict:
		eff.to <- eff.verdict
	case effNote:
		a.tell(eff.note)
	case effPrepare:
		cfg, ctx := a.config, a.context()
		a.work(func() any {
			conn, err := s.prepare(ctx, cfg, eff.last)
			return evPrepared{attempt: eff.attempt, conn: conn, err: err}
		})
	case effDrop:
		eff.conn.Close()
	case effDrain:
		a.drain(eff)
	case effRecall: // was tried before
	case effSave:
		var keys *journal.Keyring
		if a.config != nil {
			keys = a.config.Keys
		}
		a.work(func() any {
			err := a.readable(eff)
			if err == nil {
				err = a.save(eff.rec, keys)
			}
			if eff.rest && a.journal != nil {
				_ = a.journal.Rest() // what was written is on the disk
			}
			return evSaved{version: eff.version, err: err}
		})
	case effSend:
		timeout := orDefault(a.config.Issuer.Profile().Timeout, defaultTimeout)
		a.work(func() any {
			// Nobody's context but its own: from here on only the issuer's
			// answer counts, whoever hangs up or wants to stop.
			ctx, cancel := context.WithTimeout(context.Background(), timeout)
			defer cancel()
			if !eff.by.IsZero() && s.clock.Now().Boot > eff.by.Boot {
				eff.conn.Close()
				return evAnswer{answer: Answer{Class: ClassNotSent, Err: errTooLate}}
			}
			failpoint.Soon("W3")
			answer := eff.conn.Send(ctx, eff.pair)
			failpoint.Reach("W4")
			return evAnswer{answer: answer}
		})
	case effAnnounce:
		a.announce(eff.announcement)
	case effFetch:
		ctx, sources := a.context(), a.config.Sources
		a.work(func() any { return fetch(ctx, eff, sources) })
	default:
		a.performShared(effect)
	}
}

// work runs f on a goroutine of the actor's, which waits for its event before it
// ends.
func (a *actor) work(f func() any) {
	a.busy++
	go func() { a.session.post(evWorked{f()}) }()
}

// announce tells of a rotation, on a worker.
func (a *actor) announce(what announcement) {
	s, to, ctx := a.session, a.config.Announcer, a.context()
	a.work(func() any {
		if to == nil {
			return evAnnounced{id: what.ID}
		}
		pending, err := to.Announce(ctx, Announcement{
			Session: s.name, ID: what.ID, At: what.At, Origin: what.Origin,
			Presented: NewSecret(what.Presented), Original: NewSecret(what.Original), Token: NewSecret(what.Token),
		}, func() { s.post(evAgreed{what.ID}) })
		return evAnnounced{id: what.ID, pending: pending, err: err}
	})
}

// context ends when the session closes. No exchange hangs on it.
func (a *actor) context() context.Context {
	if a.life == nil {
		ctx, end := context.WithCancel(context.Background())
		a.life = &lifetime{ctx, end}
		if a.closing {
			a.life.end()
		}
	}
	return a.life.ctx
}

func (a *actor) publish(eff effPublish) {
	old := a.session.cur.Load()
	snap := newSnapshot(eff.view, eff.token)
	if old.header == snap.header {
		snap.header = old.header // one copy
	}
	snap.owned = eff.owned
	if eff.barred {
		snap.bar()
	}
	a.gates = a.gates.followed(snap)
	a.session.cur.Store(snap)
	old.next.happen()
	if old.generation > 0 && snap.generation > old.generation {
		failpoint.Reach("W7")
	}
}

func (a *actor) drain(eff effDrain) {
	gates := a.gates // never changed in place
	gates.closeGate()
	a.work(func() any {
		gates.drain(eff.limit)
		return evDrained{attempt: eff.attempt}
	})
}

// save seals a record and writes it, on a worker: one at a time. A journal that could not be read is put
// aside first, never overwritten.
func (a *actor) save(rec record, keys *journal.Keyring) error {
	s := a.session
	if s.pooled != nil {
		return s.pooled.keep(rec)
	}
	if a.aside {
		if a.journal != nil {
			_ = a.journal.Close()
			a.journal = nil
		}
		if err := journal.SetAside(s.journalDir(int(a.instance)), s.key(), "unreadable-"+time.Now().UTC().Format("20060102T150405")); err != nil {
			return err
		}
		j, err := journal.Open(s.journalDir(int(a.instance)), s.key())
		if err != nil {
			return err
		}
		a.journal, a.aside = j, false
	}
	sealed, err := vault{ring: keys, name: s.key()}.seal(&rec)
	if err != nil {
		return err
	}
	return a.journal.Write(sealed)
}

// fetch asks the sources in their order. Only the first that has a pair is
// looked at.
func fetch(ctx context.Context, what effFetch, sources []Source) any {
	err := ErrNoPair
	for _, src := range sources {
		if src.SignsIn() && !what.signIn || !src.SignsIn() && !what.lying {
			continue
		}
		pair, srcErr := src.Fetch(ctx)
		if srcErr == nil {
			return evFetched{seed{pair: pair, source: src.String(), signsIn: src.SignsIn()}}
		}
		if !errors.Is(srcErr, ErrNoPair) || errors.Is(err, ErrNoPair) {
			err = srcErr
		}
	}
	return evNoSeed{signIn: what.signIn, err: err}
}
