package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// benchMemory compares the idle memory of Caddy with and without a session.
func benchMemory() error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	_, api, session, stopIssuer := issue(sandbox.Config{AccessLifetime: time.Minute})
	defer stopIssuer()
	upstream := freeAddress()
	_, stopUpstream, err := child("upstream", upstream)
	if err != nil {
		return err
	}
	defer stopUpstream()

	with := site{address: freeAddress(), before: "token_refresh bench"}
	without := site{address: freeAddress()}
	a, stopA, err := startCaddy(dir, "\ttoken_refresh {\n\t\tstate_dir "+dir+"/state\n"+session+"\n\t}", with.caddyfile(api[len("http://"):]), with.address)
	if err != nil {
		return err
	}
	defer stopA()
	b, stopB, err := startCaddy(dir, "", without.caddyfile(upstream), without.address)
	if err != nil {
		return err
	}
	defer stopB()
	for range 100 {
		for _, address := range []string{with.address, without.address} {
			resp, err := http.Get("http://" + address + "/")
			if err != nil {
				return err
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
	<-time.After(20 * time.Second) // one rotation and a garbage collection or two
	withKiB, err := resident(a.Process.Pid)
	if err != nil {
		return err
	}
	withoutKiB, err := resident(b.Process.Pid)
	if err != nil {
		return err
	}
	fmt.Printf("with a session %.1f MiB, plain %.1f MiB, difference %.1f MiB\n",
		float64(withKiB)/1024, float64(withoutKiB)/1024, float64(withKiB-withoutKiB)/1024)
	return nil
}
