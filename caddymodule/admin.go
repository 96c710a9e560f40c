package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/caddyserver/caddy/v2"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

func init() { caddy.RegisterModule(new(adminAPI)) }

// adminAPI shows sessions on Caddy's admin endpoint and takes what an operator
// wants of them. No answer holds a token, but for the one that is asked for it. A
// name is a session's, a pool's, or <pool>:<id> for one of a pool's sessions.
//
//	GET    /token_refresh/sessions[?pool=NAME&limit=N&after=NAME]
//	GET    /token_refresh/sessions/<name>
//	PUT    /token_refresh/sessions/<name>             import a pair
//	DELETE /token_refresh/sessions/<name>             end it, revoke its pair
//	POST   /token_refresh/sessions/<name>/refresh     exchange now
//	POST   /token_refresh/sessions/<name>/token       the access token
//	POST   /token_refresh/sessions/<name>/login       begin a person's login
//	POST   /token_refresh/sessions/<name>/login/<id>  go on with it
//	DELETE /token_refresh/sessions/<name>/login/<id>  give it up
//	GET    /token_refresh/events                      what happens, as it does
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
		{Pattern: eventsPath, Handler: only(http.MethodGet, a.events)},
		{Pattern: adminPath + "/{name}", Handler: caddy.AdminHandlerFunc(a.one)},
		{Pattern: adminPath + "/{name}/refresh", Handler: only(http.MethodPost, a.refresh)},
		{Pattern: adminPath + "/{name}/token", Handler: only(http.MethodPost, a.token)},
		{Pattern: adminPath + "/{name}/login", Handler: only(http.MethodPost, a.beginLogin)},
		{Pattern: adminPath + "/{name}/login/{id}", Handler: caddy.AdminHandlerFunc(a.login)},
	}
}

func only(method string, f func(http.ResponseWriter, *http.Request) error) caddy.AdminHandler {
	return caddy.AdminHandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if r.Method != method {
			return notAllowed(w, method)
		}
		return f(w, r)
	})
}

func notAllowed(w http.ResponseWriter, allow string) error {
	w.Header().Set("Allow", allow)
	return apiError(http.StatusMethodNotAllowed, errors.New("method not allowed"))
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

// failed is the answer to a call that came to nothing.
func failed(w http.ResponseWriter, err error) error {
	var u *refresher.Unavailable
	if errors.As(err, &u) {
		retryAfter(w, u)
	}
	return apiError(statusOf(err), err)
}

func statusOf(err error) int {
	var u *refresher.Unavailable
	switch {
	case errors.Is(err, refresher.ErrSpent), errors.Is(err, refresher.ErrNotNow):
		return http.StatusConflict
	case errors.Is(err, refresher.ErrNoRefresh):
		return http.StatusBadRequest
	case errors.Is(err, refresher.ErrForgotten):
		return http.StatusNotFound
	case errors.As(err, &u):
		return http.StatusServiceUnavailable
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
