package conformance

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"

	ck "github.com/miekg/pkcs11"

	"github.com/InterCooperative-Network/icn-p11/test/p11tool"
)

// pair makes a pair of session keys.
func (e *env) pair(pub, priv template) (p struct{ pub, priv uint }) {
	e.Helper()
	e.ok("C_GenerateKeyPair", e.s, mech(ckmEdwards), with(pub, attr(ck.CKA_EC_PARAMS, oid)), with(priv), &p.pub, &p.priv)
	return p
}

// sign is a signature in one call.
func (e *env) sign(key uint, msg []byte) []byte {
	e.Helper()
	e.ok("C_SignInit", e.s, mech(ckmEdDSA), key)
	b := p11tool.Room(64)
	e.ok("C_Sign", e.s, in(msg), b)
	return b.Data
}

// eddsa is CKM_EDDSA with a parameter, which lives as long as the row.
func (e *env) eddsa(ph bool, context string) *p11tool.Mechanism {
	return &p11tool.Mechanism{Type: ckmEdDSA, Param: e.params(ph, context)}
}

func (e *env) params(ph bool, context string) []byte {
	param, free := p11tool.EdDSAParams(ph, []byte(context))
	e.Cleanup(free)
	return param
}

// room is a buffer of n bytes, which must be filled with want bytes.
func (e *env) output(name string, n int, want uint, args ...any) rv {
	e.Helper()
	b := &buffer{}
	if n >= 0 {
		b = p11tool.Room(n)
	}
	r := e.call(name, append(args, b)...)
	if r == ck.CKR_OK || r == ck.CKR_BUFFER_TOO_SMALL {
		e.check(b.Len == want, "the length is %d, not %d", b.Len, want)
	}
	return r
}

// initRows are the rows that all functions have which begin an operation with a
// key: in what order they look at what they are given.
func initRows(section, name, other string, key, wrongHalf, useless, forOthers string, args ...any) []row {
	begin := func(rule string, want rv, m func(*env) *p11tool.Mechanism, key func(*env) uint) row {
		return row{section, name + ": " + rule, "", want, func(e *env) rv { return e.call(name, append([]any{e.s, m(e), key(e)}, args...)...) }}
	}
	obj := func(name string) func(*env) uint { return func(e *env) uint { return e.f.obj[name] } }
	handle := func(h uint) func(*env) uint { return func(*env) uint { return h } }
	good := func(*env) *p11tool.Mechanism { return mech(ckmEdDSA) }
	param := func(p []byte) func(*env) *p11tool.Mechanism {
		return func(*env) *p11tool.Mechanism { return &p11tool.Mechanism{Type: ckmEdDSA, Param: p} }
	}
	return []row{
		begin("a key that may do it", ck.CKR_OK, good, obj(key)),
		begin("a mechanism of another kind", ck.CKR_MECHANISM_INVALID, func(*env) *p11tool.Mechanism { return mech(ck.CKM_SHA256) }, obj(key)),
		begin("a mechanism that is not there", ck.CKR_MECHANISM_INVALID, func(*env) *p11tool.Mechanism { return mech(ck.CKM_RSA_PKCS) }, obj(key)),
		begin("a mechanism comes before a key", ck.CKR_MECHANISM_INVALID, func(*env) *p11tool.Mechanism { return mech(ck.CKM_RSA_PKCS) }, handle(0)),
		begin("a parameter of the wrong length", ck.CKR_MECHANISM_PARAM_INVALID, param([]byte{1}), obj(key)),
		begin("a parameter comes before a key", ck.CKR_MECHANISM_PARAM_INVALID, param([]byte{1}), handle(0)),
		begin("a parameter with an empty context and without phFlag", ck.CKR_MECHANISM_PARAM_INVALID, func(e *env) *p11tool.Mechanism { return e.eddsa(false, "") }, obj(key)),
		begin("a parameter with a context of 256 bytes", ck.CKR_MECHANISM_PARAM_INVALID, func(e *env) *p11tool.Mechanism { return e.eddsa(false, fmt.Sprintf("%256d", 1)) }, obj(key)),
		begin("a parameter with a context of 255 bytes", ck.CKR_OK, func(e *env) *p11tool.Mechanism { return e.eddsa(false, fmt.Sprintf("%255d", 1)) }, obj(key)),
		begin("a parameter with phFlag", ck.CKR_OK, func(e *env) *p11tool.Mechanism { return e.eddsa(true, "") }, obj(key)),
		begin("key 0", ck.CKR_KEY_HANDLE_INVALID, good, handle(0)),
		begin("a key that is not there", ck.CKR_KEY_HANDLE_INVALID, good, handle(0xdeadbeef)),
		begin("a data object for a key", ck.CKR_KEY_HANDLE_INVALID, good, obj("data")),
		begin("a certificate for a key", ck.CKR_KEY_HANDLE_INVALID, good, obj("certificate")),
		begin("the other half of the pair", ck.CKR_KEY_FUNCTION_NOT_PERMITTED, good, obj(wrongHalf)),
		begin("a key that may not do it", ck.CKR_KEY_FUNCTION_NOT_PERMITTED, good, obj(useless)),
		begin("a key that is for other mechanisms", ck.CKR_MECHANISM_INVALID, good, obj(forOthers)),
		begin("a key that is for this mechanism", ck.CKR_OK, good, obj("allowed"+key[len("pair"):])),
		{section, name + " while such an operation is active", "", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok(name, append([]any{e.s, mech(ckmEdDSA), e.f.obj[key]}, args...)...)
			return e.call(name, append([]any{e.s, mech(ckmEdDSA), e.f.obj[key]}, args...)...)
		}},
		{section, name + " while an operation is active comes before the mechanism", "", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok(name, append([]any{e.s, mech(ckmEdDSA), e.f.obj[key]}, args...)...)
			return e.call(name, append([]any{e.s, mech(ck.CKM_RSA_PKCS), 0}, args...)...)
		}},
		{section, name + " and " + other + " at a time", "", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok(other, e.s, mech(ckmEdDSA), e.f.obj[key])
			return e.call(name, append([]any{e.s, mech(ckmEdDSA), e.f.obj[key]}, args...)...)
		}},
	}
}

