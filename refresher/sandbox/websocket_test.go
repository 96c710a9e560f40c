package sandbox_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// sent builds a client's frame: first byte, mask bit, length, mask, payload.
func sent(first byte, payload []byte) []byte {
	var b []byte
	switch size := len(payload); {
	case size < 126:
		b = []byte{first, 0x80 | byte(size)}
	case size <= 0xffff:
		b = binary.BigEndian.AppendUint16([]byte{first, 0x80 | 126}, uint16(size))
	default:
		b = binary.BigEndian.AppendUint64([]byte{first, 0x80 | 127}, uint64(size))
	}
	mask := [4]byte{1, 2, 3, 4}
	b = append(b, mask[:]...)
	for i, c := range payload {
		b = append(b, c^mask[i%4])
	}
	return b
}

func TestAWebSocket(t *testing.T) {
	s, server := start(t, sandbox.Config{})
	p := login(s)
	full, over := bytes.Repeat([]byte("x"), 64<<10), bytes.Repeat([]byte("x"), 64<<10+1)
	wide := binary.BigEndian.AppendUint64([]byte{0x82, 127}, 64<<10)

	tests := []struct {
		name  string
		send  []byte
		want  []byte
		ended bool // by the other end, after want
	}{
		{"echoes text", sent(0x81, []byte("hello")), append([]byte{0x81, 5}, "hello"...), false},
		{"echoes an empty frame", sent(0x82, nil), []byte{0x82, 0}, false},
		{"echoes 200 bytes", sent(0x82, full[:200]), append([]byte{0x82, 126, 0, 200}, full[:200]...), false},
		{"echoes 64 KiB", sent(0x82, full), append(wide, full...), false},
		{"echoes fragments one by one", append(sent(0x01, []byte("a")), sent(0x80, []byte("b"))...), []byte{0x01, 1, 'a', 0x80, 1, 'b'}, false},
		{"answers a ping", sent(0x89, []byte("p")), []byte{0x8a, 1, 'p'}, false},
		{"ignores a pong", append(sent(0x8a, nil), sent(0x81, nil)...), []byte{0x81, 0}, false},
		{"answers a close with its code", sent(0x88, []byte{0x03, 0xe8}), []byte{0x88, 2, 0x03, 0xe8}, true},
		{"refuses more than 64 KiB", sent(0x82, over), []byte{0x88, 2, 0x03, 0xf1}, true},
		{"refuses a frame without a mask", []byte{0x81, 1, 'x'}, []byte{0x88, 2, 0x03, 0xea}, true},
		{"refuses reserved bits", sent(0xc1, nil), []byte{0x88, 2, 0x03, 0xea}, true},
		{"refuses an unknown opcode", sent(0x83, nil), []byte{0x88, 2, 0x03, 0xea}, true},
		{"refuses a ping in fragments", sent(0x09, nil), []byte{0x88, 2, 0x03, 0xea}, true},
		{"refuses a long ping", sent(0x89, full[:126]), []byte{0x88, 2, 0x03, 0xea}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			// The key and the answer to it are those of RFC 6455 section 1.3.
			fmt.Fprintf(conn, "GET /websocket HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nUpgrade: WebSocket\r\n"+
				"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", p.Access)
			reader := bufio.NewReader(conn)
			resp, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := resp.Header.Get("Sec-WebSocket-Accept"); resp.StatusCode != 101 || got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
				t.Fatalf("status %d, accept %q", resp.StatusCode, got)
			}
			go conn.Write(test.send)
			got := make([]byte, len(test.want))
			if _, err := io.ReadFull(reader, got); err != nil || !bytes.Equal(got, test.want) {
				t.Fatalf("got % x, %v", got[:min(len(got), 20)], err)
			}
			if test.ended {
				if _, err := reader.ReadByte(); err != io.EOF {
					t.Errorf("not closed: %v", err)
				}
			}
		})
	}
	if got := s.Stats().Served; got != len(tests) {
		t.Errorf("%d served, want %d", got, len(tests))
	}
}

func TestAWebSocketHandshakeIsRefused(t *testing.T) {
	flawless := map[string][]string{
		"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Version": {"13"},
		"Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
	}
	tests := []struct {
		name, header, value string
		status              int
	}{
		{"without upgrade", "Upgrade", "h2c", 400},
		{"without connection", "Connection", "close", 400},
		{"of another version", "Sec-Websocket-Version", "8", 426},
		{"with a short key", "Sec-Websocket-Key", "eA==", 400},
		{"where the connection cannot be taken over", "X-Flawless", "yes", 501},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := sandbox.New(sandbox.Config{})
			r := apiRequest("", "GET", "/websocket", login(s).Access, nil)
			with(r.Header, flawless).Set(test.header, test.value)
			wantStatus(t, "handshake", serve(s, r).Code, test.status)
		})
	}
}
