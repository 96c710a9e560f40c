package refresher_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/issuer"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/journal"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// A program keeps its own session fresh, without Caddy, and calls its API
// through an ordinary http.Client.
func Example() {
	api := httptest.NewServer(sandbox.New(sandbox.Config{}))
	defer api.Close()
	dir, err := os.MkdirTemp("", "state")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)

	exchange, err := issuer.NewBearer(issuer.BearerConfig{
		URL:     api.URL + "/User/RefreshToken",
		Profile: refresher.Profile{RevokesPrevious: true},
	})
	if err != nil {
		panic(err)
	}
	login, err := issuer.NewLogin(issuer.LoginConfig{
		URL:      api.URL + "/User/Login",
		Username: refresher.NewSecret("demo"), Password: refresher.NewSecret("demo"),
		Header: http.Header{"Version": {"2.0"}},
	})
	if err != nil {
		panic(err)
	}
	key, _, err := journal.LoadOrCreateKey(dir)
	if err != nil {
		panic(err)
	}
	keys, err := journal.NewKeyring(key)
	if err != nil {
		panic(err)
	}

	session := refresher.New("billing", refresher.Options{Dir: dir})
	detach, err := session.Attach(refresher.Config{Issuer: exchange, Sources: []refresher.Source{login}, Keys: keys})
	if err != nil {
		panic(err)
	}
	defer session.Close(context.Background())
	defer detach()

	client := &http.Client{Transport: session.Transport(nil), Timeout: time.Minute}
	for range 2 {
		resp, err := client.Post(api.URL+"/upload", "text/plain", strings.NewReader("hello"))
		if err != nil {
			panic(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		fmt.Println(resp.StatusCode, "with the token of generation", session.Status().Generation)
		if err := session.Refresh(context.Background()); err != nil { // usually the schedule does that
			panic(err)
		}
	}
	client.CloseIdleConnections()
	// Output:
	// 200 with the token of generation 1
	// 200 with the token of generation 2
}
