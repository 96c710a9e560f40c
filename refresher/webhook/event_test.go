package webhook

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// seedExample is the example of the event's documentation.
func seedExample(t testing.TB) (text []byte, event map[string]any) {
	t.Helper()
	text, err := os.ReadFile("testdata/jwt_refresh.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct{ Event map[string]any }
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	return text, doc.Event
}

// seedEvent is the event that makes the example.
func seedEvent(t testing.TB) Event {
	t.Helper()
	_, want := seedExample(t)
	text := func(name string) string { return want[name].(string) }
	return Event{
		Session: "billing", ID: text("id"), CreateInstant: time.UnixMilli(int64(want["createInstant"].(float64))),
		ApplicationID: text("applicationId"), TenantID: text("tenantId"), UserID: text("userId"),
		Original: refresher.NewSecret(text("original")), Token: refresher.NewSecret(text("token")),
		RefreshToken: refresher.NewSecret(text("refreshToken")),
	}
}

func decode(t testing.TB, body []byte) map[string]any {
	t.Helper()
	var doc map[string]map[string]any
	if err := json.Unmarshal(body, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc) != 1 {
		t.Fatalf("the body has %d members, want event alone", len(doc))
	}
	return doc["event"]
}

func TestTheEventIsTheDocumentsExampleFieldByField(t *testing.T) {
	body, err := seedEvent(t).encode()
	if err != nil {
		t.Fatal(err)
	}
	_, want := seedExample(t)
	if got := decode(t, body); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if strings.Contains(string(body), `\u`) {
		t.Error("a token's characters were escaped")
	}
}

func TestTheInfoHasAllTheFieldsOfTheDocument(t *testing.T) {
	ev := testEvent("s")
	ev.Info = &Info{
		Data: json.RawMessage(`{"why":"test"}`), DeviceDescription: "desc", DeviceName: "name", DeviceType: "BROWSER",
		IPAddress: "192.0.2.1", OS: "macOS", UserAgent: "agent",
		Location: &Location{City: "Denver", Country: "US", Latitude: "39.77777", Longitude: "-104.9191", Region: "CO", Zipcode: "80202"},
	}
	body, err := ev.encode()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"data": map[string]any{"why": "test"}, "deviceDescription": "desc", "deviceName": "name", "deviceType": "BROWSER",
		"ipAddress": "192.0.2.1", "os": "macOS", "userAgent": "agent",
		"location": map[string]any{
			"city": "Denver", "country": "US", "latitude": "39.77777", "longitude": "-104.9191", "region": "CO", "zipcode": "80202",
		},
	}
	if got := decode(t, body)["info"]; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFieldsThatAreNotKnownAreAbsent(t *testing.T) {
	ev := testEvent("s")
	ev.Original = refresher.Secret{}
	body, err := ev.encode()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range decode(t, body) {
		names = append(names, name)
	}
	if len(names) != 5 { // createInstant, id, refreshToken, token, type
		t.Errorf("got the fields %q", names)
	}
}

func TestNoTypePrintsAToken(t *testing.T) {
	ev := testEvent("s")
	ev.Info = Describe(netip.MustParseAddr("192.0.2.1"), "canary-agent")
	received := Received{Type: TypeRefresh, Token: refresher.NewSecret(newAccess), RefreshToken: refresher.NewSecret(oldRefresh)}
	hook := HookConfig{URL: "https://a.example/?k=canary-query", Password: refresher.NewSecret("canary-password")}
	signer, err := NewHMACSigner(refresher.NewSecret("canary-secret-canary-secret-canary-secret"), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []any{ev, &ev, received, hook, testHook(t, hook), signer, ev.Info, VerifierConfig{HeaderValue: refresher.NewSecret("canary-h")}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if text := fmt.Sprintf(verb, value); strings.Contains(text, "canary") {
				t.Errorf("%s of a %T prints %s", verb, value, text)
			}
		}
		if text, _ := json.Marshal(value); strings.Contains(string(text), "canary-new") || strings.Contains(string(text), "canary-old") {
			t.Errorf("a %T becomes the JSON %s", value, text)
		}
	}
}

func TestAnEventThatLacksSomethingIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Event){
		"without an id":              func(e *Event) { e.ID = "" },
		"with an id that is no UUID": func(e *Event) { e.ID = "urn:uuid:10000000-0000-0002-0000-000000000001" },
		"without a session":          func(e *Event) { e.Session = "" },
		"without an instant":         func(e *Event) { e.CreateInstant = time.Time{} },
		"without the new token":      func(e *Event) { e.Token = refresher.Secret{} },
		"without the refresh token":  func(e *Event) { e.RefreshToken = refresher.Secret{} },
		"with data that is a list":   func(e *Event) { e.Info = &Info{Data: json.RawMessage(`[]`)} },
		"with data that is cut off":  func(e *Event) { e.Info = &Info{Data: json.RawMessage(`{"a":`)} },
		"with much data": func(e *Event) {
			e.Info = &Info{Data: json.RawMessage(`{"a":"` + strings.Repeat("x", maxInfoData) + `"}`)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ev := testEvent("s")
			change(&ev)
			if ev.check() == nil {
				t.Error("it was taken")
			}
		})
	}
}