// cancelRow is an Init function without a mechanism.
func cancelRow(section, name, key, next string, args ...any) row {
	return row{section, name + " without a mechanism ends the operation", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
		e.ok(name, append([]any{e.s, nil, 0}, args...)...) // of none
		e.ok(name, append([]any{e.s, mech(ckmEdDSA), e.f.obj[key]}, args...)...)
		e.ok(name, append([]any{e.s, nil, 0}, args...)...)
		return e.call(next, e.s, in(message))
	}}
}

// signRows are the rows of signatures.
func signRows() []row {
	signing := func(e *env) {
		e.Helper()
		e.ok("C_SignInit", e.s, mech(ckmEdDSA), e.f.priv())
	}
	after := func(section, rule string, want rv, do func(e *env) rv) row {
		return row{section, rule, "", want, func(e *env) rv {
			signing(e)
			return do(e)
		}}
	}
	over := func(e *env) rv { return e.call("C_SignUpdate", e.s, in(message)) }
	rows := initRows("5.13.1", "C_SignInit", "C_MessageSignInit", "pair priv", "pair pub", "useless priv", "for others priv")
	return append(rows,
		cancelRow("5.13.1", "C_SignInit", "pair priv", "C_SignUpdate"),
		row{"5.13.2", "C_Sign without C_SignInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.output("C_Sign", 64, 64, e.s, in(message)) }},
		row{"5.13.3", "C_SignUpdate without C_SignInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, over},
		row{"5.13.4", "C_SignFinal without C_SignInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.output("C_SignFinal", 64, 64, e.s) }},
		after("5.13.2", "C_Sign with NULL tells the length, and the operation goes on", ck.CKR_OK, func(e *env) rv {
			e.gives(ck.CKR_OK, "C_Sign", e.s, in(message), &buffer{})
			e.check(e.output("C_Sign", -1, 64, e.s, in(message)) == ck.CKR_OK, "a second question")
			return e.output("C_Sign", 64, 64, e.s, in(message))
		}),
		after("5.13.2", "C_Sign without room tells the length, and the operation goes on", ck.CKR_OK, func(e *env) rv {
			for _, n := range []int{0, 1, 63} {
				e.check(e.output("C_Sign", n, 64, e.s, in(message)) == ck.CKR_BUFFER_TOO_SMALL, "%d bytes", n)
			}
			return e.output("C_Sign", 64, 64, e.s, in(message))
		}),
		after("5.13.2", "C_Sign with more room than it needs", ck.CKR_OK, func(e *env) rv { return e.output("C_Sign", 100, 64, e.s, in(message)) }),
		after("5.13.2", "C_Sign ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.check(e.output("C_Sign", 64, 64, e.s, in(message)) == ck.CKR_OK, "C_Sign")
			return over(e)
		}),
		after("5.13.2", "C_Sign without a place for the length", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_Sign", e.s, in(message), make([]byte, 64), nil) }),
		after("5.13.2", "C_Sign with NULL for data", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.output("C_Sign", 64, 64, e.s, nil, 1) }),
		after("5.13.2", "C_Sign with bad arguments ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.gives(ck.CKR_ARGUMENTS_BAD, "C_Sign", e.s, in(message), make([]byte, 64), nil)
			return over(e)
		}),
		after("5.13.2", "C_Sign of nothing", ck.CKR_OK, func(e *env) rv { return e.output("C_Sign", 64, 64, e.s, in(nil)) }),
		after("5.13.2", "C_Sign after C_SignUpdate, which goes on", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok("C_SignUpdate", e.s, in(message))
			r := e.output("C_Sign", 64, 64, e.s, in(message))
			e.check(e.output("C_SignFinal", 64, 64, e.s) == ck.CKR_OK, "C_SignFinal afterwards")
			return r
		}),
		after("5.13.3", "C_SignUpdate with NULL ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.gives(ck.CKR_ARGUMENTS_BAD, "C_SignUpdate", e.s, nil, 1)
			return over(e)
		}),
		after("5.13.3", "C_SignUpdate of nothing", ck.CKR_OK, func(e *env) rv { return e.call("C_SignUpdate", e.s, in(nil)) }),
		after("5.13.4", "C_SignFinal of nothing", ck.CKR_OK, func(e *env) rv { return e.output("C_SignFinal", 64, 64, e.s) }),
		after("5.13.4", "C_SignFinal with NULL or without room tells the length, and the operation goes on", ck.CKR_OK, func(e *env) rv {
			e.ok("C_SignUpdate", e.s, in(message))
			e.check(e.output("C_SignFinal", -1, 64, e.s) == ck.CKR_OK, "NULL")
			e.check(e.output("C_SignFinal", 63, 64, e.s) == ck.CKR_BUFFER_TOO_SMALL, "63 bytes")
			return e.output("C_SignFinal", 64, 64, e.s)
		}),
		after("5.13.4", "C_SignFinal without a place for the length ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.gives(ck.CKR_ARGUMENTS_BAD, "C_SignFinal", e.s, make([]byte, 64), nil)
			return over(e)
		}),
		row{"5.13.4", "a signature in parts is the one in one call", "", ck.CKR_OK, func(e *env) rv {
			signing(e)
			for i := range message {
				e.ok("C_SignUpdate", e.s, in(message[i:i+1]))
			}
			b := p11tool.Room(64)
			r := e.call("C_SignFinal", e.s, b)
			e.check(bytes.Equal(b.Data, e.sign(e.f.priv(), message)), "%x", b.Data)
			return r
		}},
		row{"6.3.16", "the signature schemes of CK_EDDSA_PARAMS are honoured, not ignored", "", ck.CKR_OK, func(e *env) rv {
			key := e.create(outside.privateKey)
			for _, x := range []struct {
				m    *p11tool.Mechanism
				opts ed25519.Options
			}{{mech(ckmEdDSA), ed25519.Options{}}, {e.eddsa(false, "ctx"), ed25519.Options{Context: "ctx"}}} {
				b := p11tool.Room(64)
				e.ok("C_SignInit", e.s, x.m, key)
				e.ok("C_Sign", e.s, in(message), b)
				e.check(ed25519.VerifyWithOptions(outside.pub, message, b.Data, &x.opts) == nil, "%+v", x.opts)
			}
			return ck.CKR_OK
		}},
		row{"4.9", "a key with CKA_ALWAYS_AUTHENTICATE needs a login for each signature", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			e.ok("C_SignInit", e.s, mech(ckmEdDSA), e.f.obj["always priv"])
			return e.output("C_Sign", 64, 64, e.s, in(message))
		}},
		row{"4.9", "which C_Login with CKU_CONTEXT_SPECIFIC is, for one", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			e.ok("C_SignInit", e.s, mech(ckmEdDSA), e.f.obj["always priv"])
			e.ok("C_Login", e.s, ck.CKU_CONTEXT_SPECIFIC, in(userPIN))
			e.check(e.output("C_Sign", 64, 64, e.s, in(message)) == ck.CKR_OK, "the first signature")
			e.ok("C_SignInit", e.s, mech(ckmEdDSA), e.f.obj["always priv"])
			return e.output("C_Sign", 64, 64, e.s, in(message))
		}},
		row{"4.9", "a login for an operation with a key that needs none", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			signing(e)
			r := e.call("C_Login", e.s, ck.CKU_CONTEXT_SPECIFIC, in(userPIN))
			e.check(e.output("C_Sign", 64, 64, e.s, in(message)) == ck.CKR_OK, "the operation did not go on")
			return r
		}},
		row{"5.13.2", "a key that is destroyed meanwhile", "", ck.CKR_KEY_HANDLE_INVALID, func(e *env) rv {
			p := e.pair(nil, nil)
			e.ok("C_SignInit", e.s, mech(ckmEdDSA), p.priv)
			e.ok("C_DestroyObject", e.s, p.priv)
			return e.output("C_Sign", 64, 64, e.s, in(message))
		}},
	)
}

