package webhook

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// The outbox file is a row of frames: magic (4 bytes), length of the content (4,
// big endian), CRC32C of the content (4), content. The content is one of the
// records below as JSON. A frame tells an event to all its hooks at once, so that
// a write cut short loses all of it or nothing.
const (
	frameMagic = "cwo1"
	frameHead  = 12
	maxFrame   = 8 << 20
)

// addRecord is an event that has to be delivered.
type addRecord struct {
	ID      string    `json:"id"`
	Session string    `json:"session"`
	At      time.Time `json:"at"`
	To      []addTo   `json:"to"`
}

type addTo struct {
	Hook   string `json:"hook"`
	Sealed []byte `json:"sealed"`
}

// doneRecord is a delivery that was answered 2xx, or given up for the reason
// that stands in the log.
type doneRecord struct {
	ID   string    `json:"id"`
	Hook string    `json:"hook"`
	At   time.Time `json:"at"`
}

type logRecord struct {
	Add  *addRecord  `json:"add,omitempty"`
	Done *doneRecord `json:"done,omitempty"`
}

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	errForeignLog = errors.New("written by another version: run that version until nothing is pending, or set the file aside")
)

func appendFrame(to []byte, rec logRecord) ([]byte, error) {
	content, err := json.Marshal(rec)
	if err != nil {
		return to, fmt.Errorf("encoding an outbox record: %w", err)
	}
	if len(content) > maxFrame {
		return to, fmt.Errorf("an outbox record of %d bytes is larger than %d", len(content), maxFrame)
	}
	to = append(to, frameMagic...)
	to = binary.BigEndian.AppendUint32(to, uint32(len(content)))
	to = binary.BigEndian.AppendUint32(to, crc32.Checksum(content, castagnoli))
	return append(to, content...), nil
}

// scanned is what was found in an outbox file.
type scanned struct {
	records []logRecord
	torn    bool // the end is an incomplete write
	damaged int  // bytes between whole frames that are none
}

// scanLog reads a file of any content. What is no frame at the end is a write
// that was cut off: nobody was told that it is safe. What is no frame between
// frames is damage; reading goes on behind it.
func scanLog(data []byte) (scanned, error) {
	var s scanned
	if len(data) >= len(frameMagic) && bytes.HasPrefix(data, []byte(frameMagic[:3])) &&
		data[3] >= '0' && data[3] <= '9' && data[3] != frameMagic[3] {
		return s, errForeignLog
	}
	skipped := 0
	for len(data) > 0 {
		rec, size, ok := firstFrame(data)
		if ok {
			s.damaged, skipped = s.damaged+skipped, 0
			s.records = append(s.records, rec)
			data = data[size:]
			continue
		}
		next := bytes.Index(data[1:], []byte(frameMagic))
		if next < 0 {
			break
		}
		skipped += next + 1
		data = data[next+1:]
	}
	s.torn = skipped > 0 || len(data) > 0
	return s, nil
}

// firstFrame reads the frame that data begins with.
func firstFrame(data []byte) (rec logRecord, size int, ok bool) {
	if len(data) < frameHead || !bytes.HasPrefix(data, []byte(frameMagic)) {
		return rec, 0, false
	}
	length := binary.BigEndian.Uint32(data[4:])
	if length > maxFrame || int(length) > len(data)-frameHead {
		return rec, 0, false
	}
	content := data[frameHead : frameHead+int(length)]
	if crc32.Checksum(content, castagnoli) != binary.BigEndian.Uint32(data[8:]) {
		return rec, 0, false
	}
	if json.Unmarshal(content, &rec) != nil || (rec.Add == nil) == (rec.Done == nil) {
		return logRecord{}, 0, false
	}
	return rec, frameHead + int(length), true
}
