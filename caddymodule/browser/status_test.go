package browser_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// same compares what the page shows of a session with what the admin API says.
func same(t *testing.T, w *world, b *tab, name string) {
	t.Helper()
	st := w.status(name)
	b.until(name+" is shown as it is", fmt.Sprintf(`document.querySelector('[data-session=%q] article')?.dataset.state === %q && document.querySelector('[data-session=%q] .facts').textContent.includes(%q)`,
		name, st.State, name, fmt.Sprintf("generation %d of login %d", st.Generation, st.Epoch)))
	got := b.session(name)
	if got.Facts["Fingerprint"] != st.Fingerprint || got.Error != st.LastError || got.Rows != len(st.Rotations) || got.Attempts != len(st.Rotations) {
		t.Errorf("%s: the page shows %+v, the admin API has %+v", name, got, st)
	}
	if st.State == refresher.PhaseLost {
		return
	}
	// The time left, in words, is the one until expires_at.
	match := regexp.MustCompile(`^(\d+) min (\d+) s left$`).FindStringSubmatch(got.Left)
	if match == nil {
		t.Fatalf("%s has %q left", name, got.Left)
	}
	left, err := time.ParseDuration(match[1] + "m" + match[2] + "s")
	if want := time.Until(st.ExpiresAt); err != nil || (left-want).Abs() > 3*time.Second {
		t.Errorf("%s has %v left, not %s", name, want, got.Left)
	}
	var fill, mark float64
	b.eval(fmt.Sprintf(`new DOMMatrix(getComputedStyle(document.querySelector('[data-session=%q] .fill')).transform).a`, name), &fill)
	b.eval(fmt.Sprintf(`parseFloat(document.querySelector('[data-session=%q] .mark').style.left)`, name), &mark)
	life := st.ExpiresAt.Sub(st.ReceivedAt).Seconds()
	if want := time.Until(st.ExpiresAt).Seconds() / life; fill < want-.02 || fill > want+.02 {
		t.Errorf("%s: the bar is at %.3f, not %.3f", name, fill, want)
	}
	if want := 100 * st.ExpiresAt.Sub(st.RefreshAt).Seconds() / life; mark < want-.5 || mark > want+.5 {
		t.Errorf("%s: the planned exchange is marked at %.2f %%, not %.2f %%", name, mark, want)
	}
}

