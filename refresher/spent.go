package refresher

import (
	"errors"
	"slices"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
)

// spentAtRest is how many of its spent refresh tokens a session at rest has at
// hand. The journal has them all: a session that rotates for years would be
// many times as large.
const spentAtRest = 4

// effRecall asks for the spent tokens that only the journal has. Whoever carries
// it out reads them and steps again: nothing has come of that step yet.
type effRecall struct{}

// recall says that what this step does takes all spent tokens.
func (m *machine) recall() {
	if m.sparse {
		m.emit(effRecall{})
	}
}

// journalled reports whether the journal has the record as it is.
func (s *state) journalled() bool {
	return s.opened && s.version == s.saved && !s.writing && s.saveErr == ""
}

// thin leaves out all but the newest few where the journal has them.
func (s *state) thin(few int) {
	if n := len(s.rec.Spent); n > few && s.journalled() {
		s.rec.Spent, s.sparse = s.rec.Spent[n-few:], true
	}
}

// completed adds what the journal has; those at hand may be newer.
func (s *state) completed(kept []tokenHash) {
	all := slices.Clone(kept)
	for _, h := range s.rec.Spent {
		if !slices.Contains(kept, h) {
			all = append(all, h)
		}
	}
	s.rec.Spent, s.sparse = all[max(0, len(all)-maxSpent):], false
}

// recalling is step for a state that may be sparse; read completes it if it can.
func recalling(s state, now Instant, event any, read func(*state)) (state, []any) {
	next, effects := step(s, now, event)
	if !slices.ContainsFunc(effects, func(e any) bool { _, is := e.(effRecall); return is }) {
		return next, effects
	}
	if read(&s); s.sparse {
		return next, effects // a record that is written now is refused, as by a disk that cannot be written
	}
	return step(s, now, event)
}

// recall reads the journal. Where that fails for now the state stays sparse;
// where what was there is gone, the session goes on with those at hand.
func (a *actor) recall(s *state) {
	switch {
	case !s.sparse:
		return
	case a.journal == nil:
		s.completed(nil) // a pool remembers no more
		return
	}
	sealed, err := a.journal.Last()
	_ = a.journal.Rest()
	if err != nil && !errors.Is(err, journal.ErrDamaged) {
		return // to be tried again
	}
	var kept *record
	if err == nil {
		kept, err = vault{ring: a.config.Keys, name: a.session.key()}.open(sealed)
	}
	if err != nil {
		a.tell(Note{Kind: NoteJournalFailed, Err: "what it remembered of spent refresh tokens is gone: " + err.Error()})
		kept = &record{}
	}
	s.completed(kept.Spent)
}

// readable refuses to write a record over one that has more of what was spent,
// and could not be read. It is called by a worker.
func (a *actor) readable(eff effSave) error {
	if !eff.sparse {
		return nil
	}
	if _, err := a.journal.Last(); err != nil {
		return err
	}
	return errors.New("the journal could not be read a moment ago")
}
