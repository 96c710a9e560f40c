package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// benchRotation measures what rotations add to requests, with an issuer that
// takes 100 ms.
func benchRotation() error {
	const (
		exchange = 100 * time.Millisecond
		run      = 40 * time.Second
		clients  = 16
	)
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	box, api, session, stopIssuer := issue(sandbox.Config{AccessLifetime: 3 * time.Second})
	defer stopIssuer()
	box.SetFault(sandbox.Fault{Commit: true, DelayBefore: exchange / 2, DelayAfter: exchange / 2})
	s := site{address: freeAddress(), before: "token_refresh bench"}
	_, stop, err := startCaddy(dir, "\ttoken_refresh {\n\t\tstate_dir "+dir+"/state\n"+session+"\n\t}", s.caddyfile(api), s.address)
	if err != nil {
		return err
	}
	defer stop()

	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	var (
		mu     sync.Mutex
		took   []time.Duration
		failed int
		wg     sync.WaitGroup
	)
	before := box.Stats()
	end := time.Now().Add(run)
	for range clients {
		wg.Go(func() {
			for time.Now().Before(end) {
				began := time.Now()
				resp, err := client.Get("http://" + s.address + "/whoami")
				d := time.Since(began)
				ok := err == nil && resp.StatusCode == http.StatusOK
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				mu.Lock()
				took = append(took, d)
				if !ok {
					failed++
				}
				mu.Unlock()
				<-time.After(2 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	usual := took[len(took)/2]
	at := func(q float64) time.Duration { return took[min(len(took)-1, int(q*float64(len(took))))] - usual }
	after := box.Stats()
	fmt.Printf("%d requests over %d rotations of %v, %d failed, %d sent again\n",
		len(took), after.Exchanges-before.Exchanges, exchange, failed, after.StaleAccess-before.StaleAccess)
	fmt.Printf("added over the median of %v: p99 %v, p99.9 %v, worst %v\n", usual, at(.99), at(.999), at(1))
	if failed > 0 {
		return errors.New("requests failed")
	}
	return nil
}
