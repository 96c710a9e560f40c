package refresher

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"text/template"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const canary = "canary-Zk3-Qp7"

func TestASecretDoesNotPrint(t *testing.T) {
	secret := NewSecret(canary)
	type open struct{ S Secret }
	type hidden struct{ s Secret }
	values := map[string]any{
		"itself": secret, "pointer": &secret, "field": open{secret}, "pair": Pair{Access: secret, Refresh: secret},
		"slice": []Secret{secret}, "map": map[string]Secret{"k": secret}, "answer": Answer{Pair: Pair{Access: secret}, Raw: secret},
		"pointer to field": &open{secret},
		// fmt calls no method of what it reaches through an unexported field.
		"unexported field": hidden{secret}, "effect": effPublish{token: secret}, "event": evSeed{seed{pair: Pair{Access: secret}}},
	}
	for name, v := range values {
		t.Run(name, func(t *testing.T) {
			verbs := "vsqxXdtbcoOUeEfFgGpT"
			for _, verb := range verbs {
				for _, flag := range []string{"", "+", "#", " ", "0", "-10", ".3"} {
					format := "%" + flag + string(verb)
					text := fmt.Sprintf(format, v)
					if strings.Contains(text, "canary") || strings.Contains(text, fmt.Sprintf("%x", canary)) || strings.Contains(text, fmt.Sprintf("%X", canary)) {
						t.Fatalf("%s prints %s", format, text)
					}
				}
			}
			var out bytes.Buffer
			log.New(&out, "", 0).Println(v)
			for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
				slog.New(h).Info("m", "v", v)
			}
			enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
			logger := zap.New(zapcore.NewCore(enc, zapcore.AddSync(&out), zap.DebugLevel))
			logger.Info("m", zap.Any("v", v), zap.Reflect("w", v))
			logger.Sugar().Infow("m", "v", v)
			logger.Sugar().Infof("%v %+v", v, v)
			if text, err := json.Marshal(v); err == nil {
				out.Write(text)
			}
			if text, err := xml.Marshal(v); err == nil {
				out.Write(text)
			}
			_ = template.Must(template.New("").Parse("{{.}}")).Execute(&out, v)
			_, _ = fmt.Fprint(&out, v, fmt.Errorf("%v", v))
			if strings.Contains(out.String(), "canary") {
				t.Errorf("printed: %s", out.String())
			}
		})
	}
	var out bytes.Buffer
	enc := zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig())
	zap.New(zapcore.NewCore(enc, zapcore.AddSync(&out), zap.DebugLevel)).Info("m",
		zap.Object("o", secret), zap.Stringer("s", secret), zap.Inline(secret), zap.Objects("os", []Secret{secret}))
	if strings.Contains(out.String(), "canary") || !strings.Contains(out.String(), secret.Fingerprint()) {
		t.Errorf("zap: %s", out.String())
	}
	if s := secret.String() + secret.GoString() + secret.LogValue().String(); strings.Contains(s, "canary") {
		t.Error(s)
	}
}

func TestSecretsCompare(t *testing.T) {
	a, b := NewSecret("a"), NewSecret("b")
	if !a.Equal(NewSecret("a")) || a.Equal(b) || a.Equal(NewSecret("aa")) || !(Secret{}).IsZero() || a.IsZero() {
		t.Error("Equal or IsZero")
	}
	if (Secret{}).Fingerprint() != "" || a.Fingerprint() != "ca978112" || a.Reveal() != "a" {
		t.Error("Fingerprint or Reveal")
	}
	for c := ClassOK; c <= ClassUnknown; c++ {
		if c.String() == "" || c.String() == "invalid" {
			t.Errorf("class %d has no name", c)
		}
	}
	if Class(99).String() != "invalid" {
		t.Error("class 99")
	}
}

