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

func TestTheCaddyfilesForDeploymentAdapt(t *testing.T) {
	manifest, err := os.ReadFile("../deploy/kubernetes/sidecar.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(manifest), "Caddyfile: |\n")
	inner, _, ended := strings.Cut(rest, "\n---")
	if !ok || !ended {
		t.Fatal("there is no Caddyfile in the manifest")
	}
	docker, err := os.ReadFile("../deploy/docker/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"kubernetes": strings.ReplaceAll(inner, "\n    ", "\n"), "docker": string(docker)} {
		if _, err := adaptText(text); err != nil {
			t.Errorf("%s: %v in\n%s", name, err, text)
		}
	}
}
