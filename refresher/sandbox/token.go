package sandbox

import (
	"crypto/rand"
	"crypto/sha256"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// digest stands for a token wherever it is only looked up. The whole text is
// compared, which no forged, re-encoded or re-signed token survives: nothing
// that is presented has to be parsed.
type digest [sha256.Size]byte

func digestOf(token string) digest { return sha256.Sum256([]byte(token)) }

// newAccess makes an access token that expires at the given whole second.
func (s *Sandbox) newAccess(user string, expires time.Time) string {
	if s.cfg.OpaqueAccess {
		return randomText(43)
	}
	// The names, and that there is neither "iat" nor "nbf", are the documents'.
	// "jti" is ours: without it two tokens of one second would be the same.
	token := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"http://schemas.xmlsoap.org/ws/2005/05/identity/claims/nameidentifier": user,

		"UserID":     "123",
		"InstanceID": "1",
		"Roles":      `[{"RID":1,"BID":100,"PID":5}]`,
		"exp":        expires.Unix(),
		"iss":        "https://7g.com.au",
		"aud":        "Public",
		"jti":        randomText(22),
	})
	sign := token.SignedString
	if s.cfg.SeedSignature {
		sign = func(any) (string, error) {
			text, err := token.SigningString()
			return text + ".signature", err
		}
	}
	text, err := sign(s.key)
	if err != nil {
		panic("sandbox: signing an access token: " + err.Error()) // strings and a number always marshal
	}
	return text
}

func newRefresh() string { return randomText(52) }

const alphanumerics = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// randomText returns n random alphanumerics, each equally likely.
func randomText(n int) string {
	const fair = 256 - 256%len(alphanumerics)
	text := make([]byte, 0, n)
	var pool [64]byte
	for {
		rand.Read(pool[:]) // never fails
		for _, b := range pool {
			if int(b) >= fair {
				continue
			}
			if text = append(text, alphanumerics[int(b)%len(alphanumerics)]); len(text) == n {
				return string(text)
			}
		}
	}
}
