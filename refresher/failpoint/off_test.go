//go:build !failpoint || !unix

package failpoint

import "testing"

func TestWithoutTheTagNothingHappens(t *testing.T) {
	t.Setenv("TOKEN_REFRESH_FAILPOINT", "W1:kill,W3:kill")
	Reach("W1")
	Soon("W3")
}
