// Package issuer talks to the servers that exchange a token pair for the next
// one, and to those that issue the first.
//
// An exchange is not idempotent: a refresh token that was spent must not be sent
// again, and a lost answer may have held the only copy of its successor. That
// decides how this package speaks HTTP. It does not use [net/http.Client], which
// repeats requests, follows redirects and reuses connections for good reasons
// that do not hold here. [Client] connects first ([Client.Prepare], no secret
// leaves), then writes the whole request once ([Conn.Do]) and reads the answer
// within one deadline and within fixed bounds. Whether a byte of the request
// left is counted, not guessed from error texts.
//
// What an answer means for the refresh token is decided in one pure function
// (classify.go), after rotation.md section 7.1.
//
// [Bearer], [OAuth2] and [FusionAuth] are a [refresher.Issuer], the last two a
// [refresher.Revoker], too; [Login] is a [refresher.Source].
package issuer
