//go:build !failpoint || !unix

// Package failpoint ends or delays the process at chosen points of a rotation.
// It does so in binaries built with the tag failpoint, for tests with real
// processes; in all others its functions are empty.
//
// The points are those of rotation.md 5.2:
//
//	W0  the lock is held, nothing of the attempt has begun
//	W1  the intent is in the journal
//	W2  the intent is in the store
//	W3  the exchange is written, its answer is not here
//	W4  the answer is in memory
//	W5  the next pair is in the journal (or was there when the process started)
//	W6  the next pair is in the store
//	W7  requests have the next pair
//	W8  what is no longer needed is about to be erased from the store
//
// The environment variable TOKEN_REFRESH_FAILPOINT says what happens at which:
// <point>:<action>, several separated by commas. The actions are kill, stop
// (until somebody else sends SIGCONT) and sleep:<duration>. Behind it, @<n> is
// the n-th time the point is reached only, %<p> each time with that probability:
//
//	W4:kill
//	W3:sleep:5s@2
//	W6:kill%0.1
package failpoint

// Reach says that a point is reached.
func Reach(string) {}

// Soon says that a point is about to be reached by what follows.
func Soon(string) {}
