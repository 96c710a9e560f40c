package webhook

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// revoke makes a body of type jwt.refresh-token.revoke.
func revoke(members string) string {
	return `{"event":{"type":"jwt.refresh-token.revoke","id":"e502168a-b469-45d9-a079-fd45f83e0406","createInstant":1505762615056,` +
		`"applicationTimeToLiveInSeconds":{"21a8893c-51b3-4964-8a50-6afb66ee8acd":600},"tenantId":"t"` + members + `}}`
}

func TestTheShapesOfEachEventAreToldApart(t *testing.T) {
	example, _ := seedExample(t)
	user := `{"active":true,"email":"a@example.com","id":"u2","registrations":[{"roles":["user"]}],"data":{"a":{"b":[1,{"c":null}]}}}`
	userEvent := func(kind string) string {
		return `{"event":{"type":"` + kind + `","id":"i","createInstant":1,"user":` + user + `}}`
	}
	for name, test := range map[string]struct {
		body string
		kind Kind
		want [4]string // application, user, refresh token id, refresh token
	}{
		"a refresh": {string(example), KindRefreshed, [4]string{
			"79360eaa-2c25-429b-b8c7-0ba353127e9b", "73cf557a-394a-455d-898a-d77bb0432c2e", "", "xRxGGEpVawiUak6He367W3oeOfh+3irw+1G1h1jc",
		}},
		"one refresh token": {
			revoke(`,"applicationId":"a","userId":"u","user":` + user + `,"refreshToken":{"id":"r","token":"tok","metaData":{"device":{"type":"BROWSER"}}}`),
			KindRevokedToken,
			[4]string{"a", "u", "r", "tok"},
		},
		"one refresh token by its id alone":    {revoke(`,"refreshToken":{"id":"r"}`), KindRevokedToken, [4]string{"", "", "r", ""}},
		"all of a user":                        {revoke(`,"userId":"u","user":` + user), KindRevokedUser, [4]string{"", "u", "", ""}},
		"all of a user who is an object alone": {revoke(`,"user":` + user), KindRevokedUser, [4]string{"", "u2", "", ""}},
		"all of a user in an application":      {revoke(`,"userId":"u","applicationId":"a"`), KindRevokedUserInApp, [4]string{"a", "u", "", ""}},
		"all of an application":                {revoke(`,"applicationId":"a","userId":null`), KindRevokedApplication, [4]string{"a", "", "", ""}},
		"a deactivation":                       {userEvent("user.deactivate"), KindUserDeactivated, [4]string{"", "u2", "", ""}},
		"a deletion to come":                   {userEvent("user.delete"), KindUserDeleted, [4]string{"", "u2", "", ""}},
		"a deletion that is done":              {userEvent("user.delete.complete"), KindUserDeleted, [4]string{"", "u2", "", ""}},
		"a bulk creation is ignored":           {`{"event":{"type":"user.bulk.create","users":[` + user + `]}}`, KindIgnored, [4]string{}},
		"an unknown type is ignored":           {`{"event":{"type":"x","id":7},"more":1}`, KindIgnored, [4]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse([]byte(test.body))
			if err != nil {
				t.Fatal(err)
			}
			if have := [4]string{got.ApplicationID, got.UserID, got.RefreshTokenID, got.RefreshToken.Reveal()}; got.Kind != test.kind || have != test.want {
				t.Errorf("got %s, %q", got.Kind, have)
			}
		})
	}
}

func TestARefreshIsReadFieldByField(t *testing.T) {
	body, want := seedExample(t)
	got, err := Parse(body)
	if err != nil {
		t.Fatal(err)
	}
	if got.Type != want["type"] || got.ID != want["id"] || got.TenantID != want["tenantId"] ||
		got.Token.Reveal() != want["token"] || got.Original.Reveal() != want["original"] ||
		!got.CreateInstant.Equal(time.UnixMilli(1566842908643)) {
		t.Errorf("got %v of %v", got, got.CreateInstant)
	}
}

func TestABodyThatIsNotAnEventIsRefusedWithoutRepeatingIt(t *testing.T) {
	refresh := func(member, value string) string {
		members := map[string]string{
			"type": `"jwt.refresh"`, "id": `"i"`, "createInstant": `1566842908643`, "refreshToken": `"canary-r"`, "token": `"canary-t"`,
		}
		if value == "" {
			delete(members, member)
		} else {
			members[member] = value
		}
		var list []string
		for name, value := range members {
			list = append(list, fmt.Sprintf("%q:%s", name, value))
		}
		return `{"event":{` + strings.Join(list, ",") + `}}`
	}
	if _, err := Parse([]byte(refresh("tenantId", `"t"`))); err != nil {
		t.Fatalf("the event that all of these are made from: %v", err)
	}
	for name, body := range map[string]string{
		"nothing":                    ``,
		"a list":                     `["canary"]`,
		"two documents":              refresh("tenantId", `"t"`) + `{}`,
		"no event":                   `{"Event":{"type":"x"}}`,
		"an event that is a list":    `{"event":[]}`,
		"no type":                    refresh("type", ""),
		"a type that is a number":    refresh("type", "7"),
		"a long type":                refresh("type", `"`+strings.Repeat("x", maxTypeLength+1)+`"`),
		"no id":                      refresh("id", ""),
		"an empty id":                refresh("id", `""`),
		"an id with a line break":    refresh("id", `"canary\ncanary"`),
		"a long id":                  refresh("id", `"`+strings.Repeat("x", maxIDLength+1)+`"`),
		"no instant":                 refresh("createInstant", ""),
		"an instant in text":         refresh("createInstant", `"1566842908643"`),
		"an instant that is broken":  refresh("createInstant", `1566842908643.5`),
		"an instant far away":        refresh("createInstant", `1e300`),
		"an instant before 1970":     refresh("createInstant", `-1`),
		"no token":                   refresh("token", ""),
		"a token that is an object":  refresh("token", `{"canary":1}`),
		"a long token":               refresh("token", `"`+strings.Repeat("x", 16<<10+1)+`"`),
		"a long refresh token":       refresh("refreshToken", `"`+strings.Repeat("x", 8<<10+1)+`"`),
		"a token that is not ASCII":  refresh("token", `"canaryé"`),
		"a name that stands twice":   `{"event":{"type":"x","type":"canary"}}`,
		"the same deep inside":       `{"event":{"type":"x","user":{"a":[{"b":1,"b":"canary"}]}}}`,
		"deep nesting":               `{"event":` + strings.Repeat(`{"a":`, maxNesting) + `1` + strings.Repeat(`}`, maxNesting) + `}`,
		"a body that is too long":    `{"event":{"type":"x","pad":"` + strings.Repeat("x", MaxBody) + `"}}`,
		"broken UTF-8":               "{\"event\":{\"type\":\"canary\xff\"}}",
		"a cut":                      `{"event":{"type":"canary`,
		"a revocation of nothing":    revoke(``),
		"a token without name or id": revoke(`,"refreshToken":{"insertInstant":1}`),
		"a token that is a text":     revoke(`,"refreshToken":"canary"`),
		"a user without an id":       `{"event":{"type":"user.delete","id":"i","createInstant":1,"user":{"email":"canary"}}}`,
		"no user":                    `{"event":{"type":"user.deactivate","id":"i","createInstant":1}}`,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse([]byte(body))
			if err == nil {
				t.Fatalf("it was taken: %s", got.Kind)
			}
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("the error repeats it: %v", err)
			}
		})
	}
}
