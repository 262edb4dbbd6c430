package p11

import (
	"encoding/binary"
	"slices"
)

// body is the attributes of an object, but for those that follow from where it
// is kept (CKA_TOKEN, CKA_PRIVATE, CKA_UNIQUE_ID): a version byte, the number of
// attributes in 16 bits, then for each, in rising order of type, the type in 64
// bits, the length in 32 and the value. Numbers are big-endian, CK_ULONG values
// 8 bytes, so a store serves hosts of any width.
//
// It is what the store keeps, and what an object has in memory: one piece of
// it for each of maybe thousands of objects, with no pointer in it. It is never
// changed in place, so readers need no lock.
type body []byte

const (
	bodyVersion = 1
	bodyHead    = 1 + 2
	entryHead   = 8 + 4
	maxAttrs    = 128
)

// implied are the attributes that no body has.
func implied(t AttributeType) bool {
	return t == CKA_TOKEN || t == CKA_PRIVATE || t == CKA_UNIQUE_ID
}

// encode makes the body of an object.
func (a attrs) encode() body {
	types := make([]AttributeType, 0, len(a))
	for t := range a {
		if !implied(t) {
			types = append(types, t)
		}
	}
	slices.Sort(types)
	b := binary.BigEndian.AppendUint16([]byte{bodyVersion}, uint16(len(types)))
	for _, t := range types {
		v := a[t]
		switch kinds[t] {
		case kindUlong:
			v = wide(v)
		case kindMechs:
			var w []byte
			for u := range slices.Chunk(v, ulongSize) {
				w = append(w, wide(u)...)
			}
			v = w
		}
		b = binary.BigEndian.AppendUint64(b, uint64(t))
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	return slices.Clip(b)
}

// wide writes a CK_ULONG as 8 bytes; CK_UNAVAILABLE_INFORMATION stays what it
// is on hosts of either width.
func wide(v []byte) []byte {
	n := uint64(ulongOf(v))
	if ulongOf(v) == Unavailable {
		n = ^uint64(0)
	}
	return binary.BigEndian.AppendUint64(nil, n)
}

// narrow reads what wide wrote. A number that the host cannot write is refused.
func narrow(v []byte) (uint, bool) {
	if len(v) != 8 {
		return Unavailable, false
	}
	n := binary.BigEndian.Uint64(v)
	if n == ^uint64(0) {
		return Unavailable, true
	}
	return uint(n), uint64(uint(n)) == n
}

// smallUlongs are CK_ULONG values that many objects have, and share.
var smallUlongs = func() (v [128][]byte) {
	for n := range v {
		v[n] = ulong(uint(n))
	}
	return v
}()

// next takes the first attribute off what follows the head of a body.
func next(rest []byte) (t AttributeType, v, after []byte, ok bool) {
	if len(rest) < entryHead {
		return 0, nil, nil, false
	}
	n, size := binary.BigEndian.Uint64(rest), binary.BigEndian.Uint32(rest[8:])
	rest = rest[entryHead:]
	if n > 1<<32-1 || size > maxValue || uint64(size) > uint64(len(rest)) {
		return 0, nil, nil, false
	}
	return AttributeType(n), rest[:size:size], rest[size:], true
}

// parseBody takes what encode wrote, and nothing else: what is accepted
// encodes to the same bytes again.
func parseBody(p []byte) (body, bool) {
	if len(p) < bodyHead || p[0] != bodyVersion {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(p[1:]))
	if n > maxAttrs {
		return nil, false
	}
	rest := p[bodyHead:]
	prev := int64(-1)
	for range n {
		t, _, after, ok := next(rest)
		if !ok || int64(t) <= prev {
			return nil, false
		}
		prev, rest = int64(t), after
	}
	if len(rest) != 0 {
		return nil, false
	}
	b := body(p)
	if v, _ := b.raw(CKA_CLASS); len(v) != 8 || b.ulong(CKA_CLASS) == CKO_PROFILE {
		return nil, false // no file makes a profile
	}
	specs := b.specs()
	for rest = p[bodyHead:]; len(rest) != 0; {
		t, v, after, _ := next(rest)
		rest = after
		sp := specs[t]
		if sp == nil || implied(t) || sp.rule&hidden != 0 || !sp.kind.stored(v) {
			return nil, false
		}
	}
	return b, true
}

// stored tells whether v can be a value of kind k in a body.
func (k kind) stored(v []byte) bool {
	switch k {
	case kindUlong:
		_, ok := narrow(v)
		return ok
	case kindMechs:
		for u := range slices.Chunk(v, 8) {
			if _, ok := narrow(u); !ok {
				return false
			}
		}
		return true
	}
	return k.valid(v)
}

// raw finds an attribute's value as the body has it.
func (b body) raw(want AttributeType) ([]byte, bool) {
	if len(b) == 0 {
		return nil, false
	}
	for rest := b[bodyHead:]; ; {
		t, v, after, ok := next(rest)
		if !ok || t > want {
			return nil, false
		}
		if t == want {
			return v, true
		}
		rest = after
	}
}

// bytes finds the value of an attribute that is a byte string; nil: it is not
// there.
func (b body) bytes(t AttributeType) []byte {
	v, _ := b.raw(t)
	return v
}

func (b body) bool(t AttributeType) bool {
	v, _ := b.raw(t)
	return len(v) == 1 && v[0] == 1
}

func (b body) ulong(t AttributeType) uint {
	v, _ := b.raw(t)
	n, ok := narrow(v)
	if !ok {
		return Unavailable
	}
	return n
}

// value finds the value of any attribute as the host has it.
func (b body) value(t AttributeType) ([]byte, bool) {
	v, ok := b.raw(t)
	if ok {
		v = kinds[t].host(v)
	}
	return v, ok
}

// host makes what the host has for a value of kind k in a body.
func (k kind) host(v []byte) []byte {
	switch k {
	case kindUlong:
		n, _ := narrow(v)
		if n < uint(len(smallUlongs)) {
			return smallUlongs[n]
		}
		return ulong(n)
	case kindMechs:
		w := make([]byte, 0, len(v)/8*ulongSize)
		for u := range slices.Chunk(v, 8) {
			n, _ := narrow(u)
			w = append(w, ulong(n)...)
		}
		return w
	}
	return v
}

// allows tells whether CKA_ALLOWED_MECHANISMS, which is empty where all are
// allowed, has a mechanism.
func (b body) allows(m MechanismType) bool {
	all := b.bytes(CKA_ALLOWED_MECHANISMS)
	for u := range slices.Chunk(all, 8) {
		if n, _ := narrow(u); MechanismType(n) == m {
			return true
		}
	}
	return len(all) == 0
}

// attrs are the values of a body.
func (b body) attrs() attrs {
	a := attrs{}
	for rest := b[bodyHead:]; len(rest) != 0; {
		t, v, after, _ := next(rest)
		a[t], rest = kinds[t].host(v), after
	}
	return a
}

// specs is the table of an object.
func (b body) specs() map[AttributeType]*spec {
	return specsOf(b.ulong(CKA_CLASS), b.ulong(CKA_KEY_TYPE))
}

// hasSecret tells whether an object is a private or secret key.
func (b body) hasSecret() bool {
	c := b.ulong(CKA_CLASS)
	return c == CKO_PRIVATE_KEY || c == CKO_SECRET_KEY
}

// curve is that of a key, nil for other objects.
func (b body) curve() *curve {
	params, ok := b.raw(CKA_EC_PARAMS)
	if !ok {
		return nil
	}
	return curveOf(b.ulong(CKA_KEY_TYPE), params)
}
