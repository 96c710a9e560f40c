package refresher

import (
	"encoding/binary"
	"math"
	"time"
)

// codec carries values into bytes and back. Each kind of value has one function
// for both ways, so that a struct names its fields once. The bytes never leave
// the process: they have no version, and whoever reads them wrote them.
type codec struct {
	bytes   []byte // written so far, or still to be read
	reading bool
	last    Instant // that was carried: most are near another
	boot    string  // the id of the boot that most of what is carried comes from
}

func number[T ~int | ~int64 | ~uint8 | ~uint64](c *codec, v *T) {
	if !c.reading {
		c.bytes = binary.AppendVarint(c.bytes, int64(*v))
		return
	}
	n, size := binary.Varint(c.bytes)
	*v, c.bytes = T(n), c.bytes[size:]
}

// word is number for values that use all of their 64 bits.
func word[T ~uint64](c *codec, v *T) {
	if !c.reading {
		c.bytes = binary.BigEndian.AppendUint64(c.bytes, uint64(*v))
		return
	}
	*v, c.bytes = T(binary.BigEndian.Uint64(c.bytes)), c.bytes[8:]
}

func fraction(c *codec, v *float64) {
	bits := math.Float64bits(*v)
	word(c, &bits)
	if c.reading {
		*v = math.Float64frombits(bits)
	}
}

// text carries no difference between nil and empty.
func text[T ~string | ~[]byte](c *codec, v *T) {
	size := len(*v)
	number(c, &size)
	switch {
	case !c.reading:
		c.bytes = append(c.bytes, string(*v)...)
	case size > 0:
		*v, c.bytes = T(string(c.bytes[:size])), c.bytes[size:]
	}
}

// bootID is text for what is nearly always one and the same.
func bootID(c *codec, v *string) {
	ours := *v == c.boot && c.boot != ""
	flags(c, &ours)
	switch {
	case !ours:
		text(c, v)
	case c.reading:
		*v = c.boot
	}
}

// flags carries up to 63 of them.
func flags(c *codec, all ...*bool) {
	var set uint64
	for i, v := range all {
		if *v {
			set |= 1 << i
		}
	}
	number(c, &set)
	if c.reading {
		for i, v := range all {
			*v = set>>i&1 != 0
		}
	}
}

// date carries a time of any year, and brings it back in the local zone.
func date(c *codec, v *time.Time) {
	var nanos int // and one more, so that zero is left for none
	var seconds int64
	if !v.IsZero() {
		nanos, seconds = v.Nanosecond()+1, v.Unix()-c.last.Wall.Unix()
	}
	number(c, &nanos)
	if nanos == 0 {
		return
	}
	number(c, &seconds)
	if c.reading {
		*v = time.Unix(c.last.Wall.Unix()+seconds, int64(nanos-1))
	}
	c.last.Wall = *v
}

// carry takes it that both clocks have moved by much the same since the last
// instant. Where they have not, or a sum overflows, it only takes more bytes.
func (i *Instant) carry(c *codec) {
	before := c.last
	date(c, &i.Wall)
	moved := time.Duration(0)
	if !i.Wall.IsZero() {
		moved = before.Boot + time.Duration(i.Wall.UnixNano()-before.Wall.UnixNano())
	}
	apart := i.Boot - moved
	number(c, &apart)
	if c.reading {
		i.Boot = moved + apart
	}
	if !i.Wall.IsZero() {
		c.last = *i
	}
}

// instants spares most of them a line.
func instants(c *codec, all ...*Instant) {
	for _, v := range all {
		v.carry(c)
	}
}

// list carries no difference between nil and empty.
func list[T any](c *codec, v *[]T, item func(*codec, *T)) {
	size := len(*v)
	number(c, &size)
	if c.reading && size > 0 {
		*v = make([]T, size)
	}
	for i := range *v {
		item(c, &(*v)[i])
	}
}

func optional[T any](c *codec, v **T, item func(*codec, *T)) {
	there := *v != nil
	flags(c, &there)
	if c.reading && there {
		*v = new(T)
	}
	if there {
		item(c, *v)
	}
}

// squeeze appends plain to out, with runs of zeros, of which an idle state is
// full, as a zero and their number.
func squeeze(out, plain []byte) []byte {
	for i := 0; i < len(plain); i++ {
		out = append(out, plain[i])
		if plain[i] != 0 {
			continue
		}
		run := 1
		for run < 255 && i+1 < len(plain) && plain[i+1] == 0 {
			run, i = run+1, i+1
		}
		out = append(out, byte(run))
	}
	return out
}

// stretch is the inverse of squeeze.
func stretch(out []byte, squeezed string) []byte {
	for i := 0; i < len(squeezed); i++ {
		out = append(out, squeezed[i])
		if squeezed[i] == 0 {
			i++
			out = append(out, make([]byte, squeezed[i]-1)...)
		}
	}
	return out
}
