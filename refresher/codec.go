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

// flagged carries a number and a flag.
func flagged(c *codec, v *uint64, flag *bool) {
	if !c.reading {
		both := *v << 1
		if *flag {
			both |= 1
		}
		c.bytes = binary.AppendUvarint(c.bytes, both)
		return
	}
	both, size := binary.Uvarint(c.bytes)
	*v, *flag, c.bytes = both>>1, both&1 == 1, c.bytes[size:]
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
	var none bool
	c.moment(v, &none)
}

// moment carries a time, and a flag with it. What it writes is 0 for no time, 1
// for one that follows in full, else what lies between it and the last one: in
// milliseconds if it can be.
func (c *codec) moment(v *time.Time, flag *bool) {
	const none, full, near = 0, 1, 2
	last := c.last.Wall
	var code uint64
	var seconds, nanos int64
	if !c.reading {
		code, seconds, nanos = full, v.Unix(), int64(v.Nanosecond())
		if apart := seconds - last.Unix(); v.IsZero() {
			code = none
		} else if -1e8 < apart && apart < 1e8 {
			since, unit := apart*1e9+nanos-int64(last.Nanosecond()), uint64(0)
			if since%1e6 == 0 {
				since, unit = since/1e6, 1
			}
			code = near + (uint64(since<<1^since>>63)<<1 | unit)
		}
	}
	flagged(c, &code, flag)
	if code == none {
		return
	}
	if code == full {
		number(c, &seconds)
		number(c, &nanos)
	}
	if c.reading {
		if code >= near {
			zigzag, unit := (code-near)>>1, int64(1)
			if (code-near)&1 == 1 {
				unit = 1e6
			}
			seconds, nanos = last.Unix(), int64(last.Nanosecond())+(int64(zigzag>>1)^-int64(zigzag&1))*unit
		}
		*v = time.Unix(seconds, nanos)
	}
	c.last.Wall = *v
}

// carry takes it that both clocks have moved by much the same since the last
// instant. Where they have not, or a sum overflows, it only takes more bytes.
func (i *Instant) carry(c *codec) {
	before := c.last
	moved := func() time.Duration {
		if i.Wall.IsZero() {
			return 0
		}
		return before.Boot + time.Duration(i.Wall.UnixNano()-before.Wall.UnixNano())
	}
	var apart time.Duration
	if !c.reading {
		apart = i.Boot - moved()
	}
	differs := apart != 0
	c.moment(&i.Wall, &differs)
	if differs {
		number(c, &apart)
	}
	if c.reading {
		i.Boot = moved() + apart
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
