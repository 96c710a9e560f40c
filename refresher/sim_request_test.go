package refresher

import "time"

// simRequest is one caller's request on its way through the handler.
type simRequest struct {
	w          *world
	s          *simSidecar
	repeatable bool
	check      time.Duration // from passing the gate to the upstream's check
	head       time.Duration // from there to its answer

	began   time.Duration
	life    int // of the process that has it
	again   bool
	refused Instant // when the 401 came
	waits   bool
	counted uint64
	snap    *snapshot
	token   string
}

// arrive is a caller's request.
func (w *world) arrive() {
	s := w.sidecars[w.rng.IntN(len(w.sidecars))]
	r := &simRequest{
		w: w, s: s, repeatable: w.rng.IntN(4) != 0, began: w.now.Boot, life: s.life,
		check: w.between(0, 30*time.Millisecond), head: w.between(0, 30*time.Millisecond),
	}
	if w.faults.slowRequests && r.repeatable {
		r.check = w.between(0, 500*time.Millisecond)
	}
	if !s.up {
		return
	}
	w.requests++
	r.enter()
}

func (r *simRequest) gone() bool { return !r.s.up || r.s.life != r.life }

// enter is Session.Enter.
func (r *simRequest) enter() {
	s := r.s
	if r.gone() {
		return
	}
	snap := s.snap
	passed := snap.mode == modeReady
	r.counted = 0
	if one := uint64(oneOther); passed {
		if r.repeatable && !r.again {
			one = oneRepeatable
		}
		if passed = snap.enter(one); passed {
			r.counted = one
		}
	}
	if !passed {
		r.wait(snap)
		return
	}
	r.snap, r.token = snap, s.token
	s.later(r.check, r.checked)
}

func (r *simRequest) wait(snap *snapshot) {
	w, s := r.w, r.s
	switch {
	case snap.mode == modeLost, snap.mode == modeEmpty, snap.mode == modeLater,
		w.now.Boot-r.began > snap.wait:
		r.fails("503")
		return
	}
	s.waiting = append(s.waiting, r)
	if !r.waits {
		r.waits = true
		s.later(snap.wait, func() {
			for i := range s.waiting {
				if s.waiting[i] == r {
					s.waiting = append(s.waiting[:i:i], s.waiting[i+1:]...)
					r.fails("503 after waiting")
					return
				}
			}
		})
	}
}

// checked is the upstream's check of the token.
func (r *simRequest) checked() {
	accepted := r.w.issuer.accepts(r.token)
	r.s.later(r.head, func() { r.answered(accepted) })
}

func (r *simRequest) answered(accepted bool) {
	w, s := r.w, r.s
	if r.counted != 0 {
		r.snap.leave(r.counted)
		r.counted = 0
	}
	if accepted {
		w.ok++
		if r.again {
			w.replayed++
		}
		if r.snap.watch {
			s.step(evAccepted{epoch: r.snap.epoch, generation: r.snap.generation})
		}
		return
	}
	if !r.repeatable || r.again || w.mut.noReplay {
		s.step(evUnauthorized{epoch: r.snap.epoch, generation: r.snap.generation, route: "GET /", again: r.again})
		r.fails("401")
		return
	}
	r.refused = s.clock()
	r.ask()
}

// ask is Session.Unauthorized.
func (r *simRequest) ask() {
	w, s := r.w, r.s
	if r.gone() {
		return
	}
	snap := s.snap
	v := verdictAgain
	if snap.mode == modeReady && snap.epoch == r.snap.epoch && snap.generation == r.snap.generation {
		reply := make(chan verdict, 1)
		s.step(evUnauthorized{epoch: r.snap.epoch, generation: r.snap.generation, at: r.refused, route: "GET /", reply: reply})
		v = <-reply
	}
	switch v {
	case verdictAgain:
		r.again, r.waits, r.began = true, false, w.now.Boot
		r.enter()
	case verdictLag:
		s.later(250*time.Millisecond, func() {
			r.again, r.waits, r.began = true, false, w.now.Boot
			r.enter()
		})
	case verdictPass:
		r.fails("401")
	case verdictWait:
		if w.now.Boot-r.began > 20*time.Second {
			r.fails("401 after waiting")
			return
		}
		next := snap.next.happened()
		var poll func()
		poll = func() {
			select {
			case <-next:
				r.ask()
			default:
				s.later(time.Millisecond, poll)
			}
		}
		s.later(time.Millisecond, poll)
	}
}

// fails is an answer that the caller would not have got without us. It is a
// violation where nothing has gone wrong.
func (r *simRequest) fails(what string) {
	w := r.w
	w.note("request: %s (generation %d)", what, func() uint64 {
		if r.snap == nil {
			return 0
		}
		return r.snap.generation
	}())
	if w.faults == (faults{slowRequests: w.faults.slowRequests}) && r.s.state.rec.hasPair() {
		w.fail("a request got %s although nothing had gone wrong", what)
	}
}
