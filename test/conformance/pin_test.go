package conformance

import (
	"fmt"
	"slices"

	ck "github.com/miekg/pkcs11"
)

// initToken are the rows of C_InitToken, where no session is open.
func initToken() []row {
	inits := func(rule string, want rv, slot func(*fixture) uint, pin any, label any) row {
		return row{"5.5.7", rule, "", want, func(e *env) rv { return e.call("C_InitToken", slot(e.f), pin, label) }}
	}
	free := func(f *fixture) uint { return f.free }
	return []row{
		inits("C_InitToken without a PIN: the token has no protected authentication path", ck.CKR_ARGUMENTS_BAD, free, in(nil), label("x")),
		inits("C_InitToken with a short PIN", ck.CKR_PIN_LEN_RANGE, free, in("123"), label("x")),
		inits("C_InitToken with a long PIN", ck.CKR_PIN_LEN_RANGE, free, in(fmt.Sprintf("%256d", 1)), label("x")),
		inits("C_InitToken with a label that is no UTF-8", ck.CKR_ARGUMENTS_BAD, free, in(soPIN), append([]byte{0xff, 0xfe}, label("x")[:30]...)),
		inits("C_InitToken without a label", ck.CKR_ARGUMENTS_BAD, free, in(soPIN), nil),
		inits("C_InitToken of a write-protected token", ck.CKR_TOKEN_WRITE_PROTECTED, ofProt, in(soPIN), label("x")),
		inits("C_InitToken with an SO PIN that cannot be right", ck.CKR_PIN_INCORRECT, ofFresh, in("123"), label("x")),
		{"5.5.7", "C_InitToken of a token destroys its objects and the user's PIN, and keeps the SO's", "", ck.CKR_USER_PIN_NOT_INITIALIZED, func(e *env) rv {
			var s, o uint
			before := e.token(e.f.fresh)
			e.ok("C_OpenSession", e.f.fresh, rw, nil, nil, &s)
			e.ok("C_Login", s, ck.CKU_SO, in(soPIN))
			e.ok("C_InitPIN", s, in(userPIN))
			e.ok("C_CreateObject", s, with(outside.data1, attr(ck.CKA_TOKEN, true), attr(ck.CKA_LABEL, "to be destroyed")), &o)
			e.ok("C_CloseSession", s)
			e.ok("C_InitToken", e.f.fresh, in(soPIN), label("made anew"))
			after := e.token(e.f.fresh)
			e.check(after.label == string(label("made anew")) && after.serial == before.serial && after.flags&ck.CKF_USER_PIN_INITIALIZED == 0, "%+v", after)
			e.ok("C_OpenSession", e.f.fresh, rw, nil, nil, &s)
			defer e.call("C_CloseSession", s)
			e.check(len(e.findAll(s, template{attr(ck.CKA_LABEL, "to be destroyed")})) == 0, "an object outlived it")
			e.ok("C_Login", s, ck.CKU_SO, in(soPIN))
			e.ok("C_Logout", s)
			return e.call("C_Login", s, ck.CKU_USER, in(userPIN))
		}},
		{"5.5.7", "C_InitToken of the free slot makes a token, and C_GetSlotList shows the next free slot", "", ck.CKR_OK, func(e *env) rv {
			var n, before uint
			e.ok("C_GetSlotList", false, nil, &before)
			r := e.call("C_InitToken", e.f.free, in(soPIN), label("one more"))
			made := e.f.free
			e.ok("C_GetSlotList", false, nil, &n)
			list := make(words, n)
			e.ok("C_GetSlotList", false, list, &n)
			e.check(n == before+1 && slices.Contains(list, made), "slots %v", list)
			e.f.free = list[n-1]
			i := e.token(made)
			e.check(i.flags&ck.CKF_TOKEN_INITIALIZED != 0 && i.label == string(label("one more")) && len(i.serial) == 16, "%+v", i)
			return r
		}},
	}
}

