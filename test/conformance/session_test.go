package conformance

import (
	"fmt"

	ck "github.com/miekg/pkcs11"
)

// opening are the rows of C_OpenSession and of closing sessions, where nobody
// is logged in.
func opening() []row {
	opens := func(rule string, want rv, slot func(*fixture) uint, flags uint) row {
		section := "5.6.1"
		if flags&ckfAsyncSession != 0 {
			section = "v3.2 5.6.1"
		}
		return row{section, rule, "", want, func(e *env) rv {
			var s uint
			r := e.call("C_OpenSession", slot(e.f), flags, nil, nil, &s)
			if r == ck.CKR_OK {
				e.check(s != 0, "the handle is 0")
				e.ok("C_CloseSession", s)
			}
			return r
		}}
	}
	return []row{
		opens("a read-only session", ck.CKR_OK, ofToken, ro),
		opens("a read/write session", ck.CKR_OK, ofToken, rw),
		opens("a session without CKF_SERIAL_SESSION", ck.CKR_SESSION_PARALLEL_NOT_SUPPORTED, ofToken, 0),
		opens("a read/write session without CKF_SERIAL_SESSION", ck.CKR_SESSION_PARALLEL_NOT_SUPPORTED, ofToken, ck.CKF_RW_SESSION),
		opens("an asynchronous session", ckrSessionAsyncNotSupported, ofToken, ro|ckfAsyncSession),
		opens("a slot that is not there comes before flags", ck.CKR_SLOT_ID_INVALID, func(*fixture) uint { return noSlot }, 0),
		opens("a session with a token that is not initialised", ck.CKR_TOKEN_NOT_RECOGNIZED, func(f *fixture) uint { return f.free }, ro),
		opens("a read/write session with a write-protected token", ck.CKR_TOKEN_WRITE_PROTECTED, ofProt, rw),
		opens("a read-only session with a write-protected token", ck.CKR_OK, ofProt, ro),
		{"5.6.2", "C_CloseSession twice", "", ck.CKR_SESSION_HANDLE_INVALID, func(e *env) rv {
			s := e.open(ro)
			e.ok("C_CloseSession", s)
			return e.call("C_CloseSession", s)
		}},
		{"5.6.2", "the last session that closes logs out", "", ck.CKR_OK, func(e *env) rv {
			s := e.open(rw)
			e.ok("C_Login", s, ck.CKU_USER, in(userPIN))
			e.ok("C_CloseSession", s)
			i := e.session(e.open(rw))
			e.check(i.state == ck.CKS_RW_PUBLIC_SESSION, "state %d", i.state)
			return i.rv
		}},
		{"5.6.2", "a session that closes beside others leaves the login", "", ck.CKR_OK, func(e *env) rv {
			s, other := e.open(rw), e.open(ro)
			e.ok("C_Login", s, ck.CKU_USER, in(userPIN))
			e.ok("C_CloseSession", s)
			i := e.session(other)
			e.check(i.state == ck.CKS_RO_USER_FUNCTIONS, "state %d", i.state)
			return i.rv
		}},
		{"5.6.3", "C_CloseAllSessions closes those of its slot, no others, and logs out", "", ck.CKR_SESSION_HANDLE_INVALID, func(e *env) rv {
			var other uint
			a, b := e.open(ro), e.open(rw)
			e.ok("C_OpenSession", e.f.fresh, ro, nil, nil, &other)
			defer e.call("C_CloseSession", other)
			e.ok("C_Login", b, ck.CKU_USER, in(userPIN))
			e.ok("C_CloseAllSessions", e.f.token)
			e.check(e.session(other).rv == ck.CKR_OK, "another slot's session is closed")
			i := e.session(e.open(rw))
			e.check(i.state == ck.CKS_RW_PUBLIC_SESSION, "state %d afterwards", i.state)
			e.gives(ck.CKR_SESSION_HANDLE_INVALID, "C_CloseSession", a)
			return e.call("C_CloseSession", b)
		}},
		{"5.6.3", "C_CloseAllSessions where there are none", "", ck.CKR_OK, func(e *env) rv { return e.call("C_CloseAllSessions", e.f.token) }},
		{"5.6.1", "no handle of a session is used twice, over C_Finalize too", "", ck.CKR_OK, func(e *env) rv {
			seen := map[uint]bool{}
			for range 3 {
				for range 3 {
					s := e.open(ro)
					e.check(!seen[s], "handle %d twice", s)
					seen[s] = true
					e.ok("C_CloseSession", s)
				}
				e.ok("C_Finalize", nil)
				e.ok("C_Initialize", nil)
			}
			return ck.CKR_OK
		}},
		{"5.6.8", "C_Login before the user has a PIN", "", ck.CKR_USER_PIN_NOT_INITIALIZED, func(e *env) rv {
			var s uint
			e.ok("C_OpenSession", e.f.fresh, rw, nil, nil, &s)
			defer e.call("C_CloseSession", s)
			return e.call("C_Login", s, ck.CKU_USER, in(userPIN))
		}},
		{"5.6.8", "C_Login from a read-only session", "", ck.CKR_OK, func(e *env) rv { return e.call("C_Login", e.open(ro), ck.CKU_USER, in(userPIN)) }},
		{"5.6.8", "C_Login as SO beside a read-only session", "", ck.CKR_SESSION_READ_ONLY_EXISTS, func(e *env) rv {
			e.open(ro)
			return e.call("C_Login", e.open(rw), ck.CKU_SO, in(soPIN))
		}},
		{"5.6.8", "C_Login as SO from a read-only session", "", ck.CKR_SESSION_READ_ONLY_EXISTS, func(e *env) rv { return e.call("C_Login", e.open(ro), ck.CKU_SO, in(soPIN)) }},
		{"5.6.8", "C_Login changes the state of all sessions with the token, of no others", "", ck.CKR_OK, func(e *env) rv {
			var other uint
			a, b := e.open(ro), e.open(rw)
			e.ok("C_OpenSession", e.f.fresh, ro, nil, nil, &other)
			defer e.call("C_CloseSession", other)
			r := e.call("C_Login", a, ck.CKU_USER, in(userPIN))
			for s, state := range map[uint]uint{a: ck.CKS_RO_USER_FUNCTIONS, b: ck.CKS_RW_USER_FUNCTIONS, other: ck.CKS_RO_PUBLIC_SESSION} {
				e.check(e.session(s).state == state, "state %d, not %d", e.session(s).state, state)
			}
			return r
		}},
	}
}

