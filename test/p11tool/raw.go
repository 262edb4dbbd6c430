// Package p11tool is a black-box client of the built module: its tests load
// icn-p11.so by path, as an application does. Most calls go through
// github.com/miekg/pkcs11; Table makes the calls whose exact C arguments matter
// (size queries, short buffers, parameter structures with pointers), which that
// package hides, and Raw has the ones of these that many tests make.
package p11tool

import "unsafe"

// Raw is the module's 2.40 function list.
type Raw struct {
	*Table
	list []uintptr // the version, in one pointer's room, and the 68 functions
}

// Open loads the module at path, or finds it where it is loaded already.
func Open(path string) (*Raw, error) {
	t, err := OpenTable(path)
	if err != nil {
		return nil, err
	}
	list, err := t.FunctionList()
	if err != nil {
		return nil, err
	}
	return &Raw{t, list}, nil
}

// Version is the version that the function list claims.
func (r *Raw) Version() (major, minor byte) {
	v := *(*[2]byte)(unsafe.Pointer(&r.list[0]))
	return v[0], v[1]
}

// Missing counts the entries of the function list that are NULL.
func (r *Raw) Missing() int {
	n := 0
	for _, f := range r.list[1:] {
		if f == 0 {
			n++
		}
	}
	return n
}

// SlotList is C_GetSlotList with room for room slots, or with a NULL list
// where room is negative.
func (r *Raw) SlotList(room int) (n, rv uint) {
	if room < 0 {
		rv = r.Call("C_GetSlotList", false, nil, &n)
		return n, rv
	}
	n = uint(room)
	rv = r.Call("C_GetSlotList", false, make(Words, room), &n)
	return n, rv
}

// LoginNull is C_Login with a NULL PIN, which asks for the token's protected
// authentication path.
func (r *Raw) LoginNull(session, user uint) uint {
	return r.Call("C_Login", session, user, In(nil))
}

// Value is one entry of a template for C_GetAttributeValue. A negative Room
// gives a NULL pValue.
type Value struct {
	Type uint
	Room int
	Data []byte // what was written
	Len  uint   // ulValueLen afterwards
}

// Unavailable is CK_UNAVAILABLE_INFORMATION.
const Unavailable = ^uint(0)

// GetAttributes is one C_GetAttributeValue.
func (r *Raw) GetAttributes(session, object uint, values []Value) uint {
	return r.Call("C_GetAttributeValue", session, object, values)
}

// Sign is one C_Sign. A nil out is the size query; n is *pulSignatureLen
// afterwards. out is filled whatever the result, so that a test sees what
// was written.
func (r *Raw) Sign(session uint, data, out []byte) (n, rv uint) {
	return r.output("C_Sign", out, session, In(data))
}

// Digest is one C_Digest, like Sign.
func (r *Raw) Digest(session uint, data, out []byte) (n, rv uint) {
	return r.output("C_Digest", out, session, In(data))
}

// SignFinal is one C_SignFinal, like Sign.
func (r *Raw) SignFinal(session uint, out []byte) (n, rv uint) {
	return r.output("C_SignFinal", out, session)
}

// DigestFinal is one C_DigestFinal, like Sign.
func (r *Raw) DigestFinal(session uint, out []byte) (n, rv uint) {
	return r.output("C_DigestFinal", out, session)
}

func (r *Raw) output(name string, out []byte, args ...any) (n, rv uint) {
	b := &Buffer{Data: out}
	rv = r.Call(name, append(args, b)...)
	return b.Len, rv
}
