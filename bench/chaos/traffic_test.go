//go:build chaos && unix

package chaos

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// traffic is callers of all instances, each request on its own, so that one
// which waits holds up no other.
type traffic struct {
	fleet  *fleet
	client *http.Client
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once
}

// Per instance: how often callers do what.
const (
	everyGet    = 100 * time.Millisecond
	everyPost   = 300 * time.Millisecond
	everyStream = time.Second
	everySSE    = 2 * time.Second
	patience    = 20 * time.Second
)

func newTraffic(f *fleet) *traffic {
	ctx, cancel := context.WithCancel(context.Background())
	tr := &traffic{fleet: f, cancel: cancel, client: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 32, DisableCompression: true},
		Timeout:   patience,
	}}
	for _, i := range f.members {
		tr.every(ctx, everyGet, func() { tr.send(i, "get", http.MethodGet, "/whoami", nil) })
		tr.every(ctx, everyPost, func() {
			tr.send(i, "post", http.MethodPost, "/items", strings.NewReader(strings.Repeat("x", 300)))
		})
		tr.every(ctx, everyStream, func() { tr.send(i, "stream", http.MethodPost, "/stream", slowBody(4, 16<<10)) })
		tr.every(ctx, everySSE, func() { tr.send(i, "sse", http.MethodGet, "/events?interval=200ms&count=8", nil) })
	}
	return tr
}

// every starts do again and again; where answers are slow, no more than fifty
// wait.
func (tr *traffic) every(ctx context.Context, d time.Duration, do func()) {
	room := make(chan struct{}, 50)
	tr.wg.Go(func() {
		tick := time.NewTicker(d)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case room <- struct{}{}:
				tr.wg.Go(func() { do(); <-room })
			default:
			}
		}
	})
}

func (tr *traffic) stop() {
	tr.once.Do(func() {
		tr.cancel()
		tr.wg.Wait()
		tr.client.CloseIdleConnections()
	})
}

// send makes one request and records its end.
func (tr *traffic) send(i *instance, kind, method, path string, body io.Reader) {
	e := Event{Who: i.name, Op: OpRequest, Kind: kind, Run: i.runs(), Began: time.Now(), Result: "error"}
	defer func() {
		if e.Run != i.runs() {
			e.Run = 0 // which process it was, nobody knows
		}
		tr.fleet.history.Add(e)
	}()
	req, err := http.NewRequest(method, "http://"+i.addr+path, body)
	if err != nil {
		return
	}
	resp, err := tr.client.Do(req)
	if err != nil {
		return
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || kind == "sse" && resp.StatusCode == http.StatusOK && strings.Count(string(answer), "data:") != 8 {
		return
	}
	e.Result = strconv.Itoa(resp.StatusCode)
	var who struct {
		Session    string `json:"session"`
		Generation int    `json:"generation"`
	}
	if json.Unmarshal(answer, &who) == nil {
		e.Session, e.Generation = who.Session, who.Generation
	}
}

// slowBody is a body of unknown length that comes in parts, 30 ms apart.
func slowBody(parts, size int) io.Reader {
	r, w := io.Pipe()
	go func() {
		tick := time.NewTicker(30 * time.Millisecond)
		defer tick.Stop()
		for range parts {
			if _, err := w.Write(make([]byte, size)); err != nil {
				return
			}
			<-tick.C
		}
		_ = w.Close()
	}()
	return r
}
