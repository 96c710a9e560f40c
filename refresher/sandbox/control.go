package sandbox

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const controlPrefix = "/sandbox/"

// Control serves callers on the same machine, everybody else gets 403:
//
//	GET    /sandbox/stats   Stats
//	GET    /sandbox/ledger  the Ledger
//	POST   /sandbox/revoke  Kill
//	POST   /sandbox/faults  Fault, or SetFault with "persistent": true
//	DELETE /sandbox/faults  ClearFaults
//
// A fault is a JSON object with the fields of [Fault] in snake_case, durations
// as "1.5s", headers as {"Retry-After": "3"}, and "times" (default 1):
//
//	{"commit": true, "delay_after": "2s", "drop": true, "times": 3}
//
// A request that came through a proxy, under another host name or from another
// site's page in a browser is refused as well.
func (s *Sandbox) Control(w http.ResponseWriter, r *http.Request) {
	if !fromHere(r) {
		writeJSON(w, http.StatusForbidden, failure("only for callers on this machine"))
		return
	}
	switch r.Method + " " + strings.TrimPrefix(r.URL.Path, controlPrefix) {
	case "GET stats":
		writeJSON(w, http.StatusOK, marshal(s.Stats()))
	case "GET ledger":
		writeJSON(w, http.StatusOK, marshal(s.Ledger()))
	case "POST revoke":
		s.Kill()
		writeJSON(w, http.StatusOK, outcome(true, "all sessions are over"))
	case "DELETE faults":
		s.ClearFaults()
		writeJSON(w, http.StatusOK, outcome(true, "no faults any more"))
	case "POST faults":
		s.addFault(w, r)
	default:
		writeJSON(w, http.StatusNotFound, failure("no such control"))
	}
}

// fromHere: from this machine, by an address of its own, and not on behalf of
// somebody else. A local proxy makes all the world look local, a web page can
// make a browser its messenger.
func fromHere(r *http.Request) bool {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !remote.Addr().Unmap().IsLoopback() || !isLocalHost(r.Host) {
		return false
	}
	for _, name := range []string{"Forwarded", "Via", "X-Forwarded-For", "X-Real-Ip"} {
		if _, ok := r.Header[name]; ok {
			return false
		}
	}
	return http.NewCrossOriginProtection().Check(r) == nil
}

func isLocalHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}

// wireFault is a Fault in JSON.
type wireFault struct {
	Times       int               `json:"times"`
	Persistent  bool              `json:"persistent"`
	Path        string            `json:"path"`
	DelayBefore wireDuration      `json:"delay_before"`
	Outlive     bool              `json:"outlive"`
	Commit      bool              `json:"commit"`
	DelayAfter  wireDuration      `json:"delay_after"`
	Hang        bool              `json:"hang"`
	Reset       bool              `json:"reset"`
	Drop        bool              `json:"drop"`
	Status      int               `json:"status"`
	Body        string            `json:"body"`
	Header      map[string]string `json:"header"`
	ContentType string            `json:"content_type"`
	Truncate    bool              `json:"truncate"`
}

type wireDuration time.Duration

func (d *wireDuration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = wireDuration(parsed)
	return err
}

// maxTimes bounds what one control call queues.
const maxTimes = 10_000

func (s *Sandbox) addFault(w http.ResponseWriter, r *http.Request) {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
	dec.DisallowUnknownFields()
	var wire wireFault
	err := dec.Decode(&wire)
	if err == nil {
		if _, trailing := dec.Token(); trailing != io.EOF {
			writeJSON(w, http.StatusBadRequest, failure("more than one JSON value"))
			return
		}
	}
	switch {
	case err != nil:
		writeJSON(w, http.StatusBadRequest, failure(err.Error()))
		return
	case wire.Times < 0 || wire.Times > maxTimes:
		writeJSON(w, http.StatusBadRequest, failure("times is out of range"))
		return
	case wire.Status != 0 && (wire.Status < 200 || wire.Status > 999):
		writeJSON(w, http.StatusBadRequest, failure("no status of an answer"))
		return
	case !slices.Contains([]string{"", s.cfg.LoginPath, s.cfg.RefreshPath, s.cfg.LogoutPath}, wire.Path):
		writeJSON(w, http.StatusBadRequest, failure("no path of the issuer"))
		return
	}
	if wire.Persistent {
		s.SetFault(wire.fault())
	} else {
		s.Fault(wire.fault(), wire.Times)
	}
	writeJSON(w, http.StatusOK, outcome(true, "as you wish"))
}

func (f wireFault) fault() Fault {
	header := make(http.Header, len(f.Header))
	for name, value := range f.Header {
		header.Set(name, value)
	}
	return Fault{
		Path: f.Path, DelayBefore: time.Duration(f.DelayBefore), Outlive: f.Outlive, Commit: f.Commit,
		DelayAfter: time.Duration(f.DelayAfter), Hang: f.Hang, Reset: f.Reset, Drop: f.Drop,
		Status: f.Status, Body: f.Body, Header: header, ContentType: f.ContentType, Truncate: f.Truncate,
	}
}
