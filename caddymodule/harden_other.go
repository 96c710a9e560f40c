//go:build !linux

package caddymodule

// harden does nothing where the system has no such thing.
func harden() error { return nil }
