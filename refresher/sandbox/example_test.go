package sandbox_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// A client whose exchange was done, but whose answer got lost, tries again: that
// is the end of its session.
func Example() {
	issuer := sandbox.New(sandbox.Config{})
	server := httptest.NewServer(issuer)
	defer server.Close()

	access, refresh := issuer.Login()
	issuer.Fault(sandbox.Fault{Commit: true, Drop: true}, 1)

	for range 2 {
		r, _ := http.NewRequest("POST", server.URL+"/User/RefreshToken", strings.NewReader(`{"refreshToken":"`+refresh+`"}`))
		r.Header.Set("Authorization", "Bearer "+access)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Version", "2.0")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			fmt.Println("no answer")
			continue
		}
		resp.Body.Close()
		fmt.Println(resp.Status)
	}
	stats := issuer.Stats()
	fmt.Println(stats.Exchanges, "exchange,", stats.Reuses, "reuse,", stats.Sessions, "sessions left")
	// Output:
	// no answer
	// 400 Bad Request
	// 1 exchange, 1 reuse, 0 sessions left
}
