package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// MaxBody is the greatest length in bytes of a webhook's body that is read.
const MaxBody = 64 << 10

// maxNesting leaves room for what users put into user.data.
const maxNesting = 32

// parseStrict reads one JSON object into maps, slices, strings, [json.Number],
// bools and nil. encoding/json folds the case of names and lets the last
// duplicate win: then what one reader checks is not what another one uses. No
// error repeats any of the text.
func parseStrict(body []byte) (map[string]any, error) {
	if len(body) > MaxBody {
		return nil, fmt.Errorf("more than %d bytes", MaxBody)
	}
	if !utf8.Valid(body) {
		return nil, errors.New("not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	value, err := strictValue(dec, 0)
	if err != nil {
		return nil, err
	}
	obj, ok := value.(map[string]any)
	if !ok {
		return nil, errors.New("not a JSON object")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the JSON object")
	}
	return obj, nil
}

func strictValue(dec *json.Decoder, depth int) (any, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, notJSON(dec)
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if depth == maxNesting {
		return nil, fmt.Errorf("nested deeper than %d", maxNesting)
	}
	if delim == '{' {
		return strictObject(dec, depth)
	}
	var list []any
	for dec.More() {
		value, err := strictValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, value)
	}
	if _, err := dec.Token(); err != nil {
		return nil, notJSON(dec)
	}
	return list, nil
}

func strictObject(dec *json.Decoder, depth int) (map[string]any, error) {
	obj := map[string]any{}
	for dec.More() {
		tok, err := dec.Token()
		name, ok := tok.(string)
		if err != nil || !ok {
			return nil, notJSON(dec)
		}
		if _, twice := obj[name]; twice {
			return nil, errors.New("a name stands twice in one object")
		}
		if obj[name], err = strictValue(dec, depth+1); err != nil {
			return nil, err
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, notJSON(dec)
	}
	return obj, nil
}

// notJSON names the place only: encoding/json's own errors quote the text.
func notJSON(dec *json.Decoder) error {
	return fmt.Errorf("not valid JSON near byte %d", dec.InputOffset())
}
