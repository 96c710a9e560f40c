package caddymodule

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/store/storetest/servers"
)

const doctorCanary = "CANARY-doctor-41aa"

type doctorReport struct {
	Problems, Warnings int
	Findings           []finding
}

// has reports whether a finding says that.
func (r doctorReport) has(level, check, session, text string) bool {
	return slices.ContainsFunc(r.Findings, func(f finding) bool {
		return f.Level == level && f.Check == check && f.Session == session && strings.Contains(f.Text, text)
	})
}

// runDoctor runs the command on a configuration file.
func runDoctor(t *testing.T, path string, more ...string) (code int, report doctorReport) {
	t.Helper()
	code, out, errs := adaptCaddy(t, filepath.Dir(path), "", append([]string{"token-refresh", "doctor", "--json", "--config", path}, more...)...)
	if strings.Contains(out+errs, "CANARY") {
		t.Errorf("a secret is shown:\n%s%s", out, errs)
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("exit code %d, %v:\n%s%s", code, err, out, errs)
	}
	return code, report
}

// doctorIssuerServer is an issuer that must be asked for nothing but its root.
type doctorIssuerServer struct {
	*httptest.Server
	mu   sync.Mutex
	off  time.Duration
	seen []string
}

func newDoctorIssuer(t *testing.T, off time.Duration, secure bool) *doctorIssuerServer {
	t.Helper()
	s := &doctorIssuerServer{off: off}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen = append(s.seen, r.Method+" "+r.URL.Path+r.Header.Get("Authorization"))
		w.Header().Set("Date", time.Now().Add(s.off).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusNotFound)
	}))
	s.Config.ErrorLog = nil
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(func() {
		s.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, r := range s.seen {
			if r != "GET /" && !strings.HasPrefix(r, "GET /.well-known/") {
				t.Errorf("the issuer was asked %s", r)
			}
		}
	})
	return s
}

// expiredServer is a TLS server whose certificate has ended, and the file with
// its authority.
func expiredServer(t *testing.T, ca string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	doctorWrite(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), 0o600)
	srv := httptest.NewUnstartedServer(nil)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL
}

