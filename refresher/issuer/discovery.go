package issuer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// How long discovered endpoints are taken for good before they are asked for
// again, and how long after that failed: what is known goes on in between.
const (
	metadataAge   = time.Hour
	metadataPause = 5 * time.Minute
)

// discovery finds an issuer's endpoints when they are first wanted, and keeps
// them. Nothing of it carries a secret.
type discovery struct {
	caller caller
	issuer *url.URL

	turn chan struct{} // of capacity 1: held by whoever asks the issuer

	mu    sync.Mutex
	known metadata  // token nil: nothing is
	until time.Time // when it is to be asked for again
}

func newDiscovery(c caller, issuer *url.URL) *discovery {
	c.header = nil // what is configured there is for the token endpoint, and may be a key
	return &discovery{caller: c, issuer: issuer, turn: make(chan struct{}, 1)}
}

// endpoints returns what is known, and asks the issuer where that is nothing or
// old. An error means that nothing is known.
func (d *discovery) endpoints(ctx context.Context) (metadata, error) {
	m, fresh := d.cached()
	if fresh {
		return m, nil
	}
	if m.token != nil { // old endpoints do while another asks for new ones
		select {
		case d.turn <- struct{}{}:
		default:
			return m, nil
		}
	} else {
		select {
		case d.turn <- struct{}{}:
		case <-ctx.Done():
			return metadata{}, fmt.Errorf("discovery at %s: %w", d.issuer.Host, ctx.Err())
		}
	}
	defer func() { <-d.turn }()
	if m, fresh = d.cached(); fresh {
		return m, nil
	}
	if m.token != nil {
		// Half of the time is left for the connection that this is about.
		half, cancel := context.WithTimeout(ctx, d.caller.client.timeout()/2)
		defer cancel()
		ctx = half
	}
	found, err := d.ask(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err == nil:
		d.known, d.until = found, time.Now().Add(metadataAge)
	case m.token == nil:
		return metadata{}, fmt.Errorf("discovery at %s: %w", d.issuer.Host, err)
	default:
		d.until = time.Now().Add(metadataPause)
	}
	return d.known, nil
}

func (d *discovery) cached() (m metadata, fresh bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known, d.known.token != nil && time.Now().Before(d.until)
}

// doubt has the issuer asked the next time: an endpoint was not where it should
// be.
func (d *discovery) doubt() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until = time.Time{}
}

// ask fetches the document from the first place that has a usable one.
func (d *discovery) ask(ctx context.Context) (metadata, error) {
	var failed []error
	for _, place := range metadataPlaces(d.issuer) {
		o, err := d.caller.call(ctx, place, Request{Method: http.MethodGet})
		if err != nil {
			return metadata{}, err // of the same host, which will not answer the next one either
		}
		m, err := d.read(o)
		if err == nil {
			return m, nil
		}
		failed = append(failed, fmt.Errorf("%s: %w", place.EscapedPath(), err))
	}
	return metadata{}, errors.Join(failed...)
}

func (d *discovery) read(o Outcome) (metadata, error) {
	switch {
	case o.Err != nil:
		return metadata{}, o.Err
	case o.Status != http.StatusOK:
		return metadata{}, fmt.Errorf("it answered %s", status(o))
	case o.BodyErr != nil:
		return metadata{}, o.BodyErr
	case !isJSON(o.Header):
		return metadata{}, errContentType
	}
	return parseMetadata(o.Body, d.issuer)
}
