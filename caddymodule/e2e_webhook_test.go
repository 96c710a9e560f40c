package caddymodule_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/webhook"
)

const hookSecret = "a-shared-secret-of-more-than-32-bytes"

// receiver is a program of somebody's that gets events.
type receiver struct {
	t   *testing.T
	url string

	mu     sync.Mutex
	answer func() int // the status of the next answer
	got    []delivery
}

type delivery struct {
	at     time.Time
	status int
	id     string
	fields map[string]any
}

func newReceiver(t *testing.T, answer func() int) *receiver {
	r := &receiver{t: t, answer: answer}
	r.url = serve(t, http.HandlerFunc(r.handle))
	return r
}

func (r *receiver) handle(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the sender was killed
	}
	var sent struct {
		Event map[string]any `json:"event"`
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if err := dec.Decode(&sent); err != nil || req.Method != http.MethodPost || req.Header.Get("Content-Type") != "application/json" {
		r.t.Errorf("%s %q: %v", req.Method, req.Header, err)
	}
	if user, password, _ := req.BasicAuth(); user != "hooks" || password != "let me in" || req.Header.Get("X-Extra") != "yes" {
		r.t.Errorf("user %q, extra %q", user, req.Header.Get("X-Extra"))
	}
	r.checkSignature(req.Header.Get(webhook.SignatureHeader), body)
	r.mu.Lock()
	status := r.answer()
	id, _ := sent.Event["id"].(string)
	r.got = append(r.got, delivery{time.Now(), status, id, sent.Event})
	r.mu.Unlock()
	w.WriteHeader(status)
}

func (r *receiver) checkSignature(text string, body []byte) {
	token, err := jwt.Parse(text, func(*jwt.Token) (any, error) { return []byte(hookSecret), nil }, jwt.WithValidMethods([]string{"HS256"}))
	if err != nil {
		r.t.Errorf("the signature: %v", err)
		return
	}
	sum := sha256.Sum256(body)
	if got := token.Claims.(jwt.MapClaims)["request_body_sha256"]; got != base64.StdEncoding.EncodeToString(sum[:]) {
		r.t.Errorf("the signature is for another body: %v", got)
	}
}

func (r *receiver) setAnswer(answer func() int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

func (r *receiver) deliveries() []delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]delivery(nil), r.got...)
}

func always(status int) func() int { return func() int { return status } }

// line is the Caddyfile's for this receiver.
func (r *receiver) line(more string) string {
	return fmt.Sprintf("webhook %s {\nbasic_auth hooks \"let me in\"\nheader X-Extra yes\nsignature hmac %s\ntenant_id 800d17be-ad77-4f3d-93e1-ef73dfa50cf2\napplication_id 79360eaa-2c25-429b-b8c7-0ba353127e9b\nuser_claim UserID\ntimeout 2s\n%s\n}", r.url, hookSecret, more)
}

func TestWebhooks(t *testing.T) {
	atOnce(t, map[string]func(*testing.T){
		"each rotation is told, field by field":             toldFieldByField,
		"nobody gets a pair before the webhook agreed":      nobodyBeforeTheWebhook,
		"through kill -9 with the same id":                  toldThroughKill,
		"a receiver that fails for a while gets all":        failingReceiver,
		"a request that causes an exchange is described":    originIsTold,
		"events about a session that somebody else has":     heardByWebhook,
		"events that do not prove their sender are refused": webhookRefused,
	})
}

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func toldFieldByField(t *testing.T) {
	r := newReceiver(t, always(204))
	b := newBench(t)
	s := b.site(t, "told", sandbox.Config{AccessLifetime: 20 * time.Minute})
	access, refresh, ok := s.currentPair(t)
	if !ok {
		t.Fatal("no pair")
	}
	b.app = r.line("")
	c := b.spawn(t)
	defer c.kill()
	before := time.Now()
	s.refresh(t)
	next, _, _ := s.currentPair(t)
	if !within(t.Context(), 10*time.Second, func() bool { return len(r.deliveries()) > 0 }) {
		t.Fatal("nothing was delivered")
	}
	got := r.deliveries()[0].fields
	created, err := got["createInstant"].(json.Number).Int64()
	if at := time.UnixMilli(created); err != nil || at.Before(before.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
		t.Errorf("createInstant %v (%v)", got["createInstant"], err)
	}
	if id, _ := got["id"].(string); !uuidForm.MatchString(id) {
		t.Errorf("id %q", id)
	}
	for name, want := range map[string]string{
		"type": "jwt.refresh", "userId": "123", "original": access, "refreshToken": refresh, "token": next,
		"tenantId": "800d17be-ad77-4f3d-93e1-ef73dfa50cf2", "applicationId": "79360eaa-2c25-429b-b8c7-0ba353127e9b",
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %s", name, got[name], want)
		}
	}
	for name := range got {
		if !strings.Contains(" type createInstant id tenantId applicationId original token refreshToken userId ", " "+name+" ") {
			t.Errorf("the event has %s, which the schedule knows nothing of", name)
		}
	}
}

