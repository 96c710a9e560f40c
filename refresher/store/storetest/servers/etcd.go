//go:build unix

package servers

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Etcd is an etcd of one member.
type Etcd struct {
	*Process

	Endpoint string // URL for clients
	data     string
}

// Wipe deletes all data; the server has been stopped.
func (e *Etcd) Wipe() {
	e.t.Helper()
	if err := os.RemoveAll(e.data); err != nil {
		e.t.Fatal(err)
	}
}

// StartEtcd starts an etcd that runs until the test ends.
func StartEtcd(t testing.TB, args ...string) *Etcd {
	t.Helper()
	dir := shortDir(t)
	e := &Etcd{}
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	e.Process = launch(t, "etcd", func(p *Process) {
		port := ports(t, 2)
		e.Endpoint = "http://127.0.0.1:" + port[0]
		e.data = filepath.Join(dir, port[0])
		peer := "http://127.0.0.1:" + port[1]
		all := append([]string{
			"--name", "one", "--data-dir", e.data, "--logger", "zap",
			"--listen-client-urls", e.Endpoint, "--advertise-client-urls", e.Endpoint,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "one=" + peer,
		}, args...)
		p.args = func() []string { return all }
		p.ready = func() error {
			res, err := client.Get(e.Endpoint + "/health")
			if err != nil {
				return err
			}
			defer func() { _ = res.Body.Close() }()
			if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
				return fmt.Errorf("it answers %s, error %v", res.Status, err)
			}
			return nil
		}
	})
	return e
}
