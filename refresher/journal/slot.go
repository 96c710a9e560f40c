package journal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
)

const (
	// SlotSize is the size in bytes of each of the two slot files.
	SlotSize = 128 << 10
	// MaxBody is the greatest length in bytes of a body that fits a slot.
	MaxBody = SlotSize - headerSize

	headerSize  = 32
	sumAt       = headerSize - 4
	pageSize    = 4096
	magic       = "ctrjrnl1"
	slotVersion = 1
)

// slotState says what a slot image holds.
type slotState int

const (
	slotBlank   slotState = iota // never written, or only the first bytes of the genesis record
	slotValid                    // a whole record
	slotTorn                     // neither blank nor whole
	slotForeign                  // whole, but in a version this package cannot read
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeSlot lays out one record: magic [0:8], version [8:10], reserved
// [10:16], seq [16:24], length [24:28], CRC32C of header and body [28:32], body;
// numbers are big endian. The image is padded with zeros to whole pages: the
// kernel then need not read a page, perhaps an unreadable one, to change a part
// of it. The caller has checked len(body) <= MaxBody.
func encodeSlot(seq uint64, body []byte) []byte {
	used := headerSize + len(body)
	image := make([]byte, (used+pageSize-1)/pageSize*pageSize)
	copy(image, magic)
	binary.BigEndian.PutUint16(image[8:], slotVersion)
	binary.BigEndian.PutUint64(image[16:], seq)
	binary.BigEndian.PutUint32(image[24:], uint32(len(body)))
	copy(image[headerSize:], body)
	binary.BigEndian.PutUint32(image[sumAt:], slotSum(image[:used]))
	return image
}

func slotSum(record []byte) uint32 {
	sum := crc32.Update(0, castagnoli, record[:sumAt])
	return crc32.Update(sum, castagnoli, record[headerSize:])
}

// recordSize is how much of a slot its record says that it fills, if that can be.
func recordSize(image []byte) int {
	if len(image) < headerSize || string(image[:len(magic)]) != magic {
		return 0
	}
	if length := binary.BigEndian.Uint32(image[24:]); length <= MaxBody {
		return headerSize + int(length)
	}
	return 0
}

// decodeSlot reads an image of any length and content. seq is set for valid and
// foreign slots, body (a part of image) for valid ones.
func decodeSlot(image []byte) (state slotState, seq uint64, body []byte) {
	if len(image) >= headerSize && string(image[:len(magic)]) == magic {
		length := binary.BigEndian.Uint32(image[24:])
		seq = binary.BigEndian.Uint64(image[16:])
		// The last number is refused because its successor would be the genesis.
		if uint64(length) <= uint64(len(image)-headerSize) && seq < math.MaxUint64 {
			record := image[:headerSize+int(length)]
			if slotSum(record) == binary.BigEndian.Uint32(image[sumAt:]) {
				if binary.BigEndian.Uint16(image[8:]) != slotVersion {
					return slotForeign, seq, nil
				}
				return slotValid, seq, record[headerSize:]
			}
		}
	}
	genesis := encodeSlot(0, nil)
	if bytes.HasPrefix(genesis, bytes.TrimRight(image, "\x00")) {
		return slotBlank, 0, nil
	}
	return slotTorn, 0, nil
}
