package caddymodule

import (
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
)

// UnmarshalCaddyfile reads the issuer.
//
//	issuer bearer <url> {
//		scheme <scheme>
//		accept_expired on|off
//		timeout <duration>
//		header <name> <value>
//		revokes_previous on|off
//		reuse_interval <duration> [same|new]
//		hold_off <duration>
//		rate <per second>
//		insecure_http
//		tls {
//			ca <file>
//			client_certificate <cert> <key>
//		}
//		fields {
//			access <name>
//			refresh <name>
//			expires_in <name>
//		}
//	}
func (b *BearerIssuer) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the kind
	if err := oneArg(d, &b.URL); err != nil {
		return err
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch option := d.Val(); option {
		case "scheme":
			b.Scheme = new(string)
			if err := oneArg(d, b.Scheme); err != nil {
				return err
			}
		case "accept_expired":
			var on *bool
			if err := onOff(d, &on); err != nil {
				return err
			}
			b.AcceptExpired = *on
		default:
			if err := b.unmarshalOption(d, option); err != nil {
				return err
			}
		}
	}
	// What can be checked without secrets is checked here, where file and line
	// are known.
	cfg, err := b.config(nil)
	if err == nil {
		_, err = issuer.NewBearer(cfg)
	}
	return wrapErr(d, err)
}

func (o *IssuerOptions) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "timeout":
		return duration(d, &o.Timeout)
	case "header":
		return header(d, &o.Header)
	case "revokes_previous":
		return onOff(d, &o.RevokesPrevious)
	case "reuse_interval":
		return o.unmarshalReuse(d)
	case "hold_off":
		return duration(d, &o.HoldOff)
	case "rate":
		var text string
		if err := oneArg(d, &text); err != nil {
			return err
		}
		rate, err := strconv.ParseFloat(text, 64)
		if err != nil || !(rate > 0) {
			return d.Errf("rate: %q is not a number of exchanges a second", text)
		}
		o.Rate = rate
		return nil
	case "insecure_http":
		o.InsecureHTTP = true
		return noArg(d)
	case "tls":
		return unmarshalTLS(d, &o.TLS)
	case "fields":
		return unmarshalFields(d, &o.Fields)
	}
	return d.Errf("unrecognized option %q of an issuer", option)
}

func (o *IssuerOptions) unmarshalReuse(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) == 0 || len(args) > 2 {
		return argErr(d)
	}
	dur, err := caddy.ParseDuration(args[0])
	if err != nil || dur < 0 {
		return d.Errf("reuse_interval: %q is not a duration such as 30s", args[0])
	}
	o.ReuseInterval = caddy.Duration(dur)
	if len(args) == 2 {
		o.ReuseAnswer = args[1]
	}
	return nil
}

// UnmarshalCaddyfile reads `tokens env <ACCESS> <REFRESH>`.
func (s *EnvSource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.AllArgs(&s.Access, &s.Refresh) {
		return argErr(d)
	}
	return noBlock(d)
}

// UnmarshalCaddyfile reads `tokens file <path>`.
func (s *FileSource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.AllArgs(&s.Path) {
		return argErr(d)
	}
	return noBlock(d)
}

// UnmarshalCaddyfile reads `tokens import`.
func (*ImportSource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if err := noArg(d); err != nil {
		return err
	}
	return noBlock(d)
}

// UnmarshalCaddyfile reads the source.
//
//	tokens login <url> {
//		username <name>
//		password <password>
//		body <json>
//		header <name> <value>
//		timeout <duration>
//		insecure_http
//		tls { … }
//		fields { … }
//	}
func (s *LoginSource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if err := oneArg(d, &s.URL); err != nil {
		return err
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := s.unmarshalOption(d, d.Val()); err != nil {
			return err
		}
	}
	cfg, err := s.config(nil)
	if err == nil {
		_, err = issuer.NewLogin(cfg)
	}
	return wrapErr(d, err)
}

func (s *LoginSource) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "username":
		return oneArg(d, &s.Username)
	case "password":
		return oneArg(d, &s.Password)
	case "body":
		var text string
		if err := oneArg(d, &text); err != nil {
			return err
		}
		if !json.Valid([]byte(text)) {
			return d.Err("body: not valid JSON")
		}
		s.Body = json.RawMessage(text)
		return nil
	case "header":
		return header(d, &s.Header)
	case "timeout":
		return duration(d, &s.Timeout)
	case "insecure_http":
		s.InsecureHTTP = true
		return noArg(d)
	case "tls":
		return unmarshalTLS(d, &s.TLS)
	case "fields":
		return unmarshalFields(d, &s.Fields)
	}
	return d.Errf("unrecognized option %q of tokens login", option)
}

func header(d *caddyfile.Dispenser, to *http.Header) error {
	var name, value string
	if !d.AllArgs(&name, &value) {
		return argErr(d)
	}
	if *to == nil {
		*to = http.Header{}
	}
	to.Add(name, value)
	return nil
}

func unmarshalTLS(d *caddyfile.Dispenser, to **TLSOptions) error {
	if err := noArg(d); err != nil {
		return err
	}
	opts := new(TLSOptions)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch option := d.Val(); option {
		case "ca":
			if err := oneArg(d, &opts.CA); err != nil {
				return err
			}
		case "client_certificate":
			if !d.AllArgs(&opts.ClientCertificate, &opts.ClientKey) {
				return argErr(d)
			}
		default:
			return d.Errf("unrecognized option %q of tls", option)
		}
	}
	*to = opts
	return nil
}

func unmarshalFields(d *caddyfile.Dispenser, to **FieldNames) error {
	if err := noArg(d); err != nil {
		return err
	}
	names := new(FieldNames)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var name *string
		switch option := d.Val(); option {
		case "access":
			name = &names.Access
		case "refresh":
			name = &names.Refresh
		case "expires_in":
			name = &names.ExpiresIn
		default:
			return d.Errf("unrecognized field %q: want access, refresh or expires_in", option)
		}
		if err := oneArg(d, name); err != nil {
			return err
		}
	}
	*to = names
	return nil
}

// wrapErr adds file and line; the dispenser's own makes an error of nil.
func wrapErr(d *caddyfile.Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}

func noArg(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return argErr(d)
	}
	return nil
}

func noBlock(d *caddyfile.Dispenser) error {
	if d.NextBlock(d.Nesting()) {
		return d.Errf("%q takes no block", d.Val())
	}
	return nil
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*BearerIssuer)(nil)
	_ caddyfile.Unmarshaler = (*EnvSource)(nil)
	_ caddyfile.Unmarshaler = (*FileSource)(nil)
	_ caddyfile.Unmarshaler = (*ImportSource)(nil)
	_ caddyfile.Unmarshaler = (*LoginSource)(nil)
)
