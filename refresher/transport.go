package refresher

import (
	"context"
	"io"
	"net/http"
	"time"

	"golang.org/x/oauth2"
)

// Transport returns a round tripper that gives each request the session's
// access token as "Authorization: Bearer", in place of what stands there, and
// sends it on to base; nil is [http.DefaultTransport]. A request that is
// answered 401 because its token was revoked on its way is sent again once, if
// it has no body or can make another ([http.Request.GetBody]). A redirect to
// another host goes without the token. Where there is none the error is an
// [*Unavailable].
func (s *Session) Transport(base http.RoundTripper) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	return &transport{session: s, base: base}
}

type transport struct {
	session *Session
	base    http.RoundTripper
}

// RoundTrip implements [http.RoundTripper].
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if elsewhere(r) {
		return t.base.RoundTrip(r)
	}
	hasBody := r.Body != nil && r.Body != http.NoBody
	repeatable := !hasBody || r.GetBody != nil
	pass, err := t.session.Enter(r.Context(), repeatable)
	if err != nil {
		closeBody(r)
		return nil, err
	}
	resp, err := t.send(r, r.Body, &pass)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	route := Route(r.Method, r.URL.Path)
	if !repeatable {
		t.session.NoteUnauthorized(r.Context(), pass, route, false)
		return resp, nil
	}
	next, ok, err := t.session.Unauthorized(r.Context(), pass, route)
	if err != nil || !ok {
		return resp, nil // the 401 tells the caller more than our error would
	}
	body := r.Body
	if hasBody {
		if body, err = r.GetBody(); err != nil {
			next.Settle()
			return resp, nil
		}
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection can be used again
	_ = resp.Body.Close()
	newer := next.Generation() != pass.Generation() || next.Epoch() != pass.Epoch()
	resp, err = t.send(r, body, &next)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		t.session.NoteUnauthorized(r.Context(), next, route, newer)
	}
	return resp, err
}

// elsewhere reports whether a redirect has led to another host, to which the
// token does not belong.
func elsewhere(r *http.Request) bool {
	first := r
	for first.Response != nil && first.Response.Request != nil {
		first = first.Response.Request
	}
	return first.URL.Scheme != r.URL.Scheme || first.URL.Host != r.URL.Host
}

func (t *transport) send(r *http.Request, body io.ReadCloser, pass *Pass) (*http.Response, error) {
	defer pass.Settle()
	out := r.Clone(r.Context())
	out.Body = body
	out.Header.Set("Authorization", pass.Bearer())
	resp, err := t.base.RoundTrip(out)
	if err == nil && resp.StatusCode >= 200 && resp.StatusCode < 300 {
		t.session.Accepted(*pass)
	}
	return resp, err
}

// CloseIdleConnections makes [http.Client.CloseIdleConnections] reach base.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

// TokenSource returns the session as an [oauth2.TokenSource], for libraries that
// want one. ctx bounds its waiting. A token that it gave out may be revoked by
// the next rotation at any time: where the issuer revokes, [Session.Transport]
// is the better choice.
func (s *Session) TokenSource(ctx context.Context) oauth2.TokenSource {
	return tokenSource{ctx: ctx, session: s}
}

type tokenSource struct {
	ctx     context.Context
	session *Session
}

// Token implements [oauth2.TokenSource].
func (t tokenSource) Token() (*oauth2.Token, error) {
	pass, err := t.session.Enter(t.ctx, true)
	if err != nil {
		return nil, err
	}
	defer pass.Settle()
	tok := &oauth2.Token{AccessToken: pass.Token(), TokenType: "Bearer"}
	if end := pass.snap.end(t.session.clock.Now()); !end.IsZero() {
		// A holder that caches the token should ask again before it ends.
		tok.Expiry = end.Add(-min(30*time.Second, time.Until(end)/2))
	}
	return tok, nil
}
