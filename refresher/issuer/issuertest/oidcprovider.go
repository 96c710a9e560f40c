// Package issuertest runs a real authorization server for tests: oidc-provider,
// as a child process on loopback. It needs Node.js 18 or newer and what
// `npm ci` installs in refresher/issuer/testdata/oidc-provider; where they are
// missing a test is skipped, and fails where the environment variable CI is set.
package issuertest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// readyWait is how long the server may take to listen.
const readyWait = 60 * time.Second

// Client is one that the server knows. A refresh token of one whose ID has
// "static" in it stays the same; those of the others rotate, and a second use
// ends the grant.
type Client struct {
	ID         string          `json:"client_id"`
	Secret     string          `json:"client_secret,omitempty"`
	AuthMethod string          `json:"token_endpoint_auth_method,omitempty"`
	Keys       json.RawMessage `json:"jwks,omitempty"` // of PrivateKeyJWT
	SigningAlg string          `json:"token_endpoint_auth_signing_alg,omitempty"`

	// Kind "native" and a redirect to http://127.0.0.1/callback let a person sign
	// in, see [Provider.Browse].
	Kind      string   `json:"application_type,omitempty"`
	Redirects []string `json:"redirect_uris,omitempty"`
}

// Stats is what the server has counted.
type Stats struct {
	Exchanges    int            `json:"exchanges"`
	Refused      map[string]int `json:"refused"` // by error code
	Served       int            `json:"served"`  // by the API
	Unauthorized int            `json:"unauthorized"`
}

// Provider is a running server. Its API is at Issuer + "/api/echo".
type Provider struct {
	Issuer string

	client *http.Client
}

// Start runs a server until the test ends. It always knows a further client
// "watcher" with the secret "watcher", by which [Provider.Active] asks.
func Start(t testing.TB, accessTokenLife time.Duration, clients ...Client) *Provider {
	t.Helper()
	dir := serverDir()
	node := find(t, dir)
	settings, err := json.Marshal(map[string]any{
		"clients":        append(clients, Client{ID: "watcher", Secret: "watcher"}),
		"accessTokenTTL": int(accessTokenLife.Seconds()),
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(node, "server.mjs")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SETTINGS="+string(settings))
	stdin, err := cmd.StdinPipe() // whose end is the server's, also where the test is killed
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, read := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if issuer, ok := strings.CutPrefix(lines.Text(), "ready "); ok {
				ready <- issuer
			}
		}
	}()
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait()
	})
	p := &Provider{client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
	select {
	case p.Issuer = <-ready:
	case <-read:
		t.Fatalf("the authorization server ended at once; it printed:\n%s", stderr.String())
	case <-time.After(readyWait):
		t.Fatalf("the authorization server is not ready; it printed:\n%s", stderr.String())
	}
	return p
}

// serverDir is where the server's script is.
func serverDir() string {
	_, here, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(here), "..", "testdata", "oidc-provider")
}

func find(t testing.TB, dir string) (node string) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "node_modules", "oidc-provider"))
	}
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("%v: install Node.js and run `npm ci` in %s", err, dir)
	default:
		t.Skipf("%v: install Node.js and run `npm ci` in %s", err, dir)
	}
	return node
}

// Login issues a pair to a client, with access tokens that are "jwt" or
// "opaque".
func (p *Provider) Login(t testing.TB, client, format string) refresher.Pair {
	t.Helper()
	body := p.call(t, p.LoginURL(), "application/json", LoginBody(client, format), nil)
	pair, err := refresher.ParsePair(body, refresher.DefaultFields())
	if err != nil {
		t.Fatalf("signing in: %v", err)
	}
	return pair
}

// SetAgrees says whether the person at the server's pages agrees from now on to
// whatever a login asks for.
func (p *Provider) SetAgrees(t testing.TB, agrees bool) {
	t.Helper()
	p.call(t, p.Issuer+"/test/agrees", "application/json", fmt.Sprint(agrees), nil)
}

// Browse opens the address of a login as the person's browser would, and returns
// the address on another host that it is sent to in the end.
func (p *Provider) Browse(t testing.TB, address string) *url.URL {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	var last *url.URL
	browser := &http.Client{Jar: jar, Transport: p.client.Transport, Timeout: 20 * time.Second}
	browser.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if len(via) > 10 || !strings.HasPrefix(r.URL.String(), p.Issuer+"/") {
			last = r.URL
			return http.ErrUseLastResponse
		}
		return nil
	}
	resp, err := browser.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); last == nil {
		t.Fatalf("the browser stays at %s with %s: %.500s", resp.Request.URL, resp.Status, text)
	}
	return last
}

// EnterDeviceCode is the person who enters a device's code.
func (p *Provider) EnterDeviceCode(t testing.TB, userCode string) {
	t.Helper()
	p.call(t, p.Issuer+"/test/device", "application/json", fmt.Sprintf(`{"user_code":%q}`, userCode), nil)
}

// LoginURL takes a POST of [LoginBody].
func (p *Provider) LoginURL() string { return p.Issuer + "/test/login" }

// LoginBody is what [Provider.Login] sends.
func LoginBody(client, format string) string {
	return fmt.Sprintf(`{"client_id":%q,"format":%q}`, client, format)
}

// Active asks the server whether a token is good (RFC 7662). It knows nothing
// of access tokens that are JWTs.
func (p *Provider) Active(t testing.TB, token refresher.Secret) bool {
	t.Helper()
	body := p.call(t, p.Issuer+"/token/introspection", "application/x-www-form-urlencoded",
		url.Values{"token": {token.Reveal()}}.Encode(),
		func(r *http.Request) { r.SetBasicAuth("watcher", "watcher") })
	var answer struct {
		Active bool `json:"active"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatalf("introspection: %v", err)
	}
	return answer.Active
}

// Stats returns what the server has counted.
func (p *Provider) Stats(t testing.TB) Stats {
	t.Helper()
	var s Stats
	if err := json.Unmarshal(p.call(t, p.Issuer+"/test/stats", "text/plain", "", nil), &s); err != nil {
		t.Fatalf("the server's counters: %v", err)
	}
	return s
}

func (p *Provider) call(t testing.TB, url, contentType, body string, change func(*http.Request)) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	if change != nil {
		change(req)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s answered %s, error %v: %.500s", req.URL.Path, resp.Status, err, text)
	}
	return text
}

// buffer keeps what the server prints, for when it does not start.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.text.Len() < 1<<16 {
		b.text.Write(p)
	}
	return len(p), nil
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
