package redisstore

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// mode is how the servers stand to each other.
type mode int

const (
	single mode = iota
	sentinel
	cluster
)

// target is what a URL says.
type target struct {
	mode               mode
	network            string   // tcp or unix
	addrs              []string // of servers, or of Sentinels
	master             string   // the name that Sentinel knows the primary by
	db                 int
	username, password string
	tls                bool
}

const urlForms = "want redis://host:port/0, rediss:// for TLS, unix:///path/to/socket?db=0, redis+sentinel://host:port,host:port/0?master=name or redis+cluster://host:port,host:port"

// parseURL reads a URL. Its errors repeat nothing of it that could be secret.
func parseURL(text string) (target, error) {
	scheme, rest, ok := strings.Cut(text, "://")
	t := target{network: "tcp"}
	switch scheme {
	case "redis", "rediss":
	case "redis+sentinel", "rediss+sentinel":
		t.mode = sentinel
	case "redis+cluster", "rediss+cluster":
		t.mode = cluster
	case "unix":
		t.network = "unix"
	default:
		ok = false
	}
	if !ok {
		return t, errors.New("the URL's beginning is none known here: " + urlForms)
	}
	t.tls = strings.HasPrefix(scheme, "rediss")

	// The list of hosts is no part of what net/url understands.
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, rest := rest[:end], rest[end:]
	user, hosts := "", authority
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		user, hosts = authority[:at+1], authority[at+1:]
	}
	u, err := url.Parse("x://" + user + "host" + rest)
	if err != nil {
		return t, errors.New("the URL cannot be read (is a special character in the password written as %40 or the like?)")
	}
	if u.Fragment != "" {
		return t, errors.New("the URL has a part after #: write %23 for this character")
	}
	t.username = u.User.Username()
	t.password, _ = u.User.Password()

	path := u.Path
	if t.network == "unix" {
		if hosts != "" || path == "" {
			return t, errors.New("a unix URL has three slashes before the socket's path: unix:///path/to/socket")
		}
		t.addrs, path = []string{path}, ""
	} else if t.addrs, err = addresses(hosts, t.mode); err != nil {
		return t, err
	}
	return t, t.options(strings.Trim(path, "/"), u.Query())
}

// addresses splits a list of hosts and adds the usual port where one has none.
func addresses(list string, m mode) ([]string, error) {
	port := "6379"
	if m == sentinel {
		port = "26379"
	}
	var all []string
	for host := range strings.SplitSeq(list, ",") {
		u, err := url.Parse("x://" + host)
		if err != nil || u.Hostname() == "" || u.User != nil || u.Path != "" || strings.HasSuffix(host, ":") {
			return nil, errors.New("the URL has a host that is none: " + urlForms)
		}
		if u.Port() != "" {
			all = append(all, net.JoinHostPort(u.Hostname(), u.Port()))
		} else {
			all = append(all, net.JoinHostPort(u.Hostname(), port))
		}
	}
	if m == single && len(all) > 1 {
		return nil, errors.New("the URL names several servers: begin it with redis+sentinel:// or redis+cluster://")
	}
	return all, nil
}

// options takes the number of the database and what stands after the question
// mark. What is not known is refused: reads from replicas, for one.
func (t *target) options(path string, query url.Values) error {
	db := path
	for name, values := range query {
		switch {
		case len(values) != 1:
			return fmt.Errorf("the URL gives %q twice", name)
		case name == "db" && db == "":
			db = values[0]
		case name == "db":
			return errors.New("the URL gives the database twice")
		case name == "master" && t.mode == sentinel:
			t.master = values[0]
		default:
			return fmt.Errorf("the URL's option %.40q is not known: only db, and master with redis+sentinel", name)
		}
	}
	if db != "" {
		n, err := strconv.ParseUint(db, 10, 16)
		if err != nil {
			return errors.New("the URL's database is not a number")
		}
		t.db = int(n)
	}
	switch {
	case t.mode == cluster && t.db != 0:
		return errors.New("a cluster has no database but 0")
	case t.mode == sentinel && t.master == "":
		return errors.New("the URL does not name the primary: add ?master=name as in Sentinel's configuration")
	}
	return nil
}