// protected are the rows of a write-protected token, whose session is
// read-only: that the token is protected comes first.
func protected() []row {
	return append(tokenKeyRows("that is write-protected", ck.CKR_TOKEN_WRITE_PROTECTED), []row{
		{"5.1.6", "CKR_TOKEN_WRITE_PROTECTED comes before CKR_SESSION_READ_ONLY", "C_CreateObject", ck.CKR_TOKEN_WRITE_PROTECTED, func(e *env) rv {
			return e.call("C_CreateObject", e.s, with(outside.data1, attr(ck.CKA_TOKEN, true)), new(uint))
		}},
		{"5.1.6", "CKR_TOKEN_WRITE_PROTECTED comes before CKR_SESSION_READ_ONLY", "C_SetPIN", ck.CKR_TOKEN_WRITE_PROTECTED, func(e *env) rv { return e.call("C_SetPIN", e.s, in(userPIN), in("another")) }},
		{"5.1.6", "CKR_TOKEN_WRITE_PROTECTED comes before CKR_SESSION_READ_ONLY", "C_GenerateKeyPair", ck.CKR_TOKEN_WRITE_PROTECTED, func(e *env) rv {
			return e.call("C_GenerateKeyPair", e.s, mech(ckmEdwards), template{attr(ck.CKA_EC_PARAMS, oid), attr(ck.CKA_TOKEN, true)}, template{attr(ck.CKA_TOKEN, true)}, new(uint), new(uint))
		}},
		{"5.7.1", "session objects beside a write-protected token", "", ck.CKR_OK, func(e *env) rv { return e.call("C_CreateObject", e.s, outside.data1, new(uint)) }},
	}...)
}

