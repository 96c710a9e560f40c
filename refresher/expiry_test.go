package refresher

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

// sampleToken is the access token in the documents of the seed (its signature is
// the word "signature").
const sampleToken = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJodHRwOi8vc2NoZW1hcy54bWxzb2FwLm9yZy93cy8yMDA1LzA1L2lkZW50aXR5L2NsYWltcy9uYW1laWRlbnRpZmllciI6InRlc3R1c2VyIiwiVXNlcklEIjoiMTIzIiwiSW5zdGFuY2VJRCI6IjEiLCJSb2xlcyI6Ilt7XCJSSURcIjoxLFwiQklEXCI6MTAwLFwiUElEXCI6NX1dIiwiZXhwIjoxNzQwMDAwMDAwLCJpc3MiOiJodHRwczovLzdnLmNvbS5hdSIsImF1ZCI6IlB1YmxpYyJ9.signature"

// jwtText makes a token of a header and claims as text.
func jwtText(header, claims string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(header)) + "." + enc([]byte(claims)) + ".c2ln"
}

func jwtOf(t testing.TB, claims string) Secret {
	t.Helper()
	return NewSecret(jwtText(`{"alg":"HS256","typ":"JWT"}`, claims))
}

func TestReadTimesOfTheSample(t *testing.T) {
	if got := readTimes(NewSecret(sampleToken)); got.expires.Unix() != 1740000000 || !got.issued.IsZero() {
		t.Errorf("%+v", got)
	}
}

func TestReadTimes(t *testing.T) {
	const head = `{"alg":"HS256","typ":"JWT"}`
	for _, test := range []struct {
		name, header, claims string
		want                 int64 // exp; 0 for none
	}{
		{"plain", head, `{"exp":1740000000}`, 1740000000},
		{"with iat", head, `{"iat":1739990000,"exp":1740000000}`, 1740000000},
		{"alg none", `{"alg":"none"}`, `{"exp":1740000000}`, 1740000000},
		{"unknown alg", `{"alg":"HS1024"}`, `{"exp":1740000000}`, 1740000000},
		{"no alg", `{}`, `{"exp":1740000000}`, 1740000000},
		{"alg is no string", `{"alg":5}`, `{"exp":1740000000}`, 1740000000},
		{"exp as a string", head, `{"exp":"1740000000"}`, 1740000000},
		{"exp with a fraction", head, `{"exp":1740000000.9}`, 1740000000},
		{"exp with an exponent", head, `{"exp":1.74e9}`, 1740000000},
		{"exp beyond all numbers", head, `{"exp":1e300}`, 0},
		{"exp beyond all exponents", head, `{"exp":1e999999999}`, 0},
		{"exp after the year 9999", head, `{"exp":253402300800}`, 0},
		{"exp negative", head, `{"exp":-1740000000}`, 0},
		{"exp zero", head, `{"exp":0}`, 0},
		{"exp null", head, `{"exp":null}`, 0},
		{"exp true", head, `{"exp":true}`, 0},
		{"exp an object", head, `{"exp":{"exp":1}}`, 0},
		{"exp of words", head, `{"exp":"tomorrow"}`, 0},
		{"exp missing", head, `{"iat":1740000000}`, 0},
		{"iat after exp", head, `{"iat":1740000001,"exp":1740000000}`, 0},
		{"iat is exp", head, `{"iat":1740000000,"exp":1740000000}`, 0},
		{"iat is nonsense", head, `{"iat":"x","exp":1740000000}`, 1740000000},
		{"another case", head, `{"EXP":1740000000,"Exp":1740000000}`, 0},
		{"another case beside it", head, `{"EXP":1,"exp":1740000000,"Exp":2}`, 1740000000},
		{"twice", head, `{"exp":1740000000,"exp":1740000001}`, 0},
		{"nested", head, `{"a":{"exp":1740000001},"exp":1740000000}`, 1740000000},
		{"nested too deep", head, `{"a":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `,"exp":1740000000}`, 0},
		{"claims are an array", head, `[1]`, 0},
		{"claims are null", head, `null`, 0},
		{"claims are no JSON", head, `{"exp":`, 0},
		{"header is no JSON", `{`, `{"exp":1740000000}`, 0},
		{"a claim that RegisteredClaims would refuse", head, `{"aud":5,"nbf":"x","exp":1740000000}`, 1740000000},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := readTimes(NewSecret(jwtText(test.header, test.claims)))
			if test.want == 0 != got.expires.IsZero() || test.want != 0 && got.expires.Unix() != test.want {
				t.Errorf("%+v, want exp %d", got, test.want)
			}
		})
	}
	enc := base64.StdEncoding // as some libraries for JWTs have it, with padding and + and /
	padded := enc.EncodeToString([]byte(head)) + "." + enc.EncodeToString([]byte(`{"exp":1740000000,"name":"~~~???>>>"}`)) + ".c2ln"
	if got := readTimes(NewSecret(padded)); got.expires.Unix() != 1740000000 {
		t.Errorf("in the other alphabet: %+v", got)
	}
	for name, text := range map[string]string{
		"nothing": "", "opaque": "abcdef", "two dots of nothing": "..", "four parts": "a.b.c.d",
		"no base64": "!.!.!", "too long": jwtText(head, `{"exp":1740000000,"x":"`+strings.Repeat("x", MaxAccessToken)+`"}`),
	} {
		if got := readTimes(NewSecret(text)); got != (tokenTimes{}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestTheEarlierOfWhatAnswerAndTokenSayCounts(t *testing.T) {
	now := Instant{Wall: time.Unix(1_740_000_000, 0)}
	token := func(claims string) Secret { return jwtOf(t, claims) }
	const hour = time.Hour
	for _, test := range []struct {
		name       string
		pair       Pair
		offset     time.Duration
		configured time.Duration
		want       time.Duration
		known      bool
	}{
		{"the token alone", Pair{Access: token(`{"exp":1740003600}`)}, 0, 0, hour, true},
		{"the answer alone", Pair{ExpiresIn: hour}, 0, 0, hour, true},
		{"the answer is earlier", Pair{Access: token(`{"exp":1740003600}`), ExpiresIn: 30 * time.Minute}, 0, 0, 30 * time.Minute, true},
		{"the token is earlier", Pair{Access: token(`{"exp":1740003600}`), ExpiresIn: 2 * hour}, 0, 0, hour, true},
		{"the issuer's clock is ahead", Pair{Access: token(`{"exp":1740003600}`)}, 10 * time.Minute, 0, 50 * time.Minute, true},
		{"the configured life is the last resort", Pair{Access: token(`{"exp":1740003600}`)}, 0, 5 * hour, hour, true},
		{"the configured life", Pair{Access: NewSecret("opaque")}, 0, 5 * hour, 5 * hour, true},
		{"a token of a century", Pair{Access: token(`{"exp":4893600000}`)}, 0, 0, 0, false},
		{"a token of a century, and an answer", Pair{Access: token(`{"exp":4893600000}`), ExpiresIn: hour}, 0, 0, hour, true},
		{"ended", Pair{Access: token(`{"exp":1739996400}`)}, 0, 5 * hour, -hour, true},
		{"nothing", Pair{Access: NewSecret("opaque")}, 0, 0, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			left, known := measure(test.pair, now, test.offset, test.configured)
			if known != test.known || known && left != test.want {
				t.Errorf("%v, %v; want %v, %v", left, known, test.want, test.known)
			}
		})
	}
}
