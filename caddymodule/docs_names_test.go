package caddymodule

import (
	"encoding/json"
	"go/ast"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// docsSame compares what the code has with what a document names.
func docsSame(t *testing.T, what, file string, code, docs []string) {
	t.Helper()
	for _, name := range code {
		if !slices.Contains(docs, name) {
			t.Errorf("docs/%s does not describe %s %s", file, what, name)
		}
	}
	for _, name := range docs {
		if !slices.Contains(code, name) {
			t.Errorf("docs/%s describes %s %s, which does not exist", file, what, name)
		}
	}
	if len(code) == 0 {
		t.Errorf("the code has no %s at all", what)
	}
}

// docsColumn are the names that the first column of a section's table shows.
func docsColumn(t *testing.T, file, heading string, columns ...string) (names []string) {
	t.Helper()
	for _, row := range docsRows(docsSection(t, docsTable{file, heading}), columns...) {
		words, _ := docsWords(row[0])
		names = append(names, words...)
	}
	return names
}

// docsConsts are the texts of a file's constants that are of a type, or whose
// names begin so.
func docsConsts(t *testing.T, path, kind, prefix string) (texts []string) {
	t.Helper()
	for _, file := range docsCodeFiles(t, path) {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			lit, isText := spec.Values[0].(*ast.BasicLit)
			typed, _ := spec.Type.(*ast.Ident)
			if isText && lit.Kind == token.STRING && (typed != nil && typed.Name == kind || prefix != "" && strings.HasPrefix(spec.Names[0].Name, prefix)) {
				text, _ := strconv.Unquote(lit.Value)
				texts = append(texts, text)
			}
			return false
		})
	}
	return texts
}

