package redisstore

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestURLsAreRead(t *testing.T) {
	for text, want := range map[string]target{
		"redis://h":                      {addrs: []string{"h:6379"}},
		"redis://h:1/2":                  {addrs: []string{"h:1"}, db: 2},
		"redis://h/?db=3":                {addrs: []string{"h:6379"}, db: 3},
		"rediss://[::1]:7":               {addrs: []string{"[::1]:7"}, tls: true},
		"redis://u:p%40%2F@h:1":          {addrs: []string{"h:1"}, username: "u", password: "p@/"},
		"redis://:p@h:1":                 {addrs: []string{"h:1"}, password: "p"},
		"unix:///run/r.sock":             {network: "unix", addrs: []string{"/run/r.sock"}},
		"unix://u:p@/r.sock?db=4":        {network: "unix", addrs: []string{"/r.sock"}, db: 4, username: "u", password: "p"},
		"redis+cluster://a:1,b,[::1]:2/": {mode: cluster, addrs: []string{"a:1", "b:6379", "[::1]:2"}},
		"rediss+cluster://u:p@a:1,b:2":   {mode: cluster, addrs: []string{"a:1", "b:2"}, username: "u", password: "p", tls: true},
		"redis+sentinel://a,b:2/1?master=m": {
			mode: sentinel, addrs: []string{"a:26379", "b:2"}, master: "m", db: 1,
		},
	} {
		if want.network == "" {
			want.network = "tcp"
		}
		if got, err := parseURL(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, error %v; want %+v", text, got, err, want)
		}
	}
}

func TestWhatIsWrongWithAURLIsSaidWithoutItsPassword(t *testing.T) {
	for text, says := range map[string]string{
		"":                                       "beginning",
		"canary-host:6379":                       "beginning",
		"http://u:canary@h":                      "beginning",
		"redis://u:canary@":                      "host",
		"redis://u:canary@h:":                    "host",
		"redis://u:canary@h:x":                   "host",
		"redis://u:can/ary@h:1":                  "host",
		"redis://u:can?ary@h:1":                  "host",
		"redis://u:can#ary@h:1":                  "%23",
		"redis://u:canary%zz@h:1":                "special character",
		"redis://u:canary@h:1#x":                 "%23",
		"redis://u:canary@a:1,b:2":               "redis+sentinel://",
		"redis://u:canary@h/x":                   "not a number",
		"redis://u:canary@h/-1":                  "not a number",
		"redis://u:canary@h/1?db=1":              "database twice",
		"redis://u:canary@h?db=1&db=1":           "twice",
		"redis://u:canary@h?route_by_latency=1":  "route_by_latency",
		"redis://u:canary@h?master=m":            "master",
		"redis+cluster://u:canary@h/1":           "no database",
		"redis+cluster://u:canary@h,,i":          "host",
		"redis+sentinel://u:canary@h":            "?master=name",
		"unix://u:canary@run/r.sock":             "three slashes",
		"unix://":                                "three slashes",
		"redis://u:canary@h\x7f":                 "host",
		"redis+sentinel://u:canary@h?readonly=1": "readonly",
	} {
		_, err := Open(Config{URL: text})
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want that it says %q", text, err, says)
		}
		if err != nil && strings.Contains(err.Error(), "can") && !strings.Contains(err.Error(), "cannot") {
			t.Errorf("%q: the error tells the password: %v", text, err)
		}
	}
}

func TestAConfigurationIsChecked(t *testing.T) {
	for says, c := range map[string]Config{
		"brace":    {URL: "redis://h", Prefix: "a{b}"},
		"negative": {URL: "redis://h", Timeout: -time.Second},
	} {
		if _, err := Open(c); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want that it says %q", err, says)
		}
	}
}

func TestAConfigurationDoesNotPrint(t *testing.T) {
	c := Config{URL: "redis://u:canary@h", Password: "canary"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, v := range []any{c, &c, []Config{c}} {
			if text := fmt.Sprintf(verb, v); !strings.Contains(text, "[redacted]") || strings.Contains(text, "canary") {
				t.Errorf("%s: %s", verb, text)
			}
		}
	}
}
