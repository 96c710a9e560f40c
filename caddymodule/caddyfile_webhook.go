package caddymodule

import (
	"strconv"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/webhook"
)

func (a *App) unmarshalWebhook(d *caddyfile.Dispenser) error {
	w := new(Webhook)
	if err := w.UnmarshalCaddyfile(d); err != nil {
		return err
	}
	for _, other := range a.Webhooks {
		if other.URL == w.URL {
			return d.Errf("webhook: this URL is given twice")
		}
	}
	a.Webhooks = append(a.Webhooks, w)
	return nil
}

// UnmarshalCaddyfile reads a webhook.
//
//	webhook <url> {
//		events jwt.refresh
//		header <name> <value>
//		transaction none|required
//		application_id <uuid>
//		tenant_id <uuid>
//		user_claim <name>
//		timeout <duration>
//		parallel <number>
//		insecure_http
//		basic_auth <user> <password>
//		signature hmac <secret> [<kid>]
//		signature key <pem file> [<kid>]
//		tls {
//			ca <file>
//			client_certificate <cert> <key>
//		}
//	}
func (w *Webhook) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	if err := oneArg(d, &w.URL); err != nil {
		return err
	}
	seen := map[string]bool{}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] && option != "header" {
			return d.Errf("%s stands twice", option)
		}
		seen[option] = true
		if err := w.unmarshalOption(d, option); err != nil {
			return err
		}
	}
	// What can be checked without secrets is checked here, where file and line
	// are known.
	cfg, err := w.config(nil)
	if err == nil {
		_, err = webhook.NewHook(cfg)
	}
	return wrapErr(d, err)
}

func (w *Webhook) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "events":
		if w.Events = d.RemainingArgs(); len(w.Events) == 0 {
			return argErr(d)
		}
		return nil
	case "header":
		return header(d, &w.Header)
	case "transaction":
		return oneArg(d, &w.Transaction)
	case "application_id":
		return oneArg(d, &w.ApplicationID)
	case "tenant_id":
		return oneArg(d, &w.TenantID)
	case "user_claim":
		return oneArg(d, &w.UserClaim)
	case "timeout":
		return duration(d, &w.Timeout)
	case "parallel":
		var text string
		if err := oneArg(d, &text); err != nil {
			return err
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return d.Errf("parallel: want a number from 1 up, not %q", text)
		}
		w.Parallel = n
		return nil
	case "insecure_http":
		w.InsecureHTTP = true
		return noArg(d)
	case "basic_auth":
		return unmarshalBasicAuth(d, &w.BasicAuth)
	case "signature":
		return w.unmarshalSignature(d)
	case "tls":
		return unmarshalTLS(d, &w.TLS)
	}
	return d.Errf("unrecognized option %q of a webhook", option)
}

func unmarshalBasicAuth(d *caddyfile.Dispenser, to **BasicAuth) error {
	args := d.RemainingArgs()
	if len(args) != 2 {
		return argErr(d)
	}
	*to = &BasicAuth{Username: args[0], Password: args[1]}
	return nil
}

func (w *Webhook) unmarshalSignature(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) < 2 || len(args) > 3 {
		return argErr(d)
	}
	w.Signature = new(Signature)
	switch args[0] {
	case "hmac":
		w.Signature.Secret = args[1]
	case "key":
		w.Signature.Key = args[1]
	default:
		return d.Err("signature: want hmac <secret> or key <pem file>")
	}
	if len(args) == 3 {
		w.Signature.KeyID = args[2]
	}
	return nil
}

func (a *App) unmarshalLocation(d *caddyfile.Dispenser) error {
	if a.Location != nil {
		return d.Err("location stands twice")
	}
	if d.NextArg() {
		return argErr(d)
	}
	p := new(Place)
	fields := map[string]*string{
		"city": &p.City, "country": &p.Country, "latitude": &p.Latitude,
		"longitude": &p.Longitude, "region": &p.Region, "zipcode": &p.Zipcode,
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		to, ok := fields[d.Val()]
		if !ok {
			return d.Errf("unrecognized option %q of location", d.Val())
		}
		if err := oneArg(d, to); err != nil {
			return err
		}
	}
	a.Location = p
	return nil
}
