package caddymodule

import (
	"go/ast"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/dustin/go-humanize"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/webhook"
)

// kind is the type that a part of the configuration has as JSON.
func (p docsPart) kind(t *testing.T) reflect.Type {
	t.Helper()
	if p.value != nil {
		return reflect.TypeOf(p.value)
	}
	info, err := caddy.GetModule(p.module)
	if err != nil {
		t.Fatal(err)
	}
	return reflect.TypeOf(info.New()).Elem()
}

// docsMembers are the names of a type's JSON members, with those of objects that
// are no part of their own.
func docsMembers(t *testing.T, of reflect.Type) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for i := range of.NumField() {
		f := of.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		kind := f.Type
		for slices.Contains([]reflect.Kind{reflect.Pointer, reflect.Slice, reflect.Map}, kind.Kind()) {
			kind = kind.Elem()
		}
		apart := slices.ContainsFunc(slices.Collect(maps.Values(docsParts)), func(p docsPart) bool { return p.kind(t) == kind })
		if name != "" && name != "-" {
			all[name] = true
		}
		if name != "-" && (f.Anonymous || name != "") && !apart && kind.Kind() == reflect.Struct && kind.PkgPath() == of.PkgPath() {
			maps.Copy(all, docsMembers(t, kind))
		}
	}
	return all
}

// An option is a member of the same name unless the table under JSON says
// otherwise, and there are no other members.
func TestEveryMemberOfTheJSONIsDescribedAndNoOther(t *testing.T) {
	rows := docsRows(docsSection(t, docsTable{docsConfig, "## JSON"}), "in", "Caddyfile", "JSON")
	member := regexp.MustCompile(`^[a-z_]+$`)
	used := make([]bool, len(rows))
	for _, name := range slices.Sorted(maps.Keys(docsParts)) {
		want := map[string]bool{}
		for option := range docsOptions(t, name) {
			want[option] = true
		}
		others := map[string]bool{}
		for i, row := range rows {
			if !slices.ContainsFunc(docsCode.FindAllStringSubmatch(row[0], -1), func(in []string) bool {
				return in[1] == name || in[1] == "issuer" && strings.HasPrefix(name, "issuer ")
			}) {
				continue
			}
			used[i] = true
			options, _ := docsWords(row[1])
			for _, option := range options {
				if _, ok := docsOptions(t, name)[option]; !ok && !strings.HasPrefix(option, "<") {
					t.Errorf("docs/%s: the table under JSON has the option %s of %s, which is described nowhere", docsConfig, option, name)
				}
				delete(want, option)
			}
			for _, m := range docsCode.FindAllStringSubmatch(row[2], -1) {
				others[m[1]] = member.MatchString(m[1])
			}
		}
		maps.Copy(want, others)
		maps.DeleteFunc(want, func(_ string, is bool) bool { return !is })
		got := docsMembers(t, docsParts[name].kind(t))
		for m := range got {
			if !want[m] {
				t.Errorf("%s has the JSON member %s, which docs/%s describes neither as an option nor under JSON", name, m, docsConfig)
			}
		}
		for m := range want {
			if !got[m] {
				t.Errorf("by docs/%s %s has the JSON member %s, which the code does not have", docsConfig, name, m)
			}
		}
	}
	for i, row := range rows {
		if !used[i] {
			t.Errorf("docs/%s: under JSON, there is no %s", docsConfig, row[0])
		}
	}
}

// docsComments are what the comments of a type's fields say, by JSON name.
func docsComments(files []*ast.File, of string) map[string]string {
	all := map[string]string{}
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || spec.Name.Name != of {
				return true
			}
			for _, f := range spec.Type.(*ast.StructType).Fields.List {
				if f.Tag == nil { // of an embedded type
					if id, ok := f.Type.(*ast.Ident); ok && f.Names == nil {
						maps.Copy(all, docsComments(files, id.Name))
					}
					continue
				}
				tag, _ := strconv.Unquote(f.Tag.Value)
				name, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
				all[name] = strings.Join(strings.Fields(f.Doc.Text()), " ")
			}
			return false
		})
	}
	return all
}

// The comments in the code, from which Caddy's site makes its pages, and the
// documentation name the same values.
func TestDefaultsAreTheSameInCommentsAndInTheDocumentation(t *testing.T) {
	files := docsCodeFiles(t, "*.go")
	said := regexp.MustCompile(`Default: ([^.;]+)`)
	plain := regexp.MustCompile(`^([0-9]\S*( MiB| days)?|true|false)$`)
	tidy := strings.NewReplacer("`", "", " ", "", ",", "", "true", "on", "false", "off")
	count := 0
	for _, name := range slices.Sorted(maps.Keys(docsParts)) {
		described := docsOptions(t, name)
		for option, comment := range docsComments(files, docsParts[name].kind(t).Name()) {
			dflt, ok := described[option]
			m := said.FindStringSubmatch(comment)
			if !ok || m == nil {
				continue
			}
			var values []string
			if strings.HasPrefix(m[1], "`") {
				for _, code := range docsCode.FindAllStringSubmatch(m[1], -1) {
					values = append(values, code[1])
				}
			} else if plain.MatchString(m[1]) {
				values = append(values, m[1])
			}
			for _, value := range values {
				count++
				if !strings.Contains(tidy.Replace(dflt), tidy.Replace(value)) {
					t.Errorf("%s of %s: the code's comment says that the default is %s, the documentation %s", option, name, value, dflt)
				}
			}
		}
	}
	if count < 20 {
		t.Errorf("only %d defaults were compared", count)
	}
}

// What the code has by a name is looked at itself.
func TestDefaultsAreTheCodes(t *testing.T) {
	for _, tt := range []struct {
		part, option string
		want         any
	}{
		{"issuer bearer", "timeout", issuer.DefaultTimeout},
		{"tokens login", "timeout", issuer.DefaultTimeout},
		{"webhook", "timeout", webhook.DefaultTimeout},
		{"webhook", "parallel", webhook.DefaultParallel},
		{"token_refresh_webhook", "window", webhook.DefaultWindow},
		{"token_refresh (directive)", "replay_limit", uint64(defaultReplayLimit)},
	} {
		text := strings.Trim(docsOptions(t, tt.part)[tt.option], "`")
		var got any
		var err error
		switch tt.want.(type) {
		case time.Duration:
			got, err = caddy.ParseDuration(text)
		case int:
			got, err = strconv.Atoi(text)
		case uint64:
			got, err = humanize.ParseBytes(text)
		}
		if err != nil || got != tt.want {
			t.Errorf("%s of %s: the documentation says %s, the code %v", tt.option, tt.part, text, tt.want)
		}
	}
}
