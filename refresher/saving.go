package refresher

import "time"

// save keeps the journal up with the record: one write at a time, the newest
// version next.
func (m *machine) save() {
	if m.version == m.saved || m.writing || !m.opened || m.rec.Lost == ReasonUndecryptable {
		return
	}
	if !m.saveRetry.IsZero() && !m.reached(m.saveRetry) {
		m.wakeAt(m.saveRetry)
		return
	}
	m.writing = true
	m.recall()
	m.emit(effSave{version: m.version, rec: m.rec, sparse: m.sparse, rest: m.stage == stageIdle || m.stage == stageCommitting})
}

// settled reports whether nothing is under way and all is written.
func (m *machine) settled() bool {
	f := &m.fleet
	return m.stage == stageIdle && m.version == m.saved && !(f.on && f.opened && f.stored.before(m.rec.position()))
}

// changed marks the record as newer than the journal.
func (m *machine) changed() { m.version++ }

// changedNow is changed for what an exchange waits for: it is written at once.
func (m *machine) changedNow() {
	m.changed()
	m.saveRetry = Instant{}
	m.attempt.saving = m.version
}

func (m *machine) wasSaved(ev evSaved) {
	m.writing = false
	if ev.err != nil {
		if m.saveErr == "" {
			m.note(Note{Kind: NoteJournalFailed, Err: ev.err.Error()})
		}
		m.saveErr = ev.err.Error()
		m.saveRetry = m.now.Add(m.sched.scaled(time.Second))
	} else {
		m.saveErr, m.saveRetry = "", Instant{}
		m.saved = ev.version
	}
	switch m.stage {
	case stageRecording:
		m.recorded()
	case stageCommitting:
		if m.saved >= m.attempt.saving || ev.err != nil {
			m.committed()
		}
	}
}
