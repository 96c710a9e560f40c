package refresher

import (
	"errors"
	"fmt"
	"time"
)

// Reason says why a session is lost.
type Reason string

// The reasons.
const (
	// ReasonTwoGenerals: an exchange may have been committed whose answer never
	// arrived; nobody holds the pair that it led to.
	ReasonTwoGenerals Reason = "two_generals"
	// ReasonRejected: the issuer refused the refresh token, and no attempt of
	// ours explains it: it expired, was revoked, or somebody else used it.
	ReasonRejected Reason = "rejected"
	// ReasonExpired: the access token ended, and the issuer wants a live one.
	ReasonExpired Reason = "expired_at"
	// ReasonLoggedOut: somebody ended the session here.
	ReasonLoggedOut Reason = "logged_out"
	// ReasonRevoked: the issuer told that it has revoked the session.
	ReasonRevoked Reason = "revoked"
	// ReasonUndecryptable: the stored pair cannot be opened with the keys given.
	ReasonUndecryptable Reason = "undecryptable"
)

// Errors of [Session.Import] and [Session.Refresh].
var (
	ErrSpent     = errors.New("this refresh token was already used in this session: sign in again and import the new pair")
	ErrNoRefresh = errors.New("the pair has no refresh token")
	ErrNotNow    = errors.New("no exchange can be made now")
)

// seed is a pair from outside that may start a new epoch.
type seed struct {
	pair    Pair
	source  string
	signsIn bool // made by signing in: new even if its refresh token is not
	reply   chan<- error
}

// signIn is how far getting a new login has come.
type signIn struct {
	running  bool
	ask      uint64  // the question to the store that comes before it
	claim    string  // what tells the others of it
	fetching bool    // a fleet's: it is under way
	at       Instant // when it last succeeded
	failures int
	next     Instant
	lastErr  string // why the last one failed
}

// offered takes a seed, or keeps it until the exchange under way is over.
func (m *machine) offered(s seed) {
	if m.stage != stageIdle || m.storeFirst() {
		if s.reply != nil && m.fleet.on && !m.fleet.opened && m.fleet.failures > 0 {
			m.reply(s.reply, fmt.Errorf("%w: the store cannot be asked: %s", ErrNotNow, m.fleet.err))
			return
		}
		if m.pending != nil {
			m.reply(m.pending.reply, errors.New("another pair came first"))
		}
		m.pending = &s
		return
	}
	m.take(s)
}

// fetched takes what the sources were asked for.
func (m *machine) fetched(s seed) {
	m.looking, m.signIn.running, m.signIn.fetching = false, false, false // only one is asked at a time
	m.offered(s)
}

// storeFirst reports whether a fleet's store has yet to say what is in use.
func (m *machine) storeFirst() bool {
	f := &m.fleet
	return f.on && (!f.opened || f.reading != "" && f.failures == 0)
}

func (m *machine) takePending() {
	if m.pending == nil || m.stage != stageIdle || m.storeFirst() {
		return
	}
	s := *m.pending
	m.pending = nil
	m.take(s)
}

func (m *machine) take(s seed) {
	err := m.seeded(s)
	if s.reply == nil && errors.Is(err, ErrNoRefresh) {
		m.note(Note{Kind: NoteSourceFailed, Err: s.source + ": " + err.Error()})
	}
	m.reply(s.reply, err)
}

// seeded starts a new epoch with a pair from outside, unless its refresh token
// was ever used in this session: a file that still holds the first pair must
// not bring back a spent token (contract 4).
func (m *machine) seeded(s seed) error {
	switch {
	case !m.opened:
		return fmt.Errorf("%w: the journal is not open yet", ErrNotNow)
	case s.pair.Refresh.IsZero():
		return ErrNoRefresh
	case m.rec.Lost == ReasonUndecryptable && s.reply == nil:
		return ErrSpent // it may be: what was used cannot be read
	}
	m.recall()
	h := m.hash(s.pair.Refresh)
	if !s.signsIn && m.rec.knows(h, m.hash(NewSecret(m.rec.Refresh))) {
		if m.usable() && s.pair.Refresh.Equal(NewSecret(m.rec.Refresh)) {
			return nil // it is the one in use
		}
		return ErrSpent
	}
	kind := NoteStarted
	if m.rec.Lost != "" {
		kind = NoteReauthenticated
	}
	spent := m.rec.Spent
	if m.rec.hasPair() {
		spent = appendBounded(spent, maxSpent, m.hash(NewSecret(m.rec.Refresh)))
	}
	m.rec = record{
		HashKey: m.key(),
		Epoch:   m.rec.Epoch + 1, Generation: 1, Source: s.source,
		Seeds:   appendBounded(m.rec.Seeds, maxSeeds, h),
		Spent:   spent,
		History: m.rec.History,

		Announce: announcementsAfter(m.rec.Announce),
	}
	m.adopt(s.pair, m.now, m.offset)
	m.rec.History = appendBounded(m.rec.History, maxHistory, Rotation{
		At: m.now.Wall.Truncate(time.Millisecond), Epoch: m.rec.Epoch, Generation: 1, Outcome: s.source,
	})
	m.born = Instant{}
	if s.signsIn {
		m.born = m.now
	}
	m.signIn = signIn{failures: m.signIn.failures, running: m.signIn.running}
	if s.signsIn {
		m.signIn.at = m.now
	}
	m.shown = view{}
	m.changed()
	m.note(Note{Kind: kind, Next: m.sched.refreshAt.Wall})
	if !m.sched.known() && m.profile.NeedsAccess {
		m.lastErr = "the access token does not tell when it ends: set lifetime"
		m.note(Note{Kind: NoteNoExpiry, Err: m.lastErr})
	}
	return nil
}

