package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
	redisstore "github.com/tokenrefresh/caddy-token-refresh/refresher/store/redis"
)

// The benchmark of many sessions: BENCH_SESSIONS of them (10,000) in one
// instance, on one Redis, each with an access token of fleetLife. They rotate for
// BENCH_HISTORY (a minute) before what they do is measured.
const fleetLife = 60 * time.Second

// benchFleet runs Redis, the issuer and the instance, each a process of its own.
func benchFleet() error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	redis := freeAddress()
	server := exec.Command("redis-server", "--port", redis[strings.LastIndexByte(redis, ':')+1:], "--dir", dir, "--appendonly", "yes", "--save", "")
	if err := server.Start(); err != nil {
		return fmt.Errorf("this benchmark needs redis-server: %w", err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	address := freeAddress()
	_, stopIssuer, err := child("issuer", address)
	if err != nil {
		return err
	}
	defer stopIssuer()
	sessions := os.Getenv("BENCH_SESSIONS")
	if sessions == "" {
		sessions = "10000"
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, sessions, address, redis, dir)
	cmd.Env = append(os.Environ(), roleVariable+"=instance")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// serveIssuer exchanges any pair: a session's tokens are its name and a number.
func serveIssuer(address string) {
	err := http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			RefreshToken string `json:"refreshToken"`
		}
		if json.NewDecoder(r.Body).Decode(&in) != nil {
			http.Error(w, "", http.StatusBadRequest)
			return
		}
		name, number, _ := strings.Cut(in.RefreshToken, "/")
		n, _ := strconv.Atoi(number)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"accessToken": fmt.Sprintf("%s/%d", name, n+1), "refreshToken": fmt.Sprintf("%s/%d", name, n+1), "expires_in": int(fleetLife.Seconds()),
		})
	}))
	fmt.Fprintln(os.Stderr, err)
}

// firstPair is a source of a session's first pair.
type firstPair string

func (p firstPair) String() string { return "bench" }
func (p firstPair) SignsIn() bool  { return false }
func (p firstPair) Fetch(context.Context) (refresher.Pair, error) {
	return refresher.Pair{
		Access: refresher.NewSecret(string(p) + "/1"), Refresh: refresher.NewSecret(string(p) + "/1"), ExpiresIn: fleetLife,
	}, nil
}

// tally is what the sessions tell.
type tally struct {
	mu       sync.Mutex
	rotated  int
	whole    []time.Duration
	failures map[string]int
}

func (t *tally) observe(n refresher.Note) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch n.Kind {
	case refresher.NoteRotated:
		t.rotated++
		t.whole = append(t.whole, n.Whole)
	case refresher.NoteExchangeFailed, refresher.NoteUncertain, refresher.NoteLost, refresher.NoteStoreFailed:
		t.failures[fmt.Sprint(n.Kind, ": ", n.Err)]++
	}
}

// runInstance is the instance: it says what the sessions cost and what they do.
func runInstance(args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	keys, err := journal.NewKeyring(key)
	if err != nil {
		return err
	}
	bearer, err := issuer.NewBearer(issuer.BearerConfig{URL: "http://" + args[1] + "/", Profile: refresher.Profile{RevokesPrevious: true}})
	if err != nil {
		return err
	}
	store, err := redisstore.Open(redisstore.Config{URL: "redis://" + args[2]})
	if err != nil {
		return err
	}
	defer store.Close()
	told := tally{failures: map[string]int{}}
	before := used()
	sessions := make([]*refresher.Session, count)
	detach := make([]func(), count)
	for i := range sessions {
		name := fmt.Sprintf("bench-%05d", i)
		sessions[i] = refresher.New(name, refresher.Options{Dir: args[3]})
		if detach[i], err = sessions[i].Attach(refresher.Config{
			Issuer: bearer, Sources: []refresher.Source{firstPair(name)}, Keys: keys, Store: store, Observe: told.observe,
		}); err != nil {
			return err
		}
		if i%100 == 99 { // nobody starts ten thousand at once
			<-time.After(150 * time.Millisecond)
		}
	}
	fmt.Printf("%d sessions: %.2f KiB each\n", count, float64(used()-before)/1024/float64(count))
	history := fleetLife
	if text := os.Getenv("BENCH_HISTORY"); text != "" {
		if history, err = time.ParseDuration(text); err != nil {
			return err
		}
	}
	<-time.After(history)
	told.mu.Lock()
	earlier := told.rotated
	told.rotated, told.whole, told.failures = 0, nil, map[string]int{}
	told.mu.Unlock()
	const span = 60 * time.Second
	<-time.After(span)
	told.mu.Lock()
	rotated, whole, failures := told.rotated, told.whole, told.failures
	told.whole = nil
	told.mu.Unlock()
	if len(whole) == 0 {
		return errors.New("nothing was rotated")
	}
	slices.Sort(whole)
	fmt.Printf("%d rotations in %v: %.0f a second, from beginning to end p50 %v, p99 %v, worst %v; failures: %v\n",
		rotated, span, float64(rotated)/span.Seconds(),
		whole[len(whole)/2].Round(time.Millisecond), whole[len(whole)*99/100].Round(time.Millisecond),
		whole[len(whole)-1].Round(time.Millisecond), failures)
	whole = nil
	for i, stop := range detach { // what is under way is no session's own
		if stop(); i%20 == 19 {
			<-time.After(10 * time.Millisecond) // nor what ten thousand need at once
		}
	}
	<-time.After(5 * time.Second)
	fmt.Printf("%.2f KiB a session after %.1f rotations each\n",
		float64(used()-before)/1024/float64(count), float64(earlier+rotated)/float64(count))
	if path := os.Getenv("BENCH_HEAP"); path != "" {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		runtime.GC()
		if err := pprof.Lookup("heap").WriteTo(f, 0); err != nil {
			return err
		}
	}
	return nil
}

// used is the memory of the heap and of goroutines' stacks, after a collection.
func used() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}
