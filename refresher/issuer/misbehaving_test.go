package issuer

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

// Each answer is sent to one request over TCP; the connection is then held open
// unless the case says that the server closes, so a case that passes also shows
// that the client did not wait for the end of the stream.
func TestAnswersOffTheWire(t *testing.T) {
	ok := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	sized := func(head, body string) string {
		return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
	}
	padded := func(n int) string {
		return goodBody + strings.Repeat(" ", n-len(goodBody))
	}
	tests := []struct {
		name   string
		answer string
		closes bool
		want   refresher.Class
		text   string // part of the error
	}{
		{name: "an answer with Content-Length is complete at its last byte", answer: sized(ok, goodBody), want: refresher.ClassOK},
		{name: "a chunked answer is complete at its last chunk", answer: ok + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(goodBody), goodBody), want: refresher.ClassOK},
		{name: "an answer without a length is read to the end of the stream", answer: ok + "\r\n" + goodBody, closes: true, want: refresher.ClassOK},
		{name: "an HTTP/1.0 answer is read", answer: "HTTP/1.0 200 OK\r\n\r\n" + goodBody, closes: true, want: refresher.ClassOK},
		{name: "interim answers are skipped", answer: strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n", maxInterim) + sized(ok, goodBody), want: refresher.ClassOK},
		{name: "a body of exactly the limit is read", answer: sized(ok, padded(refresher.MaxAnswer)), want: refresher.ClassOK},
		{name: "identity is no encoding", answer: sized(ok+"Content-Encoding: identity\r\n", goodBody), want: refresher.ClassOK},

		{name: "the connection is closed after the request", closes: true, want: refresher.ClassUnknown, text: "did not answer"},
		{name: "the head is cut short", answer: "HTTP/1.1 200 OK\r\nConte", closes: true, want: refresher.ClassUnknown, text: "did not answer: the connection ended"},
		{name: "the body is shorter than Content-Length", answer: ok + "Content-Length: 4096\r\n\r\n" + goodBody, closes: true, want: refresher.ClassUnknown, text: "200 OK, but not to the end"},
		{name: "a refusal that is cut short is no refusal", answer: "HTTP/1.1 403 Forbidden\r\nContent-Length: 10\r\n\r\nno", closes: true, want: refresher.ClassUnknown, text: "403 Forbidden, but not to the end"},
		{name: "a chunk's length is no number", answer: ok + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + goodBody, want: refresher.ClassUnknown, text: errBodyBad.Error()},
		{name: "the last chunk is missing", answer: ok + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(goodBody), goodBody), closes: true, want: refresher.ClassUnknown, text: "connection ended"},
		{name: "two lengths disagree", answer: ok + "Content-Length: 5\r\nContent-Length: 7\r\n\r\n{}", want: refresher.ClassUnknown, text: errHeadBad.Error()},
		{name: "the content is compressed", answer: sized(ok+"Content-Encoding: gzip\r\n", "\x1f\x8b\x08"), want: refresher.ClassUnknown, text: errBodyEncoded.Error()},
		{name: "the transfer is compressed", answer: ok + "Transfer-Encoding: gzip\r\n\r\n", want: refresher.ClassUnknown, text: errHeadBad.Error()},
		{name: "the body is one byte too long", answer: sized(ok, padded(refresher.MaxAnswer+1)), want: refresher.ClassUnknown, text: errBodyTooLong.Error()},
		{name: "the body has no end", answer: ok + "Content-Length: 1073741824\r\n\r\n" + padded(refresher.MaxAnswer+1), want: refresher.ClassUnknown, text: errBodyTooLong.Error()},
		{name: "a refusal with an endless page is a refusal", answer: "HTTP/1.1 403 Forbidden\r\nContent-Length: 1073741824\r\n\r\n" + padded(refresher.MaxAnswer+1), want: refresher.ClassConfig, text: "403 Forbidden"},
		{name: "the head is a mebibyte", answer: ok + "X: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", want: refresher.ClassUnknown, text: errHeadTooLong.Error()},
		{name: "the head has a mebibyte of fields", answer: ok + strings.Repeat("X: x\r\n", 1<<18) + "\r\n", want: refresher.ClassUnknown, text: errHeadTooLong.Error()},
		{name: "interim answers never end", answer: strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 1000), want: refresher.ClassUnknown, text: errInterimFlood.Error()},
		{name: "interim answers fill the head's limit", answer: strings.Repeat("HTTP/1.1 103 x\r\nX: "+strings.Repeat("x", 8<<10)+"\r\n\r\n", 5), want: refresher.ClassUnknown, text: errHeadTooLong.Error()},
		{name: "nothing follows an interim answer", answer: "HTTP/1.1 100 Continue\r\n\r\n", closes: true, want: refresher.ClassUnknown, text: "did not answer"},
		{name: "the protocol is switched", answer: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", want: refresher.ClassUnknown, text: errSwitched.Error()},
		{name: "the answer is not HTTP", answer: "SSH-2.0-OpenSSH_9.9\r\n\r\n", want: refresher.ClassUnknown, text: errHeadBad.Error()},
		{name: "the answer is HTTP/2", answer: "HTTP/2.0 200 OK\r\n\r\n", want: refresher.ClassUnknown, text: errHeadBad.Error()},
		{name: "the status is 000", answer: "HTTP/1.1 000 x\r\n\r\n", want: refresher.ClassUnknown, text: errHeadBad.Error()},
		{name: "the status is 999", answer: "HTTP/1.1 999 x\r\n\r\n", want: refresher.ClassUnknown, text: errHeadBad.Error()},
		{name: "204 has nothing to read", answer: "HTTP/1.1 204 No Content\r\n\r\n", want: refresher.ClassUnknown, text: errNoContent.Error()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serveRaw(t, func(s *rawServer, conn net.Conn, _ int) {
				if !s.readRequest(conn) {
					return
				}
				_, _ = io.WriteString(conn, tt.answer)
				if !tt.closes {
					untilClosed(conn)
				}
			})
			a := send(t, newBearer(t, s.url()))
			wantClass(t, a, tt.want)
			if tt.want == refresher.ClassOK {
				wantNewPair(t, a.Pair)
			} else if !strings.Contains(a.Err.Error(), tt.text) {
				t.Errorf("error %q does not say %q", a.Err, tt.text)
			}
			if n := s.requests.Load(); n != 1 {
				t.Errorf("the server saw %d requests", n)
			}
		})
	}
}