// badSession calls every function that is given a session with handles that
// are none. What the token is not capable of says so first.
func badSession() (rows []row) {
	for _, name := range allFunctions() {
		if withoutSession[name] {
			continue
		}
		want, section := rv(ck.CKR_SESSION_HANDLE_INVALID), "5.1.2"
		rule := "a session that is not there comes before bad arguments"
		switch {
		case absent[name] != "":
			want, section, rule = ck.CKR_FUNCTION_NOT_SUPPORTED, absent[name], "a function of an ability that the token has not"
		case name == "C_GetFunctionStatus", name == "C_CancelFunction":
			want, section, rule = ck.CKR_FUNCTION_NOT_PARALLEL, "5.20", "a function of parallel sessions"
		}
		rows = append(rows,
			row{section, rule, name + " with session 0", want, func(e *env) rv { return e.call(name, 0) }},
			row{section, rule, name + " with a closed session", want, func(e *env) rv {
				s := e.open(ro)
				e.ok("C_CloseSession", s)
				return e.call(name, s)
			}})
		if want != ck.CKR_SESSION_HANDLE_INVALID {
			rows = append(rows, row{section, rule, name, want, func(e *env) rv { return e.call(name, e.open(ro)) }})
		}
	}
	return rows
}

// stateRow checks a session's state in a scene.
func stateRow(name string, state, flags uint) row {
	return row{"5.6.4", "C_GetSessionInfo tells slot, state and flags", name, ck.CKR_OK, func(e *env) rv {
		i := e.session(e.s)
		e.check(i.slot == e.f.token && i.state == state && i.flags == flags && i.deviceError == 0, "%+v", i)
		return i.rv
	}}
}

