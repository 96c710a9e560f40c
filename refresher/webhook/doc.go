// Package webhook speaks FusionAuth's webhooks in both directions. It knows no
// Caddy.
//
// Out: an [Event] tells that a pair was exchanged ("jwt.refresh"). [Outbox]
// writes it to disk, sealed, before it says that it has it, and delivers it to
// each [Hook] until the receiver answers 2xx: at least once, under the same id,
// through restarts and kill -9, in order for each session and hook. An operation
// that must not go on before a receiver has agreed (FusionAuth's transactional
// webhooks) waits for the function given to [Outbox.Announce].
//
// In: a [Verifier] says whether a request came from the issuer, [Parse] reads
// what it tells, and [Seen] lets each event through once.
//
// Field names, types and shapes are those of FusionAuth's documentation: JWT
// Refresh, JWT Refresh Token Revoke, User Deactivate, User Delete, Signing
// Webhooks.
package webhook