// verifyRows are the rows of verification.
func verifyRows() []row {
	verifying := func(section, rule string, want rv, do func(e *env) rv) row {
		return row{section, rule, "", want, func(e *env) rv {
			e.ok("C_VerifyInit", e.s, mech(ckmEdDSA), e.f.obj["outside"])
			return do(e)
		}}
	}
	withSig := func(section, rule string, want rv, sig []byte, do func(e *env) rv) row {
		return row{"v3.2 " + section, rule, "", want, func(e *env) rv {
			e.ok("C_VerifySignatureInit", e.s, mech(ckmEdDSA), e.f.obj["outside"], in(sig))
			return do(e)
		}}
	}
	over := func(e *env) rv { return e.call("C_VerifyUpdate", e.s, in(message)) }
	overSig := func(e *env) rv { return e.call("C_VerifySignatureUpdate", e.s, in(message)) }
	wrong := bytes.Clone(signature)
	wrong[3] ^= 1
	rows := initRows("5.15.1", "C_VerifyInit", "C_MessageVerifyInit", "pair pub", "pair priv", "useless pub", "for others pub")
	rows = append(rows, initRows("v3.2 5.15.7", "C_VerifySignatureInit", "C_VerifyInit", "pair pub", "pair priv", "useless pub", "for others pub", in(signature))...)
	for _, x := range []struct {
		rule string
		want rv
		sig  []byte
	}{
		{"the right signature", ck.CKR_OK, signature},
		{"a wrong signature", ck.CKR_SIGNATURE_INVALID, wrong},
		{"a signature of 63 bytes", ck.CKR_SIGNATURE_LEN_RANGE, signature[:63]},
		{"a signature of 65 bytes", ck.CKR_SIGNATURE_LEN_RANGE, append(bytes.Clone(signature), 0)},
		{"an empty signature", ck.CKR_SIGNATURE_LEN_RANGE, nil},
	} {
		rows = append(rows,
			verifying("5.15.2", "C_Verify: "+x.rule, x.want, func(e *env) rv {
				r := e.call("C_Verify", e.s, in(message), in(x.sig))
				e.check(over(e) == ck.CKR_OPERATION_NOT_INITIALIZED, "the operation goes on")
				return r
			}),
			verifying("5.15.4", "C_VerifyFinal: "+x.rule, x.want, func(e *env) rv {
				e.ok("C_VerifyUpdate", e.s, in(message[:4]))
				e.ok("C_VerifyUpdate", e.s, in(message[4:]))
				r := e.call("C_VerifyFinal", e.s, in(x.sig))
				e.check(over(e) == ck.CKR_OPERATION_NOT_INITIALIZED, "the operation goes on")
				return r
			}),
			withSig("5.15.8", "C_VerifySignature: "+x.rule, x.want, x.sig, func(e *env) rv {
				r := e.call("C_VerifySignature", e.s, in(message))
				e.check(overSig(e) == ck.CKR_OPERATION_NOT_INITIALIZED, "the operation goes on")
				return r
			}),
			withSig("5.15.10", "C_VerifySignatureFinal: "+x.rule, x.want, x.sig, func(e *env) rv {
				e.ok("C_VerifySignatureUpdate", e.s, in(message[:4]))
				e.ok("C_VerifySignatureUpdate", e.s, in(message[4:]))
				r := e.call("C_VerifySignatureFinal", e.s)
				e.check(overSig(e) == ck.CKR_OPERATION_NOT_INITIALIZED, "the operation goes on")
				return r
			}))
	}
	return append(rows,
		cancelRow("5.15.1", "C_VerifyInit", "pair pub", "C_VerifyUpdate"),
		cancelRow("v3.2 5.15.7", "C_VerifySignatureInit", "pair pub", "C_VerifySignatureUpdate", in(signature)),
		row{"5.15.2", "C_Verify without C_VerifyInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.call("C_Verify", e.s, in(message), in(signature)) }},
		row{"5.15.3", "C_VerifyUpdate without C_VerifyInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, over},
		row{"5.15.4", "C_VerifyFinal without C_VerifyInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.call("C_VerifyFinal", e.s, in(signature)) }},
		row{"v3.2 5.15.8", "C_VerifySignature without C_VerifySignatureInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.call("C_VerifySignature", e.s, in(message)) }},
		row{"v3.2 5.15.9", "C_VerifySignatureUpdate without C_VerifySignatureInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, overSig},
		row{"v3.2 5.15.10", "C_VerifySignatureFinal without C_VerifySignatureInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.call("C_VerifySignatureFinal", e.s) }},
		verifying("5.15.2", "C_Verify of another message", ck.CKR_SIGNATURE_INVALID, func(e *env) rv { return e.call("C_Verify", e.s, in("another"), in(signature)) }),
		verifying("5.15.2", "C_Verify after C_VerifyUpdate", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok("C_VerifyUpdate", e.s, in(message))
			return e.call("C_Verify", e.s, in(message), in(signature))
		}),
		verifying("5.15.2", "C_Verify with NULL for the signature ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.gives(ck.CKR_ARGUMENTS_BAD, "C_Verify", e.s, in(message), nil, 64)
			return over(e)
		}),
		verifying("5.15.3", "C_VerifyUpdate with NULL ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.gives(ck.CKR_ARGUMENTS_BAD, "C_VerifyUpdate", e.s, nil, 1)
			return over(e)
		}),
		verifying("5.15.4", "C_VerifyFinal with NULL ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.gives(ck.CKR_ARGUMENTS_BAD, "C_VerifyFinal", e.s, nil, 64)
			return over(e)
		}),
		verifying("v3.2 5.15.8", "C_VerifySignature after C_VerifyInit", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.call("C_VerifySignature", e.s, in(message)) }),
		withSig("5.15.8", "C_Verify after C_VerifySignatureInit", ck.CKR_OPERATION_NOT_INITIALIZED, signature, func(e *env) rv { return e.call("C_Verify", e.s, in(message), in(signature)) }),
		withSig("5.15.8", "C_VerifySignature after C_VerifySignatureUpdate", ck.CKR_OPERATION_ACTIVE, signature, func(e *env) rv {
			e.ok("C_VerifySignatureUpdate", e.s, in(message))
			return e.call("C_VerifySignature", e.s, in(message))
		}),
		withSig("5.15.9", "C_VerifySignatureUpdate with NULL ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, signature, func(e *env) rv {
			e.gives(ck.CKR_ARGUMENTS_BAD, "C_VerifySignatureUpdate", e.s, nil, 1)
			return overSig(e)
		}),
		row{"v3.2 5.15.7", "C_VerifySignatureInit with NULL for the signature", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			return e.call("C_VerifySignatureInit", e.s, mech(ckmEdDSA), e.f.pub(), nil, 64)
		}},
	)
}