// pins are the rows of PINs that are wrong. The TPM counts them, so each row
// has it forget.
func pins() []row {
	wrong := func(section, rule string, want rv, do func(e *env) rv) row {
		return row{section, rule, "", want, func(e *env) rv {
			defer e.f.tpm.ResetLockout()
			return do(e)
		}}
	}
	fresh := func(e *env) (s uint) {
		e.ok("C_OpenSession", e.f.token, rw, nil, nil, &s)
		e.Cleanup(func() { e.Call("C_CloseAllSessions", e.f.token) })
		return s
	}
	locked := func(rule string, do func(e *env, s uint) rv) row {
		return wrong("5.1.6", rule, ck.CKR_PIN_LOCKED, func(e *env) rv {
			s := fresh(e)
			for range 3 {
				e.call("C_Login", s, ck.CKU_USER, in("wrong pin"))
			}
			return do(e, s)
		})
	}
	return []row{
		wrong("5.6.8", "C_Login with a wrong PIN, which changes nothing", ck.CKR_PIN_INCORRECT, func(e *env) rv {
			s := fresh(e)
			r := e.call("C_Login", s, ck.CKU_USER, in("wrong pin"))
			e.check(e.session(s).state == ck.CKS_RW_PUBLIC_SESSION, "state %d", e.session(s).state)
			return r
		}),
		wrong("5.6.8", "C_Login with the other user's PIN", ck.CKR_PIN_INCORRECT, func(e *env) rv { return e.call("C_Login", fresh(e), ck.CKU_USER, in(soPIN)) }),
		wrong("5.6.8", "C_Login as SO with a wrong PIN", ck.CKR_PIN_INCORRECT, func(e *env) rv { return e.call("C_Login", fresh(e), ck.CKU_SO, in("wrong pin")) }),
		wrong("5.6.8", "C_Login with a PIN that cannot be right", ck.CKR_PIN_INCORRECT, func(e *env) rv { return e.call("C_Login", fresh(e), ck.CKU_USER, in("123")) }),
		wrong("5.6.8", "C_Login with an empty PIN", ck.CKR_PIN_INCORRECT, func(e *env) rv { return e.call("C_Login", fresh(e), ck.CKU_USER, in("")) }),
		wrong("5.6.9", "C_LoginUser with a wrong PIN", ck.CKR_PIN_INCORRECT, func(e *env) rv { return e.call("C_LoginUser", fresh(e), ck.CKU_USER, in("wrong pin"), in(nil)) }),
		wrong("5.5.9", "C_SetPIN with a wrong old PIN, in a public session", ck.CKR_PIN_INCORRECT, func(e *env) rv { return e.call("C_SetPIN", fresh(e), in("wrong pin"), in("another")) }),
		wrong("5.5.9", "C_SetPIN with a wrong old PIN, as the user", ck.CKR_PIN_INCORRECT, func(e *env) rv {
			s := fresh(e)
			e.ok("C_Login", s, ck.CKU_USER, in(userPIN))
			return e.call("C_SetPIN", s, in("wrong pin"), in("another"))
		}),
		wrong("5.5.9", "C_SetPIN with the user's PIN, as the SO", ck.CKR_PIN_INCORRECT, func(e *env) rv {
			s := fresh(e)
			e.ok("C_Login", s, ck.CKU_SO, in(soPIN))
			return e.call("C_SetPIN", s, in(userPIN), in("another"))
		}),
		wrong("5.5.9", "C_SetPIN with a short new PIN", ck.CKR_PIN_LEN_RANGE, func(e *env) rv { return e.call("C_SetPIN", fresh(e), in(userPIN), in("123")) }),
		wrong("5.5.9", "C_SetPIN with a long new PIN", ck.CKR_PIN_LEN_RANGE, func(e *env) rv { return e.call("C_SetPIN", fresh(e), in(userPIN), in(fmt.Sprintf("%256d", 1))) }),
		wrong("5.5.9", "C_SetPIN in a public session changes the user's PIN", ck.CKR_OK, func(e *env) rv {
			s := fresh(e)
			e.ok("C_SetPIN", s, in(userPIN), in("another"))
			r := e.call("C_Login", s, ck.CKU_USER, in("another"))
			e.ok("C_SetPIN", s, in("another"), in(userPIN))
			return r
		}),
		wrong("5.5.7", "C_InitToken with a wrong SO PIN destroys nothing", ck.CKR_PIN_INCORRECT, func(e *env) rv {
			r := e.call("C_InitToken", e.f.token, in("wrong pin"), label("x"))
			s := fresh(e)
			e.check(len(e.findAll(s, template{attr(ck.CKA_LABEL, "data")})) == 1, "the objects are gone")
			return r
		}),
		wrong("4.9", "a wrong PIN for an operation leaves operation and login", ck.CKR_PIN_INCORRECT, func(e *env) rv {
			s := fresh(e)
			e.ok("C_Login", s, ck.CKU_USER, in(userPIN))
			e.f.find(e, s)
			e.ok("C_SignInit", s, mech(ckmEdDSA), e.f.obj["always priv"])
			r := e.call("C_Login", s, ck.CKU_CONTEXT_SPECIFIC, in("wrong pin"))
			e.check(e.session(s).state == ck.CKS_RW_USER_FUNCTIONS, "state %d", e.session(s).state)
			e.ok("C_Login", s, ck.CKU_CONTEXT_SPECIFIC, in(userPIN))
			e.ok("C_Sign", s, in(message), &buffer{Data: make([]byte, 64)})
			return r
		}),
		wrong("4.9", "a PIN for an operation that is locked logs the user out", ck.CKR_PIN_LOCKED, func(e *env) rv {
			s := fresh(e)
			e.ok("C_Login", s, ck.CKU_USER, in(userPIN))
			e.f.find(e, s)
			e.ok("C_SignInit", s, mech(ckmEdDSA), e.f.obj["always priv"])
			for range 3 {
				e.call("C_Login", s, ck.CKU_CONTEXT_SPECIFIC, in("wrong pin"))
			}
			r := e.call("C_Login", s, ck.CKU_CONTEXT_SPECIFIC, in(userPIN))
			e.check(e.session(s).state == ck.CKS_RW_PUBLIC_SESSION, "state %d", e.session(s).state)
			if r == ck.CKR_USER_NOT_LOGGED_IN || r == ck.CKR_OPERATION_NOT_INITIALIZED {
				return ck.CKR_PIN_LOCKED // the third wrong PIN has logged out
			}
			return r
		}),
		locked("the right PIN is refused where the PIN is locked", func(e *env, s uint) rv { return e.call("C_Login", s, ck.CKU_USER, in(userPIN)) }),
		locked("so is the SO's, which the TPM counts together", func(e *env, s uint) rv { return e.call("C_Login", s, ck.CKU_SO, in(soPIN)) }),
		locked("and C_SetPIN", func(e *env, s uint) rv { return e.call("C_SetPIN", s, in(userPIN), in("another")) }),
		locked("and C_InitToken", func(e *env, s uint) rv {
			e.ok("C_CloseSession", s)
			return e.call("C_InitToken", e.f.token, in(soPIN), label("x"))
		}),
		{"5.5.3", "C_GetTokenInfo warns of wrong PINs", "", ck.CKR_OK, func(e *env) rv {
			defer e.f.tpm.ResetLockout()
			s := fresh(e)
			const flags = ck.CKF_USER_PIN_COUNT_LOW | ck.CKF_USER_PIN_FINAL_TRY | ck.CKF_USER_PIN_LOCKED
			for _, want := range []uint{ck.CKF_USER_PIN_COUNT_LOW, ck.CKF_USER_PIN_COUNT_LOW | ck.CKF_USER_PIN_FINAL_TRY, ck.CKF_USER_PIN_LOCKED} {
				e.call("C_Login", s, ck.CKU_USER, in("wrong pin"))
				got := e.token(e.f.token).flags & flags
				e.check(got == want, "flags %x, not %x", got, want)
			}
			return ck.CKR_OK
		}},
	}
}
