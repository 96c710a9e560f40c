package caddymodule

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
)

const (
	maxClockOff    = 30 * time.Second
	doctorParallel = 8 // issuers looked at a time
)

// place is a host that sessions depend on: an issuer, or where they sign in.
type place struct {
	what     string // "issuer" or "login"
	url      string // empty: not known, as of a module of somebody else's
	names    []string
	client   issuer.Client
	insecure bool
	prepare  func(context.Context) error // connects, and no more
}

// optioned is an issuer of ours.
type optioned interface{ common() *IssuerOptions }

func (o *IssuerOptions) common() *IssuerOptions { return o }

// issuerURL is where an issuer is, as far as that is known before it is asked.
func issuerURL(i refresher.Issuer) string {
	switch i := i.(type) {
	case *OAuth2Issuer:
		return cmp.Or(i.URL, i.Discover)
	case addressed:
		return i.exchangeURL()
	}
	return ""
}

// issuers looks at every issuer once, however many sessions have it.
func (d *doctor) issuers(ctx context.Context, app *App, text doctorConfig) {
	places := map[string]*place{}
	take := func(key, name string, made func() *place) {
		if places[key] == nil {
			places[key] = made()
		}
		places[key].names = append(places[key].names, name)
	}
	for _, name := range sortedKeys(app.Sessions) {
		cfg := app.Sessions[name]
		take("issuer "+string(text.Apps.Ours.Sessions[name].Issuer), name, func() *place { return issuerPlace(cfg.issuer) })
		for _, src := range cfg.sources {
			if login, ok := src.(*LoginSource); ok {
				take("login "+login.URL, name, func() *place { return loginPlace(login) })
			}
		}
	}
	for _, name := range sortedKeys(app.Pools) {
		cfg := app.Pools[name]
		take("issuer "+string(text.Apps.Ours.Pools[name].Issuer), name, func() *place { return issuerPlace(cfg.issuer) })
	}
	var wg sync.WaitGroup
	turns := make(chan struct{}, doctorParallel)
	asked := &sync.Map{} // hosts whose clock was
	for _, p := range places {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			d.place(ctx, p, asked)
		})
	}
	wg.Wait()
}

func issuerPlace(i refresher.Issuer) *place {
	p := &place{what: "issuer", url: issuerURL(i), prepare: func(ctx context.Context) error {
		exchange, err := i.Prepare(ctx)
		if err == nil {
			exchange.Close()
		}
		return err
	}}
	if ours, ok := i.(optioned); ok {
		o := ours.common()
		cfg, _ := o.TLS.config() // was read when it was provisioned
		p.client = issuer.Client{TLS: cfg, Timeout: time.Duration(o.Timeout), InsecureHTTP: o.InsecureHTTP}
		p.insecure = o.InsecureHTTP
	}
	return p
}

func loginPlace(s *LoginSource) *place {
	p := &place{what: "login", url: s.URL, insecure: s.InsecureHTTP,
		client: issuer.Client{TLS: s.cfg.TLS, Timeout: s.cfg.Timeout, InsecureHTTP: s.InsecureHTTP}}
	p.prepare = func(ctx context.Context) error {
		u, err := url.Parse(s.URL)
		if err != nil {
			return errors.New("its URL cannot be read")
		}
		conn, err := p.client.Prepare(ctx, u)
		if err == nil {
			conn.Close()
		}
		return err
	}
	return p
}