// beginSignIn asks the sources for a new login where one can make it.
func (m *machine) beginSignIn() {
	if !m.mayReturn() || m.signIn.running || m.looking {
		return
	}
	if !m.signIn.next.IsZero() && !m.reached(m.signIn.next) {
		m.wakeAt(m.signIn.next)
		return
	}
	if !m.maySignIn() || !m.fleet.on {
		m.emit(effFetch{signIn: m.signIn.running})
		return
	}
	m.claimSignIn()
}

// mayReturn reports whether a session without a usable pair can get one by
// itself.
func (m *machine) mayReturn() bool {
	switch {
	case m.rec.Lost == ReasonUndecryptable:
		return false // an operator has to look: the right key may be at hand
	case m.rec.Lost == ReasonLoggedOut:
		return false // somebody wanted it to end
	case m.rec.Lost != "" && m.policy.NoReauthenticate:
		return false
	}
	return m.signsIn
}

// noSeed: no source has a pair, or signing in failed.
func (m *machine) noSeed(ev evNoSeed) {
	err := ev.err
	m.looking = false
	if ev.signIn {
		m.signIn.fetching = false
		m.unclaim()
	}
	if !ev.signIn {
		if !errors.Is(err, ErrNoPair) {
			m.note(Note{Kind: NoteSourceFailed, Err: err.Error()})
		}
		return
	}
	var retry *RetryError
	slow := errors.As(err, &retry) && retry.Slow
	f := m.signIn.failures + 1
	d := signInBackoff(f - 1)
	if slow {
		d = min(time.Minute<<min(f-1, 4), 15*time.Minute)
	}
	if retry != nil {
		d = max(d, retry.After)
	}
	m.signIn.running, m.signIn.failures, m.signIn.lastErr = false, f, err.Error()
	m.signIn.next = m.now.Add(d)
	m.note(Note{Kind: NoteSignInFailed, Err: err.Error(), Next: m.signIn.next.Wall})
}

func signInBackoff(failures int) time.Duration {
	return min(200*time.Millisecond<<min(failures, 10), time.Minute)
}

// lose ends the session's line of pairs. In a fleet the store has the last word:
// another instance may hold the next pair.
func (m *machine) lose(reason Reason, detail string) {
	if !m.fleet.on {
		m.loseNow(reason, detail)
		return
	}
	if m.fleet.doom == nil {
		m.fleet.doom = &doom{reason: reason, detail: detail, at: m.now}
		m.ask()
	}
}

func (m *machine) loseNow(reason Reason, detail string) {
	m.rec.Lost, m.rec.Detail = reason, detail
	m.failures, m.degraded, m.wanted = 0, false, ""
	m.shown = view{}
	if at := m.signIn.at; !at.IsZero() && m.now.Sub(at) < time.Minute && m.rec.Generation == 1 {
		// The last login came to nothing. Another may fare no better, and many
		// may lock the account.
		if m.signIn.failures > 0 {
			m.signIn.next = m.now.Add(signInBackoff(m.signIn.failures - 1))
		}
		m.signIn.failures++
	}
	m.changed()
	m.note(Note{Kind: NoteLost, Reason: reason, Err: detail, Signs: m.mayReturn()})
	m.answerWaiting(errors.New(detail))
}

