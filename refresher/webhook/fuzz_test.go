package webhook

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

// FuzzParse: no body crashes the parser, and what it takes encoding/json takes,
// too, and reads alike.
func FuzzParse(f *testing.F) {
	example, _ := seedExample(f)
	f.Add(example)
	f.Add([]byte(revoke(`,"refreshToken":{"id":"r","token":"t"}`)))
	f.Add([]byte(`{"event":{"type":"user.delete","id":"i","createInstant":1,"user":{"id":"u"}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := Parse(body)
		if err != nil {
			return
		}
		var doc struct {
			Event map[string]any `json:"event"`
		}
		if err := json.Unmarshal(body, &doc); err != nil {
			t.Fatalf("taken, and is no JSON: %v", err)
		}
		if len(doc.Event) > 0 && doc.Event["type"] != got.Type {
			t.Errorf("type %q, and %v by encoding/json", got.Type, doc.Event["type"])
		}
		if got.Kind != KindIgnored && (got.ID == "" || got.CreateInstant.IsZero()) {
			t.Error("an event without id or instant was taken")
		}
	})
}

// FuzzScanLog: no file crashes the reader, and what it found it finds again when
// it is written anew.
func FuzzScanLog(f *testing.F) {
	frame, err := appendFrame(nil, logRecord{Add: &addRecord{ID: "i", Session: "s", To: []addTo{{Hook: "h", Sealed: []byte("x")}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame)
	f.Add(append(bytes.Clone(frame), frame[:20]...))
	f.Add(append([]byte("noise"), frame...))
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := scanLog(data)
		if err != nil {
			return
		}
		var again []byte
		for _, rec := range found.records {
			if again, err = appendFrame(again, rec); err != nil {
				return // an instant that JSON cannot hold
			}
		}
		second, err := scanLog(again)
		if err != nil || second.torn || second.damaged > 0 || len(second.records) != len(found.records) {
			t.Errorf("%d records became %d, %v", len(found.records), len(second.records), err)
		}
	})
}

// FuzzVerify: nobody makes a signature without the key.
func FuzzVerify(f *testing.F) {
	_, public := keyPEM(f, "p256")
	f.Add("a.b.c", []byte(aBody))
	f.Add(sign(f, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, jwt.MapClaims{digestClaim: digest([]byte(aBody))}, nil), []byte(aBody))
	v, err := NewVerifier(VerifierConfig{PublicKey: public})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, signature string, body []byte) {
		r := signedRequest(string(body), "")
		r.Header[http.CanonicalHeaderKey(SignatureHeader)] = []string{signature}
		if _, err := v.Read(r); err == nil {
			t.Error("it was taken")
		}
	})
}

// FuzzParseKeySet: no key set crashes the reader or brings a key that is not for
// verifying.
func FuzzParseKeySet(f *testing.F) {
	set := newKeySet(f)
	set.add("a", "p256")
	f.Add(set.text())
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := parseKeySet(text)
		if (err == nil) != (len(keys) > 0) {
			t.Errorf("%d keys, %v", len(keys), err)
		}
		for _, k := range keys {
			if _, secret := k.key.([]byte); secret || len(k.methods) == 0 {
				t.Error("a secret came out of a public set")
			}
		}
	})
}

// FuzzDescribe: no User-Agent crashes the library or gets through unprintable.
func FuzzDescribe(f *testing.F) {
	f.Add("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 Chrome/92.0 Safari/537.36")
	f.Add("Mozilla/5.0 (Linux; Android 13; SM-G960F) (((")
	f.Fuzz(func(t *testing.T, agent string) {
		info := Describe(netip.Addr{}, agent)
		for _, text := range []string{info.UserAgent, info.OS, info.DeviceName, info.DeviceDescription} {
			if len(text) > 2*maxUserAgent || text != "" && !plain(text) {
				t.Errorf("got %q", text)
			}
		}
	})
}

// FuzzReadClaims: no token crashes the reader or has claims that cannot be sent.
func FuzzReadClaims(f *testing.F) {
	f.Add(jwtOf(f, `{"sub":"858a4b01-62c8-4c2f-bfa7-6d018833bea7","tid":1}`).Reveal())
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		for name, value := range readClaims(refresher.NewSecret(token)) {
			if len(value) > maxClaim || !plain(value) {
				t.Errorf("%q is %q", name, value)
			}
		}
	})
}

// FuzzRetryAfter: no field makes a pause that is negative.
func FuzzRetryAfter(f *testing.F) {
	f.Add("120")
	f.Add("Sun, 22 Nov 2026 10:01:00 GMT")
	f.Fuzz(func(t *testing.T, text string) {
		if retryAfter(http.Header{"Retry-After": {text}}, time.Now()) < 0 {
			t.Error("negative")
		}
	})
}

// FuzzCheckURL: what is taken is https or loopback, and no error repeats it.
func FuzzCheckURL(f *testing.F) {
	f.Add("https://a.example/x?y=z")
	f.Add("http://user:password@127.0.0.1/")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := endpoint.Parse(text, false)
		if err != nil {
			return
		}
		again, err := url.Parse(u.String())
		if err != nil || again.Host != u.Host || again.User != nil {
			t.Errorf("%q became %v, %v", text, again, err)
		}
		if u.Scheme != "https" && !endpoint.Loopback(u.Hostname()) || strings.Contains(text, "#") && u.Fragment != "" {
			t.Errorf("%q was taken", text)
		}
	})
}
