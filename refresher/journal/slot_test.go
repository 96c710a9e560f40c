package journal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
	"testing"
)

func TestDecodeSlot(t *testing.T) {
	body := []byte("the body")
	forge := func(change func(image []byte)) []byte {
		image := encodeSlot(7, body)
		change(image)
		binary.BigEndian.PutUint32(image[sumAt:], slotSum(image[:headerSize+len(body)]))
		return image
	}
	for _, c := range []struct {
		name  string
		image []byte
		want  slotState
		seq   uint64
		body  string
	}{
		{"an empty file is blank", nil, slotBlank, 0, ""},
		{"zeros are blank", make([]byte, SlotSize), slotBlank, 0, ""},
		{"the first bytes of a genesis record are blank", append([]byte("ctrj"), make([]byte, 100)...), slotBlank, 0, ""},
		{"the genesis record is valid with number 0", encodeSlot(0, nil), slotValid, 0, ""},
		{"a record is valid", encodeSlot(7, body), slotValid, 7, "the body"},
		{"a record with an empty body is valid", encodeSlot(7, nil), slotValid, 7, ""},
		{"a record of the greatest length is valid", encodeSlot(7, bytes.Repeat([]byte("x"), MaxBody)), slotValid, 7,
			string(bytes.Repeat([]byte("x"), MaxBody))},
		{"a record without its padding is valid", encodeSlot(7, body)[:headerSize+len(body)], slotValid, 7, "the body"},
		{"what stands behind a record does not matter", append(encodeSlot(7, body), "older bytes"...), slotValid, 7, "the body"},
		{"a record that lacks its last byte is torn", encodeSlot(7, body)[:headerSize+len(body)-1], slotTorn, 0, ""},
		{"one byte that is not zero is torn", []byte{0, 0, 1}, slotTorn, 0, ""},
		{"text is torn", []byte("hello, this is certainly not a journal slot"), slotTorn, 0, ""},
		{"another version with a right sum is foreign", forge(func(b []byte) { b[9] = 2 }), slotForeign, 7, ""},
		{"reserved bytes are covered by the sum and else ignored", forge(func(b []byte) { b[12] = 9 }), slotValid, 7, "the body"},
		{"the last number has no successor and is torn", encodeSlot(math.MaxUint64, body), slotTorn, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			state, seq, got := decodeSlot(c.image)
			if state != c.want || state != slotTorn && seq != c.seq || string(got) != c.body {
				t.Errorf("got state %d, seq %d, body of %d bytes; want %d, %d, %d", state, seq, len(got), c.want, c.seq, len(c.body))
			}
		})
	}
}

func TestASlotWithAnyBitFlippedIsNotValid(t *testing.T) {
	body := bytes.Repeat([]byte("token "), 40)
	for at := range headerSize + len(body) {
		for bit := range 8 {
			image := encodeSlot(3, body)
			image[at] ^= 1 << bit
			if state, _, _ := decodeSlot(image); state != slotTorn {
				t.Errorf("bit %d of byte %d flipped: state %d, want torn", bit, at, state)
			}
		}
	}
}

func FuzzSlot(f *testing.F) {
	f.Add([]byte{})
	f.Add(encodeSlot(0, nil))
	f.Add(encodeSlot(5, []byte("body")))
	f.Add(encodeSlot(math.MaxUint64, []byte("body")))
	f.Add(encodeSlot(5, []byte("body"))[:34])
	foreign := encodeSlot(5, nil)
	foreign[9] = 2
	binary.BigEndian.PutUint32(foreign[sumAt:], slotSum(foreign[:headerSize]))
	f.Add(foreign)
	f.Fuzz(func(t *testing.T, image []byte) {
		state, seq, body := decodeSlot(image)
		if state != slotValid {
			if body != nil {
				t.Fatalf("state %d came with a body", state)
			}
			return
		}
		// The sum once more, not by the code under test.
		record := append(bytes.Clone(image[:28]), image[32:32+len(body)]...)
		if crc32.Checksum(record, crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(image[28:32]) {
			t.Fatal("a body with a wrong sum was returned")
		}
		if again, seqAgain, bodyAgain := decodeSlot(encodeSlot(seq, body)); again != slotValid || seqAgain != seq || !bytes.Equal(bodyAgain, body) {
			t.Fatal("the record does not survive being written again")
		}
	})
}
