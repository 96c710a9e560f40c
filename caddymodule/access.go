package caddymodule

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// admit refuses who may not use the session, before anything else is done.
func (h *Handler) admit(r *http.Request) error {
	if r.Method == http.MethodTrace && h.clients.admits(r.RemoteAddr) {
		return caddyhttp.Error(http.StatusMethodNotAllowed, fmt.Errorf("session %q: TRACE would show the token", h.Session))
	}
	return admit(r, h.Session, h.clients, h.origins, h.logger)
}

// admit is the same for every handler that gives a session's token to callers.
func admit(r *http.Request, session string, clients clientList, origins map[string]bool, logger *zap.Logger) error {
	if !clients.admits(r.RemoteAddr) {
		logger.Warn("refused a caller; the handler's option `clients` would let it in",
			zap.String("session", session), zap.String("remote", r.RemoteAddr))
		return caddyhttp.Error(http.StatusForbidden, fmt.Errorf("this caller may not use session %q", session))
	}
	if crossSite(r, origins) {
		logger.Warn("refused another site's web page; the handler's option `origins` would let it in",
			zap.String("session", session), zap.String("origin", r.Header.Get("Origin")))
		return caddyhttp.Error(http.StatusForbidden, fmt.Errorf("another site's page may not use session %q", session))
	}
	return nil
}

// clientList is who may use a session.
type clientList struct {
	any      bool
	local    bool // loopback and unix sockets
	prefixes []netip.Prefix
}

func parseClients(list []string) (clientList, error) {
	if len(list) == 0 {
		return clientList{local: true}, nil
	}
	var c clientList
	for _, text := range list {
		if text == "any" {
			c.any = true
			continue
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			var addr netip.Addr
			if addr, err = netip.ParseAddr(text); err == nil {
				prefix = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())
			}
		}
		if err != nil {
			return c, fmt.Errorf("clients: %q is neither a range (10.0.0.0/8), an address, nor any", text)
		}
		if prefix.Addr().Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
		}
		c.prefixes = append(c.prefixes, prefix.Masked())
	}
	return c, nil
}

// admits looks at the address of the connection's other end. Unix sockets have
// none.
func (c clientList) admits(remote string) bool {
	if c.any {
		return true
	}
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return c.local && (remote == "" || strings.HasPrefix(remote, "@") || strings.HasPrefix(remote, "/"))
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	addr = addr.Unmap().WithZone("")
	if c.local && addr.IsLoopback() {
		return true
	}
	for _, p := range c.prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

func parseOrigins(list []string) (map[string]bool, error) {
	origins := map[string]bool{}
	for _, text := range list {
		u, err := url.Parse(text)
		if err != nil || u.Scheme == "" || u.Host == "" || text != u.Scheme+"://"+u.Host {
			return nil, fmt.Errorf("origins: %q is not an origin such as https://app.example.com", text)
		}
		origins[strings.ToLower(text)] = true
	}
	return origins, nil
}

// crossSite reports whether a browser sent the request for a page of another
// site, which must not speak through the sidecar.
func crossSite(r *http.Request, origins map[string]bool) bool {
	origin := r.Header["Origin"]
	site := r.Header["Sec-Fetch-Site"]
	if len(origin) == 0 && len(site) == 0 {
		return false
	}
	if len(origin) == 1 && origins[strings.ToLower(origin[0])] {
		return false
	}
	for _, s := range site {
		if s != "same-origin" && s != "none" {
			return true
		}
	}
	for _, o := range origin {
		u, err := url.Parse(o)
		if err != nil || !strings.EqualFold(u.Host, r.Host) {
			return true
		}
	}
	return false
}

// openListeners are those of a server's addresses that other machines can
// reach.
func openListeners(listen []string) (open []string) {
	for _, text := range listen {
		addr, err := caddy.ParseNetworkAddress(text)
		if err != nil || addr.IsUnixNetwork() || addr.IsFdNetwork() {
			continue
		}
		ip, err := netip.ParseAddr(addr.Host)
		if addr.Host == "localhost" || err == nil && ip.Unmap().IsLoopback() {
			continue
		}
		open = append(open, text)
	}
	return open
}
