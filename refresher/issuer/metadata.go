package issuer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

// metadata is what is known of an authorization server's endpoints.
type metadata struct {
	issuer string      // as the server writes it; "" where the endpoints are configured
	token  *url.URL    // of exchanges
	revoke optionalURL // RFC 7009

	// Where people sign in, which exchanges do without.
	authorize optionalURL // RFC 6749 section 3.1
	device    optionalURL // RFC 8628 section 3.1
	namesSelf bool        // answers to a login say which issuer they are from (RFC 9207 section 3)
}

// optionalURL is an endpoint that may be missing, or that may not be used.
type optionalURL struct {
	url *url.URL
	err error // why there is none; nil: none is named
}

// metadataPlaces are where an issuer's metadata can lie: below it (OpenID
// Connect Discovery 1.0 section 4), or between its host and path (RFC 8414
// section 3). Without a path the second has a name of its own all the same.
func metadataPlaces(issuer *url.URL) []*url.URL {
	path := strings.TrimSuffix(issuer.EscapedPath(), "/")
	root := issuer.Scheme + "://" + issuer.Host
	var places []*url.URL
	for _, text := range []string{
		root + path + "/.well-known/openid-configuration",
		root + "/.well-known/oauth-authorization-server" + path,
	} {
		if u, err := url.Parse(text); err == nil {
			places = append(places, u)
		}
	}
	return places
}

// parseMetadata reads a metadata document (RFC 8414 section 2). The document
// must be the issuer's own (section 3.3), and its endpoints on the issuer's
// host: they are sent the refresh token and the client's secret, and a document
// must not be able to send those elsewhere. No error repeats more of it than a
// host.
func parseMetadata(body refresher.Secret, issuer *url.URL) (metadata, error) {
	members, ok := jsonMembers(body, "issuer", "token_endpoint", "revocation_endpoint",
		"authorization_endpoint", "device_authorization_endpoint", "authorization_response_iss_parameter_supported")
	if !ok {
		return metadata{}, errors.New("it is not a JSON object with each name once")
	}
	var named string
	if json.Unmarshal(members["issuer"], &named) != nil || !sameIssuer(named, issuer.String()) {
		return metadata{}, errors.New("it is of another issuer (the issuer must be given as the server writes it)")
	}
	m := metadata{issuer: named}
	var err error
	if m.token, err = endpointOf(members["token_endpoint"], issuer); err != nil {
		return metadata{}, fmt.Errorf("token_endpoint: %w", err)
	}
	if m.token == nil {
		return metadata{}, errors.New("it names no token_endpoint")
	}
	m.revoke.url, m.revoke.err = endpointOf(members["revocation_endpoint"], issuer)
	m.authorize.url, m.authorize.err = endpointOf(members["authorization_endpoint"], issuer)
	m.device.url, m.device.err = endpointOf(members["device_authorization_endpoint"], issuer)
	m.namesSelf = string(members["authorization_response_iss_parameter_supported"]) == "true"
	return m, nil
}

// sameIssuer compares as RFC 8414 has it, character by character, but for a
// slash at the end, which people leave out and which names no other server.
func sameIssuer(a, b string) bool {
	return a != "" && strings.TrimSuffix(a, "/") == strings.TrimSuffix(b, "/")
}

// endpointOf reads an endpoint; nil where there is none.
func endpointOf(raw json.RawMessage, issuer *url.URL) (*url.URL, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return nil, errors.New("it is not a string")
	}
	u, err := endpoint.Parse(text, true) // plain http only where the issuer is, see below
	if err != nil {
		return nil, err
	}
	if u.Scheme != issuer.Scheme || !strings.EqualFold(u.Hostname(), issuer.Hostname()) || port(u) != port(issuer) {
		return nil, fmt.Errorf("it is at %s://%s, not at the issuer's host: if that is right, configure its URL instead of discovering it", u.Scheme, u.Host)
	}
	return u, nil
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return map[string]string{"http": "80", "https": "443"}[u.Scheme]
}
