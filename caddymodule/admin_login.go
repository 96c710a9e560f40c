package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
)

// signsInPeople is an issuer at which a person can sign in by a browser.
type signsInPeople interface{ signIn() *issuer.OAuth2 }

// askedLogin begins a login: with a browser on this machine, or with a device
// code.
type askedLogin struct {
	RedirectURI string `json:"redirect_uri,omitempty"` // where the browser comes back to: a loopback address
	Device      bool   `json:"device,omitempty"`
	Scope       string `json:"scope,omitempty"` // default: the issuer's
}

// begunLogin is the answer.
type begunLogin struct {
	ID        string    `json:"id"`
	ExpiresAt time.Time `json:"expires_at"`

	AuthorizationURL string `json:"authorization_url,omitempty"`

	UserCode                string `json:"user_code,omitempty"`
	VerificationURI         string `json:"verification_uri,omitempty"`
	VerificationURIComplete string `json:"verification_uri_complete,omitempty"`
}

// loginAnswer is what the browser brought back.
type loginAnswer struct {
	Code   string `json:"code,omitempty"`
	State  string `json:"state,omitempty"`
	Issuer string `json:"iss,omitempty"`
	Error  string `json:"error,omitempty"`
}

// waitingLogin is the answer while a person has not entered the device code yet.
type waitingLogin struct {
	Pending bool `json:"pending"`
	RetryIn int  `json:"retry_in"` // seconds
}

// maxLoginBody bounds what comes in; a code is no longer than a refresh token.
const maxLoginBody = 32 << 10

func readLogin(w http.ResponseWriter, r *http.Request, to any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxLoginBody))
	defer clear(body)
	if err != nil {
		return apiError(http.StatusRequestEntityTooLarge, fmt.Errorf("at most %d bytes are read", maxLoginBody))
	}
	if len(body) > 0 && json.Unmarshal(body, to) != nil {
		return apiError(http.StatusBadRequest, errors.New("the body is not the JSON object that is wanted here")) // the parser's own words could hold the code
	}
	return nil
}

// beginLogin begins a person's login. What makes it safe, the state and the PKCE
// verifier, and the client's secret stay in this process.
func (a *adminAPI) beginLogin(w http.ResponseWriter, r *http.Request) error {
	t, from, err := loginTarget(w, r)
	if err != nil {
		return err
	}
	var asked askedLogin
	if err := readLogin(w, r, &asked); err != nil {
		return err
	}
	pending := pendingLogin{session: t.session.shared.Name(), until: time.Now().Add(codeLife)}
	var begun begunLogin
	if asked.Device {
		if pending.device, err = from.BeginDevice(r.Context(), asked.Scope); err == nil {
			pending.until = pending.device.ExpiresAt
			begun.UserCode, begun.VerificationURI = pending.device.UserCode, pending.device.VerificationURI
			begun.VerificationURIComplete = pending.device.VerificationURIComplete
		}
	} else if pending.code, err = from.BeginCode(r.Context(), asked.RedirectURI, asked.Scope); err == nil {
		begun.AuthorizationURL = pending.code.URL
	}
	if err != nil {
		return apiError(http.StatusBadGateway, fmt.Errorf("session %q: the login cannot begin: %w", pending.session, err))
	}
	begun.ID, begun.ExpiresAt = logins.add(pending), pending.until
	return writeJSON(w, begun)
}

// loginTarget is the session that a login is for, and where.
func loginTarget(w http.ResponseWriter, r *http.Request) (t target, from *issuer.OAuth2, err error) {
	if err := notForPages(r); err != nil {
		return t, nil, err
	}
	if t, err = findTarget(w, r); err != nil {
		return t, nil, err
	}
	if t.session == nil {
		return t, nil, apiError(http.StatusBadRequest, errors.New("a pool's sessions are its callers': they sign in themselves, and the pool learns it"))
	}
	who, ok := t.session.issuer.(signsInPeople)
	if !ok {
		return t, nil, apiError(http.StatusBadRequest, fmt.Errorf("session %q: only an issuer oauth2 has a login by browser; let it sign in by itself (tokens login …), or give it a pair (caddy token-refresh import %s)",
			t.session.shared.Name(), t.session.shared.Name()))
	}
	return t, who.signIn(), nil
}

// login goes on with a login, or gives it up.
func (a *adminAPI) login(w http.ResponseWriter, r *http.Request) error {
	t, _, err := loginTarget(w, r)
	if err != nil {
		return err
	}
	id, name := r.PathValue("id"), t.session.shared.Name()
	switch r.Method {
	case http.MethodDelete:
		logins.take(id, name)
		return writeJSON(w, struct{}{})
	case http.MethodPost:
	default:
		return notAllowed(w, "POST, DELETE")
	}
	var answer loginAnswer
	if err := readLogin(w, r, &answer); err != nil {
		return err
	}
	pending, ok := logins.get(id, name)
	if ok && pending.code != nil {
		pending, ok = logins.take(id, name) // whatever comes of it: a code is good once
	}
	if !ok {
		return apiError(http.StatusNotFound, fmt.Errorf("session %q: there is no such login, or it is over: begin again", name))
	}
	ctx := context.WithoutCancel(r.Context()) // whoever hangs up: what was granted must not be lost
	if pending.device != nil {
		return a.pollDevice(ctx, w, t, id, pending.device)
	}
	pair, err := pending.code.Finish(ctx, issuer.CodeAnswer{
		Code: refresher.NewSecret(answer.Code), State: answer.State, Issuer: answer.Issuer, Error: answer.Error,
	})
	if err != nil {
		return loginFailed(t, err)
	}
	return a.signedIn(ctx, w, t, pair)
}

func (a *adminAPI) pollDevice(ctx context.Context, w http.ResponseWriter, t target, id string, device *issuer.DeviceLogin) error {
	pair, wait, err := device.Poll(ctx)
	if wait > 0 {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusAccepted)
		return json.NewEncoder(w).Encode(waitingLogin{Pending: true, RetryIn: int(math.Ceil(wait.Seconds()))})
	}
	logins.take(id, t.session.shared.Name())
	if err != nil {
		return loginFailed(t, err)
	}
	return a.signedIn(ctx, w, t, pair)
}

// signedIn gives the session its new pair.
func (a *adminAPI) signedIn(ctx context.Context, w http.ResponseWriter, t target, pair refresher.Pair) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	if err := t.session.shared.Import(ctx, pair, "token-refresh login"); err != nil {
		return apiError(statusOf(err), fmt.Errorf("the login succeeded, but its pair could not be kept: %w; sign in again", err))
	}
	t.app.logger.Info("a person signed in for a session", zap.String("session", t.session.shared.Name()))
	return t.writeStatus(w)
}

func loginFailed(t target, err error) error {
	status := http.StatusBadGateway
	if errors.Is(err, issuer.ErrSignIn) {
		status = http.StatusBadRequest
	}
	return apiError(status, fmt.Errorf("session %q: %w", t.session.shared.Name(), err))
}
