package caddymodule

import (
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// unmarshalBlock reads an issuer's block: own takes the options of its kind, the
// others are those of all issuers.
//
//	timeout <duration>
//	header <name> <value>
//	profile <name>
//	revokes_previous on|off
//	reuse_interval <duration> [same|new]
//	refresh_lifetime <duration>
//	hold_off <duration>
//	rate <per second>
//	insecure_http
//	tls {
//		ca <file>
//		client_certificate <cert> <key>
//	}
//	fields {
//		access <name>
//		refresh <name>
//		expires_in <name>
//		id_token <name>
//		scope <name>
//	}
func (o *IssuerOptions) unmarshalBlock(d *caddyfile.Dispenser, own func(option string) (known bool, err error)) error {
	seen := map[string]bool{"header": false, "parameter": false} // these may repeat
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] {
			return d.Errf("%s stands twice", option)
		}
		if _, repeats := seen[option]; !repeats {
			seen[option] = true
		}
		known, err := own(option)
		if !known {
			err = o.unmarshalOption(d, option)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (o *IssuerOptions) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "profile":
		return oneArg(d, &o.ProfileName)
	case "refresh_lifetime":
		return duration(d, &o.RefreshLifetime)
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
	if o.ReuseInterval = caddy.Duration(dur); dur == 0 {
		o.ReuseInterval = never
	}
	if len(args) == 2 {
		o.ReuseAnswer = args[1]
	}
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
		case "id_token":
			name = &names.IDToken
		case "scope":
			name = &names.Scope
		default:
			return d.Errf("unrecognized field %q: want access, refresh, expires_in, id_token or scope", option)
		}
		if err := oneArg(d, name); err != nil {
			return err
		}
	}
	*to = names
	return nil
}