// expire notices that the access token ended where that ends the session.
func (m *machine) expire() {
	if !m.usable() || !m.running || m.stage >= stageSending {
		return
	}
	if m.sched.known() && !m.expired() {
		m.wakeAt(m.sched.notAfter)
		return
	}
	in := m.rec.Intent
	uncertain := in != nil && in.Unknown && !in.Answered && !m.witnessed
	if uncertain && m.stage == stageIdle && (m.sched.known() || in.Retries >= maxBlind) {
		if _, again := m.nextUncertain(); !again {
			m.lose(ReasonTwoGenerals, "an exchange may have been committed, and nothing could show that it was not")
			return
		}
	}
	if m.sched.known() && m.profile.NeedsAccess && !m.profile.AcceptsExpired {
		m.stop("the access token ended first")
		if uncertain {
			m.lose(ReasonTwoGenerals, "an exchange may have been committed, and the access token ended before it could be tried again")
			return
		}
		m.lose(ReasonExpired, "the access token ended before an exchange succeeded, and the issuer wants a live one")
	}
}

// stop gives up an attempt that has sent nothing yet.
func (m *machine) stop(why string) {
	if m.stage == stageIdle || m.stage >= stageSending {
		return
	}
	if m.stage == stagePosting {
		m.withdraw(why)
		return
	}
	if m.stage > stagePreparing {
		m.emit(effDrop{conn: m.attempt.conn})
	}
	if m.stage == stageRecording {
		m.rec.Intent = m.attempt.prior
		m.changed()
	}
	m.over(Answer{Err: errors.New(why)})
}

// refreshNow exchanges at once because an operator says so.
func (m *machine) refreshNow(reply chan<- error) {
	var err error
	switch {
	case !m.usable():
		err = fmt.Errorf("%w: there is no usable pair", ErrNotNow)
	case !m.running || m.closing:
		err = fmt.Errorf("%w: no configuration is running", ErrNotNow)
	}
	if err != nil {
		m.reply(reply, err)
		return
	}
	m.waiting = with(m.waiting, reply)
	if m.stage == stageIdle {
		m.wanted = causeOperator
	}
}

// operate sees to it that an exchange that an operator asked for can be made. What
// another instance is getting at this moment is as good.
func (m *machine) operate() {
	switch {
	case m.wanted != causeOperator, m.stage != stageIdle:
	case m.rec.Intent == nil:
		if m.fleet.on && m.profile.RevokesPrevious && m.fleet.plan.IsZero() {
			m.announce()
		}
	case m.othersTry():
		m.wakeAt(m.quietAt)
	default:
		m.wanted = ""
		m.answerWaiting(fmt.Errorf("%w: the last one may have been committed, and its hold-off is not over", ErrNotNow))
	}
}

// logOut ends the session for good, in every instance, when the exchange under
// way is over: nothing of ours will use its tokens again.
func (m *machine) logOut(reply chan<- error) {
	m.ending = with(m.ending, reply)
	m.endSince = m.now
	m.stop("the session was ended")
	m.ask() // only whoever knows the newest pair can end it
}

// end is logOut's second half.
func (m *machine) end() {
	if len(m.ending) == 0 || m.stage != stageIdle || !m.opened {
		return
	}
	if f := &m.fleet; f.on {
		if f.failures > 0 {
			m.endAnswered(fmt.Errorf("%w: the store cannot be asked: %s", ErrNotNow, f.err))
			return
		}
		if f.asked.Boot < m.endSince.Boot || f.reading != "" {
			return
		}
		if by := m.endSince.Add(orDefault(m.profile.Timeout, defaultTimeout)); m.othersTry() && !m.reached(by) {
			m.wakeAt(by)
			return // another instance may be about to replace the pair
		}
	}
	if m.rec.Lost == ReasonLoggedOut {
		m.endStored()
		return
	}
	spent := m.rec.Spent
	if m.rec.hasPair() {
		spent = appendBounded(spent, maxSpent, m.hash(NewSecret(m.rec.Refresh)))
		m.emit(effEnded{m.rec.pair()})
	}
	m.rec = record{
		HashKey: m.key(), Epoch: m.rec.Epoch + 1, Source: m.rec.Source,
		Seeds: m.rec.Seeds, Spent: spent, History: m.rec.History,
		Announce: announcementsAfter(m.rec.Announce),
		Lost:     ReasonLoggedOut, Detail: "somebody ended the session; sign in again to start it anew",
	}
	m.renew()
	m.sched, m.shown = schedule{}, view{}
	m.changed()
	m.note(Note{Kind: NoteLost, Reason: m.rec.Lost, Err: m.rec.Detail})
	m.answerWaiting(errors.New(m.rec.Detail))
	m.endStored()
}

// endStored tells whoever asked for the end once nobody can miss it.
func (m *machine) endStored() {
	if !m.fleet.on || m.fleet.stored == m.rec.position() {
		m.endAnswered(nil)
	}
}

func (m *machine) endAnswered(err error) {
	for _, to := range m.ending {
		m.reply(to, err)
	}
	m.ending = nil
}
