// Package p11tool is a black-box client of the built module: its tests load
// icn-p11.so by path, as an application does, and reach it through its
// function list alone. Most calls go through github.com/miekg/pkcs11; Raw
// makes the calls whose exact C arguments matter (size queries, short
// buffers, parameter structures with pointers), which that package hides.
package p11tool

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long ul;

// The entries of CK_FUNCTION_LIST by their place in it (PKCS#11 v2.40,
// section 3.6); the version in front takes one pointer's room.
struct list { unsigned char version[2]; void *f[68]; };
enum { GET_SLOT_LIST = 4, LOGIN = 18,
	GET_ATTRIBUTE_VALUE = 24, DIGEST = 38, DIGEST_FINAL = 41, SIGN = 43,
	SIGN_FINAL = 45 };

struct attribute { ul type; void *value; ul len; };
struct eddsa_params { unsigned char ph; ul context_len; void *context; };

static struct list *open_list(const char *path) {
	struct list *l = NULL;
	void *h = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (h == NULL) return NULL;
	ul (*get)(struct list **) = (ul (*)(struct list **))dlsym(h, "C_GetFunctionList");
	if (get == NULL || get(&l) != 0) return NULL;
	return l;
}
static ul slot_list(struct list *l, unsigned char present, ul *out, ul *n) {
	return ((ul (*)(unsigned char, ul *, ul *))l->f[GET_SLOT_LIST])(present, out, n);
}
static ul login(struct list *l, ul s, ul user, char *pin, ul n) {
	return ((ul (*)(ul, ul, char *, ul))l->f[LOGIN])(s, user, pin, n);
}
static ul get_attributes(struct list *l, ul s, ul o, struct attribute *a, ul n) {
	return ((ul (*)(ul, ul, struct attribute *, ul))l->f[GET_ATTRIBUTE_VALUE])(s, o, a, n);
}
static ul one_shot(struct list *l, int at, ul s, void *in, ul n, void *out, ul *len) {
	return ((ul (*)(ul, void *, ul, void *, ul *))l->f[at])(s, in, n, out, len);
}
static ul final(struct list *l, int at, ul s, void *out, ul *len) {
	return ((ul (*)(ul, void *, ul *))l->f[at])(s, out, len);
}
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// Raw is the module's 2.40 function list.
type Raw struct{ list *C.struct_list }

// Open loads the module at path, or finds it where it is loaded already.
func Open(path string) (*Raw, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	l := C.open_list(name)
	if l == nil {
		return nil, fmt.Errorf("%s: no function list: %s", path, C.GoString(C.dlerror()))
	}
	return &Raw{l}, nil
}

// Version is the version that the function list claims.
func (r *Raw) Version() (major, minor byte) {
	return byte(r.list.version[0]), byte(r.list.version[1])
}

// Missing counts the entries of the function list that are NULL.
func (r *Raw) Missing() int {
	n := 0
	for _, f := range r.list.f {
		if f == nil {
			n++
		}
	}
	return n
}

// SlotList is C_GetSlotList with room for room slots, or with a NULL list
// where room is negative.
func (r *Raw) SlotList(room int) (n, rv uint) {
	c := C.ul(0)
	if room < 0 {
		rv = uint(C.slot_list(r.list, 0, nil, &c))
		return uint(c), rv
	}
	c = C.ul(room)
	buf := (*C.ul)(C.calloc(C.size_t(room)+1, C.sizeof_ul))
	defer C.free(unsafe.Pointer(buf))
	rv = uint(C.slot_list(r.list, 0, buf, &c))
	return uint(c), rv
}

// LoginNull is C_Login with a NULL PIN, which asks for the token's protected
// authentication path.
func (r *Raw) LoginNull(session, user uint) uint {
	return uint(C.login(r.list, C.ul(session), C.ul(user), nil, 0))
}

// Value is one entry of a template for GetAttributes. A negative Room gives
// a NULL pValue.
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
	a := unsafe.Slice((*C.struct_attribute)(C.calloc(C.size_t(len(values)), C.sizeof_struct_attribute)), len(values))
	defer C.free(unsafe.Pointer(&a[0]))
	for i, v := range values {
		a[i]._type = C.ul(v.Type)
		if v.Room >= 0 {
			a[i].value = C.calloc(C.size_t(v.Room)+1, 1)
			a[i].len = C.ul(v.Room)
		}
	}
	rv := uint(C.get_attributes(r.list, C.ul(session), C.ul(object), &a[0], C.ul(len(values))))
	for i := range values {
		v := &values[i]
		v.Len = uint(a[i].len)
		if a[i].value != nil {
			if v.Len != Unavailable && v.Len <= uint(v.Room) {
				v.Data = C.GoBytes(a[i].value, C.int(v.Len))
			}
			C.free(a[i].value)
		}
	}
	return rv
}

// Sign is one C_Sign. A nil out is the size query; n is *pulSignatureLen
// afterwards. out is filled whatever the result, so that a test sees what
// was written.
func (r *Raw) Sign(session uint, data, out []byte) (n, rv uint) {
	return r.oneShot(C.SIGN, session, data, out)
}

// Digest is one C_Digest, like Sign.
func (r *Raw) Digest(session uint, data, out []byte) (n, rv uint) {
	return r.oneShot(C.DIGEST, session, data, out)
}

// SignFinal is one C_SignFinal, like Sign.
func (r *Raw) SignFinal(session uint, out []byte) (n, rv uint) {
	return r.final(C.SIGN_FINAL, session, out)
}

// DigestFinal is one C_DigestFinal, like Sign.
func (r *Raw) DigestFinal(session uint, out []byte) (n, rv uint) {
	return r.final(C.DIGEST_FINAL, session, out)
}

func (r *Raw) oneShot(at C.int, session uint, data, out []byte) (n, rv uint) {
	var in unsafe.Pointer
	if data != nil {
		in = C.CBytes(append(data[:len(data):len(data)], 0))
		defer C.free(in)
	}
	return output(out, func(p unsafe.Pointer, c *C.ul) C.ul {
		return C.one_shot(r.list, at, C.ul(session), in, C.ul(len(data)), p, c)
	})
}

func (r *Raw) final(at C.int, session uint, out []byte) (n, rv uint) {
	return output(out, func(p unsafe.Pointer, c *C.ul) C.ul {
		return C.final(r.list, at, C.ul(session), p, c)
	})
}

func output(out []byte, call func(unsafe.Pointer, *C.ul) C.ul) (n, rv uint) {
	var p unsafe.Pointer
	if out != nil {
		p = C.calloc(C.size_t(len(out))+1, 1)
		defer C.free(p)
	}
	c := C.ul(len(out))
	rv = uint(call(p, &c))
	copy(out, unsafe.Slice((*byte)(p), len(out)))
	return uint(c), rv
}

// EdDSAParams makes a CK_EDDSA_PARAMS (PKCS#11 v3.1, section 6.3.16) as the
// bytes of a mechanism parameter. Its context lies in C memory until free is
// called, which must not be before the C_SignInit or C_VerifyInit is over.
func EdDSAParams(ph bool, context []byte) (param []byte, free func()) {
	var s C.struct_eddsa_params
	if ph {
		s.ph = 1
	}
	free = func() {}
	if len(context) > 0 {
		p := C.CBytes(context)
		s.context, s.context_len = p, C.ul(len(context))
		free = func() { C.free(p) }
	}
	return C.GoBytes(unsafe.Pointer(&s), C.int(unsafe.Sizeof(s))), free
}
