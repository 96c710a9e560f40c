//go:build chaos && unix

package chaos

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// scenario is one run of one fleet.
type scenario struct {
	params params
	run    func(t *testing.T, f *fleet)
}

// TestChaos runs all scenarios, some of them at a time.
func TestChaos(t *testing.T) {
	room := make(chan struct{}, max(*jobs, 1))
	var wg sync.WaitGroup
	for _, store := range []string{"redis", "etcd"} {
		for name, s := range scenarios(store) {
			wg.Go(func() {
				room <- struct{}{}
				defer func() { <-room }()
				t.Run(store+"/"+name, func(t *testing.T) {
					s.params.store = store
					f := newFleet(t, s.params)
					s.run(t, f)
					f.finish()
				})
			})
		}
	}
	wg.Wait()
}

// scenarios are those of one store. The short form has each failpoint with
// Redis, and those that matter most with etcd.
func scenarios(store string) map[string]scenario {
	forgiving := params{
		sandbox: sandbox.Config{ReuseInterval: 30 * time.Second, ReuseSame: true},
		issuer:  "reuse_interval 30s same", rules: Rules{Forgiving: true},
	}
	static := params{
		sandbox: sandbox.Config{KeepRefreshToken: true, KeepPreviousAccess: true},
		issuer:  "revokes_previous off", rules: Rules{Forgiving: true},
	}
	undisturbed := params{rules: Rules{Undisturbed: true}}
	forgets := params{rules: Rules{Undisturbed: true}, forgets: true}
	all := map[string]scenario{
		"calm":                {undisturbed, calm},
		"killed_away":         {params{}, kills(whileAway...)},
		"store_restarted":     {undisturbed, outages},
		"store_without_state": {forgets, forgetting},
		"partitioned":         {params{}, partitions},
		"mix":                 {params{}, mix},
	}
	if store == "redis" || *long {
		all["killed_before"] = scenario{params{}, kills(beforeSending...)}
		all["killed_after"] = scenario{params{}, kills(afterwards...)}
		all["killed_forgiving"] = scenario{forgiving, kills(whileAway[1:]...)}
		all["killed_static"] = scenario{static, kills(whileAway[1:]...)}
		all["stopped_below"] = scenario{params{}, stops(freezes[0], freezes[2], freezes[4], freezes[7])}
		all["stopped_beyond"] = scenario{params{}, stops(freezes[1], freezes[3], freezes[5], freezes[6], freezes[8])}
		all["bad_network"] = scenario{params{}, toxics}
	} else {
		all["killed_around"] = scenario{params{}, kills(beforeSending[2], afterwards[0], afterwards[1])}
		all["stopped_beyond"] = scenario{params{}, stops(freezes[1], freezes[8])}
	}
	if *long {
		all["mix_forgetful"] = scenario{params{forgets: true}, mix}
		all["killed_forgiving"] = scenario{forgiving, kills(slices.Concat(beforeSending, whileAway, afterwards)...)}
		all["killed_static"] = scenario{static, kills(slices.Concat(beforeSending, whileAway, afterwards)...)}
	}
	return all
}

// calm: nothing happens, and nobody notices a rotation.
func calm(t *testing.T, f *fleet) {
	n := 5
	if *long {
		n = 200
	}
	f.awaitGeneration(f.generation()+n, time.Duration(n)*f.params.life)
	f.finish()
	st := f.sandbox.Stats()
	if st.Logins != 1 || st.Reuses != 0 || st.Attempts != st.Exchanges {
		t.Errorf("the issuer counted %+v", st)
	}
}

// exchange has an instance rotate, if nobody is faster.
func (i *instance) exchange() {
	_, _, _ = i.api(context.Background(), http.MethodPost, "/refresh", 5*time.Second)
}
