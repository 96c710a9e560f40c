package refresher

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"time"
	"unicode/utf8"
)

const (
	maxDepth    = 8
	maxLifetime = 10 * 365 * 24 * time.Hour
)

// object holds the scalar members of a JSON object's top level: string,
// json.Number, bool or nil. Nested values were checked and dropped.
type object map[string]any

// parseObject reads one JSON object strictly. encoding/json folds the case of
// names and lets the last duplicate win; neither may decide which token is used.
func parseObject(body []byte) (object, error) {
	if len(body) > MaxAnswer {
		return nil, fmt.Errorf("more than %d bytes", MaxAnswer)
	}
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")) // RFC 8259 section 8.1: it may be ignored
	if !utf8.Valid(body) {
		return nil, errors.New("not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	tok, err := dec.Token()
	if err != nil || tok != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	obj := object{}
	if err := scanObject(dec, 1, "", obj); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the JSON object")
	}
	return obj, nil
}

// scanObject reads the members of an object whose brace was read, keeping its
// scalars in keep unless that is nil.
func scanObject(dec *json.Decoder, depth int, in string, keep object) error {
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return notJSON(dec)
		}
		name, ok := tok.(string)
		if !ok {
			return notJSON(dec)
		}
		if seen[name] {
			return errors.New("a name stands twice in one JSON object")
		}
		seen[name] = true
		val, err := scanValue(dec, depth, in+name+".", keep)
		if err != nil {
			return err
		}
		if _, there := keep[in+name]; keep != nil && (in == "" || !there) { // a name with a dot in it comes first
			keep[in+name] = val
		}
	}
	if _, err := dec.Token(); err != nil {
		return notJSON(dec)
	}
	return nil
}

// scanValue reads one value; objects and arrays come back as [nested].
func scanValue(dec *json.Decoder, depth int, in string, keep object) (any, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, notJSON(dec)
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if depth == maxDepth {
		return nil, fmt.Errorf("JSON nested deeper than %d", maxDepth)
	}
	if delim == '{' {
		return nested{}, scanObject(dec, depth+1, in, keep)
	}
	for dec.More() {
		if _, err := scanValue(dec, depth+1, "", nil); err != nil {
			return nil, err
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, notJSON(dec)
	}
	return nested{}, nil
}

type nested struct{}

// notJSON names the place only: encoding/json's own errors quote the text.
func notJSON(dec *json.Decoder) error {
	return fmt.Errorf("not valid JSON near byte %d", dec.InputOffset())
}

// ParseStrings reads the named members of a JSON object, as strictly as
// [ParsePair] does. What is missing, or no string that a token could be, is not
// in the result.
func ParseStrings(body []byte, names ...string) (map[string]string, error) {
	obj, err := parseObject(body)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, name := range names {
		if text := obj.optional([]string{name}, MaxRefreshToken, visible); text != "" {
			found[name] = text
		}
	}
	return found, nil
}

// token returns the first of names that is there and not null.
func (o object) token(names []string, limit int, allowed func(byte) bool) (string, error) {
	for _, name := range names {
		val, ok := o[name]
		if !ok || val == nil {
			continue
		}
		s, ok := val.(string)
		if !ok {
			return "", fmt.Errorf("%q is not a string", name)
		}
		if s == "" {
			continue // some servers have it for null
		}
		if len(s) > limit {
			return "", fmt.Errorf("%q is longer than %d bytes", name, limit)
		}
		for i := range len(s) {
			if !allowed(s[i]) {
				return "", fmt.Errorf("%q holds a character that no token may have", name)
			}
		}
		return s, nil
	}
	return "", nil
}

// seconds returns the first of names that is a sane lifetime (1 s to 10 years;
// a numeric string is accepted, a fraction cut off), else 0.
func (o object) seconds(names []string) time.Duration {
	for _, name := range names {
		var text string
		switch v := o[name].(type) {
		case json.Number:
			text = v.String()
		case string:
			text = v
		default:
			continue
		}
		if s, ok := wholeSeconds(text); ok && s >= 1 && s <= int64(maxLifetime/time.Second) {
			return time.Duration(s) * time.Second
		}
	}
	return 0
}

// wholeSeconds reads a JSON number without the traps of float-to-int
// conversion ("1e300" as int64 is negative).
func wholeSeconds(text string) (int64, bool) {
	if len(text) > 32 || !json.Valid([]byte(text)) {
		return 0, false
	}
	f, _, err := big.ParseFloat(text, 10, 64, big.ToZero)
	if err != nil || f.IsInf() {
		return 0, false
	}
	n, _ := f.Int64()
	if n == math.MaxInt64 || n == math.MinInt64 {
		return 0, false
	}
	return n, true
}