// place connects, and asks for the time.
func (d *doctor) place(ctx context.Context, p *place, asked *sync.Map) {
	names := names3(p.names)
	u, err := url.Parse(p.url)
	if err != nil {
		u = new(url.URL)
	}
	if p.insecure && u.Scheme == "http" && !onThisMachine(p.url) {
		d.warn("plain-http", names, "The %s at %s is spoken to over plain http, so that everybody on the way can read tokens. Use its https address, and remove insecure_http.", p.what, u.Host)
	}
	if err := p.prepare(ctx); err != nil {
		d.unreachable(p, names, cmp.Or(u.Host, "the issuer"), err)
		if !strings.Contains(err.Error(), "discovery at") || connecting(err) {
			return // there is nobody to ask for the time
		}
	} else {
		d.ok(p.what, names, "The %s at %s can be reached.", p.what, cmp.Or(u.Host, "its address"))
	}
	if _, before := asked.LoadOrStore(u.Scheme+u.Host, true); u.Host != "" && !before {
		d.clock(ctx, p, names, &url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/"})
	}
}

// connecting reports whether an error is of the network rather than of what the
// issuer answered.
func connecting(err error) bool {
	var network net.Error
	var op *net.OpError
	return errors.As(err, &network) || errors.As(err, &op) || tlsTrouble("", err) != ""
}

func (d *doctor) unreachable(p *place, names, host string, err error) {
	var dns *net.DNSError
	trouble := tlsTrouble(host, err)
	switch {
	case errors.As(err, &dns):
		d.problem(p.what+"-dns", names, "The name %s cannot be resolved (%v). Check the %s's address in the configuration, and this machine's DNS.", host, dns.Err, p.what)
	case trouble != "":
		d.problem(p.what+"-tls", names, "%s", trouble)
	case connecting(err):
		d.problem(p.what+"-unreachable", names, "The %s cannot be reached: %v. Check its address in the configuration, the network, and firewalls; proxies of the environment are not used.", p.what, err)
	case strings.Contains(err.Error(), "discovery at"):
		d.problem("issuer-discovery", names, "The issuer does not say where its endpoints are: %v. Check the address behind `discover`, or name the token endpoint itself.", err)
	default:
		d.problem(p.what+"-unreachable", names, "The %s cannot be used: %v.", p.what, err)
	}
}

// tlsTrouble says what is wrong with a certificate; empty where that is not it.
func tlsTrouble(host string, err error) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var verify *tls.CertificateVerificationError
	var alert tls.AlertError
	switch {
	case errors.As(err, &unknown):
		return "The certificate of " + host + " is signed by an authority that this machine does not trust. Name that authority's certificate with `tls { ca <file> }`, or add it to the system's."
	case errors.As(err, &name):
		return "The certificate of " + host + " is for another name. Use the name it was issued for, or have the certificate corrected."
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "The certificate of " + host + " has expired or is not valid yet, by this machine's clock, which says " + time.Now().UTC().Format(time.RFC3339) + ". If that is right, have the certificate renewed."
	case errors.As(err, &record):
		return "What answers at " + host + " does not speak TLS. Check the port, and whether it should be http."
	case errors.As(err, &invalid), errors.As(err, &verify), errors.As(err, &alert), err != nil && strings.Contains(err.Error(), "remote error: tls"):
		return "The TLS handshake with " + host + " fails: " + err.Error() + ". Where it wants a client certificate, give it with `tls { client_certificate … }`."
	}
	return ""
}

// clock compares the Date of an answer to a request without any credentials, for
// the host's root, with this machine's clock.
func (d *doctor) clock(ctx context.Context, p *place, names string, root *url.URL) {
	conn, err := p.client.Prepare(ctx, root)
	if err != nil {
		return // was said
	}
	out := conn.Do(ctx, issuer.Request{Method: http.MethodGet})
	date, err := http.ParseTime(out.Header.Get("Date"))
	if err != nil || out.Header.Get("Age") != "" {
		d.ok("clock", names, "%s does not tell its time, so that the clocks could not be compared.", root.Host)
		return
	}
	// The field has whole seconds, and was written somewhere on the way.
	middle := out.SentAt.Add(out.ReceivedAt.Sub(out.SentAt) / 2)
	off := date.Add(time.Second / 2).Sub(middle).Round(time.Second)
	where := "ahead of"
	if off < 0 {
		where = "behind"
	}
	if off.Abs() > maxClockOff {
		d.problem("clock", names, "The clock of %s is %s %s this machine's (%s). Tokens seem to end at another time than they do: have this machine's clock set (NTP), or tell the issuer.",
			root.Host, off.Abs(), where, time.Now().UTC().Format(time.RFC3339))
		return
	}
	d.ok("clock", names, "The clock agrees with that of %s.", root.Host)
}

func sortedKeys[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }
