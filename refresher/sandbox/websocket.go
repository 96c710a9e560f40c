package sandbox

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// What this end of a websocket knows (RFC 6455 sections 5.2 and 7.4.1).
const (
	opClose = 0x8
	opPing  = 0x9
	opPong  = 0xa

	closeProtocol = 1002
	closeTooBig   = 1009

	maxFrame      = 64 << 10
	websocketIdle = 10 * time.Minute
)

// frame is one frame, its payload unmasked. Fragments are echoed one by one, so
// they never have to be put together.
type frame struct {
	final   bool
	op      byte
	payload []byte
}

// closeError ends a connection with a status code.
type closeError uint16

func (e closeError) Error() string { return "websocket closed by us" }

func (s *Sandbox) serveWebSocket(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-Websocket-Key")
	raw, err := base64.StdEncoding.DecodeString(key)
	switch {
	case r.Method != http.MethodGet || !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", "websocket"):
		writeJSON(w, http.StatusBadRequest, failure("this is no websocket handshake"))
		return
	case r.Header.Get("Sec-Websocket-Version") != "13":
		w.Header().Set("Sec-WebSocket-Version", "13")
		writeJSON(w, http.StatusUpgradeRequired, failure("the websocket version must be 13"))
		return
	case err != nil || len(raw) != 16:
		writeJSON(w, http.StatusBadRequest, failure("the websocket key is malformed"))
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeJSON(w, http.StatusNotImplemented, failure("websockets need HTTP/1.1"))
		return
	}
	defer conn.Close()
	s.served()
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // the GUID of section 1.3
	rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: " + base64.StdEncoding.EncodeToString(sum[:]) + "\r\n\r\n")
	if rw.Flush() == nil {
		echoFrames(conn, rw)
	}
}

func hasToken(h http.Header, name, token string) bool {
	for _, value := range h.Values(name) {
		for part := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

// echoFrames runs until either side has enough.
func echoFrames(conn net.Conn, rw *bufio.ReadWriter) {
	for {
		conn.SetDeadline(time.Now().Add(websocketIdle)) // a server that shuts down does not wait for us
		f, err := readFrame(rw)
		if code := closeError(0); errors.As(err, &code) {
			f = frame{final: true, op: opClose, payload: binary.BigEndian.AppendUint16(nil, uint16(code))}
		} else if err != nil {
			return
		}
		switch f.op {
		case opPong:
			continue
		case opPing:
			f.op = opPong
		}
		if writeFrame(rw, f) != nil {
			return
		}
		if f.op == opClose {
			hangUp(conn)
			return
		}
	}
}

// hangUp lets the peer read our close frame: closing with bytes unread would
// reset the connection and take the frame with it.
func hangUp(conn net.Conn) {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	conn.SetDeadline(time.Now().Add(time.Second))
	io.Copy(io.Discard, conn)
}

func readFrame(r io.Reader) (frame, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return frame{}, err
	}
	f := frame{final: head[0]&0x80 != 0, op: head[0] & 0x0f}
	size, control := uint64(head[1]&0x7f), f.op >= opClose
	if head[0]&0x70 != 0 || head[1]&0x80 == 0 || f.op > opPong || f.op > 2 && !control || // reserved bits, unmasked, unknown
		control && (size > 125 || !f.final) {
		return frame{}, closeError(closeProtocol)
	}
	switch size {
	case 126:
		if _, err := io.ReadFull(r, head[:2]); err != nil {
			return frame{}, err
		}
		size = uint64(binary.BigEndian.Uint16(head[:]))
	case 127:
		if _, err := io.ReadFull(r, head[:8]); err != nil {
			return frame{}, err
		}
		size = binary.BigEndian.Uint64(head[:])
	}
	if size > maxFrame {
		return frame{}, closeError(closeTooBig)
	}
	var mask [4]byte
	f.payload = make([]byte, size)
	if _, err := io.ReadFull(r, mask[:]); err != nil {
		return frame{}, err
	}
	if _, err := io.ReadFull(r, f.payload); err != nil {
		return frame{}, err
	}
	for i := range f.payload {
		f.payload[i] ^= mask[i%4]
	}
	return f, nil
}

func writeFrame(w *bufio.ReadWriter, f frame) error {
	head := []byte{f.op, 0}
	if f.final {
		head[0] |= 0x80
	}
	switch size := len(f.payload); {
	case size < 126:
		head[1] = byte(size)
	case size <= 0xffff:
		head[1] = 126
		head = binary.BigEndian.AppendUint16(head, uint16(size))
	default:
		head[1] = 127
		head = binary.BigEndian.AppendUint64(head, uint64(size))
	}
	w.Write(head)
	w.Write(f.payload)
	return w.Flush()
}
