package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/caddyserver/caddy/v2"
)

// resolveJSON replaces placeholders inside the string values of a JSON text, so
// that no secret can break out of its string.
func resolveJSON(repl *caddy.Replacer, body []byte) ([]byte, error) {
	if len(body) == 0 {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return nil, errors.New("body: not valid JSON")
	}
	v, err := resolveStrings(repl, v)
	if err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

func resolveStrings(repl *caddy.Replacer, v any) (_ any, err error) {
	switch v := v.(type) {
	case string:
		return resolve(repl, "body", v)
	case []any:
		for i := range v {
			if v[i], err = resolveStrings(repl, v[i]); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for name := range v {
			if v[name], err = resolveStrings(repl, v[name]); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}
