package refresher

import (
	"time"

	"go.uber.org/zap"
)

// Status is what is known of a session at one moment, without secrets.
type Status struct {
	Name        string        `json:"name"`
	Pool        string        `json:"pool"`
	State       Phase         `json:"state"`
	Reason      Reason        `json:"reason"`
	Epoch       uint64        `json:"epoch"`
	Generation  uint64        `json:"generation"`
	Source      string        `json:"source,omitempty"`
	ReceivedAt  time.Time     `json:"received_at,omitzero"`
	ExpiresAt   time.Time     `json:"expires_at,omitzero"`
	RefreshAt   time.Time     `json:"refresh_at,omitzero"`
	NextAttempt time.Time     `json:"next_attempt,omitzero"` // after a failure
	HoldOff     time.Duration `json:"-"`
	HoldOffText string        `json:"hold_off,omitempty"`
	LastError   string        `json:"last_error"`
	LastOutcome string        `json:"last_outcome,omitempty"` // of the exchange that failed: a [Class]
	Fingerprint string        `json:"fingerprint"`            // of the access token
	Waiting     int           `json:"waiting"`                // requests at the gate
	IntentOpen  bool          `json:"intent_open"`            // an exchange that may have been committed
	Rotations   []Rotation    `json:"rotations,omitempty"`    // newest last
}

// Status returns the session's state of this moment.
func (s *Session) Status() Status {
	var known state
	s.known.Load().unpack(&known, s.environment())
	st := known.status(s.clock.Now())
	st.Name, st.Waiting = s.name, int(s.waiting.Load())
	return st
}

func (s *state) status(now Instant) Status {
	m := machine{state: *s, now: now}
	st := Status{
		State: m.phase(), Reason: s.rec.Lost,
		Epoch: s.rec.Epoch, Generation: s.rec.Generation, Source: s.rec.Source,
		ExpiresAt: s.sched.notAfter.Wall, RefreshAt: s.sched.refreshAt.Wall,
		HoldOff:    s.sched.holdOff,
		LastError:  s.lastErr,
		IntentOpen: s.rec.Intent != nil,
		Rotations:  s.rec.History,
	}
	if s.lastErr != "" && s.lastClass != 0 {
		st.LastOutcome = s.lastClass.String()
	}
	if s.rec.hasPair() {
		st.Fingerprint = NewSecret(s.rec.Access).Fingerprint()
		st.HoldOffText = s.sched.holdOff.String()
		st.ReceivedAt = s.received.Wall
	}
	if m.stage == stageIdle && m.usable() && m.failures > 0 {
		if at, _, ok := m.nextAttempt(); ok {
			st.NextAttempt = at.Wall
		}
	}
	switch {
	case s.rec.Lost != "":
		st.LastError = s.rec.Detail
		if s.signIn.lastErr != "" {
			st.LastError += "; " + s.signIn.lastErr
		}
	case !s.rec.hasPair() && s.signIn.lastErr != "":
		st.LastError = s.signIn.lastErr
	case st.LastError == "" && s.saveErr != "":
		st.LastError = s.saveErr
	case st.LastError == "" && s.telling.err != "":
		st.LastError = s.telling.err
	case st.LastError == "" && m.holding():
		st.LastError = "the new pair waits until a webhook has taken its event"
	case st.LastError == "" && s.fleet.err != "":
		st.LastError = s.fleet.err
	case st.LastError == "" && s.fleet.bad != "":
		st.LastError = s.fleet.said
	}
	return st
}

// describe adds what is known of the session at this moment.
func (a *actor) describe(n *Note) {
	n.Session = a.session.name
	if o := a.session.pooled; o != nil {
		n.Pool = o.pool.name
	}
	rec := &a.state.rec
	if !rec.hasPair() {
		return
	}
	n.Fingerprint = NewSecret(rec.Access).Fingerprint()
	n.ExpiresAt = a.state.sched.notAfter.Wall
	if life := a.state.profile.RefreshLifetime; life > 0 {
		n.RefreshEnds = a.state.received.Add(life).Wall
	}
}

// tell passes a note on to the log and the observer.
func (a *actor) tell(n Note) {
	if a.config == nil {
		return
	}
	a.describe(&n)
	log := a.config.Logger
	fields := []zap.Field{
		zap.String("session", a.session.name),
		zap.Uint64("epoch", n.Epoch),
		zap.Uint64("generation", n.Generation),
	}
	if n.Class != 0 {
		fields = append(fields, zap.Stringer("outcome", n.Class))
	}
	if n.Status != 0 {
		fields = append(fields, zap.Int("status", n.Status))
	}
	if n.Reason != "" {
		fields = append(fields, zap.String("reason", string(n.Reason)))
	}
	if n.Took != 0 {
		fields = append(fields, zap.Duration("took", n.Took))
	}
	if !n.Next.IsZero() {
		fields = append(fields, zap.Time("next", n.Next))
	}
	if n.Err != "" {
		fields = append(fields, zap.String("error", n.Err))
	}
	switch n.Kind {
	case NoteRotated:
		log.Info("token pair rotated", append(fields, zap.String("cause", n.Cause))...)
	case NoteStarted, NoteReauthenticated:
		log.Info("session started with a new token pair", append(fields, zap.String("source", n.Source))...)
	case NoteLost:
		if n.Signs {
			log.Warn("session lost: signing in again", fields...)
			break
		}
		log.Error("session lost: a new login is needed", fields...)
	case NoteExchangeFailed:
		log.Warn("exchange failed", fields...)
	case NoteUncertain:
		log.Warn("the outcome of an exchange is unknown; holding off", fields...)
	case NoteSignInFailed:
		log.Error("signing in failed (retrying)", fields...)
	case NoteSourceFailed:
		log.Error("reading a token source failed (continuing)", fields...)
	case NoteJoined:
		log.Info("another instance has rotated", fields...)
	case NoteStoreBack:
		log.Info("the shared store answers again", fields...)
	case NoteStoreFailed:
		log.Error("the shared store cannot be used (retrying)", fields...)
	case NoteStoreRegressed:
		log.Error("the shared store has lost what it held", fields...)
	case NoteClockSpread:
		log.Warn("another instance's clock differs from this one's; keep them within 500 ms", zap.String("session", a.session.name), zap.Duration("ahead", n.Took))
	case NoteForked:
		log.Error("the shared store holds another line of pairs", fields...)
	case NoteJournalFailed:
		log.Error("writing the journal failed (retrying)", fields...)
	case NoteRefreshExpiring:
		log.Error("the refresh token is about to end: without an exchange a new login will be needed", fields...)
	case NoteNoExpiry:
		log.Error("the exchange cannot be scheduled", fields...)
	default:
		log.Warn(string(n.Kind), fields...)
	}
	if a.config.Observe != nil {
		a.config.Observe(n)
	}
	if a.session.pooled != nil {
		a.session.pooled.observe(a.session, n)
	}
}
