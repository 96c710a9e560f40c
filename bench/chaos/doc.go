// Package chaos runs a fleet of real processes against a real store and an
// issuer that forgives nothing, breaks them on purpose, and checks what came of
// it (rotation.md 8.3, item 7, and 8.4).
//
// The short form takes some minutes, the long form hours:
//
//	go test -tags chaos ./bench/chaos
//	go test -tags chaos ./bench/chaos -timeout 24h -args -chaos.long
//
// It needs redis-server, etcd and toxiproxy-server (or its path in
// TOXIPROXY_SERVER). Where one is missing tests are skipped, and fail where the
// environment variable CI is set. Each run writes a history, of which [Check]
// says whether it was allowed to happen; that of a failed run is kept.
package chaos
