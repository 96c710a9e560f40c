package refresher

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// tokenTimes are the times that an access token tells about itself; zero where
// it says nothing usable.
type tokenTimes struct {
	expires time.Time
	issued  time.Time
}

// readTimes reads "exp" and "iat" of a JWT without verifying it: they steer a
// schedule, never a decision about trust. What is not a JWT has no times.
func readTimes(token Secret) tokenTimes {
	text := token.Reveal()
	if len(text) > MaxAccessToken || strings.Count(text, ".") != 2 {
		return tokenTimes{}
	}
	// The signature is not needed, and the sample of the seed document has one
	// that is not even base64url, which golang-jwt refuses.
	text = base64url.Replace(text[:strings.LastIndexByte(text, '.')+1])

	var claims timeClaims
	_, _, err := jwt.NewParser().ParseUnverified(text, &claims)
	if err != nil && !errors.Is(err, jwt.ErrTokenUnverifiable) { // an unknown "alg" is none of our business
		return tokenTimes{}
	}
	return claims.times()
}

// base64url undoes what other base64 encoders do: padding, and the other alphabet.
var base64url = strings.NewReplacer("=", "", "+", "-", "/", "_")

// timeClaims are the claims that readTimes wants, by their exact names.
type timeClaims struct {
	jwt.RegisteredClaims // satisfies jwt.Claims; not filled

	exp, iat time.Time
}

// UnmarshalJSON keeps encoding/json from folding case and from converting
// numbers that do not fit.
func (c *timeClaims) UnmarshalJSON(body []byte) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return errors.New("the claims are not a JSON object")
	}
	obj := object{}
	if err := scanObject(dec, 1, "", obj); err != nil {
		return err
	}
	c.exp, c.iat = obj.date("exp"), obj.date("iat")
	return nil
}

func (c *timeClaims) times() tokenTimes {
	t := tokenTimes{expires: c.exp, issued: c.iat}
	if !t.issued.IsZero() && !t.expires.After(t.issued) {
		return tokenTimes{}
	}
	return t
}

// date reads a NumericDate (RFC 7519 section 2), also in a string; zero where
// it is none or lies outside the years 1970 to 9999.
func (o object) date(name string) time.Time {
	var text string
	switch v := o[name].(type) {
	case json.Number:
		text = v.String()
	case string:
		text = v
	default:
		return time.Time{}
	}
	s, ok := wholeSeconds(text)
	if !ok || s <= 0 || s >= 253402300800 {
		return time.Time{}
	}
	return time.Unix(s, 0)
}
