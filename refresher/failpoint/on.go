//go:build failpoint && unix

// Package failpoint ends or delays the process at chosen points of a rotation;
// see off.go for what they are.
package failpoint

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const variable = "TOKEN_REFRESH_FAILPOINT"

// soon is how long the point of [Soon] is in coming: a request has been written
// by then.
const soon = 20 * time.Millisecond

// rule is what happens at a point.
type rule struct {
	act     func()
	text    string
	nth     int64 // 0: each time
	chance  float64
	reached atomic.Int64
}

var rules = mustParse(os.Getenv(variable))

// Reach says that a point is reached.
func Reach(point string) {
	if r := rules[point]; r != nil {
		r.reach()
	}
}

// Soon says that a point is about to be reached by what follows.
func Soon(point string) {
	if r := rules[point]; r != nil {
		time.AfterFunc(soon, r.reach)
	}
}

func (r *rule) reach() {
	if n := r.reached.Add(1); r.nth > 0 && n != r.nth || rand.Float64() >= r.chance {
		return
	}
	fmt.Fprintf(os.Stderr, "failpoint %s\n", r.text)
	r.act()
}

func mustParse(text string) map[string]*rule {
	parsed, err := parse(text)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", variable, err)
		os.Exit(2)
	}
	return parsed
}

func parse(text string) (map[string]*rule, error) {
	all := map[string]*rule{}
	if text == "" {
		return all, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		point, rest, _ := strings.Cut(part, ":")
		r := &rule{text: part, chance: 1}
		var err error
		if head, tail, ok := strings.Cut(rest, "%"); ok {
			rest = head
			r.chance, err = strconv.ParseFloat(tail, 64)
		} else if head, tail, ok := strings.Cut(rest, "@"); ok {
			rest = head
			r.nth, err = strconv.ParseInt(tail, 10, 64)
		}
		action, arg, _ := strings.Cut(rest, ":")
		var d time.Duration
		if action == "sleep" && err == nil {
			d, err = time.ParseDuration(arg)
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", part, err)
		}
		switch action {
		case "kill":
			r.act = func() { signal(syscall.SIGKILL); select {} }
		case "stop":
			r.act = func() { signal(syscall.SIGSTOP) }
		case "sleep":
			r.act = func() { time.Sleep(d) }
		default:
			return nil, fmt.Errorf("%q: no such action", part)
		}
		all[point] = r
	}
	return all, nil
}

// signal sends this process a signal that it cannot catch. With SIGSTOP its
// threads go on for a moment.
func signal(s syscall.Signal) {
	_ = syscall.Kill(syscall.Getpid(), s)
	if s == syscall.SIGSTOP {
		time.Sleep(time.Millisecond)
	}
}
