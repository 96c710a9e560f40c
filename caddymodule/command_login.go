package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func loginVerb() *cobra.Command {
	cmd := verb("login <session>", "Signs in by a browser, and gives the session the pair", cobra.ExactArgs(1), cmdLogin)
	cmd.Long = `
Signs in at the session's issuer, which must be an oauth2 one: an authorization
code with PKCE, in a browser on this machine, or with --device on any other one.
The running Caddy makes the exchange and keeps the pair; nothing of it comes to
this terminal.

The issuer must know the client's redirect URI, http://127.0.0.1/callback with any
port; where it wants the port, too, --port fixes it. --localhost is for one that
knows http://localhost only (Cognito, Entra).`
	cmd.Flags().Bool("device", false, "Show a code to enter on another device")
	cmd.Flags().String("scope", "", "What to ask for (default: the issuer's option scope)")
	cmd.Flags().Uint16("port", 0, "Port of the redirect URI (default: a free one)")
	cmd.Flags().Bool("localhost", false, "Have localhost in the redirect URI, not 127.0.0.1")
	cmd.Flags().Bool("no-browser", false, "Only print the address, open no browser")
	return cmd
}

var errInterrupted = errors.New("interrupted")

func cmdLogin(fl caddycmd.Flags) (int, error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	address, err := caddycmd.DetermineAdminAPIAddress(fl.String("address"), nil, fl.String("config"), fl.String("adapter"))
	if err != nil {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("finding the admin API: %w", err)
	}
	l := &loginRun{address: address, path: sessionPath(fl) + "/login", browser: !fl.Bool("no-browser")}
	asked := askedLogin{Device: fl.Bool("device"), Scope: fl.String("scope")}
	var answer []byte
	if asked.Device {
		answer, err = l.byDevice(ctx, asked)
	} else {
		var port uint16
		if port, err = fl.GetUint16("port"); err == nil {
			host := map[bool]string{false: "127.0.0.1", true: "localhost"}[fl.Bool("localhost")]
			answer, err = l.byBrowser(ctx, asked, host, port)
		}
	}
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	return show(fl, answer)
}

// loginRun is one login as the command line sees it.
type loginRun struct {
	address, path string
	browser       bool
	id            string
}

// ask makes a call of the login, which may be interrupted: the instance then goes
// on with it, or gives it up.
func (l *loginRun) ask(ctx context.Context, method, path string, body any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	type outcome struct {
		answer []byte
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		answer, err := callAt(l.address, method, l.path+path, bytes.NewReader(text))
		done <- outcome{answer, err}
	}()
	select {
	case o := <-done:
		return o.answer, o.err
	case <-ctx.Done():
		return nil, errInterrupted
	}
}

func (l *loginRun) begin(ctx context.Context, asked askedLogin) (begun begunLogin, err error) {
	answer, err := l.ask(ctx, http.MethodPost, "", asked)
	if err != nil {
		return begun, err
	}
	if err := json.Unmarshal(answer, &begun); err != nil {
		return begun, fmt.Errorf("reading the answer: %w", err)
	}
	l.id = begun.ID
	return begun, nil
}

// giveUp tells the instance that nobody will come back.
func (l *loginRun) giveUp() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, _ = l.ask(ctx, http.MethodDelete, "/"+l.id, nil)
}

// byBrowser waits on a loopback address for the browser to come back.
func (l *loginRun) byBrowser(ctx context.Context, asked askedLogin, host string, port uint16) ([]byte, error) {
	back, err := listenBack(host, port)
	if err != nil {
		return nil, err
	}
	defer back.close()
	asked.RedirectURI = back.address
	begun, err := l.begin(ctx, asked)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(begun.AuthorizationURL)
	if err != nil {
		return nil, errors.New("the answer holds no address to sign in at")
	}
	back.serve(u.Query().Get("state"))
	fmt.Fprintf(os.Stderr, "Sign in here, within %s:\n\n  %s\n\n", time.Until(begun.ExpiresAt).Round(time.Minute), begun.AuthorizationURL)
	if l.browser {
		openBrowser(begun.AuthorizationURL)
	}
	ctx, cancel := context.WithDeadlineCause(ctx, begun.ExpiresAt, errors.New("nobody signed in in time"))
	defer cancel()
	select {
	case came := <-back.came:
		answer, err := l.ask(ctx, http.MethodPost, "/"+l.id, came.answer)
		came.result <- err
		return answer, err
	case <-ctx.Done():
		l.giveUp()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, context.Cause(ctx)
		}
		return nil, errInterrupted
	}
}

// byDevice shows the code and asks, as often as the issuer wants, whether it was
// entered.
func (l *loginRun) byDevice(ctx context.Context, asked askedLogin) ([]byte, error) {
	begun, err := l.begin(ctx, asked)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "Open this address on any device, within %s:\n\n  %s\n\nand enter the code:\n\n  %s\n\n",
		time.Until(begun.ExpiresAt).Round(time.Minute), begun.VerificationURI, begun.UserCode)
	if begun.VerificationURIComplete != "" {
		fmt.Fprintf(os.Stderr, "or open this one, which holds the code:\n\n  %s\n\n", begun.VerificationURIComplete)
	}
	for wait := time.Duration(0); ; {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			l.giveUp()
			return nil, errInterrupted
		}
		answer, err := l.ask(ctx, http.MethodPost, "/"+l.id, struct{}{})
		if err != nil {
			if errors.Is(err, errInterrupted) {
				l.giveUp()
			}
			return nil, err
		}
		var waiting waitingLogin
		if json.Unmarshal(answer, &waiting) != nil || !waiting.Pending {
			return answer, nil
		}
		wait = time.Duration(max(1, waiting.RetryIn)) * time.Second
	}
}