// messageRows are the rows of message-based signatures and verifications.
func messageRows() []row {
	signing := func(section, rule string, want rv, do func(e *env) rv) row {
		return row{section, rule, "", want, func(e *env) rv {
			e.ok("C_MessageSignInit", e.s, mech(ckmEdDSA), e.f.priv())
			return do(e)
		}}
	}
	verifying := func(section, rule string, want rv, do func(e *env) rv) row {
		return row{section, rule, "", want, func(e *env) rv {
			e.ok("C_MessageVerifyInit", e.s, mech(ckmEdDSA), e.f.obj["outside"])
			return do(e)
		}}
	}
	none := in(nil)
	more := func(e *env) rv { return e.call("C_SignMessageNext", e.s, none, in(message), nil, nil) }
	rows := initRows("5.14.1", "C_MessageSignInit", "C_SignInit", "pair priv", "pair pub", "useless priv", "for others priv")
	rows = append(rows, initRows("5.16.1", "C_MessageVerifyInit", "C_VerifyInit", "pair pub", "pair priv", "useless pub", "for others pub")...)
	for name, args := range map[string][]any{
		"5.14.2 C_SignMessage": {none, in(message), p11tool.Room(64)}, "5.14.3 C_SignMessageBegin": {none}, "5.14.4 C_SignMessageNext": {none, in(message), p11tool.Room(64)}, "5.14.5 C_MessageSignFinal": {},
		"5.16.2 C_VerifyMessage": {none, in(message), in(signature)}, "5.16.3 C_VerifyMessageBegin": {none}, "5.16.4 C_VerifyMessageNext": {none, in(message), in(signature)}, "5.16.5 C_MessageVerifyFinal": {},
	} {
		rows = append(rows, row{name[:6], name[7:] + " without an Init function", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.call(name[7:], append([]any{e.s}, args...)...) }})
	}
	wrong := bytes.Clone(signature)
	wrong[3] ^= 1
	for _, x := range []struct {
		rule string
		want rv
		sig  []byte
	}{{"the right signature", ck.CKR_OK, signature}, {"a wrong signature", ck.CKR_SIGNATURE_INVALID, wrong}, {"a short signature", ck.CKR_SIGNATURE_LEN_RANGE, signature[:63]}, {"an empty signature", ck.CKR_SIGNATURE_LEN_RANGE, []byte{}}} {
		rows = append(rows,
			verifying("5.16.2", "C_VerifyMessage: "+x.rule+", and the process goes on", x.want, func(e *env) rv {
				r := e.call("C_VerifyMessage", e.s, none, in(message), in(x.sig))
				e.ok("C_VerifyMessage", e.s, none, in(message), in(signature))
				return r
			}),
			verifying("5.16.4", "C_VerifyMessageNext: "+x.rule+", and the process goes on", x.want, func(e *env) rv {
				e.ok("C_VerifyMessageBegin", e.s, none)
				e.ok("C_VerifyMessageNext", e.s, none, in(message[:4]), in(nil))
				r := e.call("C_VerifyMessageNext", e.s, none, in(message[4:]), in(x.sig))
				e.gives(ck.CKR_OPERATION_NOT_INITIALIZED, "C_VerifyMessageNext", e.s, none, in(message), in(signature))
				e.ok("C_VerifyMessage", e.s, none, in(message), in(signature))
				return r
			}))
	}
	return append(rows,
		row{"5.14.1", "C_MessageSignInit without a mechanism", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_MessageSignInit", e.s, nil, e.f.priv()) }},
		row{"5.16.1", "C_MessageVerifyInit without a mechanism", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_MessageVerifyInit", e.s, nil, e.f.pub()) }},
		signing("5.14.2", "C_SignMessage with NULL or without room tells the length", ck.CKR_OK, func(e *env) rv {
			e.check(e.output("C_SignMessage", -1, 64, e.s, none, in(message)) == ck.CKR_OK, "NULL")
			e.check(e.output("C_SignMessage", 63, 64, e.s, none, in(message)) == ck.CKR_BUFFER_TOO_SMALL, "63 bytes")
			return e.output("C_SignMessage", 64, 64, e.s, none, in(message))
		}),
		signing("5.14.2", "C_SignMessage signs message after message", ck.CKR_OK, func(e *env) rv {
			for range 3 {
				e.check(e.output("C_SignMessage", 64, 64, e.s, none, in(message)) == ck.CKR_OK, "a signature")
			}
			return e.call("C_MessageSignFinal", e.s)
		}),
		signing("5.14.2", "C_SignMessage with a parameter of the message's own", ck.CKR_OK, func(e *env) rv {
			point := e.get(e.f.pub(), ck.CKA_EC_POINT)[2:]
			for _, context := range []string{"", "one", "two", ""} {
				var param []byte
				if context != "" {
					param = e.params(false, context)
				}
				b := p11tool.Room(64)
				e.ok("C_SignMessage", e.s, in(param), in(message), b)
				e.check(ed25519.VerifyWithOptions(point, message, b.Data, &ed25519.Options{Context: context}) == nil, "context %q", context)
			}
			return ck.CKR_OK
		}),
		signing("5.14.2", "C_SignMessage with a bad parameter, and the process goes on", ck.CKR_MECHANISM_PARAM_INVALID, func(e *env) rv {
			r := e.output("C_SignMessage", 64, 64, e.s, in("x"), in(message))
			e.check(e.output("C_SignMessage", 64, 64, e.s, none, in(message)) == ck.CKR_OK, "the process ended")
			return r
		}),
		signing("5.14.2", "C_SignMessage with bad arguments, and the process goes on", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			r := e.call("C_SignMessage", e.s, none, in(message), make([]byte, 64), nil)
			e.check(e.output("C_SignMessage", 64, 64, e.s, none, in(message)) == ck.CKR_OK, "the process ended")
			return r
		}),
		signing("5.14.2", "C_SignMessage in the middle of a message", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok("C_SignMessageBegin", e.s, none)
			return e.output("C_SignMessage", 64, 64, e.s, none, in(message))
		}),
		signing("5.14.3", "C_SignMessageBegin in the middle of a message", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok("C_SignMessageBegin", e.s, none)
			return e.call("C_SignMessageBegin", e.s, none)
		}),
		signing("5.14.3", "C_SignMessageBegin with a bad parameter", ck.CKR_MECHANISM_PARAM_INVALID, func(e *env) rv { return e.call("C_SignMessageBegin", e.s, in("x")) }),
		signing("5.14.4", "C_SignMessageNext without C_SignMessageBegin", ck.CKR_OPERATION_NOT_INITIALIZED, more),
		signing("5.14.4", "C_SignMessageNext without pulSignatureLen takes a part, with it the last one", ck.CKR_OK, func(e *env) rv {
			for range 2 {
				e.ok("C_SignMessageBegin", e.s, none)
				e.ok("C_SignMessageNext", e.s, none, in(message[:4]), nil, nil)
				b := p11tool.Room(64)
				e.ok("C_SignMessageNext", e.s, none, in(message[4:]), b)
				one := p11tool.Room(64)
				e.ok("C_SignMessage", e.s, none, in(message), one)
				e.check(bytes.Equal(b.Data, one.Data), "%x", b.Data)
			}
			return ck.CKR_OK
		}),
		signing("5.14.4", "C_SignMessageNext with NULL or without room tells the length and takes nothing", ck.CKR_OK, func(e *env) rv {
			e.ok("C_SignMessageBegin", e.s, none)
			e.check(e.output("C_SignMessageNext", -1, 64, e.s, none, in(message)) == ck.CKR_OK, "NULL")
			e.check(e.output("C_SignMessageNext", 63, 64, e.s, none, in(message)) == ck.CKR_BUFFER_TOO_SMALL, "63 bytes")
			b, one := p11tool.Room(64), p11tool.Room(64)
			r := e.call("C_SignMessageNext", e.s, none, in(message), b)
			e.ok("C_SignMessage", e.s, none, in(message), one)
			e.check(bytes.Equal(b.Data, one.Data), "%x", b.Data)
			return r
		}),
		signing("5.14.4", "C_SignMessageNext with bad arguments ends the message, not the process", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.ok("C_SignMessageBegin", e.s, none)
			e.gives(ck.CKR_ARGUMENTS_BAD, "C_SignMessageNext", e.s, none, nil, 1, nil, nil)
			r := more(e)
			e.check(e.output("C_SignMessage", 64, 64, e.s, none, in(message)) == ck.CKR_OK, "the process ended")
			return r
		}),
		signing("5.14.4", "C_SignMessageNext with another parameter than C_SignMessageBegin", ck.CKR_MECHANISM_PARAM_INVALID, func(e *env) rv {
			e.ok("C_SignMessageBegin", e.s, in(e.params(false, "one")))
			e.ok("C_SignMessageNext", e.s, in(e.params(false, "one")), in(message), nil, nil)
			return e.call("C_SignMessageNext", e.s, in(e.params(false, "two")), in(message), nil, nil)
		}),
		signing("5.14.5", "C_MessageSignFinal in the middle of a message", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok("C_SignMessageBegin", e.s, none)
			return e.call("C_MessageSignFinal", e.s)
		}),
		signing("5.14.5", "C_MessageSignFinal ends the process", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.ok("C_MessageSignFinal", e.s)
			return e.call("C_MessageSignFinal", e.s)
		}),
		signing("5.6.5", "C_SessionCancel ends a message-based signature in the middle of a message", ck.CKR_OK, func(e *env) rv {
			e.ok("C_SignMessageBegin", e.s, none)
			e.ok("C_SessionCancel", e.s, ckfMessageSign)
			return e.call("C_SignInit", e.s, mech(ckmEdDSA), e.f.priv())
		}),
		row{"4.9", "CKA_ALWAYS_AUTHENTICATE needs a login for each message", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			e.ok("C_MessageSignInit", e.s, mech(ckmEdDSA), e.f.obj["always priv"])
			e.ok("C_Login", e.s, ck.CKU_CONTEXT_SPECIFIC, in(userPIN))
			e.check(e.output("C_SignMessage", 64, 64, e.s, none, in(message)) == ck.CKR_OK, "the first message")
			return e.output("C_SignMessage", 64, 64, e.s, none, in(message))
		}},
		verifying("5.16.2", "C_VerifyMessage with bad arguments, and the process goes on", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			r := e.call("C_VerifyMessage", e.s, none, in(message), nil, 64)
			e.ok("C_VerifyMessage", e.s, none, in(message), in(signature))
			return r
		}),
		verifying("5.16.2", "C_VerifyMessage with a parameter that is not the signature's", ck.CKR_SIGNATURE_INVALID, func(e *env) rv {
			return e.call("C_VerifyMessage", e.s, in(e.params(false, "ctx")), in(message), in(signature))
		}),
		verifying("5.16.2", "C_VerifyMessage in the middle of a message", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok("C_VerifyMessageBegin", e.s, none)
			return e.call("C_VerifyMessage", e.s, none, in(message), in(signature))
		}),
		verifying("5.16.3", "C_VerifyMessageBegin in the middle of a message", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok("C_VerifyMessageBegin", e.s, none)
			return e.call("C_VerifyMessageBegin", e.s, none)
		}),
		verifying("5.16.4", "C_VerifyMessageNext with bad arguments ends the message", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.ok("C_VerifyMessageBegin", e.s, none)
			e.gives(ck.CKR_ARGUMENTS_BAD, "C_VerifyMessageNext", e.s, none, nil, 1, in(nil))
			return e.call("C_VerifyMessageNext", e.s, none, in(message), in(signature))
		}),
		verifying("5.16.5", "C_MessageVerifyFinal in the middle of a message", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok("C_VerifyMessageBegin", e.s, none)
			return e.call("C_MessageVerifyFinal", e.s)
		}),
		verifying("5.16.5", "C_MessageVerifyFinal ends the process", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.ok("C_MessageVerifyFinal", e.s)
			return e.call("C_MessageVerifyFinal", e.s)
		}),
	)
}

