package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

const (
	rounds      = 10
	roundTime   = 3 * time.Second // of each site in each round
	parts       = 12
	connections = 32
)

// benchProxy compares the CPU that a proxied request costs, round by round.
func benchProxy() error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	upstream := freeAddress()
	_, stopUpstream, err := child("upstream", upstream)
	if err != nil {
		return err
	}
	defer stopUpstream()
	box, _, session, stopIssuer := issue(sandbox.Config{AccessLifetime: time.Hour})
	defer stopIssuer()
	token, _ := box.Login()

	sites := []site{{name: "plain"}, {name: "static header", proxy: "header_up Authorization \"Bearer " + token + "\""}, {name: "token_refresh", before: "token_refresh bench"}}
	text := ""
	for i := range sites {
		sites[i].address = freeAddress()
		text += sites[i].caddyfile(upstream)
	}
	cmd, stop, err := startCaddy(dir, "\ttoken_refresh {\n\t\tstate_dir "+dir+"/state\n"+session+"\n\t}", text, sites[2].address)
	if err != nil {
		return err
	}
	defer stop()

	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}}
	for i := range sites { // warm-up
		if _, err := load(client, sites[i].address, time.Second); err != nil {
			return err
		}
	}
	for range rounds {
		if err := round(client, sites, cmd.Process.Pid); err != nil {
			return err
		}
	}
	fmt.Printf("%d rounds of %v, %d connections\n", rounds, roundTime, connections)
	fmt.Printf("%-14s %14s %14s\n", "", "CPU/request", "requests/s")
	for _, s := range sites {
		fmt.Printf("%-14s %11.1f µs %14.0f\n", s.name, median(s.cpu), median(s.rate))
	}
	for _, base := range sites[:2] {
		fmt.Printf("token_refresh over %s:\n", base.name)
		print := func(what string, a, b []float64) {
			r := ratios(a, b)
			fmt.Printf("  %-12s median %.3f, spread %.3f to %.3f\n", what, median(r), slices.Min(r), slices.Max(r))
		}
		print("CPU/request", sites[2].cpu, base.cpu)
		print("requests/s", sites[2].rate, base.rate)
	}
	return nil
}

// round measures each site once. The machine's speed drifts, so a site's time is
// made of short slices in changing order.
func round(client *http.Client, sites []site, pid int) error {
	cpu := make([]time.Duration, len(sites))
	count := make([]int64, len(sites))
	for k := range parts {
		for j := range sites {
			i := (j + k) % len(sites)
			before, err := cpuTime(pid)
			if err != nil {
				return err
			}
			n, err := load(client, sites[i].address, roundTime/parts)
			if err != nil {
				return err
			}
			after, err := cpuTime(pid)
			if err != nil {
				return err
			}
			cpu[i] += after - before
			count[i] += n
		}
	}
	for i := range sites {
		sites[i].cpu = append(sites[i].cpu, float64(cpu[i].Nanoseconds())/float64(count[i])/1000)
		sites[i].rate = append(sites[i].rate, float64(count[i])/roundTime.Seconds())
	}
	return nil
}

type site struct {
	name, address, before, proxy string
	cpu, rate                    []float64
}

func (s site) caddyfile(upstream string) string {
	return fmt.Sprintf("http://%s {\n\t%s\n\treverse_proxy %s {\n\t\t%s\n\t\ttransport http {\n\t\t\tkeepalive_idle_conns_per_host 256\n\t\t}\n\t}\n}\n",
		s.address, s.before, upstream, s.proxy)
}

// load sends requests for a while and counts them.
func load(client *http.Client, address string, d time.Duration) (int64, error) {
	var n, failed atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for range connections {
		wg.Go(func() {
			for time.Now().Before(end) {
				resp, err := client.Get("http://" + address + "/some/path?q=1")
				if err != nil || resp.StatusCode != http.StatusOK {
					failed.Add(1)
					continue
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				n.Add(1)
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 {
		return 0, fmt.Errorf("%d requests to %s failed", failed.Load(), address)
	}
	return n.Load(), nil
}

func ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
