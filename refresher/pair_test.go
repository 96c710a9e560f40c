package refresher

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// What a pair can do without is taken where it is usable, and never a reason to
// refuse the pair.
func TestWhatElseComesWithAPair(t *testing.T) {
	long := strings.Repeat("x", MaxIDToken+1)
	for _, tt := range []struct {
		name, members, id, scope, handle string
	}{
		{name: "nothing"},
		{name: "all of it", members: `,"id_token":"a.b.c","scope":"openid api","refreshTokenId":"7-1"`, id: "a.b.c", scope: "openid api", handle: "7-1"},
		{name: "the other spelling", members: `,"idToken":"a.b.c"`, id: "a.b.c"},
		{name: "nothing by null", members: `,"id_token":null,"scope":null,"refreshTokenId":null`},
		{name: "other types", members: `,"id_token":1,"scope":["a"],"refreshTokenId":{}`},
		{name: "empty ones", members: `,"id_token":"","scope":"","refreshTokenId":""`},
		{name: "too much", members: fmt.Sprintf(`,"id_token":%q,"scope":%q,"refreshTokenId":%q`, long, long, long)},
		{name: "control characters", members: `,"id_token":"a\nb","scope":"a\nb","refreshTokenId":"a\nb"`},
		{name: "what a header cannot carry", members: `,"id_token":"a b","refreshTokenId":"a b"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := ParsePair([]byte(`{"access_token":"a","refresh_token":"r"`+tt.members+`}`), DefaultFields())
			if err != nil {
				t.Fatal(err)
			}
			if p.ID.Reveal() != tt.id || p.Scope != tt.scope || p.RefreshID != tt.handle || p.Access.Reveal() != "a" {
				t.Errorf("got %q, %q, %q", p.ID.Reveal(), p.Scope, p.RefreshID)
			}
		})
	}
	if _, err := ParsePair([]byte(`{"access_token":"a","id_token":"x","id_token":"y"}`), DefaultFields()); err == nil {
		t.Error("a name that stands twice was taken")
	}
}

func TestFieldsInsideOthersAreNamedWithDots(t *testing.T) {
	fields := Fields{Access: []string{"data.tokens.access"}, Refresh: []string{"data.refresh", "refresh"}, ExpiresIn: []string{"data.seconds"}}
	for name, tt := range map[string]struct {
		body, refresh string
		ok            bool
	}{
		"as they stand":                     {`{"result":true,"data":{"tokens":{"access":"a"},"refresh":"r","seconds":60}}`, "r", true},
		"a name with a dot in it first":     {`{"data.refresh":"dotted","data":{"tokens":{"access":"a"},"refresh":"r","seconds":60}}`, "dotted", true},
		"whichever comes first":             {`{"data":{"tokens":{"access":"a"},"refresh":"r","seconds":60},"data.refresh":"dotted"}`, "dotted", true},
		"not in a list":                     {`{"data":[{"tokens":{"access":"a"},"refresh":"r"}]}`, "", false},
		"not where the access token is not": {`{"access":"a","data":{"refresh":"r"}}`, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePair([]byte(tt.body), fields)
			if (err == nil) != tt.ok || p.Refresh.Reveal() != tt.refresh {
				t.Errorf("%v, %v", p.Refresh.Reveal(), err)
			}
			if tt.ok && p.ExpiresIn != time.Minute {
				t.Errorf("expires in %v", p.ExpiresIn)
			}
		})
	}
}