// currentPair is the pair that the sandbox takes at present.
func (s *site) currentPair(t *testing.T) (access, refresh string, ok bool) {
	t.Helper()
	ledger := s.sandbox.Ledger()
	session := ""
	if len(ledger) > 0 {
		session = ledger[len(ledger)-1].Session
	} else {
		text, err := os.ReadFile(s.tokensFile())
		var pair struct{ AccessToken string }
		if err != nil || json.Unmarshal(text, &pair) != nil {
			return "", "", false
		}
		known, _ := s.sandbox.Lookup(pair.AccessToken)
		session = known.ID
	}
	return s.sandbox.Current(session)
}

func nobodyBeforeTheWebhook(t *testing.T) {
	r := newReceiver(t, always(500))
	b := newBench(t)
	s := b.site(t, "required", sandbox.Config{AccessLifetime: 20 * time.Minute})
	s.session = "wait 500ms"
	b.app = r.line("transaction required")
	c := b.spawn(t)
	defer c.kill()
	s.get200(t, 5*time.Second)
	s.refresh(t)
	served := s.sandbox.Stats().Served
	for range 5 {
		if a := s.get(t, "/whoami"); a.status != 503 {
			t.Errorf("a request was answered %d before the webhook agreed", a.status)
		}
	}
	if now := s.sandbox.Stats(); now.Served != served || now.Unauthorized != 0 {
		t.Errorf("the upstream was reached: %+v", now)
	}
	if st := s.status(t); st.State != "holding" || !strings.Contains(st.LastError, "webhook") {
		t.Errorf("state %+v", st)
	}
	r.setAnswer(always(200))
	s.get200(t, 30*time.Second)
	got := r.deliveries()
	for _, d := range got {
		if d.id != got[0].id {
			t.Errorf("the event came as %s and as %s", got[0].id, d.id)
		}
	}
	s.checkLedger(t)
}

func toldThroughKill(t *testing.T) {
	r := newReceiver(t, always(503))
	b := newBench(t)
	s := b.site(t, "killed", sandbox.Config{AccessLifetime: 20 * time.Minute})
	s.session = "wait 300ms"
	b.app = r.line("transaction required")
	c := b.spawn(t)
	s.get200(t, 5*time.Second)
	s.refresh(t)
	if !within(t.Context(), 10*time.Second, func() bool { return len(r.deliveries()) > 0 }) {
		t.Fatal("nothing was tried")
	}
	for range 2 {
		c.kill()
		c = b.spawn(t)
		if a := s.get(t, "/whoami"); a.status != 503 {
			t.Errorf("after kill -9 a request was answered %d before the webhook agreed", a.status)
		}
	}
	defer c.kill()
	r.setAnswer(always(200))
	s.get200(t, 30*time.Second)
	ids := map[string]bool{}
	for _, d := range r.deliveries() {
		ids[d.id] = true
	}
	if len(ids) != 1 {
		t.Errorf("%d ids for one rotation", len(ids))
	}
	s.checkLedger(t)
}

