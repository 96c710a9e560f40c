package caddymodule_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/modfile"
)

// builder mirrors the JSON form of xcaddy v0.4.7's Builder, which cannot be
// imported here; unknown members are errors.
type builder struct {
	OS           string `json:"os"`
	Arch         string `json:"arch"`
	ARM          string `json:"arm"`
	CGo          bool   `json:"cgo"`
	CaddyVersion string `json:"caddy_version"`
	Plugins      []struct {
		PackagePath string `json:"module_path"`
		Version     string `json:"version"`
	} `json:"plugins"`
	Replacements []struct {
		Old string `json:"old"`
		New string `json:"new"`
	} `json:"replacements"`
	TimeoutGet   time.Duration `json:"timeout_get"`
	TimeoutBuild time.Duration `json:"timeout_build"`
	RaceDetector bool          `json:"race_detector"`
	SkipCleanup  bool          `json:"skip_cleanup"`
	SkipBuild    bool          `json:"skip_build"`
	Debug        bool          `json:"debug"`
	BuildFlags   string        `json:"build_flags"`
	ModFlags     string        `json:"mod_flags"`
	PGOProfile   string        `json:"pgo_profile"`
	EmbedDir     []struct {
		Dir  string `json:"dir"`
		Name string `json:"name"`
	} `json:"embed_dir"`
}

func TestXcaddyJSONBuildsThisModuleWithTheCaddyOfGoMod(t *testing.T) {
	text, err := os.ReadFile("../xcaddy.json")
	if err != nil {
		t.Fatal(err)
	}
	var b builder
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil {
		t.Fatal(err)
	}
	text, err = os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse("go.mod", text, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range mod.Require {
		if req.Mod.Path == "github.com/caddyserver/caddy/v2" && req.Mod.Version != b.CaddyVersion {
			t.Errorf("xcaddy.json builds Caddy %s, go.mod wants %s", b.CaddyVersion, req.Mod.Version)
		}
	}
	if len(b.Plugins) != 1 || !strings.HasPrefix(b.Plugins[0].PackagePath, mod.Module.Mod.Path+"/") {
		t.Errorf("xcaddy.json names the plugins %+v, want the one of %s", b.Plugins, mod.Module.Mod.Path)
	}
	if _, err := os.Stat(".." + strings.TrimPrefix(b.Plugins[0].PackagePath, mod.Module.Mod.Path)); err != nil {
		t.Errorf("the plugin's package is not there: %v", err)
	}
}
