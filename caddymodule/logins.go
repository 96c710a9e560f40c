package caddymodule

import (
	"crypto/rand"
	"strings"
	"sync"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
)

const (
	maxLogins = 64 // that wait for their person; past it the oldest is given up
	codeLife  = 10 * time.Minute
)

// pendingLogin is a person's login that has begun. Exactly one of code and device
// is set.
type pendingLogin struct {
	session string
	code    *issuer.CodeLogin
	device  *issuer.DeviceLogin
	until   time.Time
}

// logins are those of the process: a reload does not end them.
var logins = loginTable{list: map[string]pendingLogin{}}

type loginTable struct {
	mu   sync.Mutex
	list map[string]pendingLogin
}

// add keeps a login and returns the name under which it goes on.
func (t *loginTable) add(p pendingLogin) (id string) {
	id = strings.ToLower(rand.Text())
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if len(t.list) >= maxLogins {
		oldest := ""
		for id, other := range t.list {
			if oldest == "" || other.until.Before(t.list[oldest].until) {
				oldest = id
			}
		}
		delete(t.list, oldest)
	}
	t.list[id] = p
	return id
}

// get returns a login of a session.
func (t *loginTable) get(id, session string) (pendingLogin, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	p, ok := t.list[id]
	if !ok || !strings.EqualFold(p.session, session) {
		return pendingLogin{}, false
	}
	return p, true
}

// take is get for the one time that a login can be finished.
func (t *loginTable) take(id, session string) (pendingLogin, bool) {
	p, ok := t.get(id, session)
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, still := t.list[id]; !ok || !still {
		return pendingLogin{}, false
	}
	delete(t.list, id)
	return p, true
}

// expire forgets what took too long; the lock is held.
func (t *loginTable) expire() {
	now := time.Now()
	for id, p := range t.list {
		if now.After(p.until) {
			delete(t.list, id)
		}
	}
}
