package caddymodule

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// docsPart is a block of the Caddyfile, the part of the configuration that it
// becomes, and where the documentation describes its options.
type docsPart struct {
	module string // whose Unmarshaler reads it
	text   string // the block around one option
	value  any    // what it becomes; nil: the module
	tables []docsTable
	but    []string // options of these tables that stand elsewhere only
}

type docsTable struct{ file, heading string }

const docsConfig = "configuration.md"

var (
	docsIssuer = docsTable{docsConfig, "### `issuer <kind> …`"}
	docsNested = []docsTable{docsIssuer} // `tls { … }` and `fields { … }` are described in one row
)

// docsParts are all blocks that take options.
var docsParts = map[string]docsPart{
	"token_refresh": {appName, "x {\n%s\n}", nil, []docsTable{{docsConfig, "## `token_refresh` (global)"}}, nil},
	"session":       {appName, "x {\nsession s {\n%s\n}\n}", Session{}, []docsTable{{docsConfig, "### `session <name>`"}}, nil},
	"pool": {appName, "x {\npool p {\n%s\n}\n}", Pool{}, []docsTable{{"pools.md", "## Options"}, {docsConfig, "### `session <name>`"}},
		[]string{"tokens", "reauthenticate"}},
	"webhook":           {appName, "x {\nwebhook https://a {\n%s\n}\n}", Webhook{}, []docsTable{{"webhooks.md", "## Out: who is told of each rotation"}}, nil},
	"location":          {appName, "x {\nlocation {\n%s\n}\n}", Place{}, []docsTable{{"webhooks.md", "### `location`"}}, nil},
	"issuer bearer":     {"token_refresh.issuers.bearer", "x https://a/b {\n%s\n}", nil, []docsTable{docsIssuer, {docsConfig, "#### `issuer bearer <url>`"}}, nil},
	"issuer oauth2":     {"token_refresh.issuers.oauth2", "x https://a/b {\n%s\n}", nil, []docsTable{docsIssuer, {docsConfig, "#### `issuer oauth2 <token url>` or `issuer oauth2 discover <issuer>`"}}, nil},
	"issuer fusionauth": {"token_refresh.issuers.fusionauth", "x https://a {\n%s\n}", nil, []docsTable{docsIssuer, {docsConfig, "#### `issuer fusionauth <url>`"}}, nil},
	"tls":               {"token_refresh.issuers.bearer", "x https://a/b {\ntls {\n%s\n}\n}", TLSOptions{}, docsNested, nil},
	"fields":            {"token_refresh.issuers.bearer", "x https://a/b {\nfields {\n%s\n}\n}", FieldNames{}, docsNested, nil},
	"store redis":       {"token_refresh.stores.redis", "x redis://a {\n%s\n}", nil, []docsTable{{docsConfig, "#### `store redis <url>`"}}, nil},
	"store etcd":        {"token_refresh.stores.etcd", "x https://a {\n%s\n}", nil, []docsTable{{docsConfig, "#### `store etcd <endpoint…>`"}}, nil},
	"store caddy":       {"token_refresh.stores.caddy", "x {\n%s\n}", nil, nil, nil},
	"tokens env":        {"token_refresh.sources.env", "x A R {\n%s\n}", nil, nil, nil},
	"tokens file":       {"token_refresh.sources.file", "x a {\n%s\n}", nil, nil, nil},
	"tokens login":      {"token_refresh.sources.login", "x https://a/b {\n%s\n}", nil, []docsTable{{docsConfig, "#### `tokens login <url>`"}}, nil},
	"tokens import":     {"token_refresh.sources.import", "x {\n%s\n}", nil, nil, nil},
	"token_refresh (directive)": {"http.handlers.token_refresh", "x s {\n%s\n}", nil,
		[]docsTable{{docsConfig, "## `token_refresh [<matcher>] <session or pool>` (directive)"}}, nil},
	"token_refresh_endpoint": {"http.handlers.token_refresh_endpoint", "x s {\n%s\n}", nil,
		[]docsTable{{docsConfig, "## `token_refresh_endpoint [<matcher>] <session>` (directive)"}}, nil},
	"token_refresh_status": {"http.handlers.token_refresh_status", "x {\n%s\n}", nil,
		[]docsTable{{docsConfig, "## `token_refresh_status [<matcher>]` (directive)"}}, nil},
	"token_refresh_webhook": {"http.handlers.token_refresh_webhook", "x s {\n%s\n}", nil, []docsTable{{"webhooks.md", "## In: what FusionAuth tells"}}, nil},
	"token_refresh_ready":   {"http.handlers.token_refresh_ready", "x s {\n%s\n}", nil, nil, nil},
	"token_refresh_sandbox": {"http.handlers.token_refresh_sandbox", "x {\n%s\n}", nil, []docsTable{{"sandbox.md", "# The sandbox"}}, nil},
}

// docsSection is what stands under a heading, up to the next one.
func docsSection(t *testing.T, at docsTable) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../docs", at.file))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut("\n"+string(text), "\n"+at.heading+"\n")
	if !ok {
		t.Fatalf("docs/%s has no heading %q", at.file, at.heading)
	}
	if next := regexp.MustCompile(`(?m)^#`).FindStringIndex(rest); next != nil {
		rest = rest[:next[0]]
	}
	return rest
}

