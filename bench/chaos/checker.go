package chaos

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// Rules are what a run is held to beside what holds for all.
type Rules struct {
	// Forgiving: the issuer accepts a spent refresh token again. Nothing may be
	// lost, and such a repeat is no offence.
	Forgiving bool

	// Undisturbed: whatever was done, callers must not have noticed.
	Undisturbed bool

	// Recovery is how long after the last fault all must be fresh again.
	Recovery time.Duration

	// Login is how much longer that may take where a session was lost.
	Login time.Duration
}

// Report is what became of a run.
type Report struct {
	Problems   []string
	Answers    map[string]int // by result
	Disturbed  map[string]int // those of them that ended while a fault was in effect, or recovered from
	Losses     map[string]int // by reason
	Rotations  int
	Attempts   int
	Repeats    int // spent refresh tokens presented
	Recoveries []time.Duration
}

// Check says whether a run was allowed to happen: events is its history, ledger
// is the issuer's. The numbers in the problems are rotation.md 8.4's.
func Check(events []Event, ledger []sandbox.Entry, rules Rules) Report {
	c := &checker{
		events: slices.Clone(events), ledger: ledger, rules: rules,
		sessions: map[int]string{},
		report:   Report{Answers: map[string]int{}, Disturbed: map[string]int{}, Losses: map[string]int{}},
	}
	sort.SliceStable(c.events, func(i, j int) bool { return c.events[i].T.Before(c.events[j].T) })
	c.nameEpochs()
	c.exchanges()
	c.losses()
	c.order()
	c.answers()
	c.recoveries()
	return c.report
}

type checker struct {
	events   []Event
	ledger   []sandbox.Entry
	rules    Rules
	sessions map[int]string // the issuer's session of an epoch
	report   Report
}

func (c *checker) problem(format string, args ...any) {
	c.report.Problems = append(c.report.Problems, fmt.Sprintf(format, args...))
}

// nameEpochs finds which session at the issuer an epoch is, by the tokens.
func (c *checker) nameEpochs() {
	pairs := map[string]string{}
	for _, e := range c.events {
		if e.Op == OpPair {
			pairs[e.Fingerprint] = e.Session
		}
	}
	for _, e := range c.events {
		session := pairs[e.Fingerprint]
		if e.Op != OpStatus || e.Fingerprint == "" || session == "" {
			continue
		}
		if was := c.sessions[e.Epoch]; was != "" && was != session {
			c.problem("epoch %d is session %s in one place and %s in another", e.Epoch, was, session)
		}
		c.sessions[e.Epoch] = session
	}
}

// session is which one at the issuer an event is about.
func (c *checker) session(e Event) string {
	if e.Session != "" {
		return e.Session
	}
	return c.sessions[e.Epoch]
}

// exchanges: a generation is exchanged once (I2), and no spent token is presented
// that somebody could have known to be spent (I1).
func (c *checker) exchanges() {
	type key struct {
		session    string
		generation int
	}
	done := map[key]bool{}
	for _, e := range c.ledger {
		c.report.Attempts++
		if e.Reuse {
			c.report.Repeats++
			if why := c.notExcused(e.Session, e.Generation, e.At); why != "" && !(c.rules.Forgiving && e.Issued > 0) {
				c.problem("I1: the spent token of %s, generation %d, was presented at %s: %s", e.Session, e.Generation, stamp(e.At), why)
			}
			continue
		}
		if e.CommittedAt.IsZero() {
			continue
		}
		c.report.Rotations++
		k := key{e.Session, e.Generation}
		if done[k] {
			c.problem("I2: generation %d of %s was exchanged twice, again at %s", e.Generation, e.Session, stamp(e.CommittedAt))
		}
		done[k] = true
	}
}