func TestThePageShowsWhatTheAdminAPISays(t *testing.T) {
	w := newWorld(t)
	billing := w.session("billing", sandbox.Config{}, "reauthenticate off")
	w.session("audit", sandbox.Config{AccessLifetime: 50 * time.Minute})
	b := open(t)
	w.start()
	w.waitFor("billing", "a pair", fresh)
	w.waitFor("audit", "a pair", fresh)
	b.visit(w)
	b.until("both are there", `document.querySelectorAll("#session-list > li").length === 2`)
	same(t, w, b, "billing")
	same(t, w, b, "audit")
	if got := b.text(`document.querySelector("#summary-text").textContent`); got != "all 2 sessions fresh" {
		t.Errorf("the first line: %s", got)
	}
	if key := b.text(`document.querySelector("#about-key").textContent`); !strings.Contains(key, "made in state_dir") {
		t.Errorf("the key: %s", key)
	}

	// A rotation, for which a request waits.
	billing.Fault(sandbox.Fault{Commit: true, DelayBefore: 400 * time.Millisecond}, 1)
	done := make(chan int, 1)
	go func() { done <- w.refresh("billing") }()
	w.waitFor("billing", "the exchange", func(st refresher.Status) bool { return st.State == refresher.PhaseExchanging })
	w.call("GET", "http://"+w.site+"/request", "")
	if status := <-done; status != 200 {
		t.Fatal(status)
	}
	same(t, w, b, "billing")
	b.until("the wait is drawn", `document.querySelector('[data-session="billing"] .attempt .wait')`)
	if got := b.session("billing"); !strings.Contains(got.Plot, "1 request waited up to") {
		t.Errorf("the drawing's words: %s", got.Plot)
	}
	b.until("the event", `document.querySelector("#event-list").innerText.includes("rotated to generation 2")`)

	// The issuer dies.
	billing.die()
	if status := w.refresh("billing"); status == 200 {
		t.Fatal("an exchange with a dead issuer succeeded")
	}
	same(t, w, b, "billing")
	got := b.session("billing")
	if got.Words != "the last exchange failed" || !strings.Contains(got.Advice, "cannot be reached") || got.Level != "trouble" || got.Error == "" {
		t.Errorf("a dead issuer: %+v", got)
	}
	if text := b.text(`document.querySelector("#summary-text").textContent`); text != "1 is in trouble: billing" {
		t.Errorf("the first line: %s", text)
	}

	// A session is lost.
	w.issuers["audit"].Fault(sandbox.Fault{Status: 400, Body: `{"error":"invalid_grant"}`}, 1)
	w.refresh("audit")
	b.until("audit is lost", `document.querySelector('[data-session="audit"] article').dataset.state === "lost"`)
	got = b.session("audit")
	if got.Words != "lost: needs a login" || got.Level != "bad" || !strings.Contains(b.text(`document.querySelector('[data-session="audit"] .commands').innerText`), "caddy token-refresh import audit") || got.Error != w.status("audit").LastError {
		t.Errorf("a lost session: %+v", got)
	}
	text := b.text(`document.querySelector("#summary-text").textContent`)
	if also := b.text(`document.querySelector("#summary-also").textContent`); also != "1 is in trouble: billing" {
		t.Errorf("the second line: %s", also)
	}
	if text != "1 needs a login: audit" || !strings.HasPrefix(b.text("document.title"), text) {
		t.Errorf("the first line: %s", text)
	}
	if order := b.text(`[...document.querySelectorAll("#session-list > li")].map((e) => e.dataset.session)`); order != "audit,billing" {
		t.Errorf("what is worst does not come first: %s", order)
	}
	b.until("the events", `["lost (rejected)", "used by somebody else", "exchange failed"].every((s) => document.querySelector("#event-list").innerText.includes(s))`)

	// A reload: the page finds its way back, and says the same.
	w.page = "clients 127.0.0.0/8"
	w.load()
	b.until("the page is live again", `document.querySelector("#connection").dataset.live === "yes"`)
	billing2 := b.text(`document.querySelector('[data-session="billing"] .facts').textContent`)
	if !strings.Contains(billing2, "generation 2") {
		t.Errorf("after a reload: %s", billing2)
	}
	b.clean()
}

// The page answers the same as JSON, whose sessions are the admin API's.
func TestThePageAsJSON(t *testing.T) {
	w := newWorld(t)
	w.session("billing", sandbox.Config{})
	w.start()
	w.waitFor("billing", "a pair", fresh)
	w.refresh("billing")
	for _, url := range []string{w.url(), w.url() + "?status"} {
		code, body := w.call("GET", url, "", "Accept", "application/json")
		var o struct {
			Now      time.Time
			Sessions []json.RawMessage
		}
		if err := json.Unmarshal([]byte(body), &o); code != 200 || err != nil || len(o.Sessions) != 1 || o.Now.IsZero() {
			t.Fatalf("%d %v %s", code, err, body)
		}
		var st refresher.Status
		if err := json.Unmarshal(o.Sessions[0], &st); err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(st)
		c, _ := json.Marshal(w.status("billing"))
		if string(a) != string(c) {
			t.Errorf("the page has %s, the admin API %s", a, c)
		}
	}
}

// press sends keys to whatever has the focus.
func (b *tab) press(keys ...string) {
	b.t.Helper()
	for _, k := range keys {
		b.run(chromedp.KeyEvent(k))
	}
}

// tabTo presses Tab until an element has the focus.
func (b *tab) tabTo(what string) {
	b.t.Helper()
	for range 40 {
		b.press(kb.Tab)
		if b.text(fmt.Sprintf("document.activeElement.matches(%q)", what)) == "true" {
			if b.text(`getComputedStyle(document.activeElement).outlineStyle`) == "none" {
				b.t.Errorf("nobody sees that %s has the focus", what)
			}
			return
		}
	}
	b.t.Fatalf("Tab does not lead to %s", what)
}

