package caddymodule

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

var adaptUpdate = flag.Bool("adapt.update", false, "write what comes out as what is wanted into testdata/adapt")

const adaptDashes = "\n----------\n"

// Each file of testdata/adapt is a Caddyfile, a line of dashes, and the JSON or
// the error that it leads to. Whatever holds the word CANARY stands for a secret
// and may be in no error.
func TestCaddyfilesAdaptAsRecorded(t *testing.T) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".caddyfiletest"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			input, want, ok := strings.Cut(string(text), adaptDashes)
			if !ok && !*adaptUpdate {
				t.Fatal("no line of dashes")
			}
			got := adaptOutcome(t, input+"\n")
			if *adaptUpdate {
				if err := os.WriteFile(path, []byte(input+adaptDashes+got+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want = strings.TrimSpace(want)
			begin, end, ok := strings.Cut(want, "…") // for what does not matter
			if ok && strings.HasPrefix(got, begin) && strings.HasSuffix(got, end) {
				want = got
			}
			if got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			failed := !strings.HasPrefix(got, "{")
			if failed != strings.HasPrefix(filepath.Base(path), "error_") {
				t.Error("files with an error are named error_…, the others not")
			}
			if failed && strings.Contains(got, "CANARY") {
				t.Error("the error holds a secret")
			}
			if failed && !strings.Contains(got, "Caddyfile:") && !strings.Contains(got, "session") {
				t.Error("the error names neither file and line nor the session")
			}
		})
	}
}

func adaptOutcome(t *testing.T, input string) string {
	t.Helper()
	text, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err.Error()
	}
	for _, w := range warnings {
		if !strings.Contains(w.Message, "not formatted") {
			t.Errorf("warning: %s", w)
		}
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, text, "", "\t"); err != nil {
		t.Fatal(err)
	}
	return pretty.String()
}

func TestTheExampleIsFormattedAdaptsAndValidates(t *testing.T) {
	text, err := os.ReadFile("../Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	if formatted := caddyfile.Format(text); !bytes.Equal(bytes.TrimSpace(formatted), bytes.TrimSpace(text)) {
		t.Error("it is not formatted: run `caddy fmt --overwrite Caddyfile.example`")
	}
	for name, env := range map[string]map[string]string{
		"as it is":      nil,
		"at a real API": {"TOKEN_REFRESH_API": "https://api.example.com", "TOKEN_REFRESH_USERNAME": "{env.RULE_USER}", "TOKEN_REFRESH_PASSWORD_FROM": "{env.RULE_PASSWORD}", "RULE_USER": "u", "RULE_PASSWORD": "CANARY-example"},
	} {
		t.Run(name, func(t *testing.T) {
			ruleNew(t)
			for name, value := range env {
				t.Setenv(name, value)
			}
			adapted, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt(text, map[string]any{"filename": "Caddyfile.example"})
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range warnings {
				t.Errorf("warning: %s", w)
			}
			if bytes.Contains(adapted, []byte("CANARY")) {
				t.Error("the adapted configuration holds the password")
			}
			var cfg caddy.Config
			if err := json.Unmarshal(adapted, &cfg); err != nil {
				t.Fatal(err)
			}
			if err := caddy.Validate(&cfg); err != nil {
				t.Error(err)
			}
		})
	}
}
