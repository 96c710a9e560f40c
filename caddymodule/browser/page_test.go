// Package browser_test opens the status page in a real browser.
package browser_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	_ "github.com/tokenrefresh/caddy-token-refresh/caddymodule"
	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// world is a Caddy with a status page, and the issuers that its sessions are at.
type world struct {
	t       *testing.T
	dir     string
	admin   string
	site    string // the status page
	api     string // a pool's callers call here
	page    string // options of the directive
	app     string // lines inside the global option
	issuers map[string]*issuerOf
}

// issuerOf is one session's issuer, which can be made to die.
type issuerOf struct {
	*sandbox.Sandbox
	server *httptest.Server
}

func newWorld(t *testing.T) *world {
	return &world{t: t, dir: t.TempDir(), admin: freeAddr(t), site: freeAddr(t), api: freeAddr(t), issuers: map[string]*issuerOf{}}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func (w *world) issuer(name string, cfg sandbox.Config) *issuerOf {
	if cfg.AccessLifetime == 0 {
		cfg.AccessLifetime = 59 * time.Minute // shown with its seconds
	}
	sb := sandbox.New(cfg)
	i := &issuerOf{Sandbox: sb, server: httptest.NewServer(sb)}
	w.t.Cleanup(func() {
		i.server.CloseClientConnections()
		i.server.Close()
	})
	w.issuers[name] = i
	return i
}

// session adds one whose first pair lies in a file.
func (w *world) session(name string, cfg sandbox.Config, options ...string) *issuerOf {
	w.t.Helper()
	i := w.issuer(name, cfg)
	access, refresh := i.Login()
	file := filepath.Join(w.dir, name+".json")
	if err := os.WriteFile(file, fmt.Appendf(nil, `{"accessToken":%q,"refreshToken":%q}`, access, refresh), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.app += fmt.Sprintf("session %s {\nissuer bearer %s/User/RefreshToken\ntokens file %s\n%s\n}\n", name, i.server.URL, file, strings.Join(options, "\n"))
	return i
}

func (w *world) caddyfile() string {
	api := ""
	if i := w.issuers["portal"]; i != nil {
		api = fmt.Sprintf("http://%s {\nbind 127.0.0.1\ntoken_refresh portal\nreverse_proxy %s\n}\n", w.api, i.server.URL)
	}
	return fmt.Sprintf(`{
	admin %s
	persist_config off
	auto_https off
	storage_clean_interval off
	grace_period 3s
	storage file_system %s
	log {
		output discard
	}
	token_refresh {
		state_dir %s
		%s
	}
}
http://%s {
	bind 127.0.0.1
	handle /status {
		token_refresh_status {
			%s
		}
	}
	handle /request {
		token_refresh billing
		reverse_proxy %s
	}
}
%s`, w.admin, filepath.Join(w.dir, "storage"), filepath.Join(w.dir, "state"), w.app, w.site, w.page, w.upstream(), api)
}

func (w *world) upstream() string {
	if i := w.issuers["billing"]; i != nil {
		return i.server.URL
	}
	return "127.0.0.1:1"
}

func (w *world) load() {
	w.t.Helper()
	text, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(w.caddyfile()), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := caddy.Load(text, true); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) start() *world {
	w.t.Helper()
	w.t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			w.t.Error(err)
		}
	})
	w.load()
	return w
}

func (w *world) url() string { return "http://" + w.site + "/status" }

var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}

func (w *world) call(method, url, body string, header ...string) (int, string) {
	w.t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func (w *world) refresh(name string) int {
	w.t.Helper()
	status, _ := w.call("POST", "http://"+w.admin+"/token_refresh/sessions/"+name+"/refresh", "")
	return status
}

// status is what the admin API says.
func (w *world) status(name string) (st refresher.Status) {
	w.t.Helper()
	code, body := w.call("GET", "http://"+w.admin+"/token_refresh/sessions/"+name, "")
	if code != 200 {
		w.t.Fatalf("%s: %d %s", name, code, body)
	}
	if err := json.Unmarshal([]byte(body), &st); err != nil {
		w.t.Fatal(err)
	}
	return st
}

// waitFor waits until the admin API says so.
func (w *world) waitFor(name string, what string, is func(refresher.Status) bool) {
	w.t.Helper()
	for begun := time.Now(); !is(w.status(name)); time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > 20*time.Second {
			w.t.Fatalf("in vain waited for %s: %s", name, what)
		}
	}
}

func fresh(st refresher.Status) bool { return st.State == refresher.PhaseFresh }

// tab is a browser's, with what went wrong in it.
type tab struct {
	ctx context.Context // of the browser
	t   *testing.T
	mu  sync.Mutex
	bad []string
}

