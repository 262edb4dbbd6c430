package conformance

import (
	"bytes"
	"fmt"
	"slices"

	ck "github.com/miekg/pkcs11"

	"github.com/InterCooperative-Network/icn-p11/test/p11tool"
)

// ability is a mechanism with all that C_GetMechanismInfo has to say of it, and a
// call of each function that it says the mechanism has.
type ability struct {
	mech     uint
	section  string
	min, max uint
	curve    bool // flags of elliptic curves are there as well
	hardware bool
	does     map[uint]func(e *env) rv
}

var flagNames = map[uint]string{ck.CKF_ENCRYPT: "CKF_ENCRYPT", ck.CKF_DECRYPT: "CKF_DECRYPT", ck.CKF_DIGEST: "CKF_DIGEST", ck.CKF_SIGN: "CKF_SIGN", ck.CKF_VERIFY: "CKF_VERIFY",
	ck.CKF_GENERATE: "CKF_GENERATE", ck.CKF_GENERATE_KEY_PAIR: "CKF_GENERATE_KEY_PAIR", ck.CKF_WRAP: "CKF_WRAP", ck.CKF_UNWRAP: "CKF_UNWRAP", ck.CKF_DERIVE: "CKF_DERIVE",
	ckfMessageSign: "CKF_MESSAGE_SIGN", ckfMessageVerify: "CKF_MESSAGE_VERIFY", ckfMultiMessage: "CKF_MULTI_MESSAGE"}

