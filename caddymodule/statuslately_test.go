package caddymodule

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// Each case is a story of words: what happened (a: or a pool's p:1), a second
// after the other; +11m passes.
func TestWhatHappensAgainAndAgainIsOneEvent(t *testing.T) {
	for _, test := range []struct{ story, want string }{
		{"a:rotated a:rotated a:rotated", "a rotated 3"},
		{"a:rotated b:rotated a:rotated b:rotated", "b rotated 2, a rotated 2"},
		{"a:rotated a:failed a:failed a:rotated", "a rotated, a failed 2, a rotated"},
		{"a:rotated +11m a:rotated", "a rotated, a rotated"},
		{"a:failed +9m a:failed +9m a:failed", "a failed 3"},
		{"a:failed/retry a:failed/not_sent", "a failed, a failed"},
		{"p:1:rotated p:2:rotated a:rotated", "a rotated"},
		{"p:1:failed p:2:failed p:1:lost p:3:failed p:2:lost", "p lost 2, p failed 3"},
		{"p:1:failed a:rotated p:2:failed", "p failed 2, a rotated"},
	} {
		var l lately
		at := time.Now()
		for i, word := range strings.Fields(test.story) {
			if d, err := time.ParseDuration(word); err == nil {
				at = at.Add(d)
				continue
			}
			at = at.Add(time.Second)
			word, outcome, _ := strings.Cut(word, "/")
			cut := strings.LastIndex(word, ":")
			session, name := word[:cut], word[cut+1:]
			pool, _, pooled := strings.Cut(session, ":")
			if !pooled {
				pool = ""
			}
			l.add(happening{name: name, at: at, data: map[string]any{"session": session, "pool": pool, "outcome": outcome}}, uint64(i))
		}
		var got []string
		for _, r := range slices.Backward(l) {
			of, _ := r.of()
			text := of + " " + r.name
			if r.count > 1 {
				text += fmt.Sprintf(" %d", r.count)
			}
			got = append(got, text)
		}
		ruleEqual(t, test.story, strings.Join(got, ", "), test.want)
	}
	var l lately
	for i := range 3 * maxLately {
		l.add(happening{name: eventLost, at: time.Now(), data: map[string]any{"session": fmt.Sprint(i), "pool": ""}}, uint64(i))
	}
	if len(l) != maxLately || l[maxLately-1].number != 3*maxLately-1 {
		t.Errorf("%d entries, the last is %d", len(l), l[len(l)-1].number)
	}
}

func TestAPoolIsAsWellAsMostOfItsSessions(t *testing.T) {
	counts := func(fresh, backoff, expired int) refresher.PoolCounts {
		return refresher.PoolCounts{Sessions: fresh + backoff + expired, States: map[refresher.Phase]int{
			refresher.PhaseFresh: fresh, refresher.PhaseBackoff: backoff, refresher.PhaseExpired: expired,
		}}
	}
	for _, test := range []struct {
		counts refresher.PoolCounts
		last   poolLately
		level  level
		words  string
		advice string
	}{
		{counts(9, 0, 0), poolLately{}, levelGood, "ready", ""},
		{counts(0, 0, 0), poolLately{}, levelGood, "ready", ""},
		{counts(1000, 3, 0), poolLately{outcome: "retry", problem: "answered 503"}, levelGood, "ready", ""},
		{counts(8, 1, 0), poolLately{outcome: "not_sent", problem: "connect"}, levelTrouble, "1 of 9 in trouble", "cannot be reached"},
		{counts(500, 0, 1500), poolLately{}, levelBad, "1,500 of 2,000 in trouble", "answered 503"},
		{counts(100, 0, 0), poolLately{lost: 2}, levelGood, "ready", ""},
		{counts(100, 0, 0), poolLately{lost: 20}, levelTrouble, "20 lost lately", "sign in again"},
		{counts(0, 0, 0), poolLately{lost: 9, outcome: "not_sent", problem: "connect"}, levelBad, "9 lost lately", "cannot be reached"},
		{refresher.PoolCounts{Problem: "no"}, poolLately{}, levelBad, "not ready", ""},
	} {
		p := viewPool(test.counts, test.last)
		if p.Level != test.level || p.Words != test.words || !strings.Contains(p.Advice, test.advice) || test.advice == "" && p.Advice != "" {
			t.Errorf("%v %+v: %s %q %q", test.counts.States, test.last, p.Level, p.Words, p.Advice)
		}
	}
}

// Only what this session can do is proposed.
func TestTheRemedyFitsTheSession(t *testing.T) {
	file, login := &FileSource{path: "/run/pair.json"}, &LoginSource{}
	lost := refresher.Status{Name: "s", State: refresher.PhaseLost, Reason: refresher.ReasonRejected}
	ended := lost
	ended.Reason = refresher.ReasonLoggedOut
	for _, test := range []struct {
		name     string
		session  Session
		st       refresher.Status
		advice   string
		commands string
	}{
		{"an issuer without a page to sign in at", Session{Rotation: Rotation{issuer: new(BearerIssuer)}}, lost, newPair, "caddy token-refresh import s pair.json"},
		{"one with", Session{Rotation: Rotation{issuer: new(OAuth2Issuer)}}, lost, newPair, "caddy token-refresh login s, caddy token-refresh import s pair.json"},
		{"a file", Session{Rotation: Rotation{issuer: new(BearerIssuer)}, sources: []refresher.Source{file}}, lost, "Put a new pair into the file /run/pair.json, or:", "caddy token-refresh import s pair.json"},
		{"a file of one that was ended", Session{Rotation: Rotation{issuer: new(BearerIssuer)}, sources: []refresher.Source{file}}, ended, newPair, "caddy token-refresh import s pair.json"},
		{"one that signs in", Session{Rotation: Rotation{issuer: new(BearerIssuer)}, sources: []refresher.Source{file, login}}, lost, "check the login's address, user name and password.", ""},
	} {
		signsIn := slices.ContainsFunc(test.session.sources, refresher.Source.SignsIn)
		if got := test.session.adviceOn(test.st, signsIn); !strings.HasSuffix(got, test.advice) {
			t.Errorf("%s: %s", test.name, got)
		}
		ruleEqual(t, test.name, strings.Join(test.session.commandsFor(test.st, signsIn), ", "), test.commands)
	}
}

// Why the exchanges failed is not forgotten when the session is lost of it, and a
// breaker's refusal is not taken for an issuer that cannot be reached.
func TestTheCauseIsTheIssuersNotTheBreakers(t *testing.T) {
	b := &breaker{host: "h", pause: time.Minute, until: time.Now().Add(time.Minute), now: time.Now}
	_, err := b.admit("s", false)
	if err == nil {
		t.Fatal("the breaker is closed")
	}
	if got := causeOf(refresher.ClassNotSent.String(), err.Error()); !strings.Contains(got, "left alone") {
		t.Errorf("%v: %s", err, got)
	}
	st := refresher.Status{State: refresher.PhaseLost, Reason: refresher.ReasonExpired, Rotations: []refresher.Rotation{{Error: "connect to h: refused"}}}
	if got := adviceOf(st, false); !strings.Contains(got, "The last attempt failed: connect to h: refused.") {
		t.Errorf("advice: %s", got)
	}
	st.Rotations[0].Error = err.Error()
	if got := adviceOf(st, false); strings.Contains(got, "next attempt") || !strings.Contains(got, "The issuer was failing.") {
		t.Errorf("advice: %s", got)
	}
}
