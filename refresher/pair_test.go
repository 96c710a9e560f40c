package refresher

import (
	"fmt"
	"strings"
	"testing"
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
