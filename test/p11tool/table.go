package p11tool

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long ul;

// The System V and AAPCS64 calling conventions let a callee ignore arguments
// that it has not, and pass every type of Cryptoki as an unsigned long.
typedef ul (*any_function)(ul, ul, ul, ul, ul, ul, ul, ul, ul, ul);

static ul call(void *f, ul *a) {
	return ((any_function)f)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]);
}
static void *open_module(const char *path) { return dlopen(path, RTLD_NOW | RTLD_LOCAL); }
static void *symbol(void *module, const char *name) { return dlsym(module, name); }
static void peek(ul at, void *to, size_t n) { memcpy(to, (void *)at, n); }
static char *text(ul at) { return (char *)at; }
*/
import "C"

import (
	"errors"
	"fmt"
	"reflect"
	"unsafe"
)

// Table is the module's functions by name, for calls of any of them with
// arguments of any kind.
type Table struct {
	module unsafe.Pointer
	byName map[string]unsafe.Pointer
}

// OpenTable loads the module at path, or finds it where it is loaded already.
func OpenTable(path string) (*Table, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	m := C.open_module(name)
	if m == nil {
		return nil, fmt.Errorf("%s: %s", path, C.GoString(C.dlerror()))
	}
	return &Table{module: m, byName: map[string]unsafe.Pointer{}}, nil
}

// Address is where a function of the module is, 0 for one that it has not.
func (t *Table) Address(name string) uintptr {
	if f, ok := t.byName[name]; ok {
		return uintptr(f)
	}
	c := C.CString(name)
	defer C.free(unsafe.Pointer(c))
	f := C.symbol(t.module, c)
	t.byName[name] = f
	return uintptr(f)
}

// FunctionList is the list that C_GetFunctionList gives: the version, in the
// room of one pointer, and the addresses of the 68 functions of 2.40.
func (t *Table) FunctionList() ([]uintptr, error) {
	var list uint
	if t.Address("C_GetFunctionList") == 0 || t.Call("C_GetFunctionList", &list) != 0 {
		return nil, errors.New("no function list")
	}
	return t.Pointers(uintptr(list), 1+68), nil
}

// Pointers reads n pointers from memory of the module.
func (t *Table) Pointers(at uintptr, n int) []uintptr {
	out := make([]uintptr, n)
	if n > 0 {
		C.peek(C.ul(at), unsafe.Pointer(&out[0]), C.size_t(n)*C.size_t(unsafe.Sizeof(out[0])))
	}
	return out
}

// Text reads a string of C from memory of the module.
func (t *Table) Text(at uintptr) string {
	return C.GoString(C.text(C.ul(at)))
}

// The arguments of a call are, beside numbers and booleans:
//
//	nil          NULL
//	*uint        a CK_ULONG, or a handle, that the call reads and writes
//	[]byte       a pointer to the bytes, which the call may change
//	Words        a pointer to an array of CK_ULONG, likewise
//	Address      a pointer to somewhere else
//	In           two arguments: a pointer to bytes and their number; NULL and 0 for nil
//	*Buffer      two arguments: a buffer and a pointer to its length
//	*Mechanism   a pointer to a CK_MECHANISM
//	Template     two arguments: attributes and their number; NULL and 0 for nil
//	[]Value      two arguments: attributes to read and their number
type (
	// Words is an array of CK_ULONG.
	Words []uint
	// Address is a pointer as a number.
	Address uintptr
	// In is bytes that go in.
	In []byte
)

// Buffer is where a function of variable output writes.
type Buffer struct {
	Data []byte // nil: a NULL pointer
	Len  uint   // *pulLen afterwards
}

// Room is a buffer of n bytes.
func Room(n int) *Buffer { return &Buffer{Data: make([]byte, n)} }

// Mechanism is a CK_MECHANISM with its parameter.
type Mechanism struct {
	Type  uint
	Param []byte // nil: NULL and 0
}

// Attribute is one entry of a template that goes in.
type Attribute struct {
	Type  uint
	Value []byte // nil: NULL and 0
}

// Template is a template that goes in.
type Template []Attribute

// arena is the C memory of one call.
type arena struct {
	blocks []unsafe.Pointer
	after  []func() // what brings results back
}

func (a *arena) alloc(n int) unsafe.Pointer {
	p := C.calloc(C.size_t(n)+1, 1)
	a.blocks = append(a.blocks, p)
	return p
}

// bytes copies b to C memory; NULL for nil.
func (a *arena) bytes(b []byte) unsafe.Pointer {
	if b == nil {
		return nil
	}
	p := a.alloc(len(b))
	copy(unsafe.Slice((*byte)(p), len(b)), b)
	return p
}

