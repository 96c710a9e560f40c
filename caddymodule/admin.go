package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func init() { caddy.RegisterModule(new(adminAPI)) }

// adminAPI shows sessions on Caddy's admin endpoint and takes what an operator
// wants of them. No answer holds a token.
//
//	GET  /token_refresh/sessions[?pool=NAME&limit=N&after=ID]
//	GET  /token_refresh/sessions/<name>
//	PUT  /token_refresh/sessions/<name>           import a pair
//	POST /token_refresh/sessions/<name>/refresh   exchange now
//	DELETE /token_refresh/sessions/<name>         end it
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (*adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "admin.api." + appName, New: func() caddy.Module { return new(adminAPI) }}
}

const adminPath = "/token_refresh/sessions"

// Routes implements caddy.AdminRouter.
func (a *adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: adminPath, Handler: only(http.MethodGet, a.list)},
		{Pattern: adminPath + "/{name}", Handler: caddy.AdminHandlerFunc(a.one)},
		{Pattern: adminPath + "/{name}/refresh", Handler: only(http.MethodPost, a.refresh)},
	}
}

func only(method string, f func(http.ResponseWriter, *http.Request) error) caddy.AdminHandler {
	return caddy.AdminHandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if r.Method != method {
			w.Header().Set("Allow", method)
			return apiError(http.StatusMethodNotAllowed, errors.New("method not allowed"))
		}
		return f(w, r)
	})
}

func apiError(status int, err error) error { return caddy.APIError{HTTPStatus: status, Err: err} }

// activeApp is the app of the configuration in force. It is asked for with each
// request: after a failed reload Caddy's admin endpoint is served by the routers
// of the configuration that failed.
func activeApp() (*App, error) {
	app, err := caddy.ActiveContext().AppIfConfigured(appName)
	if err != nil {
		return nil, apiError(http.StatusNotFound, fmt.Errorf("the running configuration has no %s", appName))
	}
	return app.(*App), nil
}

func activeSession(r *http.Request) (*refresher.Session, error) {
	app, err := activeApp()
	if err != nil {
		return nil, err
	}
	cfg, ok := app.session(r.PathValue("name"))
	if !ok {
		return nil, apiError(http.StatusNotFound, fmt.Errorf("no session %.64q is configured", r.PathValue("name")))
	}
	return cfg.shared.Session, nil
}

// list answers {"sessions": [...], "next": "<after or empty>"}.
func (a *adminAPI) list(w http.ResponseWriter, r *http.Request) error {
	app, err := activeApp()
	if err != nil {
		return err
	}
	query := r.URL.Query()
	limit := 1000
	if text := query.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 {
			return apiError(http.StatusBadRequest, errors.New("limit: want a number from 1 up"))
		}
	}
	answer := struct {
		Sessions []refresher.Status `json:"sessions"`
		Next     string             `json:"next"`
	}{Sessions: []refresher.Status{}}
	if query.Get("pool") == "" {
		for _, name := range slices.Sorted(maps.Keys(app.Sessions)) {
			if name <= query.Get("after") {
				continue
			}
			if len(answer.Sessions) == limit {
				answer.Next = answer.Sessions[limit-1].Name
				break
			}
			st := app.Sessions[name].shared.Status()
			st.Name, st.Rotations = name, nil
			answer.Sessions = append(answer.Sessions, st)
		}
	}
	return writeJSON(w, answer)
}

func (a *adminAPI) one(w http.ResponseWriter, r *http.Request) error {
	session, err := activeSession(r)
	if err != nil {
		return err
	}
	switch r.Method {
	case http.MethodGet:
		return writeJSON(w, session.Status())
	case http.MethodPut:
		return a.put(w, r, session)
	case http.MethodDelete:
		return a.end(w, r, session)
	}
	w.Header().Set("Allow", "GET, PUT, DELETE")
	return apiError(http.StatusMethodNotAllowed, errors.New("method not allowed"))
}

// put imports a pair.
func (a *adminAPI) put(w http.ResponseWriter, r *http.Request, session *refresher.Session) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, refresher.MaxAnswer))
	if err != nil {
		return apiError(http.StatusRequestEntityTooLarge, fmt.Errorf("a pair is at most %d bytes", refresher.MaxAnswer))
	}
	defer clear(body)
	pair, err := refresher.ParsePair(body, refresher.DefaultFields())
	if err != nil {
		return apiError(http.StatusBadRequest, fmt.Errorf("the pair cannot be used: %w", err))
	}
	if err := session.Import(r.Context(), pair); err != nil {
		return apiError(statusOf(err), err)
	}
	return writeJSON(w, session.Status())
}

// endedSession is the answer to an end.
type endedSession struct {
	refresher.Status
	RevokedAtIssuer bool   `json:"revoked_at_issuer"`
	Note            string `json:"note"`
}

const notRevoked = "the pair is forgotten here, but this kind of issuer has no way to revoke it: it stays good there until it expires"

// end ends a session: nobody gets its tokens any more, and no source signs in
// again by itself.
func (a *adminAPI) end(w http.ResponseWriter, r *http.Request, session *refresher.Session) error {
	if err := session.End(r.Context()); err != nil {
		return apiError(statusOf(err), err)
	}
	return writeJSON(w, endedSession{Status: session.Status(), Note: notRevoked})
}

// refresh exchanges now, and answers when the next pair is in force.
func (a *adminAPI) refresh(w http.ResponseWriter, r *http.Request) error {
	session, err := activeSession(r)
	if err != nil {
		return err
	}
	if err := session.Refresh(r.Context()); err != nil {
		return apiError(statusOf(err), err)
	}
	return writeJSON(w, session.Status())
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, refresher.ErrSpent), errors.Is(err, refresher.ErrNotNow):
		return http.StatusConflict
	case errors.Is(err, refresher.ErrNoRefresh):
		return http.StatusBadRequest
	}
	return http.StatusBadGateway
}

func writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	return json.NewEncoder(w).Encode(v)
}

// Interface guard
var _ caddy.AdminRouter = (*adminAPI)(nil)
