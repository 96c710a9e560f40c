package refresher

import (
	"slices"
	"time"
)

// The session protocol is a pure function: step takes a state and an event and
// returns the next state and the effects to carry out. It reads no clock, does
// no I/O and holds no lock, so that the same code runs in production (one actor
// a session, session.go), in the tests of single transitions and in the
// simulation. The rules are rotation.md's sections 2 to 4 and 7.

// stage is how far an exchange has come.
type stage uint8

const (
	stageIdle       stage = iota
	stageAsking           // a fleet's lock and store are asked
	stagePreparing        // connecting to the issuer; the gate is open
	stageDraining         // the gate is closed; requests that cannot be repeated finish
	stageRecording        // the intent goes to the journal
	stagePosting          // the intent goes to the fleet's store
	stageSending          // past the point of no return
	stageCommitting       // the next pair goes to the journal
)

// commitGrace is how long requests wait for the journal once the next pair is
// known. The previous access token is dead by then; holding back helps nobody.
const commitGrace = 250 * time.Millisecond

// state is all that a session knows. It is a value: step never changes what its
// slices and pointers point to.
type state struct {
	env     environment
	policy  Policy
	profile Profile
	signsIn bool // a source can make a new login
	running bool // a configuration is attached: exchanges may begin
	closing bool

	opened   bool // the journal was read; before that nothing is known
	rec      record
	sparse   bool // of rec.Spent only the newest are at hand: the journal has the others
	sched    schedule
	received Instant // when the pair was issued, or seen first
	byWall   bool    // which only the wall clock tells: it was in another boot
	born     Instant // when this process got the generation from the issuer; zero if restored or seeded by hand
	drift    time.Duration
	offset   time.Duration // the issuer's clock minus ours

	stage   stage
	attempt attempt // the one under way, or the last
	wanted  cause   // an exchange was asked for before it is due
	origin  string  // by a request of which this is known

	// What the failures of this generation led to.
	failures  int
	failing   Instant // since when
	degraded  bool    // was told
	aging     bool    // was told
	next      Instant // not before
	stretched bool    // the attempt before the end was made
	refused   bool    // the issuer refused the access token once
	lastErr   string
	lastClass Class

	quietUntil Instant // no attempt before this (rec.Quiet)
	catchUp    Instant // an exchange is due because somebody else made one

	// An attempt with an unknown outcome (rec.Intent).
	quietAt   Instant // the hold-off's end
	witnessed bool    // the upstream accepted the access token after quietAt

	upstream401 bool // the upstream refused this generation's access token
	triggered   bool // a 401 has asked for this generation's exchange
	stepped     Instant
	routes      []quarantined
	budget      budget

	looking   bool // the sources are being asked for a pair lying there
	lookAgain bool // and one has changed since
	signIn    signIn
	pending   *seed // arrived during an exchange
	waiting   []chan<- error

	telling  telling
	fleet    fleet
	ending   []chan<- error // who asked for the end of the session
	endSince Instant        // and when

	// The journal: version is what should be there, saved what is.
	version, saved uint64
	writing        bool
	saveErr        string
	saveRetry      Instant

	shown view
}

// cause says why an exchange is made.
type cause string

const (
	causeDue          cause = "due"
	causeUnauthorized cause = "unauthorized"
	causeOperator     cause = "operator"
	causeClock        cause = "clock"
	causeHeard        cause = "heard" // of somebody else's exchange
)

// attempt is the exchange under way.
type attempt struct {
	id      uint64
	conn    Exchange
	gated   bool // the gate is closed
	cause   cause
	origin  string
	began   Instant
	posted  Instant // when its intent was on its way to the store
	sent    Instant
	saving  uint64 // the version that has to be saved before the next stage
	prior   *intent
	unsaved bool // goes on even if the journal cannot be written
	commit  Instant
}

// machine is one call of step.
type machine struct {
	state
	now     Instant
	wake    Instant
	effects []any
	replies []any // come last: whoever gets one finds its outcome in force
}

