package issuer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
)

const (
	maxHead          = 32 << 10 // bytes of an answer's head, interim answers included
	maxInterim       = 8        // 1xx answers before the final one
	firstFinalStatus = 200
)

// None of these repeats a word of the issuer's. net/http's and net/textproto's
// own errors quote what they could not read, and that can be a token.
var (
	errHeadTooLong  = fmt.Errorf("the answer's head is longer than %d bytes", maxHead)
	errHeadBad      = errors.New("the answer's head is not HTTP/1.1")
	errInterimFlood = fmt.Errorf("more than %d interim answers", maxInterim)
	errSwitched     = errors.New("the issuer switched protocols unasked")
	errCutShort     = errors.New("the connection ended before the answer was complete")
	errBodyBad      = errors.New("the answer's body is not framed as HTTP/1.1 has it")
	errBodyTooLong  = fmt.Errorf("it is longer than %d bytes", refresher.MaxAnswer)
	errBodyEncoded  = errors.New("its content is encoded")
)

// readAnswer reads one final answer from r into out: the head, then the body as
// far as its framing says. It waits for the end of the stream only where nothing
// else marks the body's end (RFC 9112 section 6.3).
func readAnswer(r io.Reader, out *Outcome) {
	resp, err := readHead(bufio.NewReader(r))
	if err != nil {
		out.Err = err
		return
	}
	out.ReceivedAt = time.Now()
	out.Status = resp.StatusCode
	out.Header = resp.Header
	body, err := io.ReadAll(io.LimitReader(resp.Body, refresher.MaxAnswer+1))
	if len(body) > refresher.MaxAnswer {
		body = body[:refresher.MaxAnswer]
		out.BodyErr = errBodyTooLong
	} else if err != nil {
		out.Err = readFault(err, errBodyBad)
	}
	out.Body = refresher.NewSecret(string(body))
	if encoded(resp.Header) {
		out.BodyErr = errBodyEncoded
	}
}

// readHead skips interim answers and returns the final one, its body unread.
func readHead(br *bufio.Reader) (*http.Response, error) {
	left := maxHead
	for range maxInterim + 1 {
		head, err := headBytes(br, left)
		if err != nil {
			return nil, err
		}
		left -= len(head)
		resp, err := http.ReadResponse(
			bufio.NewReader(io.MultiReader(bytes.NewReader(head), br)),
			&http.Request{Method: http.MethodPost}, // GET and DELETE are answered in the same form
		)
		switch {
		case err != nil:
			return nil, errHeadBad
		case resp.ProtoMajor != 1 || resp.StatusCode < 100 || resp.StatusCode > 599:
			return nil, errHeadBad
		case resp.StatusCode == http.StatusSwitchingProtocols:
			return nil, errSwitched
		case resp.StatusCode >= firstFinalStatus:
			return resp, nil
		}
	}
	return nil, errInterimFlood
}

// headBytes reads up to and including the empty line that ends a head, at most
// limit bytes. net/http has no bound of its own here.
func headBytes(br *bufio.Reader, limit int) ([]byte, error) {
	var head []byte
	lineStart := 0
	for {
		frag, err := br.ReadSlice('\n')
		head = append(head, frag...)
		if len(head) > limit {
			return nil, errHeadTooLong
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, readFault(err, errHeadBad)
		}
		if line := string(head[lineStart:]); line == "\r\n" || line == "\n" {
			return head, nil
		}
		lineStart = len(head)
	}
}

// readFault keeps errors of the connection, which name addresses at most, and
// puts malformed in the place of what a parser says.
func readFault(err, malformed error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errCutShort
	case errors.As(err, &op):
		return err
	case errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe):
		return errCutShort
	default:
		return malformed
	}
}

func encoded(h http.Header) bool {
	for _, value := range h.Values("Content-Encoding") {
		for coding := range strings.SplitSeq(value, ",") {
			if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "identity") {
				return true
			}
		}
	}
	return false
}