func TestStatesReasonsOutcomesAndEventsAreDescribedAndNoOthers(t *testing.T) {
	docsSame(t, "the state", "how-it-works.md", docsConsts(t, "../refresher/view.go", "Phase", ""),
		docsColumn(t, "how-it-works.md", "## The states of a session", "state", "meaning", "a request"))

	text, err := os.ReadFile("../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	_, lost, _ := strings.Cut(string(text), "\n## Lost, by reason\n")
	lost, _, _ = strings.Cut(lost, "\n## ")
	var headings []string
	for _, m := range regexp.MustCompile(`(?m)^### (\S+)$`).FindAllStringSubmatch(lost, -1) {
		headings = append(headings, m[1])
	}
	docsSame(t, "the reason", "troubleshooting.md", docsConsts(t, "../refresher/lifecycle.go", "Reason", ""), headings)

	var outcomes []string
	for c := refresher.ClassOK; c.String() != "invalid"; c++ {
		outcomes = append(outcomes, c.String())
	}
	docsSame(t, "the outcome", "operations.md", outcomes, docsColumn(t, "operations.md", "## Metrics", "outcome", "what it was", "the refresh token"))
	docsSame(t, "the event", "operations.md", docsConsts(t, "events.go", "", "event"),
		docsColumn(t, "operations.md", "## Events", "event", "when", "what to do"))

	// An event about everything has all data.
	note := refresher.Note{Kind: refresher.NoteLost, At: time.Now(), ExpiresAt: time.Now(), RefreshEnds: time.Now(), Next: time.Now()}
	for i, v := 0, reflect.ValueOf(&note).Elem(); i < v.NumField(); i++ {
		switch f := v.Field(i); {
		case f.IsZero() && f.CanInt():
			f.SetInt(1)
		case f.IsZero() && f.CanUint():
			f.SetUint(1)
		case f.IsZero() && f.Kind() == reflect.String:
			f.SetString("x")
		}
	}
	_, data, _ := strings.Cut(docsSection(t, docsTable{"operations.md", "## Events"}), "In `data`, always:")
	data, _, _ = strings.Cut(data, "\n\n")
	words, _ := docsWords(regexp.MustCompile(`\([^)]*\)`).ReplaceAllString(data, ""))
	docsSame(t, "the event's member", "operations.md", slices.Sorted(maps.Keys(eventData(note))), words)
}

func TestTheLabelsOfMetricsAreDescribed(t *testing.T) {
	described := map[string]string{}
	for _, row := range docsRows(docsSection(t, docsTable{"operations.md", "## Metrics"}), "metric", "labels", "meaning") {
		described[strings.Trim(row[0], "`")] = strings.NewReplacer("`", "", " ", "").Replace(row[1])
	}
	for name, labels := range deployMetrics(t) {
		if got, ok := described[name]; !ok || got != labels {
			t.Errorf("docs/operations.md: the labels of %s are %q, in the code %q", name, got, labels)
		}
	}
}

func TestTheProfilesHaveTheValuesOfTheDocumentation(t *testing.T) {
	rows := docsRows(docsSection(t, docsTable{docsConfig, "#### Profiles"}), "profile", "`revokes_previous`", "`reuse_interval`", "`refresh_lifetime`")
	var names []string
	for _, row := range rows {
		name := strings.Trim(row[0], "`")
		names = append(names, name)
		p := profiles[name]
		reuse, _ := docsWords(row[2])
		again, err := caddy.ParseDuration(reuse[0])
		life, unit, _ := strings.Cut(row[3], " ")
		n, _ := strconv.Atoi(life) // none, not known: 0
		lifetime := time.Duration(n) * map[string]time.Duration{"days": day, "hours": time.Hour, "minutes": time.Minute}[unit]
		if err != nil || p.revokes != (row[1] == "`on`") || p.reuse != again || p.lifetime != lifetime {
			t.Errorf("docs/%s: the profile %v is %+v in the code", docsConfig, row, p)
		}
	}
	docsSame(t, "the profile", docsConfig, slices.Sorted(maps.Keys(profiles)), names)
}

// Each path is asked with a method that nothing takes: the answer names those
// that are.
func TestEveryCallOfTheAdminAPIIsDescribedAndNoOther(t *testing.T) {
	_, issuer := ruleIssuer(t, sandbox.Config{})
	c := ruleNew(t)
	if err := c.load(ruleConfig{App: "session s {\nissuer oauth2 " + issuer + "/token {\nclient_id a\n}\ntokens import\n}", Site: "respond ok"}); err != nil {
		t.Fatal(err)
	}
	var code []string
	for _, route := range new(adminAPI).Routes() {
		path := strings.NewReplacer("{name}", "s", "{id}", "x").Replace(route.Pattern)
		_, _, header := c.send("PATCH", "http://"+c.Admin+path, nil)
		for method := range strings.SplitSeq(header.Get("Allow"), ", ") {
			code = append(code, method+" "+strings.NewReplacer("{", "<", "}", ">").Replace(route.Pattern))
		}
	}
	var docs []string
	for _, row := range docsRows(docsSection(t, docsTable{docsConfig, "## Admin API and command line"}), "call", "command") {
		for _, m := range docsCode.FindAllStringSubmatch(row[0], -1) {
			docs = append(docs, regexp.MustCompile(`[?[].*`).ReplaceAllString(m[1], ""))
		}
	}
	docsSame(t, "the call", docsConfig, code, docs)
}

func TestEveryVerbAndFlagIsDescribedAndNoOther(t *testing.T) {
	root := &cobra.Command{Use: "token-refresh"}
	caddycmd.Commands()["token-refresh"].CobraFunc(root)
	var verbs []string
	usage := root.PersistentFlags().FlagUsages()
	for _, cmd := range root.Commands() {
		verbs = append(verbs, cmd.Name())
		usage += cmd.Flags().FlagUsages()
	}
	flag := regexp.MustCompile("(?m)(?:[`[ ]|^ *(?:-., )?)(--[a-z]+(?:-[a-z]+)*)")
	flags := func(text string) (names []string) {
		for _, m := range flag.FindAllStringSubmatch(text, -1) {
			names = append(names, m[1])
		}
		return names
	}
	docsSame(t, "the verb", "command-line.md", verbs, slices.Compact(docsColumn(t, "command-line.md", "# Command line", "verb", "does")))
	text, err := os.ReadFile("../docs/command-line.md")
	if err != nil {
		t.Fatal(err)
	}
	// The descriptions in the usage may name other flags, too.
	docsSame(t, "the flag", "command-line.md", flags(usage), flags(string(text)))
}

// A finding's id is the first argument of ok, warn and problem: a text, or one
// that is put together from "issuer" or "login", or from a source's kind.
func TestEveryFindingOfTheDoctorIsDescribedAndNoOther(t *testing.T) {
	var code []string
	add := func(list ...string) {
		for _, id := range list {
			if !slices.Contains(code, id) {
				code = append(code, id)
			}
		}
	}
	text := func(e ast.Expr) string {
		if lit, ok := e.(*ast.BasicLit); ok {
			text, _ := strconv.Unquote(lit.Value)
			return text
		}
		return ""
	}
	for _, r := range refusals {
		add(r.check)
	}
	for _, file := range docsCodeFiles(t, "doctor*.go") {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				method, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || !slices.Contains([]string{"ok", "warn", "problem"}, method.Sel.Name) || len(n.Args) < 3 {
					return true
				}
				switch first := n.Args[0].(type) {
				case *ast.BasicLit:
					add(text(first))
				case *ast.BinaryExpr:
					if begin := text(first.X); begin == "tokens-" {
						add("tokens-file", "tokens-env")
					} else {
						add("issuer"+text(first.Y), "login"+text(first.Y))
					}
				case *ast.SelectorExpr:
					add("issuer", "login")
				}
			}
			return true
		})
	}
	docsSame(t, "the finding", "command-line.md", code, docsColumn(t, "command-line.md", "## `doctor`", "`check`", "what is looked at"))
}

// What the troubleshooting quotes from the log is what the code says.
func TestLogLinesAreQuotedAsTheyAre(t *testing.T) {
	var source strings.Builder
	for _, root := range []string{".", "../refresher"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			source.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile("../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	count, inLog := 0, false
	quoted := regexp.MustCompile("`` (.+?) ``|``(.+?)``|`([^`]+)`")
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "|") {
			inLog = false
			continue
		}
		if strings.HasPrefix(line, "| log |") {
			inLog = true
		}
		if !inLog {
			continue
		}
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), " | ")
		for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
			for piece := range strings.SplitSeq(m[1]+m[2]+m[3], "…") {
				count++
				if piece = strings.TrimSpace(piece); !strings.Contains(source.String(), piece) {
					t.Errorf("docs/troubleshooting.md quotes %q, which the code does not say", piece)
				}
			}
		}
	}
	if count < 15 {
		t.Errorf("only %d log lines were found", count)
	}
}

func TestTheJSONInTheDocumentationLoads(t *testing.T) {
	ruleNew(t)
	text, err := os.ReadFile("../docs/" + docsConfig)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, m := range regexp.MustCompile("(?ms)^```json\n(\\{\"apps\".*?)^```").FindAllSubmatch(text, -1) {
		count++
		var cfg caddy.Config
		if err := json.Unmarshal(m[1], &cfg); err != nil {
			t.Fatal(err)
		}
		if err := caddy.Validate(&cfg); err != nil {
			t.Errorf("%v in\n%s", err, m[1])
		}
	}
	if count == 0 {
		t.Error("there is none")
	}
}
