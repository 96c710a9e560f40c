package caddymodule

import (
	"fmt"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// What the status page says about a session, in words for people who do not know
// the protocol.

// level is how much a state wants somebody's attention.
type level string

const (
	levelGood    level = "good"
	levelWaiting level = "waiting" // for something outside
	levelTrouble level = "trouble" // it is at work on it
	levelBad     level = "bad"     // requests suffer
)

var levelOrder = map[level]int{levelBad: 0, levelTrouble: 1, levelWaiting: 2, levelGood: 3}

func levelOf(p refresher.Phase) level {
	switch p {
	case refresher.PhaseFresh, refresher.PhaseExchanging:
		return levelGood
	case refresher.PhaseEmpty:
		return levelWaiting
	case refresher.PhaseLost, refresher.PhaseExpired:
		return levelBad
	}
	return levelTrouble
}

// wordsOf is a state in a few words.
func wordsOf(st refresher.Status, signsIn bool) string {
	switch st.State {
	case refresher.PhaseEmpty:
		return "no token yet"
	case refresher.PhaseBackoff:
		return "the last exchange failed"
	case refresher.PhaseDegraded:
		return "failing for long"
	case refresher.PhaseUncertain:
		return "outcome unknown"
	case refresher.PhaseHolding:
		return "held up"
	case refresher.PhaseLost:
		if signsIn {
			return "lost, signing in again"
		}
		return "lost: needs a login"
	}
	return string(st.State)
}

// commandsOf are the commands that would help.
func commandsOf(st refresher.Status, signsIn bool) []string {
	if signsIn || st.State != refresher.PhaseLost && st.State != refresher.PhaseEmpty {
		return nil
	}
	return []string{"caddy token-refresh login " + st.Name, "caddy token-refresh import " + st.Name}
}

// commandsFor are the commands that would help this session: only people whose
// issuer has a page for it can sign in, and import wants to be told of a file.
func (s *Session) commandsFor(st refresher.Status, signsIn bool) []string {
	list := commandsOf(st, signsIn)
	if len(list) == 0 {
		return nil
	}
	list[1] += " pair.json"
	if _, ok := s.issuer.(signsInPeople); !ok {
		list = list[1:]
	}
	return list
}

// adviceOn is adviceOf, for this session: a new pair can go where the first one
// came from.
func (s *Session) adviceOn(st refresher.Status, signsIn bool) string {
	advice := adviceOf(st, signsIn)
	for _, src := range s.sources {
		file, ok := src.(*FileSource)
		if pair, found := strings.CutSuffix(advice, newPair); found && ok && st.Reason != refresher.ReasonLoggedOut {
			return pair + "Put a new pair into the file " + file.path + ", or:"
		}
	}
	return advice
}

// adviceOf says what a state means and what to do now; empty where all is well.
func adviceOf(st refresher.Status, signsIn bool) string {
	switch st.State {
	case refresher.PhaseEmpty:
		if signsIn {
			return "It is signing in by itself. If that goes on failing, check the login's address, user name and password in the configuration."
		}
		return "No source has a token pair yet. " + newPair
	case refresher.PhaseLost:
		return lostAdvice(st, signsIn)
	case refresher.PhaseExpired:
		return "There is no live access token, so requests are answered 503. " + causeAdvice(st)
	case refresher.PhaseBackoff:
		return "The access token still lives and requests go on; the exchange is tried again by itself. " + causeAdvice(st)
	case refresher.PhaseDegraded:
		return "The access token still lives, but more than half of the time for replacing it is over. Act before it expires. " + causeAdvice(st)
	case refresher.PhaseUncertain:
		return "The issuer's answer to the last exchange is missing, so the refresh token may be spent. It is left alone until that is known. Requests go on with the access token, and one that succeeds after the hold-off settles it; if nobody calls before that token ends, a new login is needed."
	case refresher.PhaseHolding:
		return "The exchange waits for something around it: the disk under state_dir, the shared store, or a webhook that has to agree. Make that work again; the session then goes on by itself."
	}
	return ""
}

func lostAdvice(st refresher.Status, signsIn bool) string {
	why := map[refresher.Reason]string{
		refresher.ReasonTwoGenerals:   "An answer of the issuer was lost on its way, and with it the next token pair: nobody has it.",
		refresher.ReasonRejected:      "The issuer refused the refresh token, and nothing done here explains that: it was revoked or ran out there, or somebody else used it. If nobody meant to end it, take the tokens for stolen and end the login at the issuer, too.",
		refresher.ReasonExpired:       "The access token ended before an exchange succeeded, and this issuer wants a live one.",
		refresher.ReasonLoggedOut:     "Somebody ended this session here.",
		refresher.ReasonRevoked:       "The issuer told that it has revoked this session: somebody ended it there, or the user was deactivated.",
		refresher.ReasonUndecryptable: "The stored pair cannot be opened with the encryption keys in the configuration. Put back the key that it was sealed with.",
	}[st.Reason]
	if n := len(st.Rotations); st.Reason == refresher.ReasonExpired && n > 0 && st.Rotations[n-1].Error != "" {
		if last := st.Rotations[n-1].Error; brokenOff(last) {
			why += " The issuer was failing."
		} else {
			why += " The last attempt failed: " + last + "."
		}
	}
	switch {
	case st.Reason == refresher.ReasonUndecryptable:
		return why + " If it is gone for good, the session needs a new pair:"
	case signsIn:
		return why + " It is signing in again by itself. If that goes on failing, the last error says why: check the login's address, user name and password."
	}
	return strings.TrimSpace(why + " " + newPair)
}

// causeAdvice goes by what the last attempt came to.
func causeAdvice(st refresher.Status) string { return causeOf(st.LastOutcome, st.LastError) }

// brokenOff recognises a breaker's error, whose class is that of an exchange that
// was not sent.
func brokenOff(problem string) bool { return strings.Contains(problem, " is failing: next attempt ") }

func causeOf(outcome, problem string) string {
	if brokenOff(problem) {
		return "The issuer fails for several sessions, so it is left alone but for an exchange now and then: see whether it is down or overloaded."
	}
	switch outcome {
	case refresher.ClassNotSent.String():
		return "The issuer cannot be reached: check its address, the network, DNS and certificates."
	case refresher.ClassRedirect.String():
		return "The issuer answers with a redirect, which is not followed: put the final address into the configuration."
	case refresher.ClassConfig.String():
		return "The issuer refuses the call as it is made: check the issuer's address, headers and client credentials in the configuration."
	case refresher.ClassUnauthorized.String():
		return "The issuer does not accept the access token that the exchange carries."
	case refresher.ClassRetry.String(), refresher.ClassQuiet.String():
		return "The issuer answers that it cannot do it now: see whether it is down or overloaded."
	}
	return "See the last error."
}

const newPair = "Give it a new pair:" // and then the commands

// viewPool says how a pool is doing. A session or two that fail are nothing
// unusual in a large one; a twentieth is.
func viewPool(c refresher.PoolCounts, last poolLately) poolView {
	p := poolView{PoolCounts: c, Level: levelGood, Words: "ready"}
	failing := c.Sessions - c.States[refresher.PhaseFresh] - c.States[refresher.PhaseExchanging] - c.States[refresher.PhaseEmpty]
	switch {
	case c.Problem != "":
		p.Level, p.Words, p.Error = levelBad, "not ready", c.Problem
		return p
	case failing*20 > c.Sessions:
		p.Level, p.Words = levelTrouble, fmt.Sprintf("%s of %s in trouble", thousands(failing), thousands(c.Sessions))
		p.Advice = "Requests go on where the access token still lives, and the exchanges are tried again by themselves."
		if c.States[refresher.PhaseExpired]*2 > c.Sessions {
			p.Level, p.Advice = levelBad, "Most have no live access token, and their requests are answered 503."
		}
	case last.lost*20 > c.Sessions+last.lost:
		p.Level, p.Words = levelTrouble, thousands(last.lost)+" lost lately"
		p.Advice = "Their callers have to sign in again."
		if last.lost > c.Sessions {
			p.Level = levelBad
		}
	default:
		return p
	}
	if last.problem != "" {
		p.Error = last.problem
		p.Advice += " " + causeOf(last.outcome, last.problem)
	}
	return p
}

// summary is the page's first line, and what is less urgent.
type summary struct {
	Level level    `json:"level"`
	Text  string   `json:"text"`
	Also  []string `json:"also"`
}

// summarize says the worst of what is to be said, and of which sessions, and then
// the rest.
func summarize(sessions []sessionView, pools []poolView, store []storeTrouble) summary {
	var needLogin, dead, notReady, poolsFail, failing, without, empty []string
	for _, s := range sessions {
		switch {
		case s.State == refresher.PhaseLost && !s.SignsIn:
			needLogin = append(needLogin, s.Name)
		case s.Level == levelBad:
			dead = append(dead, s.Name)
		case s.Level == levelTrouble:
			failing = append(failing, s.Name)
		case s.Level == levelWaiting:
			empty = append(empty, s.Name)
		}
	}
	pooled := 0
	for _, p := range pools {
		pooled += p.Sessions
		switch {
		case p.Problem != "":
			notReady = append(notReady, p.Pool)
		case p.Level == levelBad:
			poolsFail = append(poolsFail, p.Pool)
		case p.Level == levelTrouble:
			failing = append(failing, "pool "+p.Pool)
		}
	}
	for _, t := range store {
		without = append(without, t.Session)
	}
	var parts []string
	worst := levelGood
	say := func(l level, names []string, one, more string) {
		if len(names) == 0 {
			return
		}
		if levelOrder[l] < levelOrder[worst] {
			worst = l
		}
		verb := more
		if len(names) == 1 {
			verb = one
		}
		parts = append(parts, fmt.Sprintf("%s %s: %s", thousands(len(names)), verb, names3(names)))
	}
	say(levelBad, needLogin, "needs a login", "need a login")
	say(levelBad, dead, "has no live token", "have no live token")
	say(levelBad, notReady, "pool is not ready", "pools are not ready")
	say(levelBad, poolsFail, "pool fails", "pools fail")
	say(levelTrouble, failing, "is in trouble", "are in trouble")
	say(levelTrouble, without, "cannot use the shared store", "cannot use the shared store")
	say(levelWaiting, empty, "waits for its first pair", "wait for their first pair")
	if len(parts) == 0 {
		switch {
		case len(sessions) == 1:
			parts = append(parts, "the session is fresh")
		case len(sessions) > 0:
			parts = append(parts, fmt.Sprintf("all %s sessions fresh", thousands(len(sessions))))
		case len(pools) == 0:
			parts = append(parts, "no sessions are configured")
			worst = levelWaiting
		}
	}
	if len(pools) > 0 {
		where := fmt.Sprintf("%d pools", len(pools))
		if len(pools) == 1 {
			where = "pool " + pools[0].Pool
		}
		noun := "sessions"
		if pooled == 1 {
			noun = "session"
		}
		parts = append(parts, fmt.Sprintf("%s %s in %s", thousands(pooled), noun, where))
	}
	return summary{Level: worst, Text: parts[0], Also: parts[1:]}
}

// names3 lists names, but not endlessly.
func names3(names []string) string {
	switch n := len(names); {
	case n == 1:
		return names[0]
	case n <= 3:
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	default:
		return fmt.Sprintf("%s and %s more", strings.Join(names[:3], ", "), thousands(n-3))
	}
}

func thousands(n int) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