// browser is one for all tests; none, and no error, where there is none here.
var browser = sync.OnceValues(func() (context.Context, error) {
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		return nil, nil
	}
	dir, err := os.MkdirTemp("", "browser")
	if err != nil {
		return nil, err
	}
	var errs bytes.Buffer
	ctx, cancel := chromedp.NewContext(context.Background(), chromedp.WithAllocatorOptions(
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.UserDataDir(dir), chromedp.CombinedOutput(&errs)))
	endBrowser = func() {
		_ = chromedp.Cancel(ctx)
		cancel()
		_ = os.RemoveAll(dir)
	}
	if err := chromedp.Do(ctx); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, errs.String())
	}
	return ctx, nil
})

var endBrowser = func() {}

func TestMain(m *testing.M) {
	code := m.Run()
	endBrowser()
	os.Exit(code)
}

// open opens a tab that shares nothing with others. Without a browser a laptop
// skips the test, CI does not.
func open(t *testing.T) *tab {
	t.Helper()
	parent, err := browser()
	switch {
	case err != nil:
		t.Fatalf("starting the browser: %v", err)
	case parent == nil && os.Getenv("CI") != "":
		t.Fatal("chromium is missing")
	case parent == nil:
		t.Skip("chromium is missing")
	}
	ctx, cancel := chromedp.NewContext(parent, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	// What the policy keeps from happening is told to the page itself.
	_, err = chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
		Source: `window.violations = []; addEventListener("securitypolicyviolation", (e) => violations.push(e.violatedDirective + " " + e.blockedURI))`,
	})
	if err != nil {
		t.Fatalf("opening a tab: %v", err)
	}
	b := &tab{ctx: ctx, t: t}
	messages := chromedp.Console(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for m, err := range messages {
			if err != nil {
				return
			}
			switch string(m.Type) {
			case "log", "debug", "info", "verbose":
			default:
				b.wrong("%s %s %s", m.Source, m, m.URL)
			}
		}
	}()
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx)
		cancel()
		<-done
	})
	return b
}

func (b *tab) wrong(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bad = append(b.bad, fmt.Sprintf(format, args...))
}

// clean fails the test where anything was complained of.
func (b *tab) clean() {
	b.t.Helper()
	var violations []string
	b.eval("window.violations", &violations)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, text := range append(violations, b.bad...) {
		b.t.Errorf("the browser complains: %s", text)
	}
}

func (b *tab) run(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// call sends the browser a command.
func call[P, R any](b *tab, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	result, err := chromedp.Call(ctx, command, params)
	if err != nil {
		b.t.Fatal(err)
	}
	return result
}

func (b *tab) prefer(feature, value string) {
	b.t.Helper()
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: feature, Value: value}}})
}

// eval runs a script in the page; what it promises is waited for.
func (b *tab) eval(script string, to any) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[[]byte](script, chromedp.EvalAwaitPromise))
	if err == nil && to != nil {
		err = json.Unmarshal(value, to)
	}
	if err != nil {
		b.t.Fatalf("%s: %v", script, err)
	}
}

func (b *tab) text(script string) (text string) {
	b.t.Helper()
	b.eval("String("+script+")", &text)
	return text
}

// until waits for an expression to be true.
func (b *tab) until(what, script string) {
	b.t.Helper()
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		var is bool
		b.eval("Boolean("+script+")", &is)
		if is {
			return
		}
		if time.Since(begun) > 15*time.Second {
			b.t.Fatalf("in vain waited for: %s; the page says:\n%s", what, b.text("document.body.innerText"))
		}
	}
}

// visit opens the page and waits for it to be live.
func (b *tab) visit(w *world) {
	b.t.Helper()
	b.run(chromedp.Navigate(w.url()))
	b.until("the page is live", `document.querySelector("#connection")?.dataset.live === "yes"`)
}

// shown is what the page says of a session.
type shown struct {
	Level, State, Words, Left, Plan, Advice, Error, Bar, Plot string
	Facts                                                     map[string]string
	Rows, Attempts                                            int
}

func (b *tab) session(name string) (s shown) {
	b.t.Helper()
	b.eval(fmt.Sprintf(`(() => {
		const card = document.querySelector('[data-session=%q]');
		const text = (q) => { const el = card.querySelector(q); return el && el.checkVisibility() ? el.textContent : ""; };
		return {
			level: card.querySelector("article").dataset.level, state: card.querySelector("article").dataset.state,
			words: text(".words"), left: text(".time"), plan: text(".plan"), advice: text(".advice"), error: text(".error-text"),
			bar: card.querySelector(".bar").hidden ? "" : card.querySelector(".bar").getAttribute("aria-label"),
			plot: card.querySelector(".plot svg")?.getAttribute("aria-label") || "",
			facts: Object.fromEntries([...card.querySelectorAll("dl div")].map((d) => [d.firstChild.textContent, d.lastChild.textContent])),
			rows: card.querySelectorAll("tbody tr").length, attempts: card.querySelectorAll(".attempt").length,
		};
	})()`, name), &s)
	return s
}
