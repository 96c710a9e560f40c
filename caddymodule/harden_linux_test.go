package caddymodule

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func TestTheProcessIsHardenedUnlessItIsToldNotTo(t *testing.T) {
	_, issuer := ruleIssuer(t, sandbox.Config{})
	session := "session s {\nissuer bearer " + issuer + "/User/RefreshToken\ntokens import\n}\n"
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		option string
		want   int
	}{{"harden off\n", 1}, {"", 0}} {
		t.Run(strings.TrimSpace("with "+c.option), func(t *testing.T) {
			ruleStart(t, ruleConfig{App: c.option + session, Site: "respond ok"})
			if got, _, _ := unix.Syscall6(unix.SYS_PRCTL, unix.PR_GET_DUMPABLE, 0, 0, 0, 0, 0); int(got) != c.want {
				t.Errorf("dumpable is %d, want %d", got, c.want)
			}
		})
	}
	// Programs that it starts are not concerned.
	if err := exec.Command("true").Run(); err != nil {
		t.Error(err)
	}
}
