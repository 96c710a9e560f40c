package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"
)

// maxField is the documents' "string(255)", in characters.
const maxField = 255

var errBody = errors.New("not the JSON object asked for")

// parseFields reads a JSON object with exactly the given members, each a
// string. Its errors do not repeat the text: it holds secrets.
func parseFields(body []byte, names ...string) (map[string]string, error) {
	if !utf8.Valid(body) {
		return nil, errBody
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, errBody
	}
	fields := make(map[string]string, len(names))
	for dec.More() {
		name, err := dec.Token() // a string, or the decoder had failed
		if err != nil {
			return nil, errBody
		}
		value, err := dec.Token()
		if err != nil {
			return nil, errBody
		}
		text, ok := value.(string)
		if _, twice := fields[name.(string)]; !ok || twice || utf8.RuneCountInString(text) > maxField {
			return nil, errBody
		}
		fields[name.(string)] = text
	}
	if _, err := dec.Token(); err != nil {
		return nil, errBody
	}
	if _, err := dec.Token(); err != io.EOF || len(fields) != len(names) {
		return nil, errBody
	}
	for _, name := range names {
		if fields[name] == "" {
			return nil, errBody
		}
	}
	return fields, nil
}
