package conformance

import (
	"bytes"
	"fmt"

	ck "github.com/miekg/pkcs11"

	"github.com/InterCooperative-Network/icn-p11/test/p11tool"
)

// before are the rows of a module that nobody has initialised yet.
func before() []row {
	rows := notInitialised("before C_Initialize")
	rows = append(rows, interfaces()...)
	return append(rows, initialise()...)
}

// notInitialised calls every function that needs C_Initialize.
func notInitialised(when string) (rows []row) {
	for _, name := range allFunctions() {
		switch name {
		case "C_Initialize", "C_GetFunctionList", "C_GetInterfaceList", "C_GetInterface":
			continue
		}
		rows = append(rows, row{"5.1.6", "any other function " + when, name, ck.CKR_CRYPTOKI_NOT_INITIALIZED,
			func(e *env) rv { return e.call(name) }})
	}
	return rows
}

// listOf finds an interface's function list with C_GetInterface.
func (e *env) listOf(name any, version []byte, flags uint) (list uintptr, answer rv) {
	var itf uint
	var v any
	if version != nil {
		v = version
	}
	if r := e.call("C_GetInterface", name, v, &itf, flags); r != ck.CKR_OK {
		return 0, r
	}
	return e.Pointers(uintptr(itf), 2)[1], ck.CKR_OK
}

func (e *env) version(list uintptr) string {
	b := ul(uint(e.Pointers(list, 1)[0]))
	return fmt.Sprintf("%d.%d", b[0], b[1])
}

// pkcs11Name is the name of the standard's interfaces.
var pkcs11Name = []byte("PKCS 11\x00")