func (a *arena) free() {
	for _, f := range a.after {
		f()
	}
	for _, p := range a.blocks {
		C.free(p)
	}
}

func (a *arena) words(n int) []C.ul {
	return unsafe.Slice((*C.ul)(a.alloc(n*C.sizeof_ul)), n)
}

func pointer(p unsafe.Pointer) C.ul { return C.ul(uintptr(p)) }

// Call is one call of a function of the module.
func (t *Table) Call(name string, args ...any) uint {
	if t.Address(name) == 0 {
		panic("the module has no " + name)
	}
	var a arena
	defer a.free()
	var list []C.ul
	for _, x := range args {
		list = append(list, a.marshal(x)...)
	}
	if len(list) > 10 {
		panic("too many arguments for " + name)
	}
	c := a.words(10)
	copy(c, list)
	return uint(C.call(t.byName[name], &c[0]))
}

func (a *arena) marshal(x any) []C.ul {
	switch x := x.(type) {
	case nil:
		return []C.ul{0}
	case bool:
		if x {
			return []C.ul{1}
		}
		return []C.ul{0}
	case *uint:
		if x == nil {
			return []C.ul{0}
		}
		w := a.words(1)
		w[0] = C.ul(*x)
		a.after = append(a.after, func() { *x = uint(w[0]) })
		return []C.ul{pointer(unsafe.Pointer(&w[0]))}
	case []byte:
		p := a.bytes(x)
		a.after = append(a.after, func() { copy(x, unsafe.Slice((*byte)(p), len(x))) })
		return []C.ul{pointer(p)}
	case Words:
		if x == nil {
			return []C.ul{0}
		}
		w := a.words(len(x) + 1)
		for i, v := range x {
			w[i] = C.ul(v)
		}
		a.after = append(a.after, func() {
			for i := range x {
				x[i] = uint(w[i])
			}
		})
		return []C.ul{pointer(unsafe.Pointer(&w[0]))}
	case Address:
		return []C.ul{C.ul(x)}
	case In:
		return []C.ul{pointer(a.bytes(x)), C.ul(len(x))}
	case *Buffer:
		return a.buffer(x)
	case *Mechanism:
		if x == nil {
			return []C.ul{0}
		}
		w := a.words(3)
		w[0], w[1], w[2] = C.ul(x.Type), pointer(a.bytes(x.Param)), C.ul(len(x.Param))
		return []C.ul{pointer(unsafe.Pointer(&w[0]))}
	case Template:
		return a.template(x)
	case []Value:
		return a.values(x)
	}
	return []C.ul{C.ul(reflect.ValueOf(x).Convert(reflect.TypeFor[uint]()).Uint())}
}

func (a *arena) buffer(x *Buffer) []C.ul {
	if x == nil {
		return []C.ul{0, 0}
	}
	p, w := a.bytes(x.Data), a.words(1)
	w[0] = C.ul(len(x.Data))
	a.after = append(a.after, func() {
		copy(x.Data, unsafe.Slice((*byte)(p), len(x.Data)))
		x.Len = uint(w[0])
	})
	return []C.ul{pointer(p), pointer(unsafe.Pointer(&w[0]))}
}

func (a *arena) template(x Template) []C.ul {
	if x == nil {
		return []C.ul{0, 0}
	}
	w := a.words(3 * len(x))
	for i, t := range x {
		w[3*i], w[3*i+1], w[3*i+2] = C.ul(t.Type), pointer(a.bytes(t.Value)), C.ul(len(t.Value))
	}
	if len(x) == 0 {
		return []C.ul{pointer(a.alloc(0)), 0}
	}
	return []C.ul{pointer(unsafe.Pointer(&w[0])), C.ul(len(x))}
}

func (a *arena) values(x []Value) []C.ul {
	w := a.words(3 * len(x))
	for i := range x {
		v := &x[i]
		w[3*i] = C.ul(v.Type)
		var p unsafe.Pointer
		if v.Room >= 0 {
			p = a.alloc(v.Room)
			w[3*i+1], w[3*i+2] = pointer(p), C.ul(v.Room)
		}
		a.after = append(a.after, func() {
			v.Len, v.Data = uint(w[3*i+2]), nil
			if p != nil && v.Len <= uint(v.Room) {
				v.Data = C.GoBytes(p, C.int(v.Len))
			}
		})
	}
	if len(x) == 0 {
		return []C.ul{pointer(a.alloc(0)), 0}
	}
	return []C.ul{pointer(unsafe.Pointer(&w[0])), C.ul(len(x))}
}
