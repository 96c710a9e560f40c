package caddymodule

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"mime"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective(statusName, parseStatus)
	httpcaddyfile.RegisterDirectiveOrder(statusName, httpcaddyfile.Before, "reverse_proxy")
}

const (
	maxStreams = 64                     // further pages ask now and then
	feedPace   = 750 * time.Millisecond // no page hears more often than that
	feedLook   = time.Second            // some things happen without an event: a token ends
	feedBeat   = 5 * time.Second
)

// follow sends the overview when it has changed, and now and then the time.
func (s *StatusPage) follow(w http.ResponseWriter, r *http.Request) error {
	if s.streams.Add(1) > maxStreams {
		s.streams.Add(-1)
		w.Header().Set("Retry-After", "10")
		return caddyhttp.Error(http.StatusServiceUnavailable, errors.New("too many status pages are open"))
	}
	defer s.streams.Add(-1)
	wake, leave := hub.follow()
	defer leave()
	stream, err := openStream(w)
	if err != nil {
		return nil // nobody is there to be told
	}
	defer stream.close()
	look := time.NewTicker(feedLook)
	defer look.Stop()
	var shown []byte
	var sent time.Time
	for {
		body := s.body()
		switch {
		case !bytes.Equal(body, shown):
			err = stream.send("", "status", json.RawMessage(s.message(body)))
			shown, sent = body, time.Now()
		case time.Since(sent) >= feedBeat:
			err = stream.send("", "beat", map[string]string{"now": timeText(time.Now())})
			sent = time.Now()
		}
		if err != nil {
			return nil
		}
		if !s.pause(r, time.After(feedPace), nil, nil) || !s.pause(r, nil, wake, look.C) || !s.pause(r, time.After(s.viewLeft()), nil, nil) {
			return nil
		}
	}
}

// pause waits for one of the channels; false says that the stream is over.
func (s *StatusPage) pause(r *http.Request, pace <-chan time.Time, wake <-chan struct{}, look <-chan time.Time) bool {
	select {
	case <-pace:
	case <-wake:
	case <-look:
	case <-s.app.emitter.closing.ch:
		return false
	case <-r.Context().Done():
		return false
	}
	return true
}

// action is what the page can ask for.
type action struct {
	Action  string `json:"action"`
	Session string `json:"session"`
}

// act does what somebody has confirmed on the page.
func (s *StatusPage) act(w http.ResponseWriter, r *http.Request) error {
	if err := s.mayAct(r); err != nil {
		s.logger.Warn("refused an action on the status page", zap.String("remote", r.RemoteAddr), zap.Error(err))
		return answerAction(w, http.StatusForbidden, err)
	}
	var a action
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&a); err != nil {
		return answerAction(w, http.StatusBadRequest, errors.New("not an action"))
	}
	cfg, ok := s.app.session(a.Session)
	if !ok {
		return answerAction(w, http.StatusNotFound, errors.New("no such session is configured"))
	}
	s.logger.Info("an action on the status page", zap.Bool("ends", a.Action == "end"), zap.String("session", a.Session), zap.String("remote", r.RemoteAddr))
	var err error
	switch t := (target{app: s.app, session: cfg}); a.Action {
	case "refresh":
		err = cfg.shared.Refresh(r.Context())
		if err == nil {
			err = writeJSON(w, map[string]string{"text": "A new token pair is in force."})
		} else {
			err = apiError(statusOf(err), err)
		}
	case "end":
		err = new(adminAPI).end(w, r, t)
	default:
		return answerAction(w, http.StatusBadRequest, errors.New("no such action"))
	}
	var api caddy.APIError
	if errors.As(err, &api) {
		return answerAction(w, api.HTTPStatus, api.Err)
	}
	return err
}

// mayAct lets through what this very page sends, and nothing else a browser could
// be made to send: the token is in nobody else's reach, and a request with such a
// header and such a body is not one that a form or an image makes.
func (s *StatusPage) mayAct(r *http.Request) error {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	given := []byte(r.Header.Get("Token-Refresh-Action"))
	switch {
	case !s.Actions:
		return errors.New("actions are not allowed here: the status page's option `actions on` would allow them")
	case r.Header.Get("Sec-Fetch-Site") != "same-origin" && r.Header.Get("Origin") == "":
		return errors.New("this is not a request of the page")
	case kind != "application/json", subtle.ConstantTimeCompare(given, []byte(s.token)) != 1:
		return errors.New("this is not a request of the page as it is now: load it anew")
	}
	return nil
}

func answerAction(w http.ResponseWriter, status int, err error) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}

// parseStatus reads the directive.
//
//	token_refresh_status [<matcher>] {
//		clients <cidr…>|any
//		actions on|off
//	}
func parseStatus(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	s := new(StatusPage)
	return s, s.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile reads the directive; see parseStatus for its syntax.
func (s *StatusPage) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if err := noArg(d); err != nil {
		return err
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch option := d.Val(); option {
		case "clients":
			list := d.RemainingArgs()
			if _, err := parseClients(list); err != nil || len(list) == 0 {
				return d.Errf("clients: want ranges (10.0.0.0/8), addresses, or any, not %q", list)
			}
			s.Clients = append(s.Clients, list...)
		case "actions":
			if err := onOffValue(d, &s.Actions); err != nil {
				return err
			}
		default:
			return d.Errf("unrecognized option %q of %s", option, statusName)
		}
	}
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*StatusPage)(nil)