// losses: a session is lost only if that could not be helped (I6), and is then
// called by its name (I7).
func (c *checker) losses() {
	lost := map[int]bool{}
	epochs := map[int]bool{}
	for _, e := range c.events {
		if e.Epoch > 0 {
			epochs[e.Epoch] = true
		}
		if e.Op != OpLost || lost[e.Epoch] {
			continue
		}
		lost[e.Epoch] = true
		c.report.Losses[e.Result]++
		switch why := c.notExcused(c.session(e), e.Generation, e.T); {
		case c.rules.Forgiving:
			c.problem("I6: epoch %d was lost at generation %d (%s) although the issuer forgives", e.Epoch, e.Generation, e.Result)
		case why != "":
			c.problem("I6: epoch %d was lost at generation %d (%s) at %s: %s", e.Epoch, e.Generation, e.Result, stamp(e.T), why)
		case e.Result != "two_generals":
			c.problem("I7: epoch %d was lost at generation %d as %q, which was two_generals", e.Epoch, e.Generation, e.Result)
		}
	}
	last := 0
	for _, epoch := range slices.Sorted(maps.Keys(epochs)) {
		if last > 0 && !lost[last] {
			c.problem("I6: epoch %d gave way to %d without having been lost", last, epoch)
		}
		last = epoch
	}
}

// notExcused says why the loss of a session at that generation and time could
// have been avoided; empty if it could not: the exchange was committed and
// nobody who could be asked had its answer.
func (c *checker) notExcused(session string, generation int, at time.Time) string {
	var spent *sandbox.Entry
	for i, e := range c.ledger {
		if e.Session == session && e.Generation == generation && !e.CommittedAt.IsZero() && !e.CommittedAt.After(at) {
			spent = &c.ledger[i]
		}
	}
	if spent == nil {
		return "it had not been exchanged"
	}
	mishap := !spent.Delivered
	for _, e := range c.events {
		if e.T.After(at) {
			break
		}
		if holder := c.holds(e, session, spent); holder && c.reachable(e, at) {
			return fmt.Sprintf("%s had its successor (%s at %s)", e.Who, e.Op, stamp(e.T))
		}
		// Between the issuer and the journal is a proxy and a process: the
		// ledger's word for delivered says little.
		switch e.Op {
		case OpKill:
			mishap = mishap || e.T.After(spent.At) && !kept(e)
		case OpPause:
			mishap = mishap || e.T.After(spent.At.Add(-time.Minute)) && c.last(e.Who, at, OpResume).After(spent.At)
			mishap = mishap || c.paused(e.Who, at)
		case OpCut:
			mishap = mishap || e.Result == "issuer" && !c.healedBefore(e, spent.At)
		}
	}
	if !mishap {
		return "the answer was delivered and nothing befell whoever got it"
	}
	return ""
}

// holds reports whether an event shows that an instance had what the exchange
// led to.
func (c *checker) holds(e Event, session string, spent *sandbox.Entry) bool {
	if e.Who == "" || e.T.Before(spent.At) {
		return false
	}
	if e.Op == OpKill {
		last := spent
		for i, l := range c.ledger {
			if !l.CommittedAt.IsZero() && l.CommittedAt.Before(e.T) {
				last = &c.ledger[i]
			}
		}
		return kept(e) && last == spent
	}
	shows := e.Op == OpRotated || e.Op == OpJoined || e.Op == OpStatus || e.Op == OpRequest
	return shows && c.session(e) == session && e.Generation == spent.Issued
}

// kept reports whether a process was killed when it had the next pair in its
// journal.
func kept(kill Event) bool { return kill.Result >= "W5" && kill.Result <= "W8" }

// reachable reports whether the fleet could have learned from the instance of an
// event what it had then: it was neither down nor frozen nor cut off all the time
// until at.
func (c *checker) reachable(had Event, at time.Time) bool {
	down := had.Op == OpKill
	frozen, cut := c.paused(had.Who, had.T), c.isCut(had.Who, had.T)
	free := had.T
	if down || frozen || cut {
		free = time.Time{}
	}
	for _, e := range c.events {
		if e.Who != had.Who && e.Who != "" || e.T.Before(had.T) || e.T.After(at) {
			continue
		}
		switch e.Op {
		case OpKill:
			down = true
		case OpStart:
			down = false
		case OpPause:
			frozen = true
		case OpResume:
			frozen = false
		case OpCut:
			cut = cut || e.Result == "store"
		case OpHeal:
			cut = cut && e.Result != "store"
		}
		switch ok := !down && !frozen && !cut; {
		case ok && free.IsZero():
			free = e.T
		case !ok && !free.IsZero():
			if e.T.Sub(free) >= tellTime {
				return true
			}
			free = time.Time{}
		}
	}
	return !free.IsZero() && at.Sub(free) >= tellTime
}

// tellTime is how long an instance may take to write what it has to the store.
const tellTime = 1500 * time.Millisecond