func doctorWrite(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

func TestTheDoctorSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	well := newDoctorIssuer(t, 0, false)
	skewed := newDoctorIssuer(t, -5*time.Minute, false)
	secure := newDoctorIssuer(t, 0, true)
	doctorWrite(t, in("ca.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})), 0o600)
	expired := expiredServer(t, in("expired.pem"))
	closed := ruleFreeAddr(t)
	doctorWrite(t, in("pair.json"), adaptPair(doctorCanary, doctorCanary), 0o600)
	doctorWrite(t, in("world.json"), adaptPair(doctorCanary, doctorCanary), 0o644)
	doctorWrite(t, in("broken.json"), doctorCanary, 0o600)
	if err := os.Mkdir(in("open"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(in("open"), 0o777); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RULE_DOCTOR_KEY", doctorCanary)
	t.Setenv("RULE_DOCTOR_SECRET", doctorCanary)

	session := func(issuer string, more ...string) string {
		return "session s {\nissuer " + issuer + "\ntokens file " + in("pair.json") + "\n" + strings.Join(more, "\n") + "\n}"
	}
	bearer := func(s *doctorIssuerServer) string { return "bearer " + s.URL + "/User/RefreshToken" }
	const site = "bind 127.0.0.1\ntoken_refresh s\nreverse_proxy 127.0.0.1:1"
	for _, tt := range []struct {
		name, global, app, site     string
		level, check, session, want string
	}{
		{"nothing", "", session(bearer(well)), site, "", "clock", "s", "agrees"},
		{"an unknown option", "", session(bearer(well), "refresh_bevor 5m"), site, doctorProblem, "config", "", `cannot be read as a configuration: unrecognized option "refresh_bevor" of a session, at`},
		{"plain http far away", "", session("bearer http://issuer.invalid/x"), site, doctorProblem, "plain-http", "", "Write https://"},
		{"a session that is not there", "", session(bearer(well)), "token_refresh other", doctorProblem, "config", "", `session "other" is not defined`},
		{"a closed port", "", session("bearer http://" + closed + "/x"), site, doctorProblem, "issuer-unreachable", "s", "connection refused"},
		{"an unknown name", "", session("bearer https://issuer.invalid/x"), site, doctorProblem, "issuer-dns", "s", "issuer.invalid cannot be resolved"},
		{"a certificate of nobody", "", session(bearer(secure)), site, doctorProblem, "issuer-tls", "s", "does not trust"},
		{"a certificate for another name", "", session("bearer " + strings.Replace(secure.URL, "127.0.0.1", "localhost", 1) + "/x {\ntls {\nca " + in("ca.pem") + "\n}\n}"), site,
			doctorProblem, "issuer-tls", "s", "for another name"},
		{"a certificate that has ended", "", session("bearer " + expired + "/x {\ntls {\nca " + in("expired.pem") + "\n}\n}"), site, doctorProblem, "issuer-tls", "s", "has expired"},
		{"no TLS at all", "", session("bearer " + strings.Replace(well.URL, "http:", "https:", 1) + "/x"), site, doctorProblem, "issuer-tls", "s", "does not speak TLS"},
		{"a trusted certificate", "", session("bearer " + secure.URL + "/x {\ntls {\nca " + in("ca.pem") + "\n}\n}"), site, "", "issuer", "s", "can be reached"},
		{"no discovery", "", session("oauth2 discover " + well.URL + " {\nclient_id a\nclient_secret {env.RULE_DOCTOR_SECRET}\n}"), site,
			doctorProblem, "issuer-discovery", "s", "404"},
		{"a clock that is behind", "", session(bearer(skewed)), site, doctorProblem, "clock", "s", "5m0s behind"},
		{"a state_dir open to others", "", "state_dir " + in("open") + "\n" + session(bearer(well)), site, doctorProblem, "state-dir", "", "open to others"},
		{"a state_dir that cannot be", "", "state_dir " + in("pair.json") + "/state\n" + session(bearer(well)), site, doctorProblem, "state-dir", "", "state_dir"},
		{"a store without a key", "", "store redis redis://127.0.0.1:1\n" + session(bearer(well)), site, doctorProblem, "encryption-key", "", "encryption_key is required"},
		{"a malformed key", "", "encryption_key {env.RULE_DOCTOR_KEY}\n" + session(bearer(well)), site, doctorProblem, "encryption-key", "", "32 bytes in base64"},
		{"a password that is not set", "", "session s {\nissuer " + bearer(well) + "\ntokens login " + well.URL + "/login {\nusername u\npassword {env.RULE_NOT_SET}\n}\n}", site,
			doctorProblem, "placeholder", "s", `does not load: session "s": tokens login: password: a placeholder is unknown or empty: {env.RULE_NOT_SET}. The environment`},
		{"a key that is not set", "", "encryption_key {env.RULE_NOT_SET}\n" + session(bearer(well)), site, doctorProblem, "placeholder", "", "{env.RULE_NOT_SET}"},
		{"a store that is down", "", "encryption_key " + adaptKey() + "\nstore redis redis://:" + doctorCanary + "@" + closed + "\n" + session(bearer(well)), site,
			doctorProblem, "store", "", "cannot be used"},
		{"etcd that is down", "", "encryption_key " + adaptKey() + "\nstore etcd http://" + closed + "\n" + session(bearer(well)), site, doctorProblem, "store", "", "cannot be used"},
		{"a broken tokens file", "", "session s {\nissuer " + bearer(well) + "\ntokens file " + in("broken.json") + "\n}", site, doctorProblem, "tokens-file", "s", "broken.json"},
		{"a tokens file for everybody", "", "session s {\nissuer " + bearer(well) + "\ntokens file " + in("world.json") + "\n}", site, doctorWarning, "tokens-file", "s", "mode 0644"},
		{"a tokens file that is not there", "", "session s {\nissuer " + bearer(well) + "\ntokens file " + in("none.json") + "\n}", site, doctorProblem, "no-pair", "s", "none.json is not there"},
		{"variables that are not set", "", "session s {\nissuer " + bearer(well) + "\ntokens env RULE_NONE_A RULE_NONE_R\n}", site, doctorProblem, "no-pair", "s", "RULE_NONE_A"},
		{"variables beside a pair", "", session(bearer(well), "tokens env RULE_NONE_A RULE_NONE_R"), site, doctorWarning, "tokens-source", "s", "RULE_NONE_A"},
		{"a pair from nowhere", "", "session s {\nissuer " + bearer(well) + "\ntokens import\n}", site, doctorProblem, "no-pair", "s", "give it one with `caddy token-refresh import s`"},
		{"a pair from a person", "", "session s {\nissuer oauth2 " + well.URL + "/token {\nclient_id a\n}\ntokens import\n}", site, doctorProblem, "no-pair", "s", "`caddy token-refresh login s`, or"},
		{"a login that cannot be reached", "", "session s {\nissuer " + bearer(well) + "\ntokens login http://" + closed + "/login {\nusername u\npassword {env.RULE_DOCTOR_SECRET}\n}\n}", site,
			doctorProblem, "login-unreachable", "s", "connection refused"},
		{"an open listener", "", session(bearer(well)), "token_refresh s\nreverse_proxy 127.0.0.1:1", doctorWarning, "open-listener", "s", "bind 127.0.0.1"},
		{"an open listener for everybody", "", session(bearer(well)), "token_refresh s {\nclients any\n}\nreverse_proxy 127.0.0.1:1", doctorProblem, "open-listener", "s", "Everybody"},
		{"an open listener with authentication", "", session(bearer(well)), "forward_auth 127.0.0.1:2 {\nuri /\n}\ntoken_refresh s {\nclients any\n}\nreverse_proxy 127.0.0.1:1",
			doctorWarning, "open-listener", "s", "authentication"},
		{"the wrong order", "", session(bearer(well)), "bind 127.0.0.1\nroute {\nreverse_proxy 127.0.0.1:1\ntoken_refresh s\n}", doctorProblem, "handler-order", "s", "after reverse_proxy"},
		{"the wrong order within a matcher", "", session(bearer(well)), "bind 127.0.0.1\nhandle_path /a/* {\nroute {\nreverse_proxy 127.0.0.1:1\ntoken_refresh s\n}\n}", doctorProblem, "handler-order", "s", "after"},
		{"a directive outside of the handle blocks", "", session(bearer(well)), "bind 127.0.0.1\ntoken_refresh s\nhandle /a/* {\nreverse_proxy 127.0.0.1:1\n}", doctorProblem, "handler-order", "s", "Nothing comes after"},
		{"a session without a site", "", session(bearer(well)), "bind 127.0.0.1\nreverse_proxy 127.0.0.1:1", doctorWarning, "no-handler", "s", "put `token_refresh s`"},
		{"other routes that proxy before", "", session(bearer(well)), "bind 127.0.0.1\nhandle /a/* {\nreverse_proxy 127.0.0.1:1\n}\nhandle {\ntoken_refresh s\nreverse_proxy 127.0.0.1:1\n}", "", "config", "", "loads"},
		{"credentials in logs", "servers {\nlog_credentials\n}", session(bearer(well)), site, doctorWarning, "log-credentials", "s", "log_credentials"},
		{"plain http", "", session("bearer http://issuer.invalid/x {\ninsecure_http\n}"), site, doctorWarning, "plain-http", "s", "https"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := &ruleCaddy{t: t, Addr: ruleFreeAddr(t), Admin: ruleFreeAddr(t), Dir: t.TempDir()}
			text := c.caddyfile(ruleConfig{Global: tt.global, App: tt.app, Site: tt.site})
			if strings.HasPrefix(tt.app, "state_dir") {
				text = strings.Replace(text, "state_dir "+filepath.Join(c.Dir, "state"), "", 1)
			}
			if tt.check == "open-listener" {
				text = strings.Replace(text, "\tbind 127.0.0.1\n", "", 1)
			}
			path := filepath.Join(c.Dir, "Caddyfile")
			doctorWrite(t, path, text, 0o600)
			code, report := runDoctor(t, path)
			want := 0
			if tt.level == doctorProblem || tt.name == "plain http" { // which is not there either
				want = 1
			}
			level := tt.level
			if level == "" {
				level = doctorOK
				if report.Problems+report.Warnings > 0 {
					t.Errorf("found: %+v", report.Findings)
				}
			}
			if code != want || !report.has(level, tt.check, tt.session, tt.want) {
				t.Errorf("exit code %d, found: %+v", code, report.Findings)
			}
			if _, err := os.Stat(filepath.Join(c.Dir, "state")); err == nil {
				t.Error("the state directory was made")
			}
		})
	}
}

// The journals are those of a running Caddy, which goes on undisturbed.
func TestTheDoctorLooksAtWhatIsStoredAndRunning(t *testing.T) {
	key := adaptKey()
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	pair := rulePair(t, access, refresh)
	cfg := func(key string, more ...string) ruleConfig {
		return ruleConfig{
			App: "encryption_key " + key + "\nsession s {\nissuer bearer " + issuer + "/User/RefreshToken {\n" + strings.Join(more, "\n") + "\n}\ntokens file " + pair + "\n}\n" +
				"session empty {\nissuer bearer " + issuer + "/User/RefreshToken\ntokens import\n}",
			Site: "token_refresh s\nreverse_proxy " + issuer,
		}
	}
	c := ruleNew(t)
	if err := c.load(cfg(key)); err != nil {
		t.Fatal(err)
	}
	ruleEventually(t, "the session's pair", func() bool { return ruleStatus(t, "s").Generation == 1 })
	slots := func() (all []byte) {
		for _, slot := range []string{"s.j0", "s.j1"} {
			text, err := os.ReadFile(filepath.Join(c.Dir, "state", slot))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, text...)
		}
		return all
	}
	var before []byte
	ruleEventually(t, "the pair on disk, in both slots", func() bool {
		before = slots()
		<-time.After(200 * time.Millisecond)
		return bytes.Contains(before, []byte("ctrjrnl1")) && bytes.Equal(before, slots()) && ruleStatus(t, "s").LastError == ""
	})
	path := filepath.Join(t.TempDir(), "Caddyfile")
	look := func(cfg ruleConfig, more ...string) (int, doctorReport) {
		t.Helper()
		doctorWrite(t, path, c.caddyfile(cfg), 0o600)
		return runDoctor(t, path, more...)
	}

	code, report := look(cfg(key))
	if code != 1 || !report.has(doctorOK, "encryption-key", "s", "opens") || !report.has(doctorOK, "instance", "s", "fresh") ||
		!report.has(doctorProblem, "instance", "empty", "no token yet") || !report.has(doctorProblem, "no-pair", "empty", "import") {
		t.Errorf("exit code %d, found: %+v", code, report.Findings)
	}
	if code, report = look(cfg(adaptKey())); code != 1 || !report.has(doctorProblem, "encryption-key", "s", "another key") {
		t.Errorf("exit code %d, found: %+v", code, report.Findings)
	}
	if _, report = look(cfg(adaptKey() + "\nencryption_key " + key)); !report.has(doctorOK, "encryption-key", "s", "opens") {
		t.Errorf("found: %+v", report.Findings)
	}
	// With nobody running, the age is that of the stored pair.
	nobody := []string{"--address", ruleFreeAddr(t)}
	ruleEventually(t, "the end of a refresh token that lives for a second", func() bool {
		_, report = look(cfg(key, "refresh_lifetime 1s"), nobody...)
		return report.has(doctorProblem, "refresh-token", "s", "ended")
	})
	if !report.has(doctorOK, "instance", "", "No instance is running") {
		t.Errorf("found: %+v", report.Findings)
	}
	if _, report = look(cfg(key, "refresh_lifetime 1h"), nobody...); !report.has(doctorOK, "refresh-token", "s", "left") {
		t.Errorf("found: %+v", report.Findings)
	}
	if !bytes.Equal(before, slots()) || ruleStatus(t, "s").Generation != 1 {
		t.Error("the session was disturbed")
	}

	// Damage, and a mode that keeps the session from starting, on another disk.
	other := &ruleCaddy{t: t, Addr: c.Addr, Admin: c.Admin, Dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(other.Dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, slot := range []string{"s.j0", "s.j1"} {
		doctorWrite(t, filepath.Join(other.Dir, "state", slot), "ctrjrnl1 and no more", 0o644)
	}
	doctorWrite(t, path, other.caddyfile(cfg(key)), 0o600)
	if _, report = runDoctor(t, path, nobody...); !report.has(doctorProblem, "journal", "s", "damaged") || !report.has(doctorProblem, "state-dir", "s", "chmod 600") {
		t.Errorf("found: %+v", report.Findings)
	}
	// A pair whose key is gone, as none is configured.
	doctorWrite(t, path, strings.Replace(other.caddyfile(cfg(key)), "encryption_key "+key, "", 1), 0o600)
	if _, report = runDoctor(t, path, nobody...); !report.has(doctorProblem, "encryption-key", "s", "Put back the key") {
		t.Errorf("found: %+v", report.Findings)
	}

	// A session that is lost, as the instance tells it and as it is stored.
	if status, body := c.admin("DELETE", "/token_refresh/sessions/s", ""); status >= 300 {
		t.Fatalf("%d %s", status, body)
	}
	if _, report = look(cfg(key)); !report.has(doctorProblem, "instance", "s", "lost") || slices.ContainsFunc(report.Findings, func(f finding) bool { return f.Check == "tokens-source" && f.Session == "s" }) {
		t.Errorf("found: %+v", report.Findings)
	}
	ruleEventually(t, "the loss on disk", func() bool {
		_, report = look(cfg(key), nobody...)
		return report.has(doctorProblem, "lost", "s", string(refresher.ReasonLoggedOut))
	})

	entries, err := os.ReadDir(filepath.Join(c.Dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "doctor") {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}

func TestTheDoctorLooksAtTheStoresServer(t *testing.T) {
	primary := servers.StartRedis(t, servers.RedisOptions{})
	replica := servers.StartRedis(t, servers.RedisOptions{ReplicaOf: primary})
	well := servers.StartRedis(t, servers.RedisOptions{AppendOnly: true})
	issuer := newDoctorIssuer(t, 0, false)
	for _, tt := range []struct{ addr, level, want string }{
		{replica.Addr, doctorProblem, "primary"},
		{primary.Addr, doctorWarning, "a restart loses the sessions"},
		{well.Addr, doctorOK, "answers"},
	} {
		c := ruleNew(t)
		path := filepath.Join(c.Dir, "Caddyfile")
		doctorWrite(t, path, c.caddyfile(ruleConfig{
			App:  fmt.Sprintf("encryption_key %s\nstore redis redis://%s\n%s", adaptKey(), tt.addr, ruleSession(issuer.URL, rulePair(t, doctorCanary, doctorCanary))),
			Site: "token_refresh s\nreverse_proxy 127.0.0.1:1",
		}), 0o600)
		code, report := runDoctor(t, path)
		if (code == 1) != (tt.level == doctorProblem) || !report.has(tt.level, "store", "", tt.want) {
			t.Errorf("%s: exit code %d, found: %+v", tt.want, code, report.Findings)
		}
	}
}

// The pair in a store is that of a fleet's instance, with another key.
func TestTheDoctorKnowsAnotherKeyInTheStore(t *testing.T) {
	redis := servers.StartRedis(t, servers.RedisOptions{AppendOnly: true})
	sb, issuer := ruleIssuer(t, sandbox.Config{})
	access, refresh := sb.Login()
	app := "store redis redis://" + redis.Addr + "\n" + ruleSession(issuer, rulePair(t, access, refresh))
	key := adaptKey()
	c := ruleStart(t, ruleConfig{App: "encryption_key " + key + "\n" + app, Site: "token_refresh s"})
	redis.Await(t, "*1", "KEYS", "*{s}*")
	other := &ruleCaddy{t: t, Addr: c.Addr, Admin: ruleFreeAddr(t), Dir: t.TempDir()} // another machine's disk
	path := filepath.Join(other.Dir, "Caddyfile")
	for key, want := range map[string]bool{key: false, adaptKey(): true} {
		doctorWrite(t, path, other.caddyfile(ruleConfig{App: "encryption_key " + key + "\n" + app, Site: "token_refresh s"}), 0o600)
		if _, report := runDoctor(t, path); report.has(doctorProblem, "encryption-key", "s", "shared store") != want {
			t.Errorf("found: %+v", report.Findings)
		}
	}
}

func TestTheDoctorIsAskedRightly(t *testing.T) {
	dir := t.TempDir()
	doctorWrite(t, filepath.Join(dir, "empty.json"), "{}", 0o600)
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"too", "many"}, 2, ""},
		{[]string{"--what"}, 2, ""},
		{[]string{"--adapter", "caddyfile"}, 2, "--config"},
		{[]string{"--config", dir + "/empty.json", "--adapter", "yamlish"}, 2, "yamlish"},
		{nil, 2, "--config"}, // the tests' directory has no Caddyfile
		{[]string{"--config", dir + "/none"}, 1, "problem  config: " + dir + "/none cannot be read"},
		{[]string{"--config", dir + "/empty.json", "--address", "127.0.0.1:1"}, 1, "no token_refresh app"},
	} {
		code, out, errs := adaptCaddy(t, dir, "", append([]string{"token-refresh", "doctor"}, tt.args...)...)
		if code != tt.code || !strings.Contains(out+errs, tt.want) {
			t.Errorf("%v: exit code %d\n%s%s", tt.args, code, out, errs)
		}
	}
}