// operations begin an operation of each kind, by the flag that cancels it.
var operations = []struct {
	name  string
	flag  uint
	begin func(e *env) rv
}{
	{"a search", ckfFindObjects, func(e *env) rv { return e.call("C_FindObjectsInit", e.s, template(nil)) }},
	{"a digest", ck.CKF_DIGEST, func(e *env) rv { return e.call("C_DigestInit", e.s, mech(ck.CKM_SHA256)) }},
	{"a signature", ck.CKF_SIGN, func(e *env) rv { return e.call("C_SignInit", e.s, mech(ckmEdDSA), e.f.priv()) }},
	{"a verification", ck.CKF_VERIFY, func(e *env) rv { return e.call("C_VerifyInit", e.s, mech(ckmEdDSA), e.f.pub()) }},
	{"a verification of a signature that came first", ck.CKF_VERIFY, func(e *env) rv {
		return e.call("C_VerifySignatureInit", e.s, mech(ckmEdDSA), e.f.pub(), in(signature))
	}},
	{"an encryption", ck.CKF_ENCRYPT, func(e *env) rv {
		return e.call("C_EncryptInit", e.s, &p11tool.Mechanism{Type: ck.CKM_AES_CBC, Param: iv16}, e.secret(ck.CKK_AES, secret32))
	}},
	{"a decryption", ck.CKF_DECRYPT, func(e *env) rv {
		return e.call("C_DecryptInit", e.s, &p11tool.Mechanism{Type: ck.CKM_AES_CBC, Param: iv16}, e.secret(ck.CKK_AES, secret32))
	}},
	{"message-based signatures", ckfMessageSign, func(e *env) rv { return e.call("C_MessageSignInit", e.s, mech(ckmEdDSA), e.f.priv()) }},
	{"message-based verifications", ckfMessageVerify, func(e *env) rv { return e.call("C_MessageVerifyInit", e.s, mech(ckmEdDSA), e.f.pub()) }},
}