func TestThePageWithTheKeyboardAlone(t *testing.T) {
	w := newWorld(t)
	w.session("billing", sandbox.Config{})
	w.page = "actions on"
	b := open(t)
	w.start()
	w.waitFor("billing", "a pair", fresh)
	b.visit(w)

	b.press(kb.Tab)
	if got := b.text("document.activeElement.className"); got != "skip" {
		t.Errorf("the first Tab leads to %q", got)
	}
	b.press(kb.Enter)
	b.until("the link leads to the sessions", `document.activeElement.id === "main"`)
	b.tabTo(`[data-session="billing"] summary`)
	b.press(kb.Enter)
	b.until("the details are open", `document.querySelector('[data-session="billing"] details').open`)
	b.tabTo(`[data-session="billing"] button.refresh`)
	b.press(kb.Enter)
	b.until("it asks first", `document.querySelector("#confirm").open && document.activeElement.id === "confirm-no"`)
	if st := w.status("billing"); st.Generation != 1 {
		t.Error("it did not wait for a yes")
	}
	b.press(kb.Escape)
	b.until("the dialog is closed, the button has the focus", `!document.querySelector("#confirm").open && document.activeElement.matches("button.refresh")`)
	b.press(kb.Enter)
	b.tabTo("#confirm-yes")
	b.press(kb.Enter)
	b.until("it is done", `document.querySelector("#confirm-answer").textContent === "A new token pair is in force."`)
	b.press(kb.Enter) // Close
	b.until("the page shows it", `document.querySelector('[data-session="billing"] .facts').textContent.includes("generation 2") && document.activeElement.matches("button.refresh") && document.querySelector('[data-session="billing"] details').open`)

	b.tabTo(`[data-session="billing"] button.end`)
	b.press(kb.Enter)
	b.tabTo("#confirm-yes")
	b.press(kb.Enter)
	b.until("it is done", `document.querySelector("#confirm-answer").textContent.includes("forgotten here")`)
	b.press(kb.Enter)
	b.until("the page shows it", `document.querySelector('[data-session="billing"] article').dataset.state === "lost"`)
	if st := w.status("billing"); st.Reason != refresher.ReasonLoggedOut {
		t.Errorf("the session is %s (%s)", st.State, st.Reason)
	}
	if got := b.session("billing"); !strings.Contains(got.Advice, "Somebody ended this session here") {
		t.Errorf("advice: %s", got.Advice)
	}
	b.clean()
}

// Without actions there are no buttons, and nothing that they could do.
func TestThePageWithoutActions(t *testing.T) {
	w := newWorld(t)
	w.session("billing", sandbox.Config{})
	b := open(t)
	w.start()
	w.waitFor("billing", "a pair", fresh)
	b.visit(w)
	b.until("the session is there", `document.querySelector('[data-session="billing"]')`)
	if got := b.text(`[...document.querySelectorAll("button")].filter((e) => e.checkVisibility()).length`); got != "0" {
		t.Errorf("%s buttons", got)
	}
	b.clean() // before the next line, which the browser complains of
	var status int
	b.eval(`fetch(location.pathname, {method: "POST", headers: {"Content-Type": "application/json", "Token-Refresh-Action": ""}, body: '{"action":"refresh","session":"billing"}'}).then((r) => r.status)`, &status)
	if status != 403 || w.status("billing").Generation != 1 {
		t.Errorf("answered %d", status)
	}
}