func failingReceiver(t *testing.T) {
	r := newReceiver(t, always(500))
	b := newBench(t)
	s := b.site(t, "failing", sandbox.Config{AccessLifetime: 20 * time.Minute})
	b.app = r.line("")
	c := b.spawn(t)
	defer c.kill()
	const n = 5
	for range n {
		s.refresh(t)
		if a := s.get(t, "/whoami"); a.status != 200 {
			t.Errorf("status %d: nobody has to agree", a.status)
		}
	}
	time.AfterFunc(3*time.Second, func() { r.setAnswer(always(200)) })
	taken := func() (list []delivery) {
		for _, d := range r.deliveries() {
			if d.status == 200 {
				list = append(list, d)
			}
		}
		return list
	}
	if !within(t.Context(), 60*time.Second, func() bool { return len(taken()) >= n }) {
		t.Fatalf("%d of %d were delivered", len(taken()), n)
	}
	var tokens []string
	for _, d := range taken() {
		tokens = append(tokens, d.fields["original"].(string), d.fields["token"].(string))
	}
	for i := 1; i+1 < len(tokens); i += 2 {
		if tokens[i] != tokens[i+1] {
			t.Errorf("event %d does not follow the one before", i/2+2)
		}
	}
}

func originIsTold(t *testing.T) {
	t.Run("of a request that is sent again", func(t *testing.T) { tellsOrigin(t, http.MethodGet, nil, 200) })
	t.Run("of one that cannot be", func(t *testing.T) {
		tellsOrigin(t, http.MethodPost, io.LimitReader(rand.NewChaCha8([32]byte{}), 8<<20), 401)
	})
}

// tellsOrigin has the first call refused, and with want 200 sent again.
func tellsOrigin(t *testing.T, method string, body io.Reader, want int) {
	r := newReceiver(t, always(200))
	b := newBench(t)
	s := b.site(t, "origin", sandbox.Config{AccessLifetime: 20 * time.Minute})
	refused := false
	var mu sync.Mutex
	s.extra.HandleFunc("/once", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		defer mu.Unlock()
		if !refused {
			refused = true
			w.WriteHeader(401)
		}
	})
	b.app = r.line("") + "\nlocation {\ncity {http.request.header.X-City}\n}"
	c := b.spawn(t)
	defer c.kill()
	s.get200(t, 5*time.Second)
	req := request(t.Context(), method, s.url("/once"), body)
	req.Header.Set("User-Agent", "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36")
	req.Header.Set("X-City", "Reykjavik")
	a, err := send(b.client, req)
	if err != nil || a.status != want {
		t.Fatalf("%v %v", a, err)
	}
	if !within(t.Context(), 10*time.Second, func() bool { return len(r.deliveries()) > 0 }) {
		t.Fatal("nothing was delivered")
	}
	info, _ := r.deliveries()[0].fields["info"].(map[string]any)
	place, _ := info["location"].(map[string]any)
	if info["ipAddress"] != "127.0.0.1" || info["userAgent"] != req.UserAgent() || info["os"] != "macOS" || place["city"] != "Reykjavik" {
		t.Errorf("info %v", info)
	}
}