// abilities are all mechanisms of the token.
func abilities() (all []ability) {
	for m, size := range digests {
		all = append(all, ability{mech: m, section: "5.12.1", does: map[uint]func(*env) rv{ck.CKF_DIGEST: func(e *env) rv {
			e.ok("C_DigestInit", e.s, mech(m))
			return e.output("C_Digest", size, uint(size), e.s, in(message))
		}}})
	}
	signs := func(m func(*env) *p11tool.Mechanism, priv, pub func(*env) uint, size int) map[uint]func(*env) rv {
		sign := func(e *env) []byte {
			e.Helper()
			e.ok("C_SignInit", e.s, m(e), priv(e))
			b := p11tool.Room(size)
			e.ok("C_Sign", e.s, in(message), b)
			return b.Data
		}
		return map[uint]func(*env) rv{
			ck.CKF_SIGN: func(e *env) rv { sign(e); return ck.CKR_OK },
			ck.CKF_VERIFY: func(e *env) rv {
				sig := sign(e)
				e.ok("C_VerifyInit", e.s, m(e), pub(e))
				return e.call("C_Verify", e.s, in(message), in(sig))
			},
		}
	}
	fixed := func(m *p11tool.Mechanism) func(*env) *p11tool.Mechanism {
		return func(*env) *p11tool.Mechanism { return m }
	}
	obj := func(name string) func(*env) uint { return func(e *env) uint { return e.f.obj[name] } }
	generic := func(e *env) uint { return e.secret(ck.CKK_GENERIC_SECRET, secret32) }
	for _, m := range macs {
		all = append(all,
			ability{mech: m.mech, section: m.section, min: 1, max: maxSecret, does: signs(fixed(mech(m.mech)), generic, generic, hashes[m.hash]().Size())},
			ability{mech: m.mech + 1, section: m.section, min: 1, max: maxSecret, does: signs(fixed(&p11tool.Mechanism{Type: m.mech + 1, Param: ul(10)}), generic, generic, 10)})
	}
	for _, m := range []uint{ck.CKM_ECDSA, ck.CKM_ECDSA_SHA256, ck.CKM_ECDSA_SHA384, ck.CKM_ECDSA_SHA512} {
		all = append(all, ability{mech: m, section: "6.3.12", min: 256, max: 384, curve: true, hardware: true, does: signs(fixed(mech(m)), obj("P-256 priv"), obj("P-256 pub"), 64)})
	}
	eddsa := signs(fixed(mech(ckmEdDSA)), obj("pair priv"), obj("pair pub"), 64)
	eddsa[ckfMessageSign] = func(e *env) rv {
		e.ok("C_MessageSignInit", e.s, mech(ckmEdDSA), e.f.priv())
		return e.output("C_SignMessage", 64, 64, e.s, in(nil), in(message))
	}
	eddsa[ckfMessageVerify] = func(e *env) rv {
		e.ok("C_MessageVerifyInit", e.s, mech(ckmEdDSA), e.f.obj["outside"])
		return e.call("C_VerifyMessage", e.s, in(nil), in(message), in(signature))
	}
	eddsa[ckfMultiMessage] = func(e *env) rv {
		e.ok("C_MessageVerifyInit", e.s, mech(ckmEdDSA), e.f.obj["outside"])
		e.ok("C_VerifyMessageBegin", e.s, in(nil))
		e.ok("C_VerifyMessageNext", e.s, in(nil), in(message[:1]), in(nil))
		return e.call("C_VerifyMessageNext", e.s, in(nil), in(message[1:]), in(signature))
	}
	all = append(all, ability{mech: ckmEdDSA, section: "6.3.14", min: 255, max: 255, curve: true, does: eddsa})

	generates := func(m, n uint) map[uint]func(*env) rv {
		return map[uint]func(*env) rv{ck.CKF_GENERATE: func(e *env) rv {
			return e.call("C_GenerateKey", e.s, mech(m), template{attr(ck.CKA_VALUE_LEN, n)}, new(uint))
		}}
	}
	pairs := func(m uint, oid []byte) map[uint]func(*env) rv {
		return map[uint]func(*env) rv{ck.CKF_GENERATE_KEY_PAIR: func(e *env) rv {
			return e.call("C_GenerateKeyPair", e.s, mech(m), template{attr(ck.CKA_EC_PARAMS, oid)}, template{}, new(uint), new(uint))
		}}
	}
	derives := func(m func(*env) *p11tool.Mechanism, base func(*env) uint) map[uint]func(*env) rv {
		return map[uint]func(*env) rv{ck.CKF_DERIVE: func(e *env) rv {
			return e.call("C_DeriveKey", e.s, m(e), base(e), template{}, new(uint))
		}}
	}
	hkdf := func(m uint) func(*env) *p11tool.Mechanism {
		return func(e *env) *p11tool.Mechanism {
			return e.hkdf(m, p11tool.HKDF{Extract: true, PRF: ck.CKM_SHA256, SaltType: ckfHKDFSaltNull})
		}
	}
	all = append(all,
		ability{mech: ck.CKM_GENERIC_SECRET_KEY_GEN, section: "6.8", min: 8, max: 8 * maxSecret, does: generates(ck.CKM_GENERIC_SECRET_KEY_GEN, maxSecret)},
		ability{mech: ck.CKM_AES_KEY_GEN, section: "6.10", min: 16, max: 32, does: generates(ck.CKM_AES_KEY_GEN, 24)},
		ability{mech: ckmChaCha20KeyGen, section: "6.58", min: 32, max: 32, does: generates(ckmChaCha20KeyGen, 32)},
		ability{mech: ckmHKDFKeyGen, section: "6.62", min: 1, max: maxSecret, does: generates(ckmHKDFKeyGen, 1)},
		ability{mech: ck.CKM_EC_KEY_PAIR_GEN, section: "6.3.9", min: 256, max: 384, curve: true, hardware: true, does: pairs(ck.CKM_EC_KEY_PAIR_GEN, curves[1].oid)},
		ability{mech: ckmEdwards, section: "6.3.10", min: 255, max: 255, curve: true, does: pairs(ckmEdwards, oid)},
		ability{mech: ckmMontgomery, section: "6.3.11", min: 255, max: 255, curve: true, does: pairs(ckmMontgomery, x25519OID)},
		ability{mech: ck.CKM_ECDH1_DERIVE, section: "6.3.17", min: 255, max: 255, curve: true,
			does: derives(func(e *env) *p11tool.Mechanism { return e.ecdh(ck.CKD_NULL, nil, x25519Peer) }, obj("X25519 priv"))},
		ability{mech: ckmHKDFDerive, section: "6.62", min: 1, max: maxSecret, does: derives(hkdf(ckmHKDFDerive), func(e *env) uint { return e.secret(ckkHKDF, secret32) })},
		ability{mech: ckmHKDFData, section: "6.62", min: 1, max: maxSecret, does: derives(hkdf(ckmHKDFData), func(e *env) uint { return e.secret(ckkHKDF, secret32) })})

	wraps := func(m *p11tool.Mechanism, does map[uint]func(*env) rv) map[uint]func(*env) rv {
		wrap := func(e *env, kek uint) *buffer {
			e.Helper()
			b := p11tool.Room(64)
			e.ok("C_WrapKey", e.s, m, kek, e.secret(ck.CKK_AES, secret32, attr(ck.CKA_EXTRACTABLE, true)), b)
			return b
		}
		kek := func(e *env) uint {
			return e.secret(ck.CKK_AES, secret32, attr(ck.CKA_WRAP, true), attr(ck.CKA_UNWRAP, true))
		}
		does[ck.CKF_WRAP] = func(e *env) rv { wrap(e, kek(e)); return ck.CKR_OK }
		does[ck.CKF_UNWRAP] = func(e *env) rv {
			k := kek(e)
			b := wrap(e, k)
			return e.call("C_UnwrapKey", e.s, m, k, in(b.Data[:b.Len]), template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_KEY_TYPE, ck.CKK_AES)}, new(uint))
		}
		return does
	}
	for _, m := range modes {
		crypt := func(d direction, from []byte) func(*env) rv {
			return func(e *env) rv {
				e.ok(d.init, e.s, &p11tool.Mechanism{Type: m.mech, Param: m.param(e)}, e.secret(m.key, secret32))
				return e.call(d.one, e.s, in(from), p11tool.Room(64))
			}
		}
		a := ability{mech: m.mech, section: m.section, min: 16, max: 32, does: map[uint]func(*env) rv{
			ck.CKF_ENCRYPT: crypt(encryption, plain), ck.CKF_DECRYPT: crypt(decryption, m.encrypt(plain))}}
		switch m.mech {
		case ckmChaCha20Poly1305:
			a.min = 32
		case ck.CKM_AES_CBC_PAD:
			wraps(&p11tool.Mechanism{Type: m.mech, Param: iv16}, a.does)
		}
		all = append(all, a)
	}
	for _, m := range []uint{ck.CKM_AES_KEY_WRAP, ckmKeyWrapKWP} {
		all = append(all, ability{mech: m, section: "6.16", min: 16, max: 32, does: wraps(mech(m), map[uint]func(*env) rv{})})
	}
	return all
}