// anySession are rows that are true in every session, whoever is logged in.
func anySession() []row {
	rows := []row{
		{"5.6.4", "C_GetSessionInfo without a place for the answer", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_GetSessionInfo", e.s, nil) }},
		{"5.6.5", "C_SessionCancel without flags", "", ck.CKR_OK, func(e *env) rv { return e.call("C_SessionCancel", e.s, 0) }},
		{"5.6.5", "C_SessionCancel of what is not active", "", ck.CKR_OK, func(e *env) rv { return e.call("C_SessionCancel", e.s, unavailable) }},
		{"5.6.8", "C_Login as a user of another type", "", ck.CKR_USER_TYPE_INVALID, func(e *env) rv { return e.call("C_Login", e.s, 99, in(userPIN)) }},
		{"5.6.8", "C_Login for an operation where there is none", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.call("C_Login", e.s, ck.CKU_CONTEXT_SPECIFIC, in(userPIN)) }},
		{"5.6.8", "C_Login without a PIN: the token has no protected authentication path", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_Login", e.s, ck.CKU_USER, in(nil)) }},
		{"5.6.9", "C_LoginUser with a name: the token's users have none", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_LoginUser", e.s, ck.CKU_USER, in(userPIN), in("alice")) }},
		{"5.6.9", "C_LoginUser as a user of another type", "", ck.CKR_USER_TYPE_INVALID, func(e *env) rv { return e.call("C_LoginUser", e.s, 99, in(userPIN), in(nil)) }},
		{"5.6.9", "C_LoginUser for an operation where there is none", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			return e.call("C_LoginUser", e.s, ck.CKU_CONTEXT_SPECIFIC, in(userPIN), in(nil))
		}},
		{"v3.2 5.6.11", "C_GetSessionValidationFlags: nobody has validated the module", "", ck.CKR_OK, func(e *env) rv {
			flags := uint(99)
			defer func() { e.check(flags == 0, "flags %x", flags) }()
			return e.call("C_GetSessionValidationFlags", e.s, cksLastValidationOK, &flags)
		}},
		{"v3.2 5.6.11", "C_GetSessionValidationFlags of another type", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			var flags uint
			return e.call("C_GetSessionValidationFlags", e.s, 2, &flags)
		}},
		{"v3.2 5.6.11", "C_GetSessionValidationFlags without a place for the flags", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			return e.call("C_GetSessionValidationFlags", e.s, cksLastValidationOK, nil)
		}},
		{"5.19.1", "C_SeedRandom", "", ck.CKR_OK, func(e *env) rv { return e.call("C_SeedRandom", e.s, in("seed")) }},
		{"5.19.1", "C_SeedRandom with NULL", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_SeedRandom", e.s, nil, 4) }},
		{"5.19.2", "C_GenerateRandom fills what it is given", "", ck.CKR_OK, func(e *env) rv {
			a, b := make([]byte, 64), make([]byte, 64)
			e.ok("C_GenerateRandom", e.s, a, 64)
			defer func() { e.check(string(a) != string(b) && string(b) != string(make([]byte, 64)), "%x, then %x", a, b) }()
			return e.call("C_GenerateRandom", e.s, b, 64)
		}},
		{"5.19.2", "C_GenerateRandom with NULL", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_GenerateRandom", e.s, nil, 4) }},
		{"5.5.8", "C_InitPIN with NULL", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_InitPIN", e.s, in(nil)) }},
		{"5.5.9", "C_SetPIN with NULL for the old PIN", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_SetPIN", e.s, in(nil), in(userPIN)) }},
		{"5.5.9", "C_SetPIN with NULL for the new PIN", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_SetPIN", e.s, in(userPIN), in(nil)) }},
		{"5.5.7", "C_InitToken with a session open", "", ck.CKR_SESSION_EXISTS, func(e *env) rv { return e.call("C_InitToken", e.f.token, in(soPIN), label("x")) }},
	}
	return append(rows, digestRows()...)
}

// publicSession are the rows of a session where nobody is logged in.
func publicSession(flags uint) []row {
	state, other := uint(ck.CKS_RO_PUBLIC_SESSION), rv(ck.CKR_SESSION_READ_ONLY_EXISTS)
	if flags == rw {
		state, other = ck.CKS_RW_PUBLIC_SESSION, ck.CKR_OK
	}
	rows := append(anySession(),
		stateRow("public", state, flags),
		row{"5.6.10", "C_Logout where nobody is logged in", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv { return e.call("C_Logout", e.s) }},
		row{"5.5.8", "C_InitPIN where nobody is logged in", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv { return e.call("C_InitPIN", e.s, in(userPIN)) }},
		row{"5.6.9", "C_LoginUser without a name is C_Login", "", ck.CKR_OK, func(e *env) rv {
			r := e.call("C_LoginUser", e.s, ck.CKU_USER, in(userPIN), in(nil))
			i := e.session(e.s)
			e.check(i.state == state+1, "state %d", i.state)
			return r
		}},
		row{"5.6.9", "C_LoginUser as SO", "", other, func(e *env) rv { return e.call("C_LoginUser", e.s, ck.CKU_SO, in(soPIN), in(nil)) }},
		row{"5.7.7", "a search without a login finds no private objects", "", ck.CKR_OK, func(e *env) rv {
			for _, t := range []template{nil, {attr(ck.CKA_PRIVATE, true)}, {attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY)}, {attr(ck.CKA_LABEL, "secret")}} {
				for _, o := range e.findAll(e.s, t) {
					e.check(string(e.get(o, ck.CKA_PRIVATE)) == string(no), "object %d is private", o)
				}
			}
			return ck.CKR_OK
		}},
		row{"5.7.1", "a private object without a login", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			var o uint
			return e.call("C_CreateObject", e.s, with(outside.data1, attr(ck.CKA_PRIVATE, true)), &o)
		}},
		row{"5.7.1", "a private key without a login", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			var o uint
			return e.call("C_CreateObject", e.s, outside.privateKey, &o)
		}},
		row{"5.7.2", "a private copy without a login", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			var o uint
			return e.call("C_CopyObject", e.s, e.f.obj["data"], template{attr(ck.CKA_PRIVATE, true), attr(ck.CKA_TOKEN, false)}, &o)
		}},
		row{"5.18.2", "a key pair without a login", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			var pub, priv uint
			return e.call("C_GenerateKeyPair", e.s, mech(ckmEdwards), template{attr(ck.CKA_EC_PARAMS, oid)}, template{}, &pub, &priv)
		}},
	)
	if flags == rw {
		rows = append(rows, row{"5.7.3", "C_DestroyObject of a public token object needs no login", "", ck.CKR_OK, func(e *env) rv {
			o := e.create(with(outside.data1, attr(ck.CKA_TOKEN, true), attr(ck.CKA_LABEL, "to be destroyed by anybody")))
			r := e.call("C_DestroyObject", e.s, o)
			e.check(len(e.findAll(e.s, template{attr(ck.CKA_LABEL, "to be destroyed by anybody")})) == 0, "it is still found")
			return r
		}})
	}
	rows = append(rows, publicCipherRows()...)
	return append(rows, readers(flags)...)
}

