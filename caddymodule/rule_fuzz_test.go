package caddymodule

import (
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"golang.org/x/net/http/httpguts"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// No Caddyfile makes the parsers panic.
func FuzzCaddyfile(f *testing.F) {
	files, _ := filepath.Glob("testdata/adapt/*.caddyfiletest")
	fuzzing := flag.Lookup("test.fuzz").Value.String() != ""
	for i, path := range files {
		if fuzzing && i%10 != 0 {
			continue // to look at all of them takes longer than the rest
		}
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		input, _, _ := strings.Cut(string(text), adaptDashes)
		f.Add(input)
		if _, block, ok := strings.Cut(input, "token_refresh"); ok {
			f.Add("token_refresh" + block)
		}
	}
	f.Fuzz(func(t *testing.T, input string) {
		if strings.Contains(input, "import") && strings.Contains(input, "/") {
			t.Skip() // of other files
		}
		_, _ = adaptText(input)
		for _, u := range []caddyfile.Unmarshaler{new(App), new(Handler), new(Session), new(BearerIssuer), new(OAuth2Issuer), new(FusionAuthIssuer), new(LoginSource), new(FileSource), new(EnvSource), new(ImportSource), new(Sandbox)} {
			_ = u.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input))
		}
	})
}

// Whatever a caller sends, exactly one field of the carrier's name is left, and
// nothing else is changed but the lists of Connection.
func FuzzHeaderHygiene(f *testing.F) {
	for _, seed := range []struct{ name, scheme, fields string }{
		{"Authorization", "Bearer", "Authorization: x\nauthorization: y\nAccept: */*\nConnection: close, Authorization"},
		{"X-Api-Key", "", "X_Api_Key: x\nX-Api_Key: y\nX-Api-Key: z\nConnection: x_api_key\nConnection: keep-alive"},
		{"X_under_score", "Key", "X-Under-Score: x\nX_under_score: y\nConnection: x-under-score,X_UNDER_SCORE,,te"},
		{"Cookie", "", "Cookie: a=b\nCookie: c=d\nConnection: "},
	} {
		f.Add(seed.name, seed.scheme, seed.fields)
	}
	sb := sandbox.New(sandbox.Config{})
	pass := rulePass(f, sb)
	fold := func(name string) string {
		return strings.ToLower(strings.NewReplacer("_", "-", " ", "-").Replace(strings.TrimSpace(name)))
	}
	f.Fuzz(func(t *testing.T, name, scheme, fields string) {
		h := Handler{Header: name, Scheme: &scheme}
		if h.provisionCarrier() != nil {
			t.Skip()
		}
		src := http.Header{}
		for line := range strings.SplitSeq(fields, "\n") {
			field, value, _ := strings.Cut(line, ":")
			if !httpguts.ValidHeaderFieldName(field) {
				continue // net/http refuses the request
			}
			src[field] = append(src[field], strings.TrimSpace(value)) // in any spelling, as HTTP/2 and other modules may have it
		}
		before := src.Clone()
		var value [1]string
		got := h.carrier.clone(src, &value, pass)

		want := pass.Token()
		if scheme != "" {
			want = scheme + " " + want
		}
		for field, values := range got {
			switch {
			case field == h.header:
				if len(values) != 1 || values[0] != want {
					t.Errorf("%s has %d values", field, len(values))
				}
			case fold(field) == fold(h.header):
				t.Errorf("%q is left beside %q", field, h.header)
			case field == "Connection":
				for _, v := range values {
					for option := range strings.SplitSeq(v, ",") {
						if fold(option) == fold(h.header) {
							t.Errorf("Connection names %q", option)
						}
					}
				}
			case !slices.Equal(values, before[field]):
				t.Errorf("%q was changed from %q to %q", field, before[field], values)
			}
		}
		if len(got[h.header]) != 1 {
			t.Error("no token")
		}
		options := func(list []string) (all []string) {
			for _, v := range list {
				for o := range strings.SplitSeq(v, ",") {
					if o = strings.TrimSpace(o); o != "" && fold(o) != fold(h.header) {
						all = append(all, o)
					}
				}
			}
			return all
		}
		if fold(h.header) != "connection" && !slices.Equal(options(before["Connection"]), options(got["Connection"])) {
			t.Errorf("Connection went from %q to %q", before["Connection"], got["Connection"])
		}
		for field := range before {
			if _, ok := got[field]; !ok && fold(field) != fold(h.header) && field != "Connection" {
				t.Errorf("%q is missing", field)
			}
		}
		if !slices.EqualFunc(slices.Sorted(mapsKeys(before)), slices.Sorted(mapsKeys(src)), func(a, b string) bool { return a == b && slices.Equal(before[a], src[b]) }) {
			t.Error("the caller's own header was changed")
		}
		for field := range got { // appending must not spill over into a neighbour
			if len(got[field]) != cap(got[field]) && field != h.header && field != "Connection" {
				t.Errorf("%q has room behind its values", field)
			}
		}
	})
}