func TestTheDeviceComesFromTheUserAgent(t *testing.T) {
	const mac = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/92.0.4515.131 Safari/537.36"
	for name, test := range map[string]struct{ agent, kind, device, os string }{
		"a browser":                    {mac, "BROWSER", "macOS Chrome", "macOS"},
		"a telephone":                  {"Mozilla/5.0 (iPhone; CPU iPhone OS 17_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.1 Mobile/15E148 Safari/604.1", "MOBILE", "iOS Safari", "iOS"},
		"a tablet":                     {"Mozilla/5.0 (iPad; CPU OS 16_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/16.0 Mobile/15E148 Safari/604.1", "TABLET", "iOS Safari", "iOS"},
		"a program":                    {"curl/8.5.0", "OTHER", "curl", ""},
		"no field":                     {"", "", "", ""},
		"a field of control bytes":     {"\x00\x01\xff\n", "", "", ""},
		"a field with a line in it":    {"curl/8\r\nX: y", "OTHER", "curl", ""},
		"a field of a million letters": {strings.Repeat("A", 1_000_000), "OTHER", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			info := Describe(netip.MustParseAddr("::ffff:192.0.2.7"), test.agent)
			if info.DeviceType != test.kind || info.OS != test.os || (test.device != "" && info.DeviceName != test.device) {
				t.Errorf("got type %q, name %q, os %q", info.DeviceType, info.DeviceName, info.OS)
			}
			if info.IPAddress != "192.0.2.7" || len(info.UserAgent) > maxUserAgent || strings.ContainsAny(info.UserAgent, "\r\n\x00") {
				t.Errorf("got address %q and agent %.40q", info.IPAddress, info.UserAgent)
			}
		})
	}
}

// jwtOf makes a token with claims, unsigned.
func jwtOf(t testing.TB, body string) refresher.Secret {
	t.Helper()
	enc := base64.RawURLEncoding.EncodeToString
	return refresher.NewSecret(enc([]byte(`{"alg":"RS256"}`)) + "." + enc([]byte(body)) + ".c2ln")
}

func TestIdsComeFromTheConfigurationThenFromTheTokensClaims(t *testing.T) {
	const app, tenant, user, other = "3c219e58-ed0e-4b18-ad48-f4f92793ae32", "800d17be-ad77-4f3d-93e1-ef73dfa50cf2",
		"858a4b01-62c8-4c2f-bfa7-6d018833bea7", "10000000-0000-0002-0000-000000000001"
	full := fmt.Sprintf(`{"applicationId":%q,"tid":%q,"sub":%q,"UserID":4711,"name":"x"}`, app, tenant, user)
	for name, test := range map[string]struct {
		token refresher.Secret
		cfg   HookConfig
		want  [3]string // application, tenant, user
	}{
		"a FusionAuth token tells all":                  {jwtOf(t, full), HookConfig{}, [3]string{app, tenant, user}},
		"the configuration comes first":                 {jwtOf(t, full), HookConfig{ApplicationID: other, TenantID: other}, [3]string{other, other, user}},
		"a claim that is named is taken as it is":       {jwtOf(t, full), HookConfig{UserClaim: "UserID"}, [3]string{app, tenant, "4711"}},
		"a claim that is named and missing":             {jwtOf(t, full), HookConfig{UserClaim: "uid"}, [3]string{app, tenant, ""}},
		"a subject that is no UUID is left out":         {jwtOf(t, `{"sub":"me@example.com"}`), HookConfig{}, [3]string{}},
		"claims of the wrong type are left out":         {jwtOf(t, `{"sub":["a"],"tid":{},"applicationId":true}`), HookConfig{}, [3]string{}},
		"a claim that stands twice makes all worthless": {jwtOf(t, `{"sub":"`+user+`","sub":"`+other+`"}`), HookConfig{}, [3]string{}},
		"an opaque token tells nothing":                 {refresher.NewSecret("opaque"), HookConfig{}, [3]string{}},
		"dots alone are no token":                       {refresher.NewSecret(".."), HookConfig{}, [3]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			test.cfg.URL = "https://a.example/"
			ev := testEvent("s")
			ev.Token = test.token
			body, err := testHook(t, test.cfg).body(ev)
			if err != nil {
				t.Fatal(err)
			}
			got := decode(t, body)
			text := func(name string) string { s, _ := got[name].(string); return s }
			if have := [3]string{text("applicationId"), text("tenantId"), text("userId")}; have != test.want {
				t.Errorf("got %q, want %q", have, test.want)
			}
		})
	}
}