// operationRows are the rows of cancelling operations and of saving their state.
func operationRows() (rows []row) {
	for _, o := range operations {
		rows = append(rows,
			row{"5.6.5", "C_SessionCancel ends the operation of its flag", o.name, ck.CKR_OK, func(e *env) rv {
				e.check(o.begin(e) == ck.CKR_OK, "it does not begin")
				e.ok("C_SessionCancel", e.s, o.flag)
				return o.begin(e)
			}},
			row{"5.6.5", "C_SessionCancel leaves the operations of other flags", o.name, ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
				e.check(o.begin(e) == ck.CKR_OK, "it does not begin")
				e.ok("C_SessionCancel", e.s, ^o.flag)
				return o.begin(e)
			}})
		want := rv(ck.CKR_STATE_UNSAVEABLE)
		switch o.flag {
		case ckfFindObjects:
			want = ck.CKR_OPERATION_NOT_INITIALIZED
		case ck.CKF_DIGEST:
			want = ck.CKR_OK
		}
		rows = append(rows, row{"5.6.6", "C_GetOperationState: digests can be saved", o.name, want, func(e *env) rv {
			e.check(o.begin(e) == ck.CKR_OK, "it does not begin")
			return e.call("C_GetOperationState", e.s, &buffer{})
		}})
		if want == ck.CKR_STATE_UNSAVEABLE {
			rows = append(rows, row{"5.6.6", "C_GetOperationState: a digest beside what cannot be saved", o.name, want, func(e *env) rv {
				e.check(o.begin(e) == ck.CKR_OK, "it does not begin")
				e.ok("C_DigestInit", e.s, mech(ck.CKM_SHA256))
				return e.call("C_GetOperationState", e.s, &buffer{})
			}})
		}
		rows = append(rows, row{"5.6.7", "C_SetOperationState ends what the session was doing", o.name, ck.CKR_OK, func(e *env) rv {
			state := e.saved()
			e.check(o.begin(e) == ck.CKR_OK, "it does not begin")
			r := e.call("C_SetOperationState", e.s, in(state), 0, 0)
			e.ok("C_SessionCancel", e.s, ck.CKF_DIGEST)
			e.check(o.begin(e) == ck.CKR_OK, "it is still active")
			return r
		}})
	}
	return rows
}

