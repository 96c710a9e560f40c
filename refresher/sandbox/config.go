package sandbox

import (
	"cmp"
	"net/http"
	"time"
)

// Config says how the issuer behaves. The zero value is the strictest issuer
// that the documents allow.
type Config struct {
	// AccessLifetime is how long an access token is accepted; 0 is 30 s. "exp"
	// has whole seconds, so a token lives up to 1 s less. A negative value
	// issues tokens that have already expired.
	AccessLifetime time.Duration

	// RefreshLifetime is the same for refresh tokens; 0 is 30 days. Each new
	// refresh token starts afresh.
	RefreshLifetime time.Duration

	// Username and Password are what LoginPath takes; empty is "demo".
	Username, Password string

	// LoginPath, RefreshPath and LogoutPath are the issuer's endpoints; empty
	// is "/User/Login", "/User/RefreshToken" and "/User/Logout".
	LoginPath, RefreshPath, LogoutPath string

	// AcceptExpired: an access token that has expired, but was not superseded,
	// may still be exchanged. The API never takes it.
	AcceptExpired bool

	// KeepRefreshToken: an exchange issues no new refresh token but answers the
	// one presented, which stays valid until it expires.
	KeepRefreshToken bool

	// OmitRefreshToken: as KeepRefreshToken, and the answer has no refresh
	// token at all.
	OmitRefreshToken bool

	// BareToken: "Authorization: <token>" without "Bearer " is taken as well.
	BareToken bool

	// ReuseInterval is how long after its exchange a spent refresh token is
	// accepted again, with the access token it was issued with, unless one of
	// its successors was exchanged meanwhile. 0: a spent refresh token ends the
	// session.
	ReuseInterval time.Duration

	// ReuseSame: such a repeat is answered with the same successor (which may
	// be half used by then). Otherwise with a new pair.
	ReuseSame bool

	// KeepPreviousAccess: superseded access tokens are accepted until they
	// expire.
	KeepPreviousAccess bool

	// LaxHeaders: the issuer does without "Content-Type: application/json"
	// (otherwise 415) and "Version: 2.0" (otherwise 400).
	LaxHeaders bool

	// ExpiresIn: pairs come with "expires_in", in whole seconds.
	ExpiresIn bool

	// OpaqueAccess: access tokens are no JWTs.
	OpaqueAccess bool

	// SeedSignature: the signature part of access tokens is the word
	// "signature", as in the documents' example. It is not valid base64url.
	SeedSignature bool

	// Statuses are the answers to what is refused.
	Statuses Statuses
}

// Statuses are the answers to refused calls. No document names them.
type Statuses struct {
	BadLogin     Refusal // login: wrong user or password; 401
	BadRequest   Refusal // issuer: not the body or the version asked for; 400
	BadAccess    Refusal // issuer: no access token, or none that is accepted; 401
	BadRefresh   Refusal // exchange: refresh token unknown, spent, expired, of another session; 400
	Unauthorized Refusal // API: not the current access token; 401
}

// Refusal is one such answer. A status 200 is possible: there are APIs that
// say no that way.
type Refusal struct {
	Status      int    // 0: see Statuses
	Body        string // empty: {"result":false,"message":…,"recordCount":0,"data":null}
	ContentType string // empty: application/json
}

func (c Config) withDefaults() Config {
	c.AccessLifetime = cmp.Or(c.AccessLifetime, 30*time.Second)
	c.RefreshLifetime = cmp.Or(c.RefreshLifetime, 30*24*time.Hour)
	c.Username = cmp.Or(c.Username, "demo")
	c.Password = cmp.Or(c.Password, "demo")
	c.LoginPath = cmp.Or(c.LoginPath, "/User/Login")
	c.RefreshPath = cmp.Or(c.RefreshPath, "/User/RefreshToken")
	c.LogoutPath = cmp.Or(c.LogoutPath, "/User/Logout")
	c.KeepRefreshToken = c.KeepRefreshToken || c.OmitRefreshToken

	c.Statuses.BadLogin.fill(http.StatusUnauthorized, "the user name or the password is wrong")
	c.Statuses.BadRequest.fill(http.StatusBadRequest, "the request is malformed")
	c.Statuses.BadAccess.fill(http.StatusUnauthorized, "the access token is not valid")
	c.Statuses.BadRefresh.fill(http.StatusBadRequest, "the refresh token is not valid")
	c.Statuses.Unauthorized.fill(http.StatusUnauthorized, "the access token is not valid")
	return c
}

func (f *Refusal) fill(status int, message string) {
	f.Status = cmp.Or(f.Status, status)
	f.ContentType = cmp.Or(f.ContentType, jsonType)
	f.Body = cmp.Or(f.Body, failure(message))
}