// docsRows are the cells of a section's first table with these columns.
func docsRows(section string, columns ...string) (rows [][]string) {
	head := "| " + strings.Join(columns, " | ") + " |"
	_, rest, ok := strings.Cut(section, head+"\n")
	if !ok {
		return nil
	}
	for i, line := range strings.Split(rest, "\n") {
		if !strings.HasPrefix(line, "|") {
			break
		}
		if i == 0 {
			continue // dashes
		}
		line = strings.ReplaceAll(strings.Trim(line, "|"), `\|`, "\x00")
		var cells []string
		for cell := range strings.SplitSeq(line, "|") {
			cells = append(cells, strings.ReplaceAll(strings.TrimSpace(cell), "\x00", "|"))
		}
		rows = append(rows, cells)
	}
	return rows
}

var docsCode = regexp.MustCompile("`([^`]+)`")

// docsWords are the first words of what a cell shows as code, and the options of
// blocks that it shows: `tls { ca <file> / client_certificate <cert> <key> }`.
func docsWords(cell string) (words []string, nested map[string][]string) {
	nested = map[string][]string{}
	for _, m := range docsCode.FindAllStringSubmatch(cell, -1) {
		outer, inner, _ := strings.Cut(m[1], "{")
		name, _, _ := strings.Cut(strings.TrimSpace(outer), " ")
		words = append(words, name)
		for option := range strings.SplitSeq(strings.Trim(inner, " }"), " / ") {
			if option, _, _ = strings.Cut(option, " "); option != "" && option != "…" {
				nested[name] = append(nested[name], option)
			}
		}
	}
	return words, nested
}

// docsOptions are the options that the documentation describes for a block, with
// their defaults.
func docsOptions(t *testing.T, name string) map[string]string {
	t.Helper()
	part, all := docsParts[name], map[string]string{}
	for _, table := range part.tables {
		rows := docsRows(docsSection(t, table), "option", "default", "meaning")
		if len(rows) == 0 {
			t.Errorf("docs/%s: under %q there is no table | option | default | meaning |", table.file, table.heading)
		}
		for _, row := range rows {
			words, nested := docsWords(row[0])
			if name == "tls" || name == "fields" {
				words = nested[name]
			}
			for _, option := range words {
				all[option] = row[1]
				if strings.TrimSpace(row[1]) == "" {
					t.Errorf("docs/%s: %s of %s has no default: say none, or required", table.file, option, name)
				}
			}
		}
	}
	for _, option := range part.but {
		delete(all, option)
	}
	return all
}

// docsCodeFiles are the package's own files.
func docsCodeFiles(t *testing.T, pattern string) (files []*ast.File) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// docsLiterals are all words of the code that could be an option's name.
func docsLiterals(t *testing.T) []string {
	t.Helper()
	option, words := regexp.MustCompile(`^[a-z][a-z0-9_]*$`), map[string]bool{}
	for _, file := range docsCodeFiles(t, "*.go") {
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if word, err := strconv.Unquote(lit.Value); err == nil && option.MatchString(word) {
					words[word] = true
				}
			}
			return true
		})
	}
	return slices.Sorted(maps.Keys(words))
}

// docsTry reads a block with one option in it, and says what the error is.
func docsTry(t *testing.T, part docsPart, option string) string {
	t.Helper()
	info, err := caddy.GetModule(part.module)
	if err != nil {
		t.Fatal(err)
	}
	to := info.New().(caddyfile.Unmarshaler)
	if err := to.UnmarshalCaddyfile(caddyfile.NewTestDispenser(fmt.Sprintf(part.text, option))); err != nil {
		return err.Error()
	}
	return ""
}

// Whatever the code takes for an option is described, with its default, and
// whatever is described is taken. An option that is not known is one that is
// refused with the same words as one that cannot be.
func TestEveryCaddyfileOptionIsDescribedAndNoOther(t *testing.T) {
	const nonsense = "no_such_option"
	literals := docsLiterals(t)
	for _, name := range slices.Sorted(maps.Keys(docsParts)) {
		part, described := docsParts[name], docsOptions(t, name)
		refusal := docsTry(t, part, nonsense)
		taken := func(option string) bool {
			return docsTry(t, part, option) != strings.ReplaceAll(refusal, nonsense, option)
		}
		count := 0
		for _, option := range literals {
			if !taken(option) {
				continue
			}
			count++
			if _, ok := described[option]; !ok {
				t.Errorf("%s takes the option %s, which no table of options describes: see %v", name, option, part.tables)
			}
		}
		for option := range described {
			if !taken(option) {
				t.Errorf("the documentation describes the option %s of %s, which the code does not take: %s", option, name, docsTry(t, part, option))
			}
		}
		if count == 0 && part.tables != nil {
			t.Errorf("%s takes no option at all", name)
		}
	}
	for _, id := range caddy.Modules() {
		info, err := caddy.GetModule(id)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := info.New().(caddyfile.Unmarshaler); !ok || !strings.Contains(id, appName) {
			continue
		}
		if !slices.ContainsFunc(slices.Collect(maps.Values(docsParts)), func(p docsPart) bool { return p.module == id }) {
			t.Errorf("the module %s is not looked at here: add it to docsParts", id)
		}
	}
}
