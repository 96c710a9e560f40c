package caddymodule

import (
	"encoding/json"
	"net/http"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
)

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
	_ caddyfile.Unmarshaler = (*EnvSource)(nil)
	_ caddyfile.Unmarshaler = (*FileSource)(nil)
	_ caddyfile.Unmarshaler = (*ImportSource)(nil)
	_ caddyfile.Unmarshaler = (*LoginSource)(nil)
)
