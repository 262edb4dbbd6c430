package main

// #include "cryptoki.h"
import "C"

import (
	"unsafe"

	"github.com/InterCooperative-Network/icn-p11/p11"
)

const (
	// maxLength is more than any buffer that a host can have. What exceeds it
	// is a mistake: a negative number, or CK_UNAVAILABLE_INFORMATION passed on.
	maxLength = 1 << 40
	// maxAttributes bounds a template; Cryptoki knows some 120 attributes.
	maxAttributes = 1 << 12
	// maxHandles bounds the arrays of handles, slots and mechanisms that are
	// filled in one call. A host that has more room gets no more.
	maxHandles = 1 << 24
	// firstAddress is the lowest address that is taken for a pointer (see
	// wild in module.c).
	firstAddress = 4096
)

// bytesAt makes a slice of the n bytes at an address in the caller's memory.
// It is nil for NULL, for which n must be 0. Addresses that the C half did not
// check stay integers until here: a small number in a pointer ends the process
// when Go grows its stack.
func bytesAt(a uintptr, n C.CK_ULONG) (b []byte, ok bool) {
	switch {
	case n == 0 && a == 0:
		return nil, true
	case n == 0:
		return []byte{}, true
	case n > maxLength || a < firstAddress || a+uintptr(n) < a:
		return nil, false
	}
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&a)), int(n)), true
}

// in makes a slice of an argument that comes as pointer and length.
func in(p C.CK_BYTE_PTR, n C.CK_ULONG) (b []byte, ok bool) {
	return bytesAt(uintptr(unsafe.Pointer(p)), n)
}

// address reads a pointer of a C structure as an integer.
func address(p *C.CK_VOID_PTR) uintptr { return *(*uintptr)(unsafe.Pointer(p)) }

// output makes an Output of a buffer and the length that stands at n.
func output(p C.CK_BYTE_PTR, n C.CK_ULONG_PTR) (o p11.Output, ok bool) {
	if n == nil {
		return o, false
	}
	if p == nil {
		return p11.Output{Query: true}, true
	}
	b, ok := in(p, *n)
	return p11.Output{Buf: b}, ok
}

// produced writes back the length of an output where the answer has one.
func produced(o *p11.Output, n C.CK_ULONG_PTR, err error) C.CK_RV {
	rv := p11.RVOf(err)
	if rv == p11.CKR_OK || rv == p11.CKR_BUFFER_TOO_SMALL {
		*n = C.CK_ULONG(o.Len)
	}
	return C.CK_RV(rv)
}

// attributes views a C template, nil for an empty one.
func attributes(t C.CK_ATTRIBUTE_PTR, n C.CK_ULONG) (c []C.CK_ATTRIBUTE, ok bool) {
	if n > maxAttributes || t == nil && n != 0 {
		return nil, false
	}
	return unsafe.Slice(t, int(n)), true
}

// template makes a Go template of a C template that goes in.
func template(t C.CK_ATTRIBUTE_PTR, n C.CK_ULONG) (attrs []p11.Attribute, ok bool) {
	c, ok := attributes(t, n)
	if !ok || len(c) == 0 {
		return nil, ok
	}
	attrs = make([]p11.Attribute, len(c))
	for i := range c {
		value, ok := bytesAt(address(&c[i].pValue), c[i].ulValueLen)
		if !ok {
			return nil, false
		}
		attrs[i] = p11.Attribute{Type: p11.AttributeType(c[i]._type), Value: value}
	}
	return attrs, true
}

// templateOut makes a Go template of a C template that is to be filled.
func templateOut(c []C.CK_ATTRIBUTE) (attrs []p11.AttributeOut, ok bool) {
	attrs, ok = make([]p11.AttributeOut, len(c)), true
	for i := range c {
		attrs[i].Type = p11.AttributeType(c[i]._type)
		// The length is only an answer where pValue is NULL.
		a := address(&c[i].pValue)
		if a == 0 {
			continue
		}
		if attrs[i].Buf, ok = bytesAt(a, c[i].ulValueLen); !ok {
			return nil, false
		}
	}
	return attrs, true
}

// mechanism makes a Mechanism of a C one. A parameter that is a structure with
// pointers of its own is taken apart in parameter.go; one of another size stays
// bytes, for p11 to refuse.
func mechanism(m C.CK_MECHANISM_PTR) (mech p11.Mechanism, ok bool) {
	if m == nil {
		return mech, false
	}
	mech.Type = p11.MechanismType(m.mechanism)
	param, ok := bytesAt(address(&m.pParameter), m.ulParameterLen)
	switch {
	case !ok:
		return mech, false
	case len(param) == 0:
	default:
		mech.Param, ok = parameter(mech.Type, param)
	}
	return mech, ok
}

// messageParam makes the parameter of one message of a message-based process.
// CKM_EDDSA is the one mechanism of such processes, so what has the size of its
// parameter is one; anything else stays bytes, for p11 to refuse.
func messageParam(p C.CK_VOID_PTR, n C.CK_ULONG) (param any, ok bool) {
	b, ok := bytesAt(uintptr(p), n)
	if !ok || len(b) == 0 {
		return nil, ok
	}
	return parameter(p11.CKM_EDDSA, b)
}

// pad copies a text to a field of fixed size, filled up with blanks, as
// Cryptoki's structures have it.
func pad(field []C.CK_UTF8CHAR, text string) {
	n := 0
	for ; n < len(field) && n < len(text); n++ {
		field[n] = C.CK_UTF8CHAR(text[n])
	}
	for ; n < len(field); n++ {
		field[n] = ' '
	}
}

func cVersion(v p11.Version) C.CK_VERSION {
	return C.CK_VERSION{major: C.CK_BYTE(v.Major), minor: C.CK_BYTE(v.Minor)}
}
