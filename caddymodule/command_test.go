package caddymodule

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func TestTheExitCodeTellsAMistakeFromAFailure(t *testing.T) {
	c, _ := adaptSessions(t, sandbox.Config{}, "empty")
	for want, commands := range map[int][][]string{
		0: {{"list"}, {"show", "s"}, {"keygen"}, {"token", "s"}, {}},
		1: {{"show", "nobody"}, {"refresh", "nobody"}, {"token", "empty"}, {"import", "s", "/nowhere/pair"}, {"list", "--pool", "nobody"}, {"login", "nobody"}},
		2: {
			{"frobnicate"}, {"show"}, {"show", "a", "b"}, {"list", "x"}, {"list", "--limit", "x"}, {"list", "--limit", "-1"}, {"list", "--what"}, {"keygen", "x"},
			{"import"}, {"import", "a", "b", "c"}, {"import", "--lines", "a", "b"}, {"login"}, {"login", "s", "--port", "70000"},
		},
	} {
		for _, args := range commands {
			code, out, errs := adaptCaddy(t, c.Dir, "", append(append([]string{"token-refresh"}, args...), "--address", c.Admin)...)
			if code != want || want > 0 && errs == "" {
				t.Errorf("%v: exit code %d, want %d\n%s%s", args, code, want, out, errs)
			}
		}
	}
}

func TestAKeyFromTheCommandLineCanBeConfigured(t *testing.T) {
	seen := map[string]bool{}
	for range 2 {
		code, out, errs := adaptCaddy(t, t.TempDir(), "", "token-refresh", "keygen")
		key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(out))
		if code != 0 || err != nil || len(key) != 32 || seen[out] {
			t.Errorf("%d %v %s", code, err, errs)
		}
		seen[out] = true
	}
}

func TestManyPairsAreImportedLineByLine(t *testing.T) {
	var names []string
	for i := range 30 {
		names = append(names, fmt.Sprintf("many%d", i))
	}
	c, sb := adaptSessions(t, sandbox.Config{}, names...)
	var lines strings.Builder
	for _, name := range names {
		access, refresh := sb.Login()
		fmt.Fprintf(&lines, "{\"session\":%q,%s\n", name, strings.TrimPrefix(adaptPair(access, refresh), "{"))
	}
	good := lines.String()
	code, out, errs := adaptCaddy(t, c.Dir, good, "token-refresh", "import", "--lines", "--address", c.Admin)
	if code != 0 || out != "30 imported, 0 failed\n" {
		t.Fatalf("%d\n%s%s", code, out, errs)
	}
	for _, name := range names {
		ruleEqual(t, "generation of "+name, ruleStatus(t, name).Generation, 1)
	}
	bad := "\n" + `{"session":"nobody","accessToken":"CANARY","refreshToken":"CANARY"}` + "\n" + `{"accessToken":"CANARY","refreshToken":"CANARY"}` + "\n" +
		"CANARY\n" + `{"session":"many1","accessToken":"CANARY"}` + "\n" + strings.SplitAfter(good, "\n")[0]
	path := filepath.Join(t.TempDir(), "lines")
	if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs = adaptCaddy(t, c.Dir, "", "token-refresh", "import", "--lines", "--json", path, "--address", c.Admin)
	if code != 1 || out != "{\"imported\":1,\"failed\":4}\n" || strings.Contains(errs, "CANARY") {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
	for _, want := range []string{`line 2: "nobody"`, "line 3: ", "line 4: ", `line 5: "many1"`} {
		if !strings.Contains(errs, want) {
			t.Errorf("%q is not in\n%s", want, errs)
		}
	}
}

// The pair of a lost session still has its times, which mean nothing any more.
func TestALostSessionIsListedWithoutAnEnd(t *testing.T) {
	ends := time.Now().Add(time.Hour)
	for state, want := range map[refresher.Phase]bool{refresher.PhaseFresh: true, refresher.PhaseHolding: true, refresher.PhaseLost: false} {
		expires, exchange := planned(refresher.Status{State: state, ExpiresAt: ends, RefreshAt: ends})
		if (expires != "") != want || (exchange != "") != want {
			t.Errorf("%s: %q, %q", state, expires, exchange)
		}
	}
	ruleEqual(t, "the hold-off", shortly("11.904004518s"), "11.9s")
}
