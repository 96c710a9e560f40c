package refresher

import (
	"fmt"
	"strings"
	"time"
)

// issuerKind is how the issuer treats what it issued (rotation.md 1.4).
type issuerKind uint8

const (
	strictIssuer  issuerKind = iota // revokes the previous access token, ends the session on reuse
	lenientIssuer                   // the previous access token lives on; ends the session on reuse
	sameIssuer                      // a spent refresh token gets the same successor for a while
	newIssuer                       // it gets another one for a while
	staticIssuer                    // the refresh token stays
)

var issuerNames = [...]string{"strict", "lenient", "reuse same", "reuse new", "static"}

const simReuse = 20 * time.Second

func (i *simIssuer) profile() Profile {
	p := Profile{Timeout: 2 * time.Second, NeedsAccess: i.wantsLive}
	switch i.kind {
	case strictIssuer:
		p.RevokesPrevious, p.NeedsAccess = true, true
	case sameIssuer, newIssuer:
		p.ReuseInterval = simReuse
	case staticIssuer:
		p.ReuseInterval = 24 * time.Hour
	}
	return p
}

// simIssuer is the issuer and, as they share its state, the upstream.
type simIssuer struct {
	w    *world
	kind issuerKind
	life time.Duration

	// Of issuers that accept a spent refresh token for a while:
	dated     bool // the same successor is no younger for being sent again
	wantsLive bool // an exchange needs an access token that has not ended

	family   int
	n        int // the newest generation
	issue    int // of tokens, to tell successors of the same generation apart
	dead     bool
	expires  time.Duration
	loggedIn time.Duration
	spentAt  time.Duration // of the generation before
	valid    map[string]time.Duration

	current, before string // refresh tokens

	trouble    bool // a fault befell this generation
	unrecorded bool // in this family one was sent although the journal could not take the intent
	forgot     bool // in this family the store forgot while one was on its way
	parted     bool // in this family somebody was cut off or stood still while an exchange was on its way, or the store was down
	alone      bool // the same, but for the store's being down for all
	commits    int
	reuses     int
	flying     map[string]int // exchanges on their way, by refresh token
}

func (i *simIssuer) login() Pair {
	i.family++
	i.n, i.dead, i.trouble = 1, false, i.w.underWay()
	i.unrecorded, i.forgot, i.parted, i.alone = false, false, false, false
	i.before, i.loggedIn = "", i.w.now.Boot
	if i.valid == nil {
		i.valid, i.flying = map[string]time.Duration{}, map[string]int{}
	}
	return i.make()
}

// make issues the pair of the newest generation.
func (i *simIssuer) make() Pair {
	i.issue++
	name := fmt.Sprintf("%d.%d.%d", i.family, i.n, i.issue)
	if i.kind == strictIssuer {
		clear(i.valid)
	}
	i.valid["a"+name] = i.w.now.Boot + i.life
	if i.kind != staticIssuer || i.current == "" || i.n == 1 {
		i.current = "r" + name
	}
	i.expires = i.w.now.Boot + i.life
	return Pair{Access: NewSecret("a" + name), Refresh: NewSecret(i.current), ExpiresIn: i.life}
}

func (i *simIssuer) accepts(access string) bool {
	until, ok := i.valid[access]
	return ok && i.w.now.Boot < until && (!i.dead || i.kind != strictIssuer)
}

// exchange is the issuer's side; status 0 is success.
func (i *simIssuer) exchange(p Pair) (Pair, int) {
	w := i.w
	refresh := p.Refresh.Reveal()
	switch {
	case !strings.HasPrefix(refresh, fmt.Sprintf("r%d.", i.family)):
		return Pair{}, 400 // of another login
	case i.dead:
		return Pair{}, 400
	case i.wantsLive && !i.accepts(p.Access.Reveal()):
		return Pair{}, 401
	case refresh != i.current:
		graced := (i.kind == sameIssuer || i.kind == newIssuer) && refresh == i.before && w.now.Boot < i.spentAt+simReuse
		if graced && i.kind == sameIssuer {
			access := "a" + i.current[1:]
			if !i.dated {
				i.valid[access] = w.now.Boot + i.life
			}
			left := max(i.valid[access]-w.now.Boot, 1)
			return Pair{Access: NewSecret(access), Refresh: NewSecret(i.current), ExpiresIn: left}, 0
		}
		if graced {
			return i.make(), 0
		}
		i.reused(refresh)
		return Pair{}, 400
	case i.kind == strictIssuer && !i.accepts(p.Access.Reveal()):
		return Pair{}, 401
	}
	i.n++
	i.commits++
	i.before, i.spentAt = refresh, w.now.Boot
	pair := i.make()
	i.trouble = false
	w.note("issuer: commit %s", i.current)
	return pair, 0
}

// reused: a spent refresh token was presented. That is a violation unless two
// faults came together that nobody can guard against, or nobody had the pair
// that it would have kept (rotation.md 8.4, I1).
func (i *simIssuer) reused(refresh string) {
	i.reuses++
	i.dead = true
	switch {
	case i.unrecorded, i.forgot:
	case i.kind == newIssuer && refresh == i.before: // its interval is over
	case i.kind == newIssuer && i.w.store != nil && i.w.store.wiped:
		// A process that came back with an older pair was given another successor.
	case !i.w.held(i.current):
	case i.parted && i.kind != strictIssuer:
		// Without a witness nobody can tell a winner that is cut off from a dead
		// one (rotation.md 4.7).
	default:
		i.w.fail("the spent refresh token %s was presented while somebody held %s", refresh, i.current)
	}
	i.w.note("issuer: %s was spent; the session is dead", refresh)
}

// held reports whether a pair is in a journal, a live process or the store.
func (w *world) held(refresh string) bool {
	for _, s := range w.sidecars {
		if s.disk != nil && s.disk.Refresh == refresh || s.up && s.state.rec.Refresh == refresh {
			return true
		}
		if s.up && s.coming == refresh {
			return true
		}
	}
	return w.store != nil && w.store.holds(refresh)
}

// live reports whether a process has a pair that goes on serving.
func (w *world) live(refresh string) bool {
	for _, s := range w.sidecars {
		if s.up && s.state.rec.Refresh == refresh && s.state.rec.Lost == "" {
			return true
		}
	}
	return false
}

// lost checks that a loss was one that nobody could have prevented, and that it
// is called by its name.
func (s *simSidecar) lost(reason Reason) {
	w := s.w
	i := &w.issuer
	w.losses++
	committed := s.state.rec.Refresh != i.current
	ours := strings.HasPrefix(s.state.rec.Refresh, fmt.Sprintf("r%d.", i.family)) // and not of a login that another replaced
	double := i.unrecorded || i.forgot
	switch {
	case !ours:
	case reason == ReasonExpired && w.faults.skew > 0: // its clock may say so
	case reason == ReasonUndecryptable:
		w.fail("the record could not be opened")
	case committed && !i.dead && !double && !i.alone && w.live(i.current):
		w.fail("the session was given up (%s) while somebody had the next pair and could tell", reason)
	case committed && !i.dead && reason != ReasonTwoGenerals && reason != ReasonExpired:
		w.fail("a lost answer is reported as %s", reason)
	case !committed && !i.trouble && !double && !i.parted && !i.dead:
		w.fail("the session was lost (%s) without a fault", reason)
	case !committed && reason == ReasonRejected && !double && !i.dead && w.now.Boot < i.expires:
		w.fail("the issuer rejected a token that was good")
	case (i.kind == staticIssuer) && reason != ReasonExpired:
		w.fail("lost (%s) although the refresh token stays good", reason)
	}
	s.callOperator()
}