// The issuer has probably committed: an operator may still find the new tokens.
func TestTheBodyOfAnUnusableSuccessIsKept(t *testing.T) {
	tests := []struct {
		name, head, body string
	}{
		{"when it is a page", "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n", "<p>" + goodBody},
		{"when it was cut short", "HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n", goodBody},
		{"up to the limit when it was too long", "HTTP/1.1 201 Created\r\n\r\n", strings.Repeat("x", refresher.MaxAnswer)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serveRaw(t, func(s *rawServer, conn net.Conn, _ int) {
				if s.readRequest(conn) {
					_, _ = io.WriteString(conn, tt.head+tt.body)
				}
			})
			a := send(t, newBearer(t, s.url()))
			wantClass(t, a, refresher.ClassUnknown)
			if a.Raw.Reveal() != tt.body {
				t.Errorf("kept %d bytes, want %d", len(a.Raw.Reveal()), len(tt.body))
			}
		})
	}
}

// A 307 would have net/http send the body and the Authorization field again.
func TestARedirectIsNotFollowed(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			second := serveRaw(t, func(s *rawServer, conn net.Conn, _ int) { s.requests.Add(1) })
			first := serveRaw(t, func(s *rawServer, conn net.Conn, _ int) {
				if s.readRequest(conn) {
					fmt.Fprintf(conn, "HTTP/1.1 %d x\r\nLocation: %s?q=%s\r\nContent-Length: 0\r\n\r\n", status, second.url(), oldRefresh)
				}
			})
			a := send(t, newBearer(t, first.url()))
			wantClass(t, a, refresher.ClassRedirect)
			if !strings.HasSuffix(a.Err.Error(), " to "+second.listener.Addr().String()+", which is not followed") {
				t.Errorf("error %q does not name the host alone", a.Err)
			}
			if first.requests.Load() != 1 || second.requests.Load() != 0 {
				t.Errorf("first saw %d, second %d", first.requests.Load(), second.requests.Load())
			}
		})
	}
}

func TestASecondSendSendsNothing(t *testing.T) {
	s := serveRaw(t, func(s *rawServer, conn net.Conn, _ int) {
		if s.readRequest(conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"+goodBody)
		}
	})
	ex := prepare(t, newBearer(t, s.url()))
	wantClass(t, ex.Send(context.Background(), oldPair()), refresher.ClassOK)
	ex.Close()
	wantClass(t, ex.Send(context.Background(), oldPair()), refresher.ClassNotSent)
	if n := s.requests.Load(); n != 1 {
		t.Errorf("the server saw %d requests", n)
	}
}
