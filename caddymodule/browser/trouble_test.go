package browser_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/chromedp/chromedp"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// die ends an issuer: nobody listens any more.
func (i *issuerOf) die() {
	i.server.Listener.Close()
	i.server.CloseClientConnections()
}

// While Caddy is away the page does not go on as if it knew anything.
func TestThePageSaysThatCaddyIsGoneAndWhenItIsBack(t *testing.T) {
	w := newWorld(t)
	w.session("billing", sandbox.Config{})
	b := open(t)
	w.start()
	w.waitFor("billing", "a pair", fresh)
	b.visit(w)
	b.until("the session is there", `document.querySelector("#summary-text").textContent === "the session is fresh"`)

	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	b.until("it says so", `document.querySelector("#summary-text").textContent === "Not connected to Caddy" && document.title.startsWith("Not connected")`)
	if got := b.text(`document.querySelector("#summary-also").textContent`); !strings.Contains(got, "as shown below: the session is fresh") {
		t.Errorf("what was known: %s", got)
	}
	var moved bool
	b.eval(`(() => { const then = serverNow(); return new Promise((done) => setTimeout(() => done(serverNow() !== then), 30)); })()`, &moved)
	if moved || b.text(`document.querySelector("#connection").dataset.live`) != "no" || b.text(`getComputedStyle(document.querySelector("main")).filter`) == "none" {
		t.Error("what is not known any more looks as if it were")
	}
	if got := b.text(`document.querySelector("#summary").dataset.level`); got == "good" {
		t.Error("all seems well")
	}

	w.load()
	b.until("it is back", `document.querySelector("#connection").dataset.live === "yes" && document.querySelector("#summary-text").textContent === "the session is fresh" && !("stale" in document.body.dataset)`)
	w.refresh("billing")
	b.until("it goes on", `document.querySelector('[data-session="billing"] .facts').textContent.includes("generation 2")`)
}

// The drawing has failures, how often in a row, and whom they kept waiting; the
// list of events has each of them once.
func TestTheTimelineTellsOfFailuresAndOfRequestsThatWaited(t *testing.T) {
	w := newWorld(t)
	billing := w.session("billing", sandbox.Config{}, "reauthenticate off")
	b := open(t)
	w.start()
	w.waitFor("billing", "a pair", fresh)
	w.refresh("billing")
	w.refresh("billing")
	b.visit(w)

	billing.Fault(sandbox.Fault{Status: 503, DelayBefore: 800 * time.Millisecond}, 1)
	done := make(chan int, 1)
	before := billing.Stats().Attempts
	go func() { done <- w.refresh("billing") }()
	w.waitFor("billing", "the exchange", func(refresher.Status) bool { return billing.Stats().Attempts > before }) // the gate is closed
	w.call("GET", "http://"+w.site+"/request", "")
	<-done
	b.until("the failure is drawn with who waited for it", `document.querySelector('.attempt[data-kind="failed"] .wait') && document.querySelectorAll(".attempt .wait").length === 1`)
	b.until("the words for it", `/^failed: the issuer's error, 1 request waited up to \d+ ms$/.test(document.querySelector('[data-session="billing"] .latest').textContent)`)

	billing.die()
	for range 3 {
		w.refresh("billing")
	}
	b.until("how often in a row", `[...document.querySelectorAll(".attempt .times")].map((e) => e.textContent).join() === "3×"`)
	same(t, w, b, "billing")
	if got := b.text(`document.querySelector('[data-session="billing"] .latest').textContent`); got != "failed: no connection, 3 times" {
		t.Errorf("the latest: %s", got)
	}
	lines := b.text(`[...document.querySelectorAll("#event-list li")].filter((e) => e.textContent.includes("billing")).map((e) => e.querySelector(".what").textContent.replace(/ in [^,]*/g, "")).slice(0, 2).join("; ")`)
	if lines != "exchange failed, 3 times; exchange failed" {
		t.Errorf("the events: %s", lines)
	}
	b.clean()
}

// A pool whose issuer is dead is not well, and its sessions are not one event each.
func TestAPoolInTroubleSaysSo(t *testing.T) {
	w := newWorld(t)
	portal := w.issuer("portal", sandbox.Config{AccessLifetime: 40 * time.Minute})
	w.session("billing", sandbox.Config{})
	w.app += fmt.Sprintf("pool portal {\nissuer bearer %s/User/RefreshToken\nlearn POST /User/Login\n}\n", portal.server.URL)
	b := open(t)
	w.start()
	for range 3 {
		w.call("POST", "http://"+w.api+"/User/Login", `{"username":"demo","password":"demo"}`, "Version", "2.0")
	}
	b.visit(w)
	b.until("the pool is there", `document.querySelector('[data-pool="portal"] .count')?.textContent === "3 sessions" && document.querySelector('[data-pool="portal"] article').dataset.level === "good"`)

	portal.die()
	var list struct{ Sessions []refresher.Status }
	_, body := w.call("GET", "http://"+w.admin+"/token_refresh/sessions?pool=portal", "")
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Sessions) != 3 {
		t.Fatalf("%v %s", err, body)
	}
	for _, st := range list.Sessions {
		w.refresh(url.PathEscape(st.Name))
	}
	b.until("its state", `document.querySelector('[data-pool="portal"] .words').textContent === "3 of 3 in trouble" && document.querySelector('[data-pool="portal"] article').dataset.level === "trouble"`)
	if got := b.text(`document.querySelector('[data-pool="portal"] .trouble').innerText`); !strings.Contains(got, "cannot be reached") || !strings.Contains(got, "connection refused") {
		t.Errorf("what to do: %s", got)
	}
	if got := b.text(`document.querySelector("#summary-text").textContent`); got != "1 is in trouble: pool portal" {
		t.Errorf("the first line: %s", got)
	}
	if got := b.text(`[...document.querySelectorAll("#event-list .text")].map((e) => e.textContent.replace(/ in [^:]*/, "")).filter((s) => s.includes("portal")).join("; ")`); !strings.HasPrefix(got, "portal exchange failed, 3 times: ") || strings.Contains(got, ";") {
		t.Errorf("the events: %s", got)
	}
	b.clean()
}

// What is worst comes first, but no card moves away under a hand.
func TestCardsDoNotMoveUnderAHand(t *testing.T) {
	w := newWorld(t)
	w.session("audit", sandbox.Config{})
	w.session("billing", sandbox.Config{}).die()
	b := open(t)
	w.start()
	w.waitFor("audit", "a pair", fresh)
	w.waitFor("billing", "a pair", fresh)
	b.visit(w)
	b.until("both are there", `document.querySelectorAll("#session-list > li").length === 2`)
	b.eval(`window.hand = setInterval(() => dispatchEvent(new PointerEvent("pointermove")), 100)`, nil)
	b.run(chromedp.KeyEvent(" "))
	w.refresh("billing")
	b.until("billing is in trouble", `document.querySelector('[data-session="billing"] article').dataset.state === "backoff"`)
	const order = `[...document.querySelectorAll("#session-list > li")].map((e) => e.dataset.session).join()`
	if got := b.text(order); got != "audit,billing" {
		t.Errorf("under a hand: %s", got)
	}
	b.eval(`clearInterval(window.hand)`, nil)
	b.until("the hand is gone", order+` === "billing,audit"`)
	b.clean()
}