// maxSecret is the length of the longest secret key in bytes.
const maxSecret = 128

// abilityRows check that nothing is advertised that a call then refuses, and that
// nothing of it is without a row.
func abilityRows() (rows []row) {
	all := abilities()
	rows = append(rows, row{"5.5.5", "C_GetMechanismList names the mechanisms that have rows, and no others", "", ck.CKR_OK, func(e *env) rv {
		var want []uint
		for _, a := range all {
			want = append(want, a.mech)
		}
		got := slices.Clone(e.mechanisms())
		slices.Sort(want)
		slices.Sort(got)
		e.check(slices.Equal([]uint(got), want), "%x, not %x", got, want)
		return ck.CKR_OK
	}})
	for _, a := range all {
		rows = append(rows, row{"5.5.6", "C_GetMechanismInfo tells the sizes, the functions, and CKF_HW of what the TPM does alone", fmt.Sprintf("%#x", a.mech), ck.CKR_OK, func(e *env) rv {
			var want uint
			for flag := range a.does {
				want |= flag
			}
			if a.hardware {
				want |= ck.CKF_HW
			}
			b := make([]byte, 24)
			r := e.call("C_GetMechanismInfo", e.f.token, a.mech, b)
			const ofCurves = 0x7f00000
			e.check(number(b) == a.min && number(b[8:]) == a.max, "sizes %d to %d, not %d to %d", number(b), number(b[8:]), a.min, a.max)
			e.check(number(b[16:])&^ofCurves == want && (number(b[16:])&ofCurves != 0) == a.curve, "flags %x, not %x", number(b[16:]), want)
			return r
		}})
		for flag, do := range a.does {
			rows = append(rows, row{a.section, "what C_GetMechanismInfo says a mechanism does, it does", fmt.Sprintf("%#x %s", a.mech, flagNames[flag]), ck.CKR_OK, do})
		}
	}
	for _, m := range []struct {
		mech uint
		want uint
	}{{ck.CKM_ECDSA, 0x1900000}, {ck.CKM_EC_KEY_PAIR_GEN, 0x1900000}, {ckmEdDSA, 0x4900000}, {ckmEdwards, 0x4900000}, {ckmMontgomery, 0x4900000}, {ck.CKM_ECDH1_DERIVE, 0x4900000}} {
		rows = append(rows, row{"6.3", "flags of elliptic curves: CKF_EC_F_P, CKF_EC_OID and the form of points or names", fmt.Sprintf("%#x", m.mech), ck.CKR_OK, func(e *env) rv {
			b := make([]byte, 24)
			r := e.call("C_GetMechanismInfo", e.f.token, m.mech, b)
			e.check(number(b[16:])&0x7f00000 == m.want, "flags %x", number(b[16:]))
			return r
		}})
	}
	return rows
}

