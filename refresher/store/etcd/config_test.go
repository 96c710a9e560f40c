package etcdstore

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestAConfigurationIsChecked(t *testing.T) {
	for _, test := range []struct {
		says string
		c    Config
	}{
		{"no endpoint", Config{}},
		{"is none", Config{Endpoints: []string{"https://h:1", ""}}},
		{"is none", Config{Endpoints: []string{"unix:///canary"}}},
		{"is none", Config{Endpoints: []string{"h:canary"}}},
		{"user name", Config{Endpoints: []string{"https://u:canary@h:1"}}},
		{"more than", Config{Endpoints: []string{"https://h:1/canary"}}},
		{"together", Config{Endpoints: []string{"h:1"}, Password: "canary"}},
		{"negative", Config{Endpoints: []string{"h:1"}, Timeout: -time.Second}},
	} {
		_, err := Open(test.c)
		if err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%v, want that it says %q", err, test.says)
		}
	}
}

func TestAConfigurationDoesNotPrint(t *testing.T) {
	c := Config{Endpoints: []string{"h:1"}, Username: "u", Password: "canary"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, v := range []any{c, &c, []Config{c}} {
			if text := fmt.Sprintf(verb, v); !strings.Contains(text, "[redacted]") || strings.Contains(text, "canary") {
				t.Errorf("%s: %s", verb, text)
			}
		}
	}
}
