// Package caddymodule is the Caddy side of token_refresh: the app that holds
// sessions, the handler that gives requests their access token, the issuers and
// sources that a configuration names, the admin API and the command line. The
// session protocol itself is in package refresher, which knows no Caddy.
//
// Importing the package registers its modules.
package caddymodule
