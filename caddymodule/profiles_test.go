package caddymodule

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

func TestAProfileGivesDefaultsThatOptionsOverride(t *testing.T) {
	for _, tt := range []struct {
		options         string
		revokes         bool
		reuse, lifetime time.Duration
	}{
		{``, true, 0, 30 * day},
		{`"profile":"7g"`, true, 0, 30 * day},
		{`"profile":"okta"`, false, 30 * time.Second, 7 * day},
		{`"profile":"hydra"`, true, 0, 30 * day},
		{`"profile":"genauth"`, false, day, 0},
		{`"profile":"okta","reuse_interval":-1`, false, 0, 7 * day},
		{`"profile":"okta","reuse_interval":5000000000,"reuse_answer":"new"`, false, 5 * time.Second, 7 * day},
		{`"profile":"okta","revokes_previous":true,"refresh_lifetime":3600000000000`, true, 30 * time.Second, time.Hour},
		{`"profile":"hydra","revokes_previous":false`, false, 0, 30 * day},
		{`"revokes_previous":false,"reuse_interval":1000000000`, false, time.Second, 30 * day},
	} {
		b := new(BearerIssuer)
		if err := json.Unmarshal([]byte(`{"url":"https://127.0.0.1:1/x"`+strings.TrimSuffix(","+tt.options, ",")+`}`), b); err != nil {
			t.Fatal(err)
		}
		cfg, err := b.config(caddy.NewReplacer())
		if err != nil {
			t.Errorf("%s: %v", tt.options, err)
			continue
		}
		p := cfg.Profile
		if p.RevokesPrevious != tt.revokes || p.ReuseInterval != tt.reuse || p.RefreshLifetime != tt.lifetime {
			t.Errorf("%s: revokes %v, reuse %v, lifetime %v", tt.options, p.RevokesPrevious, p.ReuseInterval, p.RefreshLifetime)
		}
	}
}

func TestTheProfilesAreThoseOfTheDocumentation(t *testing.T) {
	var text [2]string
	for i, path := range []string{"../docs/configuration.md", "issuers.go"} {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text[i] = string(content)
	}
	docs, source := text[0], text[1]
	for name := range profiles {
		if !strings.Contains(docs, "| `"+name+"` |") {
			t.Errorf("docs/configuration.md does not list %s", name)
		}
		if !strings.Contains(source, "`"+name+"`") {
			t.Errorf("the comment of the option does not list %s", name)
		}
	}
}
