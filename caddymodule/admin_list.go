package caddymodule

import (
	"encoding/hex"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

const (
	defaultListed = 1000
	maxListed     = 10_000 // in one answer
)

// sessionList is the answer to a list.
type sessionList struct {
	Sessions []refresher.Status `json:"sessions"`
	Next     string             `json:"next"` // what to go on after; empty: that was all

	// Pools are those of the configuration, with the first page of the sessions
	// that belong to none.
	Pools []refresher.PoolCounts `json:"pools,omitempty"`
}

// list answers the sessions of the configuration, or those of a pool.
func (a *adminAPI) list(w http.ResponseWriter, r *http.Request) error {
	app, err := activeApp()
	if err != nil {
		return err
	}
	query := r.URL.Query()
	limit := defaultListed
	if text := query.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 {
			return apiError(http.StatusBadRequest, errors.New("limit: want a number from 1 up"))
		}
	}
	limit = min(limit, maxListed)
	if name := query.Get("pool"); name != "" {
		return listPool(w, r, app, name, limit)
	}
	return writeJSON(w, listSessions(app, query.Get("after"), limit))
}

func listSessions(app *App, after string, limit int) sessionList {
	answer := sessionList{Sessions: []refresher.Status{}}
	for _, name := range slices.Sorted(maps.Keys(app.Sessions)) {
		if name <= after {
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
	if after == "" {
		for _, name := range slices.Sorted(maps.Keys(app.Pools)) {
			answer.Pools = append(answer.Pools, app.Pools[name].shared.Counts())
		}
	}
	return answer
}

func listPool(w http.ResponseWriter, r *http.Request, app *App, name string, limit int) error {
	pool, ok := app.pool(name)
	if !ok {
		return unknown("pool", sortedKeys(app.Pools))
	}
	after := r.URL.Query().Get("after")
	if of, id, ok := strings.Cut(after, ":"); ok && strings.EqualFold(of, name) {
		after = id
	}
	if err := pool.shared.Ready(r.Context()); err != nil {
		return failed(w, err)
	}
	if id, err := hex.DecodeString(after); err != nil || after != "" && len(id) != 8 {
		return apiError(http.StatusBadRequest, errors.New("after: want what next said"))
	}
	answer := sessionList{Sessions: []refresher.Status{}}
	list, next := pool.shared.List(after, limit)
	for _, st := range list {
		st.Rotations = nil
		answer.Sessions = append(answer.Sessions, st)
	}
	if next != "" {
		answer.Next = pool.shared.Name() + ":" + next
	}
	return writeJSON(w, answer)
}