// saved is the state of a digest that has begun.
func (e *env) saved() []byte {
	e.Helper()
	e.ok("C_DigestInit", e.s, mech(ck.CKM_SHA256))
	e.ok("C_DigestUpdate", e.s, in(message))
	b := &buffer{}
	e.ok("C_GetOperationState", e.s, b)
	b = p11tool.Room(int(b.Len))
	e.ok("C_GetOperationState", e.s, b)
	e.ok("C_SessionCancel", e.s, ck.CKF_DIGEST)
	return b.Data
}

// digestRows are the rows of digests, which need no login.
func digestRows() []row {
	digesting := func(section, rule string, want rv, do func(e *env) rv) row {
		return row{section, rule, "", want, func(e *env) rv {
			e.ok("C_DigestInit", e.s, mech(ck.CKM_SHA256))
			return do(e)
		}}
	}
	over := func(e *env) rv { return e.call("C_DigestUpdate", e.s, in(message)) }
	rows := []row{
		{"5.12.1", "C_DigestInit with a mechanism of another kind", "", ck.CKR_MECHANISM_INVALID, func(e *env) rv { return e.call("C_DigestInit", e.s, mech(ckmEdDSA)) }},
		{"5.12.1", "C_DigestInit with a mechanism that is not there", "", ck.CKR_MECHANISM_INVALID, func(e *env) rv { return e.call("C_DigestInit", e.s, mech(ck.CKM_MD5)) }},
		{"5.12.1", "C_DigestInit with a parameter", "", ck.CKR_MECHANISM_PARAM_INVALID, func(e *env) rv {
			return e.call("C_DigestInit", e.s, &p11tool.Mechanism{Type: ck.CKM_SHA256, Param: []byte{1}})
		}},
		{"5.12.1", "C_DigestInit without a mechanism where no digest is active", "", ck.CKR_OK, func(e *env) rv { return e.call("C_DigestInit", e.s, nil) }},
		digesting("5.12.1", "C_DigestInit while a digest is active", ck.CKR_OPERATION_ACTIVE, func(e *env) rv { return e.call("C_DigestInit", e.s, mech(ck.CKM_SHA256)) }),
		digesting("5.12.1", "C_DigestInit without a mechanism ends the digest", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.ok("C_DigestInit", e.s, nil)
			return over(e)
		}),
		{"5.12.2", "C_Digest without C_DigestInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.output("C_Digest", 32, 32, e.s, in(message)) }},
		{"5.12.3", "C_DigestUpdate without C_DigestInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, over},
		{"5.12.4", "C_DigestKey without C_DigestInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.call("C_DigestKey", e.s, e.f.pub()) }},
		{"5.12.5", "C_DigestFinal without C_DigestInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.output("C_DigestFinal", 32, 32, e.s) }},
		digesting("5.12.2", "C_Digest with NULL or without room tells the length, and the digest goes on", ck.CKR_OK, func(e *env) rv {
			e.check(e.output("C_Digest", -1, 32, e.s, in(message)) == ck.CKR_OK, "NULL")
			e.check(e.output("C_Digest", 31, 32, e.s, in(message)) == ck.CKR_BUFFER_TOO_SMALL, "31 bytes")
			return e.output("C_Digest", 32, 32, e.s, in(message))
		}),
		digesting("5.12.2", "C_Digest ends the digest", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.check(e.output("C_Digest", 32, 32, e.s, in(message)) == ck.CKR_OK, "C_Digest")
			return over(e)
		}),
		digesting("5.12.2", "C_Digest with bad arguments ends the digest", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.gives(ck.CKR_ARGUMENTS_BAD, "C_Digest", e.s, nil, 1, p11tool.Room(32))
			return over(e)
		}),
		digesting("5.12.2", "C_Digest without a place for the length", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_Digest", e.s, in(message), make([]byte, 32), nil) }),
		digesting("5.12.2", "C_Digest after C_DigestUpdate", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok("C_DigestUpdate", e.s, in(message))
			return e.output("C_Digest", 32, 32, e.s, in(message))
		}),
		digesting("5.12.3", "C_DigestUpdate with bad arguments ends the digest", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.gives(ck.CKR_ARGUMENTS_BAD, "C_DigestUpdate", e.s, nil, 1)
			return over(e)
		}),
		digesting("5.12.4", "C_DigestKey of a key that is not there", ck.CKR_KEY_HANDLE_INVALID, func(e *env) rv { return e.call("C_DigestKey", e.s, 0xdeadbeef) }),
		digesting("5.12.4", "C_DigestKey of a public key", ck.CKR_KEY_INDIGESTIBLE, func(e *env) rv { return e.call("C_DigestKey", e.s, e.f.pub()) }),
		digesting("5.12.5", "C_DigestFinal with NULL or without room tells the length, and the digest goes on", ck.CKR_OK, func(e *env) rv {
			e.ok("C_DigestUpdate", e.s, in(message))
			e.check(e.output("C_DigestFinal", -1, 32, e.s) == ck.CKR_OK, "NULL")
			e.check(e.output("C_DigestFinal", 31, 32, e.s) == ck.CKR_BUFFER_TOO_SMALL, "31 bytes")
			return e.output("C_DigestFinal", 32, 32, e.s)
		}),
		digesting("5.12.5", "C_DigestFinal of nothing", ck.CKR_OK, func(e *env) rv { return e.output("C_DigestFinal", 32, 32, e.s) }),
		digesting("5.12.5", "C_DigestFinal without a place for the length ends the digest", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.gives(ck.CKR_ARGUMENTS_BAD, "C_DigestFinal", e.s, make([]byte, 32), nil)
			return over(e)
		}),
		{"5.6.6", "C_GetOperationState where nothing is active", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.call("C_GetOperationState", e.s, &buffer{}) }},
		digesting("5.6.6", "C_GetOperationState without a place for the length", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_GetOperationState", e.s, nil, nil) }),
		digesting("5.6.6", "C_GetOperationState without room", ck.CKR_BUFFER_TOO_SMALL, func(e *env) rv {
			b := &buffer{}
			e.ok("C_GetOperationState", e.s, b)
			return e.output("C_GetOperationState", int(b.Len)-1, b.Len, e.s)
		}),
		{"5.6.7", "C_SetOperationState goes on with what was saved, in another session too", "", ck.CKR_OK, func(e *env) rv {
			state := e.saved()
			other := e.open(e.session(e.s).flags)
			first, second := p11tool.Room(32), p11tool.Room(32)
			for s, b := range map[uint]*buffer{e.s: first, other: second} {
				e.ok("C_SetOperationState", s, in(state), 0, 0)
				e.ok("C_DigestUpdate", s, in("more"))
				e.ok("C_DigestFinal", s, b)
			}
			e.ok("C_DigestInit", e.s, mech(ck.CKM_SHA256))
			whole := p11tool.Room(32)
			r := e.call("C_Digest", e.s, in(append(bytes.Clone(message), "more"...)), whole)
			e.check(bytes.Equal(first.Data, whole.Data) && bytes.Equal(second.Data, whole.Data), "%x, %x, %x", first.Data, second.Data, whole.Data)
			return r
		}},
		{"5.6.7", "C_SetOperationState with NULL", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_SetOperationState", e.s, in(nil), 0, 0) }},
		{"5.6.7", "C_SetOperationState with what is no state", "", ck.CKR_SAVED_STATE_INVALID, func(e *env) rv { return e.call("C_SetOperationState", e.s, in("no state at all, of any length"), 0, 0) }},
		{"5.6.7", "C_SetOperationState with a state that was changed", "", ck.CKR_SAVED_STATE_INVALID, func(e *env) rv {
			state := e.saved()
			state[len(state)/2] ^= 1
			return e.call("C_SetOperationState", e.s, in(state), 0, 0)
		}},
		{"5.6.7", "C_SetOperationState with a state that is cut", "", ck.CKR_SAVED_STATE_INVALID, func(e *env) rv {
			state := e.saved()
			return e.call("C_SetOperationState", e.s, in(state[:len(state)-1]), 0, 0)
		}},
		{"5.6.7", "C_SetOperationState with a state of another token", "", ck.CKR_SAVED_STATE_INVALID, func(e *env) rv {
			var s uint
			state := e.saved()
			e.ok("C_OpenSession", e.f.fresh, ck.CKF_SERIAL_SESSION|e.session(e.s).flags, nil, nil, &s)
			defer e.call("C_CloseSession", s)
			return e.call("C_SetOperationState", s, in(state), 0, 0)
		}},
		{"5.6.7", "C_SetOperationState with an encryption key that is not needed", "", ck.CKR_KEY_NOT_NEEDED, func(e *env) rv { return e.call("C_SetOperationState", e.s, in(e.saved()), e.f.pub(), 0) }},
		{"5.6.7", "C_SetOperationState with an authentication key that is not needed", "", ck.CKR_KEY_NOT_NEEDED, func(e *env) rv { return e.call("C_SetOperationState", e.s, in(e.saved()), 0, e.f.pub()) }},
	}
	for m, size := range digests {
		rows = append(rows,
			row{"5.5.6", "a mechanism that is said to digest does", fmt.Sprintf("%#x", m), ck.CKR_OK, func(e *env) rv {
				b := make([]byte, 24)
				e.ok("C_GetMechanismInfo", e.f.token, m, b)
				e.check(number(b) == 0 && number(b[8:]) == 0 && number(b[16:]) == ck.CKF_DIGEST, "sizes %d to %d, flags %x", number(b), number(b[8:]), number(b[16:]))
				e.ok("C_DigestInit", e.s, mech(m))
				return e.output("C_Digest", size, uint(size), e.s, in(message))
			}})
	}
	return rows
}