func (c *checker) last(who string, until time.Time, op Op) (t time.Time) {
	for _, e := range c.events {
		if e.Who == who && e.Op == op && !e.T.After(until) {
			t = e.T
		}
	}
	return t
}

func (c *checker) paused(who string, at time.Time) bool {
	return c.last(who, at, OpPause).After(c.last(who, at, OpResume))
}

// isCut reports whether an instance has no way to the store, of which the test
// may have deprived all.
func (c *checker) isCut(who string, at time.Time) (cut bool) {
	for _, e := range c.events {
		if (e.Who == who || e.Who == "") && e.Result == "store" && !e.T.After(at) {
			switch e.Op {
			case OpCut:
				cut = true
			case OpHeal:
				cut = false
			}
		}
	}
	return cut
}

func (c *checker) healedBefore(cut Event, at time.Time) bool {
	for _, e := range c.events {
		if e.Op == OpHeal && e.Who == cut.Who && e.Result == cut.Result && e.T.After(cut.T) {
			return e.T.Before(at)
		}
	}
	return false
}

// order: within a process no request used an older generation than one that had
// ended before it began (I3).
func (c *checker) order() {
	type process struct {
		who string
		run int
	}
	type use struct {
		began, ended time.Time
		session      string
		generation   int
	}
	all := map[process][]use{}
	for _, e := range c.events {
		if e.Op == OpRequest && e.Generation > 0 {
			p := process{e.Who, e.Run}
			all[p] = append(all[p], use{e.Began, e.T, e.Session, e.Generation})
		}
	}
	for p, uses := range all {
		byBegin := slices.Clone(uses) // uses are sorted by their ends
		sort.SliceStable(byBegin, func(i, j int) bool { return byBegin[i].began.Before(byBegin[j].began) })
		newest := map[string]int{}
		next := 0
		for _, u := range byBegin {
			for ; next < len(uses) && uses[next].ended.Before(u.began); next++ {
				newest[uses[next].session] = max(newest[uses[next].session], uses[next].generation)
			}
			if u.generation < newest[u.session] {
				c.problem("I3: %s used generation %d of %s at %s, after %d", p.who, u.generation, u.session, stamp(u.began), newest[u.session])
			}
		}
	}
}

// answers: callers notice nothing while nothing is wrong (I4).
func (c *checker) answers() {
	type span struct{ from, to time.Time }
	var faults []span
	open := false
	for _, e := range c.events {
		switch e.Op {
		case OpFault:
			if !open {
				faults = append(faults, span{from: e.T})
			}
			open = true
		case OpRecovered:
			if open {
				faults[len(faults)-1].to = e.T
			}
			open = false
		}
	}
	shown := 0
	for _, e := range c.events {
		if e.Op != OpRequest {
			continue
		}
		c.report.Answers[e.Result]++
		disturbed := slices.ContainsFunc(faults, func(s span) bool {
			return e.T.After(s.from) && (s.to.IsZero() || e.Began.Before(s.to))
		})
		if disturbed {
			c.report.Disturbed[e.Result]++
		}
		if e.Result == "200" || disturbed && !c.rules.Undisturbed {
			continue
		}
		if shown++; shown <= 5 {
			c.problem("I4: a caller of %s got %s (%s, %s to %s)", e.Who, e.Result, e.Kind, stamp(e.Began), stamp(e.T))
		}
	}
	if shown > 5 {
		c.problem("I4: and %d more such answers", shown-5)
	}
}

// recoveries: when the faults are over, all are soon fresh again (I9).
func (c *checker) recoveries() {
	var calm time.Time
	limit := c.rules.Recovery
	for _, e := range c.events {
		switch e.Op {
		case OpFault:
			limit = c.rules.Recovery
		case OpLost:
			limit = c.rules.Recovery + c.rules.Login
		case OpCalm:
			calm = e.T
		case OpRecovered:
			if calm.IsZero() {
				continue
			}
			took := e.T.Sub(calm)
			c.report.Recoveries = append(c.report.Recoveries, took)
			if took > limit {
				c.problem("I9: it took %v after the faults' end until all were fresh", took.Round(time.Millisecond))
			}
			calm = time.Time{}
		}
	}
	if !calm.IsZero() {
		c.problem("I9: not all were fresh again after the faults' end at %s", stamp(calm))
	}
}

func stamp(t time.Time) string { return t.Format("15:04:05.000") }