func interfaces() (rows []row) {
	v32, v30, v240 := []byte{3, 2}, []byte{3, 0}, []byte{2, 40}
	lists := []struct {
		version []byte
		names   []string
	}{
		{v240, functions.v240},
		{v30, append(append([]string{}, functions.v240...), functions.v30...)},
		{v32, allFunctions()},
	}
	for _, l := range lists {
		text := fmt.Sprintf("%d.%d", l.version[0], l.version[1])
		rows = append(rows, row{"5.4.6", "C_GetInterface gives a version's functions, in the order of its list", text, ck.CKR_OK, func(e *env) rv {
			list, r := e.listOf(pkcs11Name, l.version, 0)
			if r != ck.CKR_OK {
				return r
			}
			e.check(e.version(list) == text, "the list says %s", e.version(list))
			for i, f := range e.Pointers(list, 1+len(l.names))[1:] {
				e.check(f != 0 && f == e.Address(l.names[i]), "entry %d is not %s", i, l.names[i])
			}
			return r
		}})
	}
	get := func(what string, want rv, gives string, name any, version []byte, flags uint) row {
		return row{"5.4.6", "C_GetInterface " + what, "", want, func(e *env) rv {
			list, r := e.listOf(name, version, flags)
			if r == ck.CKR_OK {
				e.check(e.version(list) == gives, "%s, not %s", e.version(list), gives)
			}
			return r
		}}
	}
	return append(rows,
		row{"5.4.4", "C_GetFunctionList gives the list of 2.40, before C_Initialize too", "", ck.CKR_OK, func(e *env) rv {
			list, err := e.FunctionList()
			if err != nil {
				return ck.CKR_FUNCTION_FAILED
			}
			for i, f := range list[1:] {
				e.check(f == e.Address(functions.v240[i]), "entry %d is not %s", i, functions.v240[i])
			}
			return ck.CKR_OK
		}},
		row{"5.4.4", "C_GetFunctionList without a place for the list", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_GetFunctionList", nil) }},
		row{"5.4.5", "C_GetInterfaceList with NULL for the list tells the number", "", ck.CKR_OK, func(e *env) rv {
			n := uint(99)
			defer func() { e.check(n == 3, "%d interfaces", n) }()
			return e.call("C_GetInterfaceList", nil, &n)
		}},
		row{"5.4.5", "C_GetInterfaceList without room tells the number", "", ck.CKR_BUFFER_TOO_SMALL, func(e *env) rv {
			n := uint(2)
			defer func() { e.check(n == 3, "%d interfaces", n) }()
			return e.call("C_GetInterfaceList", make([]byte, 2*24), &n)
		}},
		row{"5.4.5", "C_GetInterfaceList gives name, list and flags of each", "", ck.CKR_OK, func(e *env) rv {
			n, b := uint(5), make([]byte, 5*24)
			r := e.call("C_GetInterfaceList", b, &n)
			e.check(n == 3, "%d interfaces", n)
			for i, want := range []string{"3.2", "3.0", "2.40"} {
				x := b[i*24:]
				name, got := e.Text(uintptr(number(x))), e.version(uintptr(number(x[8:])))
				e.check(name == "PKCS 11" && got == want && number(x[16:]) == 0, "interface %d: %q %s, flags %x", i, name, got, number(x[16:]))
			}
			return r
		}},
		row{"5.4.5", "C_GetInterfaceList without a place for the number", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_GetInterfaceList", make([]byte, 5*24), nil) }},
		get("with neither name nor version", ck.CKR_OK, "3.2", nil, nil, 0),
		get("with a name and no version", ck.CKR_OK, "3.2", pkcs11Name, nil, 0),
		get("with a version and no name: 3.2", ck.CKR_OK, "3.2", nil, v32, 0),
		get("with a version and no name: 3.0", ck.CKR_OK, "3.0", nil, v30, 0),
		get("with a version and no name: 2.40", ck.CKR_OK, "2.40", nil, v240, 0),
		get("with a version that is not there: 3.1", ck.CKR_ARGUMENTS_BAD, "", pkcs11Name, []byte{3, 1}, 0),
		get("with a version that is not there: 2.20", ck.CKR_ARGUMENTS_BAD, "", pkcs11Name, []byte{2, 20}, 0),
		get("with a version that is not there: 4.0", ck.CKR_ARGUMENTS_BAD, "", nil, []byte{4, 0}, 0),
		get("with a name that is not there", ck.CKR_ARGUMENTS_BAD, "", []byte("Vendor NSS Module Interface\x00"), nil, 0),
		get("with CKF_INTERFACE_FORK_SAFE, which none has", ck.CKR_ARGUMENTS_BAD, "", pkcs11Name, nil, 1),
		row{"5.4.6", "C_GetInterface without a place for the interface", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_GetInterface", pkcs11Name, nil, nil, 0) }},
	)
}

// initArgs makes a CK_C_INITIALIZE_ARGS. Any function serves as a callback that
// is never called.
func initArgs(e *env, callbacks uint, flags uint, reserved bool) []byte {
	var b []byte
	for i := range 4 {
		var f uint
		if callbacks>>i&1 == 1 {
			f = uint(e.Address("C_GetFunctionStatus"))
		}
		b = append(b, ul(f)...)
	}
	b = append(b, ul(flags)...)
	if reserved {
		return append(b, ul(uint(e.Address("C_GetFunctionStatus")))...)
	}
	return append(b, ul(0)...)
}

func initialise() (rows []row) {
	for callbacks := range uint(16) {
		for flags := range uint(4) {
			for _, reserved := range []bool{false, true} {
				want, rule := rv(ck.CKR_OK), "C_Initialize without callbacks"
				switch {
				case reserved:
					want, rule = ck.CKR_ARGUMENTS_BAD, "C_Initialize with pReserved"
				case callbacks != 0 && callbacks != 15:
					want, rule = ck.CKR_ARGUMENTS_BAD, "C_Initialize with some callbacks, not all"
				case callbacks == 15 && flags&ck.CKF_OS_LOCKING_OK != 0:
					rule = "C_Initialize with callbacks and CKF_OS_LOCKING_OK"
				case callbacks == 15:
					want, rule = ck.CKR_CANT_LOCK, "C_Initialize with callbacks that must be used"
				}
				rows = append(rows, row{"5.4.1", rule, fmt.Sprintf("callbacks %04b flags %d reserved %v", callbacks, flags, reserved), want, func(e *env) rv {
					r := e.call("C_Initialize", initArgs(e, callbacks, flags, reserved))
					if r == ck.CKR_OK {
						e.gives(ck.CKR_CRYPTOKI_ALREADY_INITIALIZED, "C_Initialize", nil)
						e.ok("C_Finalize", nil)
					}
					e.gives(ck.CKR_CRYPTOKI_NOT_INITIALIZED, "C_Finalize", nil)
					return r
				}})
			}
		}
	}
	return append(rows,
		row{"5.4.1", "C_Initialize with NULL", "", ck.CKR_OK, func(e *env) rv {
			defer e.call("C_Finalize", nil)
			return e.call("C_Initialize", nil)
		}},
		row{"5.4.1", "a second C_Initialize", "", ck.CKR_CRYPTOKI_ALREADY_INITIALIZED, func(e *env) rv {
			e.ok("C_Initialize", nil)
			defer e.call("C_Finalize", nil)
			return e.call("C_Initialize", nil)
		}},
		row{"5.4.2", "C_Finalize with pReserved ends nothing", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			e.ok("C_Initialize", nil)
			r := e.call("C_Finalize", p11tool.Address(e.Address("C_Finalize")))
			e.ok("C_Finalize", nil)
			return r
		}},
		row{"5.4.2", "a second C_Finalize", "", ck.CKR_CRYPTOKI_NOT_INITIALIZED, func(e *env) rv {
			e.ok("C_Initialize", nil)
			e.ok("C_Finalize", nil)
			return e.call("C_Finalize", nil)
		}},
		row{"5.4.2", "C_Initialize and C_Finalize again and again", "", ck.CKR_OK, func(e *env) rv {
			for range 10 {
				e.ok("C_Initialize", nil)
				e.ok("C_Finalize", nil)
			}
			return ck.CKR_OK
		}},
		row{"5.4.3", "C_GetInfo tells version, texts filled up with blanks, and no flags", "", ck.CKR_OK, func(e *env) rv {
			e.ok("C_Initialize", nil)
			defer e.call("C_Finalize", nil)
			b := make([]byte, 88)
			r := e.call("C_GetInfo", b)
			e.check(b[0] == 3 && b[1] == 2, "version %d.%d", b[0], b[1])
			e.check(number(b[40:]) == 0, "flags %x", number(b[40:]))
			for _, text := range [][]byte{b[2:34], b[48:80]} {
				e.check(!bytes.Contains(text, []byte{0}) && text[0] != ' ', "text %q", text)
			}
			return r
		}},
		row{"5.4.3", "C_GetInfo without a place for the answer", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			e.ok("C_Initialize", nil)
			defer e.call("C_Finalize", nil)
			return e.call("C_GetInfo", nil)
		}},
	)
}