// tell posts an event to the site's webhook.
func (s *site) tell(t *testing.T, secret string, event map[string]any) int {
	t.Helper()
	body, err := json.Marshal(map[string]any{"event": event})
	if err != nil {
		t.Fatal(err)
	}
	req := request(t.Context(), http.MethodPost, s.url("/hook"), bytes.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	sum := sha256.Sum256(body)
	token := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"request_body_sha256": base64.StdEncoding.EncodeToString(sum[:])})
	signed, err := token.SignedString([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(webhook.SignatureHeader, signed)
	a, err := send(s.bench.client, req)
	if err != nil {
		t.Fatal(err)
	}
	return a.status
}

func eventOf(kind string, more map[string]any) map[string]any {
	ev := map[string]any{"type": kind, "id": webhook.NewID(), "createInstant": time.Now().UnixMilli()}
	for name, value := range more {
		ev[name] = value
	}
	return ev
}

// tokenObject is a refresh token as a revocation names it.
func tokenObject(token string) map[string]any {
	return map[string]any{"id": webhook.NewID(), "token": token}
}

// hearing adds a webhook handler to the site.
func (s *site) hearing() {
	s.before = "handle /hook {\ntoken_refresh_webhook " + s.name + " {\nsignature hmac " + hookSecret + "\n}\n}"
}

func heardByWebhook(t *testing.T) {
	b := newBench(t)
	s := b.site(t, "heard", sandbox.Config{AccessLifetime: 20 * time.Minute, KeepRefreshToken: true})
	s.hearing()
	c := b.spawn(t)
	defer c.kill()
	s.get200(t, 5*time.Second)
	_, refresh, _ := s.currentPair(t)

	// Somebody else has exchanged: the session catches up.
	event := eventOf("jwt.refresh", map[string]any{"refreshToken": refresh, "token": "another", "userId": webhook.NewID(), "applicationId": webhook.NewID()})
	for range 3 { // the same one, three times
		if status := s.tell(t, hookSecret, event); status != 204 {
			t.Fatalf("status %d", status)
		}
	}
	if !within(t.Context(), 10*time.Second, func() bool { return s.status(t).Generation == 2 }) {
		t.Fatalf("the session did not catch up: %+v", s.status(t))
	}
	// One that speaks of somebody else changes nothing; one of ours that is
	// revoked ends it.
	other := eventOf("jwt.refresh-token.revoke", map[string]any{"refreshToken": tokenObject("another"), "userId": webhook.NewID()})
	if status := s.tell(t, hookSecret, other); status != 204 || s.get(t, "/whoami").status != 200 {
		t.Errorf("status %d", status)
	}
	_, refresh, _ = s.currentPair(t)
	ended := eventOf("jwt.refresh-token.revoke", map[string]any{"refreshToken": tokenObject(refresh), "userId": webhook.NewID()})
	if status := s.tell(t, hookSecret, ended); status != 204 {
		t.Errorf("status %d", status)
	}
	if !within(t.Context(), 5*time.Second, func() bool { return s.status(t).State == "lost" }) {
		t.Fatalf("the session goes on: %+v", s.status(t))
	}
	if st := s.status(t); st.Reason != "revoked" || s.sandbox.Stats().Exchanges != 1 {
		t.Errorf("%+v, %d exchanges", st, s.sandbox.Stats().Exchanges)
	}
}

// An event counts once, also after a reload.
func TestAnEventIsHeardOnceOverReloads(t *testing.T) {
	b := newBench(t)
	s := b.site(t, "heard", sandbox.Config{AccessLifetime: 20 * time.Minute, KeepRefreshToken: true})
	s.hearing()
	b.reloads = true
	b.start(t)
	s.get200(t, 5*time.Second)
	_, refresh, _ := s.currentPair(t)
	event := eventOf("jwt.refresh", map[string]any{"refreshToken": refresh, "token": "another", "userId": webhook.NewID(), "applicationId": webhook.NewID()})
	for range 2 {
		if status := s.tell(t, hookSecret, event); status != 204 {
			t.Fatalf("status %d", status)
		}
		if !within(t.Context(), 10*time.Second, func() bool { return s.status(t).Generation == 2 }) {
			t.Fatalf("the session did not catch up: %+v", s.status(t))
		}
		s.session = "wait 9s"
		b.load(t)
	}
	if within(t.Context(), 1500*time.Millisecond, func() bool { return s.status(t).Generation > 2 }) {
		t.Errorf("it was heard again: %+v", s.status(t))
	}
}

func webhookRefused(t *testing.T) {
	b := newBench(t)
	s := b.site(t, "refused", sandbox.Config{AccessLifetime: 20 * time.Minute})
	s.hearing()
	c := b.spawn(t)
	defer c.kill()
	s.get200(t, 5*time.Second)
	_, refresh, _ := s.currentPair(t)
	event := eventOf("jwt.refresh-token.revoke", map[string]any{"refreshToken": tokenObject(refresh)})
	if status := s.tell(t, strings.Repeat("x", 40), event); status != 401 {
		t.Errorf("another secret: status %d", status)
	}
	old := eventOf("jwt.refresh-token.revoke", map[string]any{"refreshToken": tokenObject(refresh), "createInstant": time.Now().Add(-time.Hour).UnixMilli()})
	if status := s.tell(t, hookSecret, old); status != 204 {
		t.Errorf("an old one: status %d", status)
	}
	if a := s.get(t, "/whoami"); a.status != 200 {
		t.Errorf("status %d", a.status)
	}
}