// On a telephone nothing is wider than the screen, whatever it says.
func TestThePageAtPhoneWidth(t *testing.T) {
	w := newWorld(t)
	crowd(t, w)
	b := open(t)
	w.start()
	settle(t, w)
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: 360, Height: 740, DeviceScaleFactor: 2, Mobile: true})
	b.visit(w)
	b.until("all are there", `document.querySelectorAll("#session-list > li").length >= 5 && document.querySelector("#pool-list > li")`)
	b.eval(`document.querySelectorAll("details").forEach((d) => { d.open = true })`, nil)
	var wide []string
	b.eval(`[...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, svg, template, .skip") && e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + .5).map((e) => e.tagName + "." + e.className + " " + e.textContent.slice(0, 40))`, &wide)
	if len(wide) > 0 {
		t.Errorf("wider than the screen: %s", strings.Join(wide, "\n"))
	}
	if got := b.text(`document.documentElement.scrollWidth > innerWidth`); got != "false" {
		t.Error("the page scrolls sideways")
	}
	var small []string
	b.eval(`[...document.querySelectorAll("button, summary, input")].filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 24).map((e) => e.outerHTML.slice(0, 60))`, &small)
	if len(small) > 0 {
		t.Errorf("too small for a finger: %s", strings.Join(small, "\n"))
	}
	b.clean()
}

// Nobody who asks for less motion gets any, and states do not depend on colour.
func TestThePageAsksNothingOfEyes(t *testing.T) {
	w := newWorld(t)
	crowd(t, w)
	b := open(t)
	w.start()
	settle(t, w)
	b.visit(w)
	b.until("all are there", `document.querySelectorAll("#session-list > li").length >= 5`)
	b.prefer("prefers-reduced-motion", "reduce")
	if got := b.text(`[...document.querySelectorAll("*")].filter((e) => parseFloat(getComputedStyle(e).transitionDuration) > 0 || getComputedStyle(e).animationName !== "none").length`); got != "0" {
		t.Errorf("%s elements move", got)
	}
	var signs map[string]string
	b.eval(`Object.fromEntries([...document.querySelectorAll("article.card")].map((e) => [e.dataset.level, getComputedStyle(e.querySelector(".sign"), "::before").content]))`, &signs)
	seen := map[string]bool{}
	for level, sign := range signs {
		if seen[sign] {
			t.Errorf("%s has another level's sign: %v", level, signs)
		}
		seen[sign] = true
	}
	for _, scheme := range []string{"light", "dark"} {
		b.prefer("prefers-color-scheme", scheme)
		var faint []string
		b.eval(contrast, &faint)
		if len(faint) > 0 {
			slices.Sort(faint)
			t.Errorf("%s: contrast below 4.5: %s", scheme, strings.Join(slices.Compact(faint), "; "))
		}
	}
	b.clean()
}

// contrast lists texts that do not stand out from what is behind them (WCAG 2.2,
// 1.4.3).
const contrast = `(() => {
	const parse = (c) => { const m = c.match(/[\d.]+/g).map(Number); return m.length > 3 && m[3] === 0 ? null : m; };
	const light = (c) => { const f = c.slice(0, 3).map((v) => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
	const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c) return c; } return [255, 255, 255]; };
	const faint = [];
	for (const e of document.querySelectorAll("body *")) {
		if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility() || e.closest("svg, .skip, :disabled")) continue;
		const a = light(parse(getComputedStyle(e).color)), b = light(behind(e));
		const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
		if (ratio < 4.5) faint.push(e.tagName + "." + e.className + " " + ratio.toFixed(2));
	}
	return faint;
})()`

// Where no events come through, the page asks.
func TestThePageWithoutEvents(t *testing.T) {
	w := newWorld(t)
	w.session("billing", sandbox.Config{})
	b := open(t)
	w.start()
	w.waitFor("billing", "a pair", fresh)
	call(b, network.Enable, network.EnableParams{})
	call(b, network.SetBlockedURLs, network.SetBlockedURLsParams{URLPatterns: []*network.BlockPattern{{URLPattern: w.url() + "\\?events", Block: true}}})
	b.run(chromedp.Navigate(w.url()))
	b.until("it asks", `document.querySelector("#connection").dataset.live === "poll"`)
	w.refresh("billing")
	b.until("it shows what it hears", `document.querySelector('[data-session="billing"] .facts').textContent.includes("generation 2")`)
}
