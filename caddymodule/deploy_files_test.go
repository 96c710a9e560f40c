package caddymodule

import (
	"encoding/json"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func deployRead(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile("../" + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// deployFind is what a pattern's groups match, each time; it must match.
func deployFind(t *testing.T, what, text, pattern string) (found [][]string) {
	t.Helper()
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found = append(found, m[1:])
	}
	if len(found) == 0 {
		t.Fatalf("%s: there is no %s", what, pattern)
	}
	return found
}

// deployServes are the ports that a Caddyfile serves, with the paths that have a
// route of their own there, and where its admin endpoint is.
func deployServes(t *testing.T, caddyfile string) (ports map[string][]string, admin string) {
	t.Helper()
	text, err := adaptText(caddyfile)
	if err != nil {
		t.Fatal(err)
	}
	var cfg struct {
		Admin struct{ Listen string }
		Apps  struct {
			HTTP struct {
				Servers map[string]struct {
					Listen []string
					Routes json.RawMessage
				}
			}
		}
	}
	if err := json.Unmarshal(text, &cfg); err != nil {
		t.Fatal(err)
	}
	ports = map[string][]string{}
	for _, srv := range cfg.Apps.HTTP.Servers {
		for _, listen := range srv.Listen {
			port := listen[strings.LastIndex(listen, ":")+1:]
			ports[port] = append(ports[port], "")
			for _, m := range regexp.MustCompile(`"path":\["([^"]+)"\]`).FindAllStringSubmatch(string(srv.Routes), -1) {
				ports[port] = append(ports[port], m[1])
			}
		}
	}
	return ports, cfg.Admin.Listen
}

// What one file of a deployment says of another is so.
func TestTheDeploymentFilesFitTogether(t *testing.T) {
	dockerfile := deployRead(t, "deploy/docker/Dockerfile")
	one := func(what, text, pattern string) string {
		t.Helper()
		return deployFind(t, what, text, pattern)[0][0]
	}
	user := one("Dockerfile", dockerfile, `(?m)^USER (\d+):\d+$`)
	state := one("Dockerfile", dockerfile, `(?m)^VOLUME (\S+)$`)
	binary := one("Dockerfile", dockerfile, `(?m)^ENTRYPOINT \["([^"]+)"\]$`)
	config := one("Dockerfile", dockerfile, `(?m)^CMD \["run", "--config", "([^"]+)"\]$`)
	for _, want := range []string{
		" XDG_DATA_HOME=" + state + " ", "COPY --from=build --chown=" + user + ":", " /out/data " + state + "\n", " /out/caddy " + binary + "\n",
		"FROM golang:" + one("go.mod", deployRead(t, "go.mod"), `(?m)^go (\d+\.\d+)`),
	} {
		if !strings.Contains(dockerfile, want) {
			t.Errorf("the Dockerfile lacks %q", want)
		}
	}
	build := one("Dockerfile", dockerfile, `go build (-\S.*?) -o `)
	if !strings.Contains(deployRead(t, "deploy/release"), "go build "+build+" -o ") {
		t.Errorf("deploy/release does not build as the Dockerfile does: %s", build)
	}

	// The compose file.
	compose, caddyfile := deployRead(t, "deploy/docker/compose.yaml"), deployRead(t, "deploy/docker/Caddyfile")
	ports, admin := deployServes(t, caddyfile)
	for _, want := range []string{
		"state:" + state + "\n", "./Caddyfile:" + config + ":ro\n", `["CMD", "` + binary + `", "token-refresh", "list", "--address", "` + admin + `"]`,
		"subnet: " + one("Caddyfile", caddyfile, `clients (\S+)`) + "}", "secrets: [" + one("Caddyfile", caddyfile, `\{file\./run/secrets/([\w-]+)\}`) + "]",
	} {
		if !strings.Contains(compose, want) {
			t.Errorf("compose.yaml lacks %q", want)
		}
	}
	if port := one("compose.yaml", compose, `http://sidecar:(\d+)/whoami`); ports[port] == nil {
		t.Errorf("the program calls port %s, which the Caddyfile does not serve: %v", port, ports)
	}

	// The Kubernetes manifest.
	manifest := deployRead(t, "deploy/kubernetes/sidecar.yaml")
	caddyfile = deployCaddyfile(t, manifest)
	ports, kubeAdmin := deployServes(t, caddyfile)
	probes := deployFind(t, "sidecar.yaml", manifest, `httpGet: \{path: (\S+), port: (\d+)\}`)
	if len(probes) != 3 {
		t.Errorf("%d probes", len(probes))
	}
	for _, probe := range probes {
		if !slices.Contains(ports[probe[1]], probe[0]) {
			t.Errorf("a probe asks port %s for %s, the Caddyfile serves %v", probe[1], probe[0], ports)
		}
	}
	if port := one("sidecar.yaml", manifest, `value: "http://127\.0\.0\.1:(\d+)"`); ports[port] == nil {
		t.Errorf("the program calls port %s, which the Caddyfile does not serve: %v", port, ports)
	}
	mounts := map[string]string{}
	for _, m := range deployFind(t, "sidecar.yaml", manifest, `\{name: (\w+), mountPath: ([^,}]+)`) {
		mounts[m[0]] = m[1]
		if !strings.Contains(manifest, "\n        - name: "+m[0]+"\n") {
			t.Errorf("there is no volume %s", m[0])
		}
	}
	if mounts["config"] != path.Dir(config) || mounts["state"] != state {
		t.Errorf("the volumes are mounted at %v", mounts)
	}
	for _, secret := range deployFind(t, "the manifest's Caddyfile", caddyfile, `\{file\.([^}]+)\}`) {
		if path.Dir(secret[0]) != mounts["login"] {
			t.Errorf("%s is not in %s", secret[0], mounts["login"])
		}
	}
	for _, want := range []string{"runAsUser: " + user + "\n", "fsGroup: " + user + "\n", "fsGroupChangePolicy: OnRootMismatch\n", path.Base(config) + ": |\n"} {
		if !strings.Contains(manifest, want) {
			t.Errorf("sidecar.yaml lacks %q", want)
		}
	}
	for _, address := range []string{admin, kubeAdmin} {
		if !strings.HasPrefix(address, "unix/"+state+"/") {
			t.Errorf("the admin endpoint is at %s, outside of what can be written", address)
		}
	}
}

// The unit runs what its own comment installs, and gives it the directory that
// it may write to.
func TestTheServiceFitsItsComment(t *testing.T) {
	unit := deployRead(t, "deploy/systemd/token-refresh.service")
	for _, pattern := range []string{`install -D -m 0755 caddy (\S+)`, `install -D -m 0644 Caddyfile (\S+)`} {
		target := deployFind(t, "the unit", unit, pattern)[0][0]
		if n := strings.Count(unit, target+" "); n < 2 && !strings.Contains(unit, "--config "+target+"\n") {
			t.Errorf("the unit does not use %s", target)
		}
	}
	name := deployFind(t, "the unit", unit, `(?m)^StateDirectory=(\S+)$`)[0][0]
	if !strings.Contains(unit, "XDG_DATA_HOME=%S/"+name+" ") {
		t.Errorf("Caddy's data are not in %s", name)
	}
	secret := deployFind(t, "the unit", unit, `\{\$CREDENTIALS_DIRECTORY\}/([\w-]+)\}`)[0][0]
	if !strings.Contains(unit, "\nLoadCredential="+secret+":") {
		t.Errorf("there is no credential %s", secret)
	}
}