// TestNoRevealedSecretIsComparedOrPrinted reads the package's own source: what
// Reveal returns stands beside no == and in no call of fmt, log or zap.
func TestNoRevealedSecretIsComparedOrPrinted(t *testing.T) {
	files := token.NewFileSet()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	reveals := func(n ast.Node) (found bool) {
		ast.Inspect(n, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Reveal" {
				found = true
			}
			return !found
		})
		return found
	}
	seen := 0
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(files, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BinaryExpr:
				if (n.Op == token.EQL || n.Op == token.NEQ) && (reveals(n.X) || reveals(n.Y)) {
					t.Errorf("%s: a revealed secret is compared", files.Position(n.Pos()))
				}
			case *ast.CallExpr:
				sel, ok := n.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "fmt" || x.Name == "log" || x.Name == "slog" || x.Name == "zap" || x.Name == "errors") {
					for _, arg := range n.Args {
						if reveals(arg) {
							t.Errorf("%s: a revealed secret is printed", files.Position(n.Pos()))
						}
					}
				}
				if sel.Sel.Name == "Reveal" {
					seen++
				}
			}
			return true
		})
	}
	if seen == 0 {
		t.Error("no Reveal was found: the test looks in the wrong place")
	}
}

func TestParsePair(t *testing.T) {
	for _, test := range []struct {
		name, body      string
		access, refresh string
		expires         int
		fails           bool
	}{
		{name: "7G", body: `{"accessToken":"a","refreshToken":"r"}`, access: "a", refresh: "r"},
		{name: "RFC 6749", body: `{"access_token":"a","refresh_token":"r","expires_in":60}`, access: "a", refresh: "r", expires: 60},
		{name: "FusionAuth", body: `{"token":"a","refreshToken":"r"}`, access: "a", refresh: "r"},
		{name: "null falls through", body: `{"accessToken":null,"token":"a","refreshToken":null}`, access: "a"},
		{name: "lifetimes", body: `{"token":"a","expires_in":"61.9"}`, access: "a", expires: 61},
		{name: "a lifetime of nonsense", body: `{"token":"a","expires_in":-1,"expiresIn":[5]}`, access: "a"},
		{name: "no access token", body: `{"refreshToken":"r"}`, fails: true},
		{name: "another case", body: `{"AccessToken":"a"}`, fails: true},
		{name: "twice", body: `{"accessToken":"a","accessToken":"a"}`, fails: true},
		{name: "twice further in", body: `{"accessToken":"a","x":{"b":1,"b":2}}`, fails: true},
		{name: "a number", body: `{"accessToken":5}`, fails: true},
		{name: "empty", body: `{"accessToken":""}`, fails: true},
		{name: "a line break", body: `{"accessToken":"a\r\nX: y"}`, fails: true},
		{name: "a refresh token with a line break", body: `{"accessToken":"a","refreshToken":"\n"}`, fails: true},
		{name: "data behind it", body: `{"accessToken":"a"}x`, fails: true},
		{name: "not UTF-8", body: "{\"accessToken\":\"a\xff\"}", fails: true},
		{name: "an array", body: `["a"]`, fails: true},
		{name: "cut", body: `{"accessToken":"a","x":[1,{"y"`, fails: true},
		{name: "cut after the name", body: `{"accessToken"`, fails: true},
		{name: "cut in an array", body: `{"accessToken":"a","x":[1`, fails: true},
		{name: "cut in an object", body: `{"accessToken":"a","x":{"y":1`, fails: true},
		{name: "no value", body: `{"accessToken":"a","x":}`, fails: true},
		{name: "a bad name", body: `{5:1}`, fails: true},
		{name: "too deep", body: `{"accessToken":"a","x":[[[[[[[[]]]]]]]]}`, fails: true},
		{name: "too long", body: `{"accessToken":"` + strings.Repeat("a", MaxAnswer) + `"}`, fails: true},
		{name: "a long token", body: `{"accessToken":"` + strings.Repeat("a", MaxAccessToken+1) + `"}`, fails: true},
		{name: "a long refresh token", body: `{"accessToken":"a","refreshToken":"` + strings.Repeat("a", MaxRefreshToken+1) + `"}`, fails: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := ParsePair([]byte(test.body), DefaultFields())
			if (err != nil) != test.fails {
				t.Fatalf("error %v", err)
			}
			if p.Access.Reveal() != test.access || p.Refresh.Reveal() != test.refresh || p.ExpiresIn.Seconds() != float64(test.expires) {
				t.Errorf("%q, %q, %v", p.Access.Reveal(), p.Refresh.Reveal(), p.ExpiresIn)
			}
		})
	}
}