// step is the session protocol.
func step(s state, now Instant, event any) (state, []any) {
	m := &machine{state: s, now: now}
	m.watchClock()
	switch ev := event.(type) {
	case evOpened:
		m.open(ev)
	case evUnusable:
		m.opened = true
		m.rec.Lost, m.rec.Detail = ev.reason, ev.detail
		m.note(Note{Kind: NoteLost, Reason: ev.reason, Err: ev.detail})
	case evConfigured:
		m.configure(ev)
	case evClose:
		m.closing = true
		m.stop("the process is ending")
	case evPrepared:
		m.prepared(ev)
	case evDrained:
		m.drained(ev)
	case evSaved:
		m.wasSaved(ev)
	case evAnswer:
		m.answered(ev.answer)
	case evSeed:
		m.offered(ev.seed)
	case evFetched:
		m.fetched(ev.seed)
	case evNoSeed:
		m.noSeed(ev)
	case evLook:
		m.look()
	case evRefresh:
		m.refreshNow(ev.reply)
	case evAccepted:
		m.accepted(ev)
	case evEnd:
		m.logOut(ev.reply)
	case evAnnounced:
		m.announced(ev)
	case evHeard:
		m.hear(ev.heard)
	case evAgreed:
		m.agreed(ev.id)
	case evNews:
		m.heard()
	case evAsked:
		m.asked(ev)
	case evIntended:
		m.intended(ev)
	case evRead:
		m.gotEntry(ev)
	case evShared:
		m.shared(ev)
	case evUnauthorized:
		m.unauthorized(ev)
	case evTick:
	}
	m.settle()
	return m.state, m.effects
}

// answerWaiting tells whoever asked for an exchange how it went.
func (m *machine) answerWaiting(err error) {
	for _, to := range m.waiting {
		m.reply(to, err)
	}
	m.waiting = nil
}

func (m *machine) reply(to chan<- error, err error) {
	if to != nil {
		m.replies = append(m.replies, effReply{to: to, err: err})
	}
}

// settle does what follows from the state alone, whatever the event was. Every
// deadline is looked at here, so a late or superfluous tick does no harm.
func (m *machine) settle() {
	m.expire()
	m.lateCommit()
	m.takeHeld()
	m.end()
	m.takePending()
	if m.lookAgain {
		m.look()
	}
	m.catchUpNow()
	m.operate()
	m.begin()
	m.poll()
	m.share()
	m.save()
	m.tell()
	m.degrade()
	m.warn()
	m.bar()
	m.publish()
	m.effects = append(m.effects, m.replies...)
	if m.stage == stageIdle { // the rest of it is over
		m.attempt = attempt{id: m.attempt.id, sent: m.attempt.sent}
	}
	m.arm()
}

func (m *machine) emit(effect any) { m.effects = append(m.effects, effect) }

func (m *machine) note(n Note) {
	n.At = m.now.Wall
	n.Epoch, n.Generation = m.rec.Epoch, m.rec.Generation
	n.Source = m.rec.Source
	m.emit(effNote{note: n})
}

// usable reports whether there is a pair that is not lost.
func (m *machine) usable() bool { return m.opened && m.rec.hasPair() && m.rec.Lost == "" }

// expired reports whether the access token is past its end.
func (m *machine) expired() bool { return m.sched.known() && m.reached(m.sched.notAfter) }

// configure takes a new configuration; the schedule of the pair in use follows
// it.
func (m *machine) configure(ev evConfigured) {
	before := m.policy.Swap
	m.policy, m.profile, m.signsIn, m.running = ev.policy, ev.profile, ev.signsIn, ev.running
	if m.fleet.store != ev.store {
		m.changeStore(ev.store)
	}
	m.configureAnnouncer(ev)
	if ev.policy.Swap != before {
		m.own()
		m.shown = view{}
	}
	m.fleet.bad = "" // perhaps the keys are right now
	m.plan()
	if ev.reseal && m.rec.hasPair() {
		m.changed()
	}
	m.signIn.next = Instant{} // perhaps the password is right now
	if m.lastClass == ClassConfig {
		m.next = Instant{}
	}
}

