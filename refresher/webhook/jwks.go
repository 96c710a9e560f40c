package webhook

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

const (
	maxKeySet    = 256 << 10
	maxKeys      = 64
	fetchTimeout = 5 * time.Second

	keySetFresh = time.Hour        // it is fetched again when it is older and used
	keySetUsed  = 24 * time.Hour   // it is used that long where it cannot be fetched again
	fetchPause  = 30 * time.Second // between two fetches, so that made-up key ids cause no flood
)

// JWKSConfig says where a key set is fetched. The zero value of each field but
// URL is ready for use.
type JWKSConfig struct {
	// URL is FusionAuth's <base>/.well-known/jwks.json: https, or http on this
	// machine.
	URL string

	// TLS holds roots and client certificates; nil takes the system's roots.
	TLS *tls.Config

	// InsecureHTTP lets plain http leave the machine. INSECURE: who can change
	// what is fetched can sign.
	InsecureHTTP bool

	// Dial replaces the TCP dialer, and with it the check of the resolved
	// address; nil dials.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// JWKS is a set of public keys (RFC 7517), from a text or a URL. It is safe for
// concurrent use. It has no goroutine: a set is fetched while a webhook waits
// that needs it, at first, when it is an hour old, and when a key id is not in
// it (the sender has a new key), at most once in 30 seconds and for 5 seconds. A
// set that cannot be fetched again is used for a day.
type JWKS struct {
	url    string // empty: keys are what they are
	client *http.Client

	mu       sync.Mutex
	keys     []setKey
	at       time.Time     // when keys were fetched
	tried    time.Time     // when the last fetch began
	failure  error         // of the last fetch
	fetching chan struct{} // closed when the one under way has ended; nil: none is
}

type setKey struct {
	id string
	verifyKey
}

// ParseJWKS reads a key set from a text, a file's say.
func ParseJWKS(text []byte) (*JWKS, error) {
	keys, err := parseKeySet(text)
	if err != nil {
		return nil, err
	}
	return &JWKS{keys: keys}, nil
}

// NewJWKS names a key set to be fetched. Nothing is fetched yet.
func NewJWKS(cfg JWKSConfig) (*JWKS, error) {
	u, err := endpoint.Parse(cfg.URL, cfg.InsecureHTTP)
	if err != nil {
		return nil, fmt.Errorf("jwks: %w", err)
	}
	return &JWKS{url: cfg.URL, client: newClient(u, cfg.TLS, cfg.InsecureHTTP, cfg.Dial)}, nil
}

// Close gives idle connections back.
func (j *JWKS) Close() {
	if j.client != nil {
		j.client.CloseIdleConnections()
	}
}

// find returns the keys that may have made a signature: those with its key id,
// or all of them where it has none.
func (j *JWKS) find(ctx context.Context, keyID string) ([]verifyKey, error) {
	for {
		now := time.Now()
		j.mu.Lock()
		found := j.lookup(keyID)
		fresh := j.url == "" || !j.at.IsZero() && now.Sub(j.at) < keySetFresh
		usable := fresh || !j.at.IsZero() && now.Sub(j.at) < keySetUsed
		wanted := !fresh || len(found) == 0 && j.url != ""
		pausing := !j.tried.IsZero() && now.Sub(j.tried) < fetchPause
		wait, failure := j.fetching, j.failure
		if wait == nil && wanted && !pausing {
			j.fetching, j.tried = make(chan struct{}), now
			j.mu.Unlock()
			j.fetch(ctx)
			if err := ctx.Err(); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrKeysUnavailable, err)
			}
			continue
		}
		j.mu.Unlock()
		if wanted && wait != nil && (!usable || len(found) == 0) {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("%w: %w", ErrKeysUnavailable, ctx.Err())
			}
		}
		if !usable {
			return nil, fmt.Errorf("%w: %w", ErrKeysUnavailable, failure)
		}
		return found, nil
	}
}

// lookup is for who has the lock.
func (j *JWKS) lookup(keyID string) []verifyKey {
	var found []verifyKey
	for _, k := range j.keys {
		if keyID == "" || k.id == keyID {
			found = append(found, k.verifyKey)
		}
	}
	return found
}

// fetch gets the set and wakes who waits for it.
func (j *JWKS) fetch(ctx context.Context) {
	keys, err := j.get(ctx)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failure = err
	if err == nil {
		j.keys, j.at = keys, time.Now()
	} else if ctx.Err() != nil {
		j.tried = time.Time{} // the caller went away: that tells nothing about the set
	}
	close(j.fetching)
	j.fetching = nil
}

func (j *JWKS) get(ctx context.Context) ([]setKey, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, j.url, nil)
	if err != nil {
		return nil, errors.New("jwks: the request cannot be made")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", userAgent)
	resp, err := j.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetching the key set: %w", wireFault(err))
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxKeySet+1))
	if err != nil {
		return nil, fmt.Errorf("fetching the key set: %w", wireFault(err))
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetching the key set: answered %d", resp.StatusCode)
	}
	return parseKeySet(text)
}

// parseKeySet reads the keys that can verify; others (for encryption, of kinds
// that are not known, symmetric or private ones) are left out: a set grows with
// what its owner needs elsewhere.
func parseKeySet(text []byte) ([]setKey, error) {
	if len(text) > maxKeySet {
		return nil, fmt.Errorf("the key set is longer than %d bytes", maxKeySet)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if json.Unmarshal(text, &set) != nil {
		return nil, errors.New("the key set is not JSON")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("the key set holds more than %d keys", maxKeys)
	}
	var keys []setKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) != nil || !k.Valid() || !k.IsPublic() || k.Use != "" && k.Use != "sig" {
			continue
		}
		methods := methodsFor(k.Key)
		if k.Algorithm != "" {
			methods = slices.DeleteFunc(methods, func(m string) bool { return m != k.Algorithm })
		}
		if len(methods) > 0 {
			keys = append(keys, setKey{id: k.KeyID, verifyKey: verifyKey{key: k.Key, methods: methods}})
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("the key set holds no key that can verify signatures")
	}
	return keys, nil
}
