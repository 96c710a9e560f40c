// Package refreshertest is a kit for tests of code that uses package refresher:
// a network without sockets and a clock that can be turned, so that a session, a
// real issuer client and an HTTP server run on the virtual time of
// testing/synctest.
//
//	synctest.Test(t, func(t *testing.T) {
//		network := refreshertest.NewNetwork()
//		stop := network.Serve("127.0.0.1:80", sandbox.New(sandbox.Config{}))
//		defer stop()
//		bearer, err := issuer.NewBearer(issuer.BearerConfig{
//			URL:  "http://127.0.0.1/User/RefreshToken",
//			Dial: network.Dial,
//		})
//		…
//		clock := refreshertest.NewClock()
//		session := refresher.New("name", refresher.Options{Dir: t.TempDir(), Clock: clock})
//		…
//		clock.Suspend(time.Hour)
//	})
//
// All of it is made inside the bubble: what comes from outside does not take
// part in its time.
package refreshertest
