package sandbox_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

func TestAFaultAnswers(t *testing.T) {
	tests := []struct {
		name      string
		fault     sandbox.Fault
		status    int
		body      string // a part of it
		header    string // one of them, with its value in want
		want      string
		committed bool
		delivered bool
	}{
		{name: "500 without a commit", fault: sandbox.Fault{}, status: 500, body: "fault"},
		{name: "503 with Retry-After", fault: sandbox.Fault{Status: 503, Header: http.Header{"Retry-After": {"3"}}},
			status: 503, header: "Retry-After", want: "3"},
		{name: "429 with a date", fault: sandbox.Fault{Status: 429, Header: http.Header{"Retry-After": {"Wed, 21 Oct 2026 07:28:00 GMT"}}},
			status: 429, header: "Retry-After", want: "Wed, 21 Oct 2026 07:28:00 GMT"},
		{name: "500 after a commit, and no pair in it", fault: sandbox.Fault{Commit: true, Status: 500}, status: 500, committed: true},
		{name: "HTML with 200", fault: sandbox.Fault{Status: 200, Body: "<html>", ContentType: "text/html"},
			status: 200, body: "<html>", header: "Content-Type", want: "text/html"},
		{name: "HTML with 200 after a commit", fault: sandbox.Fault{Commit: true, Body: "<html>"}, status: 200, body: "<html>", committed: true},
		{name: "nothing with 200 after a commit", fault: sandbox.Fault{Commit: true, Status: 200}, status: 200, committed: true},
		{name: "204 after a commit", fault: sandbox.Fault{Commit: true, Status: 204}, status: 204, committed: true},
		{name: "a redirect", fault: sandbox.Fault{Status: 307, Header: http.Header{"Location": {"https://other.example/"}}},
			status: 307, header: "Location", want: "https://other.example/"},
		{name: "the pair under other names", fault: sandbox.Fault{Commit: true, Body: `{"access_token":"{accessToken}","refresh_token":"{refreshToken}"}`},
			status: 200, body: `{"access_token":"ey`, committed: true, delivered: true},
		{name: "half of the pair", fault: sandbox.Fault{Commit: true, Body: `{"accessToken":"{accessToken}"}`},
			status: 200, body: `{"accessToken":"ey`, committed: true},
		{name: "the pair with a wrong content type", fault: sandbox.Fault{Commit: true, ContentType: "text/plain"},
			status: 200, body: `{"accessToken":"ey`, header: "Content-Type", want: "text/plain", committed: true, delivered: true},
		{name: "500 for a status that is none", fault: sandbox.Fault{Status: 42}, status: 500},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := sandbox.New(sandbox.Config{})
			p := login(s)
			s.Fault(test.fault, 1)
			w := serve(s, exchangeRequest("", p))
			wantStatus(t, "exchange", w.Code, test.status)
			if !strings.Contains(w.Body.String(), test.body) || test.body == "" && w.Body.Len() > 0 {
				t.Errorf("body %q, want %q", w.Body, test.body)
			}
			if got := w.Header().Get(test.header); got != test.want {
				t.Errorf("%s: %q, want %q", test.header, got, test.want)
			}
			e := s.Ledger()[0]
			if e.CommittedAt.IsZero() == test.committed || e.Delivered != test.delivered || !e.Fault || e.Status != test.status {
				t.Errorf("entry %+v", e)
			}
			if test.committed {
				wantStatus(t, "API with the first token", call(s, p.Access), 401)
			} else {
				mustExchange(t, s, p)
			}
		})
	}
}

func TestFaultsComeInTurn(t *testing.T) {
	s := sandbox.New(sandbox.Config{})
	s.SetFault(sandbox.Fault{Status: 599})
	s.Fault(sandbox.Fault{Status: 501}, 2)
	s.Fault(sandbox.Fault{Status: 502}, 0)
	s.Fault(sandbox.Fault{Path: "/User/Login", Status: 503}, 1)
	p := login(s)
	for _, want := range []int{501, 501, 502, 599, 599} {
		status, _ := exchange(t, s, p)
		wantStatus(t, "exchange", status, want)
	}
	r := exchangeRequest("", p)
	r.URL.Path = "/User/Login"
	wantStatus(t, "login", serve(s, r).Code, 503)
	s.ClearFaults()
	mustExchange(t, s, p)
}

func TestAFaultOnTheWire(t *testing.T) {
	// fail makes an exchange over a socket and returns the client's error.
	fail := func(t *testing.T, f sandbox.Fault, ctx context.Context) (*sandbox.Sandbox, pair, string, error) {
		s, server := start(t, sandbox.Config{})
		p := login(s)
		s.Fault(f, 1)
		resp, err := server.Client().Do(exchangeRequest(server.URL, p).WithContext(ctx))
		if err != nil {
			return s, p, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return s, p, string(body), err
	}
	t.Run("drops the connection after the commit", func(t *testing.T) {
		s, _, _, err := fail(t, sandbox.Fault{Commit: true, Drop: true}, t.Context())
		if !errors.Is(err, io.EOF) {
			t.Errorf("error %v, want EOF", err)
		}
		if e := s.Ledger()[0]; e.CommittedAt.IsZero() || e.Delivered || e.Status != 0 {
			t.Errorf("entry %+v", e)
		}
	})
	t.Run("drops the connection without a commit", func(t *testing.T) {
		s, p, _, err := fail(t, sandbox.Fault{Drop: true}, t.Context())
		if !errors.Is(err, io.EOF) {
			t.Errorf("error %v, want EOF", err)
		}
		mustExchange(t, s, p)
	})
	t.Run("resets the connection", func(t *testing.T) {
		_, _, _, err := fail(t, sandbox.Fault{Commit: true, Reset: true}, t.Context())
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("error %v, want a reset", err)
		}
	})
	t.Run("truncates the answer", func(t *testing.T) {
		s, _, body, err := fail(t, sandbox.Fault{Commit: true, Truncate: true}, t.Context())
		if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.HasPrefix(body, `{"accessToken":"ey`) {
			t.Errorf("error %v, body of %d bytes", err, len(body))
		}
		if e := s.Ledger()[0]; e.CommittedAt.IsZero() || e.Delivered || e.Status != 200 {
			t.Errorf("entry %+v", e)
		}
	})
	t.Run("truncates even an empty answer", func(t *testing.T) {
		_, _, body, err := fail(t, sandbox.Fault{Status: 502, Truncate: true}, t.Context())
		if !errors.Is(err, io.ErrUnexpectedEOF) || body != "" {
			t.Errorf("error %v, body %q", err, body)
		}
	})
	t.Run("stalls in the middle of the answer until the caller leaves", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, _, body, err := fail(t, sandbox.Fault{Commit: true, Truncate: true, Hang: true}, ctx)
		if !errors.Is(err, context.DeadlineExceeded) || body == "" {
			t.Errorf("error %v, body of %d bytes", err, len(body))
		}
	})
	t.Run("never answers", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, _, _, err := fail(t, sandbox.Fault{Hang: true}, ctx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}
