package refresher

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
	"unsafe"
)

// repacked is what a session goes on with after a rest. It fails the test where
// that is another state.
func repacked(t *testing.T, s state) state {
	t.Helper()
	var back state
	s.pack().unpack(&back, s.env)
	back.attempt.conn, back.pending, back.waiting, back.ending, back.fleet.held =
		s.attempt.conn, s.pending, s.waiting, s.ending, s.fleet.held
	if RaceDetector {
		return back // to compare them takes long, and was done without
	}
	// Functions cannot be compared, and nothing tells nil from empty.
	a, b := s, back
	a.thin(spentAtRest)
	a.env, b.env = environment{}, environment{}
	normalize(reflect.ValueOf(&a).Elem())
	normalize(reflect.ValueOf(&b).Elem())
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("a state that went to rest:\n%+v\ncame back as\n%+v", a, b)
	}
	return back
}

// normalize has empty slices be nil and times be in the local zone, down to
// where a state shares memory with others.
func normalize(v reflect.Value) {
	v = settable(v)
	switch v.Kind() {
	case reflect.Struct:
		if at, ok := v.Addr().Interface().(*time.Time); ok {
			if !at.IsZero() {
				*at = time.Unix(at.Unix(), int64(at.Nanosecond()))
			}
			return
		}
		for i := range v.NumField() {
			normalize(v.Field(i))
		}
	case reflect.Slice:
		if v.Len() == 0 {
			v.SetZero()
			return
		}
		clone := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		reflect.Copy(clone, v)
		v.Set(clone)
		for i := range v.Len() {
			normalize(v.Index(i))
		}
	case reflect.Pointer:
		if in, ok := v.Interface().(*intent); ok && in != nil {
			clone := *in
			v.Set(reflect.ValueOf(&clone))
			normalize(v.Elem())
		}
	}
}

// settable is a field that its package alone may set.
func settable(v reflect.Value) reflect.Value {
	return reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem()
}

// Each field of a state goes through pack and back, also one that somebody adds
// and forgets to name there.
func TestAStateAtRestIsWhole(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var s state
		fill(rng, reflect.ValueOf(&s).Elem())
		s.attempt.conn, s.pending, s.waiting, s.ending, s.fleet.held = nil, nil, nil, nil, nil
		if !s.whole() {
			t.Fatal("not whole")
		}
		repacked(t, s)
	}
}

// fill sets everything that can be set to something else than zero.
func fill(rng *rand.Rand, v reflect.Value) {
	v = settable(v)
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(rng.IntN(4) > 0)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(rng.Uint64() >> rng.IntN(64)))
	case reflect.Uint8:
		v.SetUint(1 + rng.Uint64()%255)
	case reflect.Uint64:
		v.SetUint(rng.Uint64() >> rng.IntN(64))
	case reflect.Float64:
		v.SetFloat(rng.NormFloat64())
	case reflect.String:
		text := make([]byte, rng.IntN(200))
		for i := range text {
			text[i] = byte(rng.Uint64())
		}
		v.SetString(string(text))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1+rng.IntN(3), 3))
		for i := range v.Len() {
			fill(rng, v.Index(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(rng, v.Elem())
	case reflect.Struct:
		switch at := v.Addr().Interface().(type) {
		case *time.Time:
			*at = time.Unix(rng.Int64N(1<<38)-1<<36, rng.Int64N(1e9))
		case *environment, *Secret:
		default:
			for i := range v.NumField() {
				fill(rng, v.Field(i))
			}
		}
	}
}

// A session at rest has to be small: there are thousands.
func TestAStateAtRestIsSmall(t *testing.T) {
	r := fleetRig(t, strict, time.Hour)
	for range 2 * maxHistory {
		r.reachInFleet(stageCommitting)
		r.saved(nil)
		r.shares(nil)
	}
	p := r.state.pack()
	spent := 8 * len(r.state.rec.Spent)
	if size := len(p.rest) - spent; size > 1024 {
		t.Errorf("%d bytes and %d of spent tokens", size, spent)
	}
	t.Logf("%d bytes and %d of spent tokens, out of %d", len(p.rest), spent, unsafe.Sizeof(r.state))
}
