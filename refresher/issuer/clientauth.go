package issuer

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// The ways in which a client can authenticate itself, by their registered names
// (RFC 7591 section 2, OpenID Connect Core 1.0 section 9).
const (
	ClientSecretBasic = "client_secret_basic"
	ClientSecretPost  = "client_secret_post"
	PrivateKeyJWT     = "private_key_jwt"
	NoClientAuth      = "none"
)

// assertionLife is how long an assertion is good: for one request, and for
// clocks that differ a little.
const assertionLife = 2 * time.Minute

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" // RFC 7523 section 2.2

// clientAuth authenticates a client in one way. There is no second one to fall
// back to: a refused request may have spent the refresh token, and the next
// would present it again.
type clientAuth struct {
	method string
	id     string
	secret refresher.Secret

	key      *ClientKey
	keyID    string
	alg      string
	audience string // "issuer", "token_endpoint", another; "": the issuer where it is known
}

// check reports what does not go together. The key may come later.
func (a *clientAuth) check() error {
	if a.method == "" {
		a.method = NoClientAuth
		if !a.secret.IsZero() {
			a.method = ClientSecretBasic
		}
	}
	signs := a.method == PrivateKeyJWT
	needsSecret := a.method == ClientSecretBasic || a.method == ClientSecretPost
	switch {
	case !signs && !needsSecret && a.method != NoClientAuth:
		return fmt.Errorf("auth_method: %.40q is none of client_secret_basic, client_secret_post, private_key_jwt, none", a.method)
	case a.id == "":
		return errors.New("client_id: missing")
	case needsSecret && a.secret.IsZero():
		return fmt.Errorf("client_secret: missing, %s needs one", a.method)
	case !needsSecret && !a.secret.IsZero():
		return fmt.Errorf("client_secret: auth_method %s has no use for one", a.method)
	case !signs && (a.key != nil || a.keyID != "" || a.alg != "" || a.audience != ""):
		return fmt.Errorf("private_key and what goes with it: auth_method %s has no use for it", a.method)
	}
	if a.key != nil {
		_, err := a.key.method(a.alg)
		return err
	}
	return nil
}

// parameters are those that an extra parameter cannot be.
func (a *clientAuth) parameters() []string {
	return []string{"client_id", "client_secret", "client_assertion", "client_assertion_type"}
}

// sign puts into params what tells who the client is; the value of the
// Authorization field is empty where that does not.
func (a *clientAuth) sign(params url.Values, m metadata) (authorization refresher.Secret, err error) {
	switch a.method {
	case ClientSecretBasic:
		// RFC 6749 section 2.3.1: each is form-encoded first, so that a colon or
		// a character beyond ASCII survives.
		pair := url.QueryEscape(a.id) + ":" + url.QueryEscape(a.secret.Reveal())
		return refresher.NewSecret("Basic " + base64.StdEncoding.EncodeToString([]byte(pair))), nil
	case ClientSecretPost:
		params.Set("client_secret", a.secret.Reveal())
	case PrivateKeyJWT:
		assertion, err := a.assertion(m, time.Now())
		if err != nil {
			return refresher.Secret{}, err
		}
		params.Set("client_assertion_type", assertionType)
		params.Set("client_assertion", assertion)
	}
	params.Set("client_id", a.id)
	return refresher.Secret{}, nil
}

// assertion makes a new assertion (RFC 7523 section 3), for one request.
func (a *clientAuth) assertion(m metadata, now time.Time) (string, error) {
	method, err := a.key.method(a.alg)
	if err != nil {
		return "", err
	}
	token := jwt.NewWithClaims(method, jwt.MapClaims{
		"iss": a.id, "sub": a.id, "aud": a.audienceAt(m), "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	})
	if id := cmp.Or(a.keyID, a.key.id); id != "" {
		token.Header["kid"] = id
	}
	text, err := token.SignedString(a.key.key)
	if err != nil {
		return "", errors.New("the client's assertion cannot be signed")
	}
	return text, nil
}

// audienceAt is whom an assertion is for. The issuer is the safer choice: one
// for an endpoint's URL can be replayed by whoever that URL belongs to.
func (a *clientAuth) audienceAt(m metadata) string {
	switch {
	case a.audience == "token_endpoint", a.audience == "" && m.issuer == "":
		return m.token.String()
	case a.audience == "issuer", a.audience == "":
		return m.issuer
	}
	return a.audience
}
