package caddymodule

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// target is what the name in a call's path stands for: a session, one of a
// pool's, or a pool.
type target struct {
	app     *App
	session *Session
	pool    *Pool
	member  *refresher.Member // nil: all of the pool
}

func findTarget(w http.ResponseWriter, r *http.Request) (t target, err error) {
	if t.app, err = activeApp(); err != nil {
		return t, err
	}
	name, ok := r.PathValue("name"), false
	if t.session, ok = t.app.session(name); ok {
		return t, nil
	}
	of, id, one := strings.Cut(name, ":")
	if t.pool, ok = t.app.pool(of); !ok {
		return t, unknown("session or pool", append(sortedKeys(t.app.Sessions), sortedKeys(t.app.Pools)...))
	}
	if !one {
		return t, nil
	}
	if err := t.pool.shared.Ready(r.Context()); err != nil {
		return t, failed(w, err)
	}
	m, ok := t.pool.shared.Session(id)
	if !ok {
		return t, apiError(http.StatusNotFound, fmt.Errorf("pool %q has no such session, or not any more", t.pool.shared.Name()))
	}
	t.member = &m
	return t, nil
}

// unknown is the answer to a name that nothing has. It shows the names that there
// are, and not the one that was given: that can be a token, pasted at the wrong
// place.
func unknown(what string, known []string) error {
	if len(known) == 0 {
		return apiError(http.StatusNotFound, fmt.Errorf("no %s is configured", what))
	}
	return apiError(http.StatusNotFound, fmt.Errorf("no %s has that name; there is %s", what, names3(known)))
}

// status describes a session. Of a pool's, none may be left.
func (t target) status() (refresher.Status, error) {
	if t.member != nil {
		return t.member.Status()
	}
	return t.session.shared.Status(), nil
}

func (t target) writeStatus(w http.ResponseWriter) error {
	st, err := t.status()
	if err != nil {
		return failed(w, err)
	}
	return writeJSON(w, st)
}

func (a *adminAPI) one(w http.ResponseWriter, r *http.Request) error {
	t, err := findTarget(w, r)
	if err != nil {
		return err
	}
	pool, member := t.session == nil && t.member == nil, t.member != nil
	switch {
	case r.Method == http.MethodGet && pool:
		return writeJSON(w, t.pool.shared.Counts())
	case r.Method == http.MethodGet:
		return t.writeStatus(w)
	case r.Method == http.MethodPut && !member:
		return a.put(w, r, t)
	case r.Method == http.MethodDelete && !pool:
		return a.end(w, r, t)
	case pool:
		return notAllowed(w, "GET, PUT")
	case member:
		return notAllowed(w, "GET, DELETE")
	}
	return notAllowed(w, "GET, PUT, DELETE")
}

// put imports a pair: into a session, or as a new session of a pool.
func (a *adminAPI) put(w http.ResponseWriter, r *http.Request, t target) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, refresher.MaxAnswer))
	if err != nil {
		return apiError(http.StatusRequestEntityTooLarge, fmt.Errorf("a pair is at most %d bytes", refresher.MaxAnswer))
	}
	defer clear(body)
	fields := refresher.DefaultFields()
	if t.pool != nil {
		fields = t.pool.fields
	}
	pair, err := refresher.ParsePair(body, fields)
	if err != nil {
		return apiError(http.StatusBadRequest, fmt.Errorf("the pair cannot be used: %w", err))
	}
	if t.pool != nil {
		m, _, err := t.pool.shared.Learn(r.Context(), pair, refresher.Pair{})
		if err != nil {
			return failed(w, err)
		}
		t.member = &m
	} else if err := t.session.shared.Import(r.Context(), pair, "import"); err != nil {
		return failed(w, err)
	}
	return t.writeStatus(w)
}

// refresh exchanges now, and answers when the next pair is in force.
func (a *adminAPI) refresh(w http.ResponseWriter, r *http.Request) error {
	t, err := findTarget(w, r)
	switch {
	case err != nil:
		return err
	case t.member != nil:
		err = t.member.Refresh(r.Context())
	case t.session != nil:
		err = t.session.shared.Refresh(r.Context())
	default:
		return errWholePool
	}
	if err != nil {
		return failed(w, err)
	}
	return t.writeStatus(w)
}

var errWholePool = apiError(http.StatusBadRequest, errors.New("that is a pool: name one of its sessions, <pool>:<id>"))

// takenToken is the one answer that holds a token.
type takenToken struct {
	AccessToken string     `json:"access_token"`
	TokenType   string     `json:"token_type"`
	ExpiresAt   *time.Time `json:"expires_at,omitempty"` // when to ask again
	IDToken     string     `json:"id_token,omitempty"`
	Generation  uint64     `json:"generation"`
}

// token hands out a session's access token to a program of this machine.
func (a *adminAPI) token(w http.ResponseWriter, r *http.Request) error {
	if err := localOnly(r); err != nil {
		return err
	}
	t, err := findTarget(w, r)
	switch {
	case err != nil:
		return err
	case t.session == nil:
		return apiError(http.StatusBadRequest, errors.New("the tokens of a pool's sessions belong to its callers: this call is for sessions of the configuration"))
	}
	token, err := t.session.shared.Token(r.Context())
	if err != nil {
		return failed(w, err)
	}
	t.app.logger.Info("the admin API handed out a session's access token",
		zap.String("session", t.session.shared.Name()), zap.Uint64("generation", token.Generation))
	answer := takenToken{
		AccessToken: token.Access.Reveal(), TokenType: "Bearer",
		IDToken: token.ID.Reveal(), Generation: token.Generation,
	}
	if !token.GoodUntil.IsZero() {
		answer.ExpiresAt = &token.GoodUntil
	}
	w.Header().Set("Pragma", "no-cache")
	return writeJSON(w, answer)
}

// localOnly refuses everybody but a program of this machine that speaks to the
// admin endpoint itself: no other machine, no web page, nobody behind a proxy.
func localOnly(r *http.Request) error {
	proxied := r.Header.Get("Forwarded") != "" || r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Via") != ""
	if r.TLS != nil || proxied || !(clientList{local: true}).admits(r.RemoteAddr) {
		return apiError(http.StatusForbidden, errors.New("only a program on this machine may do that, at the local admin endpoint"))
	}
	return notForPages(r)
}

// notForPages refuses what a browser sends for another site's page.
func notForPages(r *http.Request) error {
	if crossSite(r, nil) {
		return apiError(http.StatusForbidden, errors.New("a web page may not do that"))
	}
	return nil
}