// plan lays out the generation in use.
func (m *machine) plan() {
	if m.rec.hasPair() {
		prof := m.profile
		if m.fleet.on { // the others count from when they see the intent (contract 3b)
			prof.HoldOff = max(3*orDefault(prof.Timeout, defaultTimeout), holdOff(prof, 0))
		}
		m.sched = plan(m.policy, prof, m.received, m.rec.Left, m.rec.Expires, m.spread(0))
		if m.rec.Odd > 0 {
			m.sched.refreshAt = m.received.Add(30 * time.Second << min(m.rec.Odd-1, 5))
		}
		if at := m.onOurClock(m.fleet.plan); !at.IsZero() && (m.sched.refreshAt.IsZero() || at.Boot < m.sched.refreshAt.Boot) {
			m.sched.refreshAt = at
		}
	}
}

// open starts from what the journal holds.
func (m *machine) open(ev evOpened) {
	rec := ev.rec
	m.opened, m.looking = true, !m.fleet.on && !ev.pooled
	if rec == nil {
		if m.looking {
			m.emit(effFetch{lying: true, signIn: m.maySignIn()})
		}
		return
	}
	m.rec, m.sparse = *rec, false
	if ev.borrowed {
		m.changed()
	}
	m.changeAnnouncements(func(a announcement) (announcement, bool) { a.told = false; return a, true }) // not by this process
	m.quietUntil = m.now.Add(m.rec.Quiet)
	m.own()
	m.received = m.rec.restored(m.now, m.env.bootID)
	m.byWall = m.env.bootID == "" || m.env.bootID != m.rec.BootID
	if ev.pooled && !m.byWall {
		m.born = m.received
	}
	m.plan()
	if in := m.rec.Intent; in != nil && m.rec.Lost == "" {
		// Whether that request reached the issuer, and whether it is still on
		// its way, nobody knows: the hold-off counts from here.
		unknown := *in
		unknown.Unknown = true
		m.rec.Intent = &unknown
		m.becomeUncertain("the process ended during an exchange")
	}
	if m.looking {
		m.emit(effFetch{lying: true}) // a pair never seen before wins over the record
	}
}

// look asks the sources again for a pair lying there: one has changed.
func (m *machine) look() {
	switch {
	case !m.opened, m.fleet.on && !m.fleet.looked: // they will be asked
	case m.looking, m.signIn.running:
		m.lookAgain = true // one question at a time
	default:
		m.looking, m.lookAgain = true, false
		m.emit(effFetch{lying: true})
	}
}

// maySignIn reports whether a source that signs in may be asked now, and marks
// it as asked.
func (m *machine) maySignIn() bool {
	m.signIn.running = m.signsIn && m.running
	return m.signIn.running
}

// degrade tells once when a session has not been rotated for half of its lead.
func (m *machine) degrade() {
	if m.failures == 0 || m.degraded || !m.usable() {
		return
	}
	at := m.failing.Add(m.sched.lead / 2)
	if !m.reached(at) {
		m.wakeAt(at)
		return
	}
	m.degraded = true
	m.note(Note{Kind: NoteDegraded, Err: m.lastErr})
}

// phase names the state as contract 5 lists it.
func (m *machine) phase() Phase {
	switch {
	case !m.opened, m.fleet.on && !m.fleet.opened && !m.rec.hasPair():
		return PhaseHolding
	case m.rec.Lost != "":
		return PhaseLost
	case !m.rec.hasPair():
		return PhaseEmpty
	case m.stage > stageAsking, m.othersTry():
		return PhaseExchanging
	case m.expired():
		return PhaseExpired
	case m.holding():
		return PhaseHolding
	case m.fleet.on && (!m.fleet.opened || (m.fleet.failures > 0 || m.fleet.bad != "") && m.reached(m.sched.refreshAt)):
		return PhaseHolding
	case m.rec.Intent != nil:
		return PhaseUncertain
	case m.saveErr != "" && m.version != m.saved:
		return PhaseHolding
	case m.degraded:
		return PhaseDegraded
	case m.failures > 0:
		return PhaseBackoff
	}
	return PhaseFresh
}

func later(a, b Instant) Instant {
	if b.Boot > a.Boot {
		return b
	}
	return a
}

func with[T any](list []T, add T) []T { return append(slices.Clone(list), add) }