// userSession are the rows of a session of the user.
func userSession(flags uint) []row {
	state := uint(ck.CKS_RO_USER_FUNCTIONS)
	if flags == rw {
		state = ck.CKS_RW_USER_FUNCTIONS
	}
	rows := append(anySession(),
		stateRow("user", state, flags),
		row{"5.6.8", "C_Login of who is logged in", "", ck.CKR_USER_ALREADY_LOGGED_IN, func(e *env) rv { return e.call("C_Login", e.s, ck.CKU_USER, in(userPIN)) }},
		row{"5.6.8", "C_Login of who is logged in, with a wrong PIN", "", ck.CKR_USER_ALREADY_LOGGED_IN, func(e *env) rv { return e.call("C_Login", e.s, ck.CKU_USER, in("wrong pin")) }},
		row{"5.6.9", "C_LoginUser of who is logged in", "", ck.CKR_USER_ALREADY_LOGGED_IN, func(e *env) rv { return e.call("C_LoginUser", e.s, ck.CKU_USER, in(userPIN), in(nil)) }},
		row{"5.6.8", "C_Login as SO beside the user", "", ck.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, func(e *env) rv { return e.call("C_Login", e.s, ck.CKU_SO, in(soPIN)) }},
		row{"5.5.8", "C_InitPIN by the user", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv { return e.call("C_InitPIN", e.s, in(userPIN)) }},
		row{"5.6.10", "C_Logout ends the login of all sessions", "", ck.CKR_OK, func(e *env) rv {
			other := e.open(flags)
			r := e.call("C_Logout", e.s)
			for _, s := range []uint{e.s, other} {
				e.check(e.session(s).state == state-1, "state %d", e.session(s).state)
			}
			return r
		}},
		row{"5.6.10", "the handles of private objects are invalid after C_Logout, for ever", "", ck.CKR_OBJECT_HANDLE_INVALID, func(e *env) rv {
			priv := e.f.priv()
			e.ok("C_Logout", e.s)
			e.gives(ck.CKR_OBJECT_HANDLE_INVALID, "C_GetObjectSize", e.s, priv, new(uint))
			e.ok("C_Login", e.s, ck.CKU_USER, in(userPIN))
			return e.call("C_GetObjectSize", e.s, priv, new(uint))
		}},
		row{"5.6.10", "private session objects are destroyed by C_Logout, public ones stay", "", ck.CKR_OK, func(e *env) rv {
			private := e.create(with(outside.data1, attr(ck.CKA_PRIVATE, true), attr(ck.CKA_LABEL, "of the session")))
			public := e.create(with(outside.data1, attr(ck.CKA_LABEL, "of the session")))
			e.ok("C_Logout", e.s)
			e.ok("C_Login", e.s, ck.CKU_USER, in(userPIN))
			e.gives(ck.CKR_OBJECT_HANDLE_INVALID, "C_GetObjectSize", e.s, private, new(uint))
			found := e.findAll(e.s, template{attr(ck.CKA_LABEL, "of the session")})
			e.check(len(found) == 1 && found[0] == public, "%v", found)
			return ck.CKR_OK
		}},
		row{"5.6.10", "C_Logout in the middle of a signature", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			e.ok("C_SignInit", e.s, mech(ckmEdDSA), e.f.priv())
			e.ok("C_Logout", e.s)
			return e.call("C_Sign", e.s, in(message), &buffer{Data: make([]byte, 64)})
		}},
	)
	rows = append(rows, readers(flags)...)
	rows = append(rows, signRows()...)
	rows = append(rows, messageRows()...)
	rows = append(rows, verifyRows()...)
	rows = append(rows, operationRows()...)
	rows = append(rows, cipherRows()...)
	rows = append(rows, dualRows()...)
	rows = append(rows, macRows()...)
	rows = append(rows, ecdsaRows()...)
	if flags == ro {
		rows = append(rows, tokenKeyRows("in a read-only session", ck.CKR_SESSION_READ_ONLY)...)
	}
	if flags == rw {
		rows = append(rows, abilityRows()...)
		rows = append(rows, generatorRows()...)
		rows = append(rows, wrapRows()...)
		rows = append(rows, deriveRows()...)
		rows = append(rows, originRows()...)
		rows = append(rows, secretObjectRows()...)
		rows = append(rows, writers()...)
		rows = append(rows, creationRows()...)
		rows = append(rows, attributeRows()...)
		rows = append(rows, generateRows()...)
	}
	return rows
}

