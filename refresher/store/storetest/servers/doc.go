// Package servers runs real Redis and etcd servers for tests, as child processes
// that can be stopped, killed and frozen. It needs a Unix system and the programs
// redis-server and etcd; where they are missing a test is skipped, and fails
// where the environment variable CI is set.
package servers
