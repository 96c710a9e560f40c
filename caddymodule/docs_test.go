package caddymodule

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Parts that the documentation leaves out, as the reader's eye puts them there.
const (
	docsSession = "session billing {\nissuer bearer https://api.example.com/User/RefreshToken\ntokens import\n}\n"
	docsGlobal  = "{\ntoken_refresh {\n" + docsSession + "}\n}\n"
)

var (
	caddyfileBlock = regexp.MustCompile("(?ms)^[ \t]*```caddyfile\n(.*?)^[ \t]*```")
	elsewhere      = regexp.MustCompile(`(?m)^\s*on token_refresh\.\S+ exec .*$`) // a module of somebody else's
)

// whole makes a Caddyfile of what a document shows of one.
func whole(text string) string {
	text = elsewhere.ReplaceAllString(text, "")
	first, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	switch word, _, _ := strings.Cut(first, " "); {
	case first == "{" && strings.Contains(text, "token_refresh {"):
		return text
	case first == "{": // global options of Caddy's own
		return strings.Replace(text, "{", "{\ntoken_refresh {\n"+docsSession+"}\n", 1)
	case word == "token_refresh" && strings.HasSuffix(first, "{"):
		return "{\n" + strings.Replace(text, "{", "{\n"+docsSession, 1) + "}\n"
	case word == "issuer":
		return "{\ntoken_refresh {\nsession billing {\n" + text + "\ntokens import\n}\n}\n}\n"
	case word == "session", word == "pool", word == "webhook":
		return "{\ntoken_refresh {\n" + text + "\n}\n}\n"
	case strings.HasPrefix(first, "http"):
		return docsGlobal + text
	}
	return docsGlobal + "http://localhost:8080 {\n" + text + "\n}\n"
}

func TestEveryCaddyfileInTheDocumentationAdapts(t *testing.T) {
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, path := range append(documents, "../README.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range caddyfileBlock.FindAllSubmatch(text, -1) {
			count++
			if _, err := adaptText(whole(string(m[1]))); err != nil {
				t.Errorf("%s: %v in\n%s", path, err, m[1])
			}
		}
	}
	if count < 10 {
		t.Errorf("only %d Caddyfiles were found", count)
	}
}

// deployCaddyfile is the one in a manifest.
func deployCaddyfile(t *testing.T, manifest string) string {
	t.Helper()
	_, rest, ok := strings.Cut(manifest, "Caddyfile: |\n")
	inner, _, ended := strings.Cut(rest, "\n---")
	if !ok || !ended {
		t.Fatal("there is no Caddyfile in the manifest")
	}
	return strings.ReplaceAll("\n"+inner, "\n    ", "\n")
}

func TestTheCaddyfilesForDeploymentAdapt(t *testing.T) {
	for name, text := range map[string]string{
		"kubernetes": deployCaddyfile(t, deployRead(t, "deploy/kubernetes/sidecar.yaml")), "docker": deployRead(t, "deploy/docker/Caddyfile"),
	} {
		if _, err := adaptText(text); err != nil {
			t.Errorf("%s: %v in\n%s", name, err, text)
		}
	}
}

// docsAnchors are the names by which GitHub leads to a document's headings.
func docsAnchors(text string) map[string]bool {
	drop := regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	all := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		all[strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return all
}

func TestLinksInTheDocumentationLeadSomewhere(t *testing.T) {
	var documents []string
	for _, pattern := range []string{"../*.md", "../docs/*.md", "../bench/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, found...)
	}
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%v", err)
		}
		return string(text)
	}
	links := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, from := range documents {
		for _, m := range links.FindAllStringSubmatch(read(from), -1) {
			if strings.Contains(m[1], "://") {
				continue // somebody else's
			}
			file, anchor, anchored := strings.Cut(m[1], "#")
			to := from
			if file != "" {
				to = filepath.Join(filepath.Dir(from), file)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %s leads nowhere", from, m[1])
			} else if anchored && !docsAnchors(read(to))[anchor] {
				t.Errorf("%s: %s has no heading #%s", from, to, anchor)
			}
		}
	}
}
