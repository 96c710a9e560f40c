package caddymodule

import (
	"context"
	"crypto/subtle"
	"fmt"
	"html"
	"net"
	"net/http"
	"os/exec"
	"runtime"
	"sync"
	"time"
)

// loginBack is where a browser comes back to after a person has signed in.
type loginBack struct {
	address string
	ln      net.Listener
	server  *http.Server
	once    sync.Once
	came    chan cameBack
}

// cameBack is what it brings, and to whom the outcome is told.
type cameBack struct {
	answer loginAnswer
	result chan error
}

// listenBack listens on 127.0.0.1; host is what the issuer is told, and the same.
func listenBack(host string, port uint16) (*loginBack, error) {
	ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, fmt.Errorf("waiting for the browser to come back: %w", err)
	}
	return &loginBack{
		ln: ln, address: fmt.Sprintf("http://%s:%d/callback", host, ln.Addr().(*net.TCPAddr).Port), came: make(chan cameBack, 1),
	}, nil
}

// serve takes the first answer that has the state. Others are no answer to this
// login: any page can send a browser here.
func (b *loginBack) serve(state string) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /callback", func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		if state == "" || subtle.ConstantTimeCompare([]byte(query.Get("state")), []byte(state)) != 1 {
			page(w, http.StatusBadRequest, "This is not the answer to the login that was begun here.")
			return
		}
		came := cameBack{result: make(chan error, 1), answer: loginAnswer{
			Code: query.Get("code"), State: state, Issuer: query.Get("iss"), Error: query.Get("error"),
		}}
		first := false
		b.once.Do(func() { first = true })
		if !first {
			page(w, http.StatusConflict, "This login was answered already.")
			return
		}
		b.came <- came
		select {
		case err := <-came.result:
			if err != nil {
				page(w, http.StatusBadRequest, "The login failed: "+err.Error())
				return
			}
			page(w, http.StatusOK, "You are signed in, and can close this window.")
		case <-r.Context().Done():
		}
	})
	b.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	go func() { _ = b.server.Serve(b.ln) }()
}

// close lets the last page be sent.
func (b *loginBack) close() {
	if b.server == nil {
		_ = b.ln.Close()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if b.server.Shutdown(ctx) != nil {
		_ = b.server.Close()
	}
}

// page is all that the browser gets. It must not send on where it came from: the
// address holds the code.
func page(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<!doctype html><title>token-refresh login</title><p>%s</p>\n", html.EscapeString(text))
}

// openBrowser tries to; the address was printed, too.
func openBrowser(address string) {
	command := map[string][]string{
		"darwin":  {"open"},
		"windows": {"rundll32", "url.dll,FileProtocolHandler"},
	}[runtime.GOOS]
	if command == nil {
		command = []string{"xdg-open"}
	}
	cmd := exec.Command(command[0], append(command[1:], address)...)
	if cmd.Start() == nil {
		go func() { _ = cmd.Wait() }()
	}
}