// soSession are the rows of a session of the SO.
func soSession() []row {
	return append(append(anySession(), trustRows()...),
		stateRow("SO", ck.CKS_RW_SO_FUNCTIONS, rw),
		row{"5.6.1", "a read-only session beside the SO", "", ck.CKR_SESSION_READ_WRITE_SO_EXISTS, func(e *env) rv { return e.call("C_OpenSession", e.f.token, ro, nil, nil, new(uint)) }},
		row{"5.6.8", "C_Login of who is logged in", "", ck.CKR_USER_ALREADY_LOGGED_IN, func(e *env) rv { return e.call("C_Login", e.s, ck.CKU_SO, in(soPIN)) }},
		row{"5.6.8", "C_Login of the user beside the SO", "", ck.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, func(e *env) rv { return e.call("C_Login", e.s, ck.CKU_USER, in(userPIN)) }},
		row{"5.6.9", "C_LoginUser of the user beside the SO", "", ck.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, func(e *env) rv { return e.call("C_LoginUser", e.s, ck.CKU_USER, in(userPIN), in(nil)) }},
		row{"5.6.10", "C_Logout of the SO", "", ck.CKR_OK, func(e *env) rv { return e.call("C_Logout", e.s) }},
		row{"5.5.8", "C_InitPIN with a short PIN", "", ck.CKR_PIN_LEN_RANGE, func(e *env) rv { return e.call("C_InitPIN", e.s, in("123")) }},
		row{"5.5.8", "C_InitPIN with a long PIN", "", ck.CKR_PIN_LEN_RANGE, func(e *env) rv { return e.call("C_InitPIN", e.s, in(fmt.Sprintf("%256d", 1))) }},
		row{"5.5.8", "C_InitPIN with an empty PIN", "", ck.CKR_PIN_LEN_RANGE, func(e *env) rv { return e.call("C_InitPIN", e.s, in("")) }},
		row{"5.5.8", "C_InitPIN sets the user's PIN anew", "", ck.CKR_OK, func(e *env) rv {
			e.ok("C_InitPIN", e.s, in("another pin"))
			e.ok("C_Logout", e.s)
			r := e.call("C_Login", e.s, ck.CKU_USER, in("another pin"))
			e.ok("C_SetPIN", e.s, in("another pin"), in(userPIN))
			return r
		}},
		row{"5.5.9", "C_SetPIN changes the SO's PIN", "", ck.CKR_OK, func(e *env) rv {
			e.ok("C_SetPIN", e.s, in(soPIN), in("another so pin"))
			e.ok("C_Logout", e.s)
			r := e.call("C_Login", e.s, ck.CKU_SO, in("another so pin"))
			e.ok("C_SetPIN", e.s, in("another so pin"), in(soPIN))
			return r
		}},
		row{"5.5.9", "C_SetPIN with a short new PIN", "", ck.CKR_PIN_LEN_RANGE, func(e *env) rv { return e.call("C_SetPIN", e.s, in(soPIN), in("123")) }},
		row{"5.6.8", "the SO sees no private objects", "", ck.CKR_OK, func(e *env) rv {
			found := e.findAll(e.s, template{attr(ck.CKA_PRIVATE, true)})
			e.check(len(found) == 0, "%d objects", len(found))
			return ck.CKR_OK
		}},
		row{"5.7.1", "a private object by the SO", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			return e.call("C_CreateObject", e.s, with(outside.data1, attr(ck.CKA_PRIVATE, true)), new(uint))
		}},
		row{"5.18.2", "a key pair by the SO", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			return e.call("C_GenerateKeyPair", e.s, mech(ckmEdwards), template{attr(ck.CKA_EC_PARAMS, oid)}, template{}, new(uint), new(uint))
		}},
		row{"5.7.1", "a public token object by the SO", "", ck.CKR_OK, func(e *env) rv {
			var o uint
			r := e.call("C_CreateObject", e.s, with(outside.data1, attr(ck.CKA_TOKEN, true)), &o)
			e.destroyed(o)
			return r
		}},
		row{"4.6.2", "the SO makes a certificate trusted", "", ck.CKR_OK, func(e *env) rv {
			o := e.create(outside.certificate)
			r := e.call("C_SetAttributeValue", e.s, o, template{attr(ck.CKA_TRUSTED, true)})
			e.check(string(e.get(o, ck.CKA_TRUSTED)) == string(yes), "it is not trusted")
			return r
		}},
		row{"4.6.2", "the SO imports a trusted certificate", "", ck.CKR_OK, func(e *env) rv {
			return e.call("C_CreateObject", e.s, with(outside.certificate, attr(ck.CKA_TRUSTED, true)), new(uint))
		}},
		row{"4.6.2", "a trusted certificate cannot be modified", "", ck.CKR_ACTION_PROHIBITED, func(e *env) rv {
			o := e.create(with(outside.certificate, attr(ck.CKA_TRUSTED, true)))
			return e.call("C_SetAttributeValue", e.s, o, template{attr(ck.CKA_LABEL, "x")})
		}},
		row{"4.8", "the SO makes a public key trusted", "", ck.CKR_OK, func(e *env) rv {
			return e.call("C_CreateObject", e.s, with(outside.publicKey, attr(ck.CKA_TRUSTED, true)), new(uint))
		}},
	)
}