// vectorRows are the digests of public vectors.
func vectorRows() (rows []row) {
	types := map[string]uint{"CKM_SHA_1": ck.CKM_SHA_1, "CKM_SHA224": ck.CKM_SHA224, "CKM_SHA256": ck.CKM_SHA256, "CKM_SHA384": ck.CKM_SHA384, "CKM_SHA512": ck.CKM_SHA512,
		"CKM_SHA512_224": ckmSHA512t224, "CKM_SHA512_256": ckmSHA512t256, "CKM_SHA3_224": ckmSHA3x224, "CKM_SHA3_256": ck.CKM_SHA3_256, "CKM_SHA3_384": ck.CKM_SHA3_384, "CKM_SHA3_512": ck.CKM_SHA3_512}
	sections := map[string]string{"CKM_SHA_1": "6.20", "CKM_SHA224": "6.21", "CKM_SHA256": "6.22", "CKM_SHA384": "6.23", "CKM_SHA512": "6.24", "CKM_SHA512_224": "6.25", "CKM_SHA512_256": "6.26",
		"CKM_SHA3_224": "6.28", "CKM_SHA3_256": "6.29", "CKM_SHA3_384": "6.30", "CKM_SHA3_512": "6.31"}
	b, err := os.ReadFile("../../p11/testdata/digests.json")
	if err != nil {
		panic(err)
	}
	var vectors []struct {
		Mechanism, Source, Message, Digest string
		Repeat                             int
	}
	if err := json.Unmarshal(b, &vectors); err != nil {
		panic(err)
	}
	for i, v := range vectors {
		rows = append(rows, row{sections[v.Mechanism], v.Mechanism + " against " + v.Source, fmt.Sprint(i), ck.CKR_OK, func(e *env) rv {
			part, err := hex.DecodeString(v.Message)
			if err != nil {
				e.Fatal(err)
			}
			e.ok("C_DigestInit", e.s, mech(types[v.Mechanism]))
			e.ok("C_DigestUpdate", e.s, in(bytes.Repeat(part, v.Repeat)))
			b := p11tool.Room(len(v.Digest) / 2)
			r := e.call("C_DigestFinal", e.s, b)
			e.check(hex.EncodeToString(b.Data) == v.Digest, "%x", b.Data)
			return r
		}})
	}
	return rows
}