// originRows are what a secret key tells of where it comes from, by each way to
// make one.
func originRows() (rows []row) {
	hkdf := func(e *env) *p11tool.Mechanism {
		return e.hkdf(ckmHKDFDerive, p11tool.HKDF{Extract: true, PRF: ck.CKM_SHA256, SaltType: ckfHKDFSaltNull})
	}
	type maker = func(e *env, t template) uint
	generate := func(e *env, t template) (o uint) {
		e.ok("C_GenerateKey", e.s, mech(ck.CKM_AES_KEY_GEN), with(t, attr(ck.CKA_VALUE_LEN, 32)), &o)
		return o
	}
	create := func(e *env, t template) uint { return e.create(with(secretKey(ck.CKK_AES, secret32), t...)) }
	unwrap := func(e *env, t template) (o uint) {
		k := e.secret(ck.CKK_AES, secret32, attr(ck.CKA_WRAP, true), attr(ck.CKA_UNWRAP, true))
		b := p11tool.Room(40)
		e.ok("C_WrapKey", e.s, mech(ck.CKM_AES_KEY_WRAP), k, generate(e, template{attr(ck.CKA_EXTRACTABLE, true)}), b)
		e.ok("C_UnwrapKey", e.s, mech(ck.CKM_AES_KEY_WRAP), k, in(b.Data), with(t, attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_KEY_TYPE, ck.CKK_AES)), &o)
		return o
	}
	derive := func(base template) maker {
		return func(e *env, t template) (o uint) {
			var b uint
			e.ok("C_GenerateKey", e.s, mech(ckmHKDFKeyGen), with(base, attr(ck.CKA_VALUE_LEN, 32)), &b)
			e.ok("C_DeriveKey", e.s, hkdf(e), b, with(t, attr(ck.CKA_KEY_TYPE, ck.CKK_AES)), &o)
			return o
		}
	}
	imported := func(e *env, t template) (o uint) {
		e.ok("C_DeriveKey", e.s, hkdf(e), e.secret(ckkHKDF, secret32, attr(ck.CKA_SENSITIVE, true)), with(t, attr(ck.CKA_KEY_TYPE, ck.CKK_AES)), &o)
		return o
	}
	copied := func(from maker, change ...p11tool.Attribute) maker {
		return func(e *env, t template) (o uint) {
			e.ok("C_CopyObject", e.s, from(e, t), template(change), &o)
			return o
		}
	}
	changed := func(from maker, change ...p11tool.Attribute) maker {
		return func(e *env, t template) uint {
			o := from(e, t)
			e.ok("C_SetAttributeValue", e.s, o, template(change))
			return o
		}
	}
	sensitive, extractable := attr(ck.CKA_SENSITIVE, true), attr(ck.CKA_EXTRACTABLE, true)
	open := template{attr(ck.CKA_SENSITIVE, false), extractable}
	gen := uint(ck.CKM_AES_KEY_GEN)
	for _, x := range []struct {
		name                                         string
		make                                         maker
		t                                            template
		local                                        []byte
		mechanism                                    uint
		sensitive, always, extractable, neverExtract []byte
	}{
		{"generated", generate, nil, yes, gen, no, no, no, yes},
		{"generated, sensitive", generate, template{sensitive}, yes, gen, yes, yes, no, yes},
		{"generated, extractable", generate, template{sensitive, extractable}, yes, gen, yes, yes, yes, no},
		{"generated, open", generate, open, yes, gen, no, no, yes, no},
		{"created", create, nil, no, unavailable, no, no, no, no},
		{"created, sensitive", create, template{sensitive}, no, unavailable, yes, no, no, no},
		{"unwrapped", unwrap, nil, no, unavailable, no, no, yes, no},
		{"unwrapped, sensitive and not extractable", unwrap, template{sensitive, attr(ck.CKA_EXTRACTABLE, false)}, no, unavailable, yes, no, no, no},
		{"derived of a key that always was sensitive", derive(template{sensitive}), template{sensitive}, no, unavailable, yes, yes, no, yes},
		{"derived of a key that always was sensitive, open", derive(template{sensitive}), open, no, unavailable, no, no, yes, no},
		{"derived of a key that was extractable", derive(template{extractable}), template{sensitive}, no, unavailable, yes, no, no, no},
		{"derived of a key that was imported", imported, template{sensitive}, no, unavailable, yes, no, no, no},
		{"copied", copied(generate), template{sensitive}, yes, gen, yes, yes, no, yes},
		{"copied and made sensitive", copied(generate, sensitive), nil, yes, gen, yes, no, no, yes},
		{"copied and made not extractable", copied(generate, attr(ck.CKA_EXTRACTABLE, false)), template{extractable}, yes, gen, no, no, no, no},
		{"made sensitive", changed(generate, sensitive), nil, yes, gen, yes, no, no, yes},
		{"made not extractable", changed(generate, attr(ck.CKA_EXTRACTABLE, false)), template{extractable}, yes, gen, no, no, no, no},
	} {
		for typ, want := range map[uint][]byte{ck.CKA_LOCAL: x.local, ck.CKA_KEY_GEN_MECHANISM: ul(x.mechanism), ck.CKA_SENSITIVE: x.sensitive, ck.CKA_ALWAYS_SENSITIVE: x.always,
			ck.CKA_EXTRACTABLE: x.extractable, ck.CKA_NEVER_EXTRACTABLE: x.neverExtract} {
			section := "4.10"
			if typ == ck.CKA_LOCAL || typ == ck.CKA_KEY_GEN_MECHANISM {
				section = "4.7"
			}
			rows = append(rows, row{section, "what a secret key tells of where it comes from", fmt.Sprintf("%s %#x", x.name, typ), ck.CKR_OK, func(e *env) rv {
				got := e.get(x.make(e, x.t), typ)
				e.check(bytes.Equal(got, want), "%x, not %x", got, want)
				return ck.CKR_OK
			}})
		}
		want := rv(ck.CKR_ATTRIBUTE_SENSITIVE)
		if bytes.Equal(x.sensitive, no) && bytes.Equal(x.extractable, yes) {
			want = ck.CKR_OK
		}
		rows = append(rows, row{"5.7.5", "the value of a secret key is told if it is extractable and not sensitive, the others all the same", x.name, want, func(e *env) rv {
			v := []value{{Type: ck.CKA_KEY_TYPE, Room: 8}, {Type: ck.CKA_VALUE, Room: 100}, {Type: ck.CKA_VALUE, Room: -1}, {Type: ck.CKA_VALUE_LEN, Room: 8}}
			r := e.call("C_GetAttributeValue", e.s, x.make(e, x.t), v)
			e.check(number(v[0].Data) == ck.CKK_AES && number(v[3].Data) == 32, "the others: %x, %x", v[0].Data, v[3].Data)
			length := uint(32)
			if want != ck.CKR_OK {
				length = unavailable
			}
			e.check(v[1].Len == length && v[2].Len == length, "lengths %d and %d", v[1].Len, v[2].Len)
			return r
		}})
	}
	for _, x := range []struct {
		rule   string
		what   string
		t      template
		change p11tool.Attribute
	}{
		{"CKA_SENSITIVE cannot become false", "C_SetAttributeValue", template{sensitive}, attr(ck.CKA_SENSITIVE, false)},
		{"CKA_EXTRACTABLE cannot become true", "C_SetAttributeValue", nil, extractable},
		{"CKA_WRAP_WITH_TRUSTED cannot become false", "C_SetAttributeValue", template{attr(ck.CKA_WRAP_WITH_TRUSTED, true)}, attr(ck.CKA_WRAP_WITH_TRUSTED, false)},
		{"CKA_TRUSTED cannot become true without the SO", "C_SetAttributeValue", nil, attr(ck.CKA_TRUSTED, true)},
		{"CKA_SENSITIVE cannot become false", "C_CopyObject", template{sensitive}, attr(ck.CKA_SENSITIVE, false)},
		{"CKA_EXTRACTABLE cannot become true", "C_CopyObject", nil, extractable},
		{"CKA_WRAP_WITH_TRUSTED cannot become false", "C_CopyObject", template{attr(ck.CKA_WRAP_WITH_TRUSTED, true)}, attr(ck.CKA_WRAP_WITH_TRUSTED, false)},
	} {
		rows = append(rows, row{"4.10", x.rule, x.what, ck.CKR_ATTRIBUTE_READ_ONLY, func(e *env) rv {
			args := []any{e.s, generate(e, x.t), template{x.change}}
			if x.what == "C_CopyObject" {
				args = append(args, new(uint))
			}
			return e.call(x.what, args...)
		}})
	}
	for _, k := range []struct {
		name, section string
		key           uint
		want          []byte
	}{{"AES", "6.10", ck.CKK_AES, aesCheck(secret32)}, {"generic secret", "6.8", ck.CKK_GENERIC_SECRET, nil}, {"ChaCha20", "6.58", ckkChaCha20, nil}, {"HMAC", "6.22", ck.CKK_SHA256_HMAC, nil}} {
		if k.want == nil {
			k.want = digestOf(ck.CKM_SHA_1, secret32)[:3]
		}
		rows = append(rows, row{k.section, "CKA_CHECK_VALUE of a secret key", k.name, ck.CKR_OK, func(e *env) rv {
			got := e.get(e.secret(k.key, secret32, attr(ck.CKA_ENCRYPT, false)), ck.CKA_CHECK_VALUE)
			e.check(bytes.Equal(got, k.want), "%x, not %x", got, k.want)
			return ck.CKR_OK
		}})
	}
	return rows
}
