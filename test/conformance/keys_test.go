package conformance

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	ck "github.com/miekg/pkcs11"

	"github.com/InterCooperative-Network/icn-p11/test/p11tool"
)

// x25519OID is the DER of 1.3.101.110, id-X25519 (RFC 8410, section 3).
var x25519OID = []byte{0x06, 0x03, 0x2b, 0x65, 0x6e}

// A private key of X25519 that the tests know, another's public key, and what they
// share.
var (
	x25519Key    = []byte("a private key of 32 bytes, known")
	x25519Peer   = ecdhPublic(secret32)
	x25519Shared = ecdhShared(x25519Key, x25519Peer)
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func ecdhKey(b []byte) *ecdh.PrivateKey {
	k, err := ecdh.X25519().NewPrivateKey(b)
	if err != nil {
		panic(err)
	}
	return k
}

func ecdhPublic(b []byte) []byte { return ecdhKey(b).PublicKey().Bytes() }

func ecdhShared(b, public []byte) []byte {
	p, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		panic(err)
	}
	z, err := ecdhKey(b).ECDH(p)
	if err != nil {
		panic(err)
	}
	return z
}

// x963 is the KDF of ANSI X9.63 with SHA-256.
func x963(z, shared []byte, n int) (out []byte) {
	for counter := uint32(1); len(out) < n; counter++ {
		sum := sha256.Sum256(append(binary.BigEndian.AppendUint32(bytes.Clone(z), counter), shared...))
		out = append(out, sum[:]...)
	}
	return out[:n]
}

const ckdSHA256KDF = 6

// x25519Private is the template of a private key that the tests know.
var x25519Private = template{attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY), attr(ck.CKA_KEY_TYPE, ckkECMontgomery),
	attr(ck.CKA_EC_PARAMS, x25519OID), attr(ck.CKA_VALUE, x25519Key)}

func (e *env) ecdh(kdf uint, shared, public []byte) *p11tool.Mechanism {
	return &p11tool.Mechanism{Type: ck.CKM_ECDH1_DERIVE, Param: e.param(p11tool.ECDH1Params(kdf, shared, public))}
}

func (e *env) hkdf(mechanism uint, p p11tool.HKDF) *p11tool.Mechanism {
	return &p11tool.Mechanism{Type: mechanism, Param: e.param(p11tool.HKDFParams(p))}
}

// readable is what lets a test read a secret key.
var readable = []p11tool.Attribute{attr(ck.CKA_SENSITIVE, false), attr(ck.CKA_EXTRACTABLE, true)}

// generatorRows are the rows of C_GenerateKey.
func generatorRows() (rows []row) {
	makes := func(section, rule, what string, want rv, m *p11tool.Mechanism, t template) {
		rows = append(rows, row{section, rule, what, want, func(e *env) rv { return e.call("C_GenerateKey", e.s, m, t, new(uint)) }})
	}
	aesGen := mech(ck.CKM_AES_KEY_GEN)
	length := template{attr(ck.CKA_VALUE_LEN, 32)}
	for _, g := range []struct {
		name, section string
		mech, key     uint
		good, bad     []int
		fixed         bool
	}{
		{"CKM_GENERIC_SECRET_KEY_GEN", "6.8", ck.CKM_GENERIC_SECRET_KEY_GEN, ck.CKK_GENERIC_SECRET, []int{1, 20, 32, 64}, []int{0, 1 << 20}, false},
		{"CKM_AES_KEY_GEN", "6.10", ck.CKM_AES_KEY_GEN, ck.CKK_AES, []int{16, 24, 32}, []int{0, 15, 17, 64}, false},
		{"CKM_CHACHA20_KEY_GEN", "6.58", ckmChaCha20KeyGen, ckkChaCha20, []int{32}, []int{16, 33}, true},
		{"CKM_HKDF_KEY_GEN", "6.62", ckmHKDFKeyGen, ckkHKDF, []int{1, 32, 64}, []int{0, 1 << 20}, false},
	} {
		for _, n := range g.good {
			rows = append(rows, row{g.section, "C_GenerateKey makes a key of the type and the length, another each time", fmt.Sprintf("%s %d", g.name, n), ck.CKR_OK, func(e *env) rv {
				seen := map[string]bool{}
				for range 2 {
					var o uint
					e.ok("C_GenerateKey", e.s, mech(g.mech), with(template{attr(ck.CKA_VALUE_LEN, n)}, readable...), &o)
					v := e.get(o, ck.CKA_VALUE)
					e.check(len(v) == n && (!seen[string(v)] || n == 1), "%x", v)
					seen[string(v)] = true
					e.check(number(e.get(o, ck.CKA_KEY_TYPE)) == g.key && number(e.get(o, ck.CKA_VALUE_LEN)) == uint(n), "type and length")
				}
				return ck.CKR_OK
			}})
		}
		for _, n := range g.bad {
			makes(g.section, "C_GenerateKey of a length that the type does not have", fmt.Sprintf("%s %d", g.name, n), ck.CKR_ATTRIBUTE_VALUE_INVALID, mech(g.mech), template{attr(ck.CKA_VALUE_LEN, n)})
		}
		want := rv(ck.CKR_TEMPLATE_INCOMPLETE)
		if g.fixed {
			want = ck.CKR_OK
		}
		makes(g.section, "C_GenerateKey without CKA_VALUE_LEN", g.name, want, mech(g.mech), template{})
		makes("5.18.1", "class and type of the key, as the mechanism has them", g.name, ck.CKR_OK, mech(g.mech), with(length, attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_KEY_TYPE, g.key)))
		makes("5.18.1", "another class in the template", g.name, ck.CKR_TEMPLATE_INCONSISTENT, mech(g.mech), with(length, attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY)))
		makes("5.18.1", "another type in the template", g.name, ck.CKR_TEMPLATE_INCONSISTENT, mech(g.mech), with(length, attr(ck.CKA_KEY_TYPE, ck.CKK_DES3)))
		makes("5.18.1", "a parameter", g.name, ck.CKR_MECHANISM_PARAM_INVALID, &p11tool.Mechanism{Type: g.mech, Param: []byte{1}}, length)
	}
	makes("5.18.1", "a mechanism that makes no keys", "", ck.CKR_MECHANISM_INVALID, mech(ck.CKM_AES_CBC), length)
	makes("5.18.1", "a mechanism that makes pairs", "", ck.CKR_MECHANISM_INVALID, mech(ckmEdwards), length)
	makes("5.18.1", "a mechanism that is not there", "", ck.CKR_MECHANISM_INVALID, mech(ck.CKM_DES3_KEY_GEN), length)
	makes("5.18.1", "a mechanism comes before a template", "", ck.CKR_MECHANISM_INVALID, mech(ck.CKM_DES3_KEY_GEN), template{attr(0x80000001, "x")})
	makes("5.18.1", "a parameter comes before a template", "", ck.CKR_MECHANISM_PARAM_INVALID, &p11tool.Mechanism{Type: ck.CKM_AES_KEY_GEN, Param: []byte{1}}, template{attr(0x80000001, "x")})
	makes("4.1.1", "an unknown attribute in C_GenerateKey", "", ck.CKR_ATTRIBUTE_TYPE_INVALID, aesGen, with(length, attr(0x80000001, "x")))
	makes("4.1.1", "an attribute of other objects in C_GenerateKey", "", ck.CKR_TEMPLATE_INCONSISTENT, aesGen, with(length, attr(ck.CKA_EC_PARAMS, oid)))
	makes("4.1.1", "two values for one attribute in C_GenerateKey", "", ck.CKR_TEMPLATE_INCONSISTENT, aesGen, with(length, attr(ck.CKA_VALUE_LEN, 16)))
	makes("6.10", "CKA_VALUE must not be in the template of C_GenerateKey", "", ck.CKR_ATTRIBUTE_READ_ONLY, aesGen, with(length, attr(ck.CKA_VALUE, secret32)))
	for _, typ := range []uint{ck.CKA_LOCAL, ck.CKA_ALWAYS_SENSITIVE, ck.CKA_NEVER_EXTRACTABLE} {
		makes("4.10", "an attribute that must not be in the template of C_GenerateKey", fmt.Sprintf("%#x", typ), ck.CKR_ATTRIBUTE_READ_ONLY, aesGen, with(length, attr(typ, true)))
	}
	makes("4.10", "CKA_TRUSTED in C_GenerateKey without the SO", "", ck.CKR_ATTRIBUTE_READ_ONLY, aesGen, with(length, attr(ck.CKA_TRUSTED, true)))
	makes("4.10", "a check value that cannot be right", "", ck.CKR_ATTRIBUTE_VALUE_INVALID, aesGen, with(length, attr(ck.CKA_CHECK_VALUE, "four")))
	makes("4.10", "an empty check value in C_GenerateKey", "", ck.CKR_OK, aesGen, with(length, attr(ck.CKA_CHECK_VALUE, "")))
	rows = append(rows,
		row{"5.18.1", "C_GenerateKey without a mechanism", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_GenerateKey", e.s, nil, length, new(uint)) }},
		row{"5.18.1", "C_GenerateKey without a place for the key", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_GenerateKey", e.s, aesGen, length, nil) }},
		row{"5.18.1", "C_GenerateKey with NULL for a template that is not empty", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_GenerateKey", e.s, aesGen, nil, 1, new(uint)) }},
		row{"5.18.1", "C_GenerateKey with NULL for an empty template", "", ck.CKR_OK, func(e *env) rv {
			return e.call("C_GenerateKey", e.s, mech(ckmChaCha20KeyGen), template(nil), new(uint))
		}},
		row{"5.18.1", "C_GenerateKey of a token object", "", ck.CKR_OK, func(e *env) rv {
			var o uint
			r := e.call("C_GenerateKey", e.s, aesGen, with(length, attr(ck.CKA_TOKEN, true), attr(ck.CKA_LABEL, "generated")), &o)
			e.destroyed(o)
			e.ok("C_EncryptInit", e.s, &p11tool.Mechanism{Type: ck.CKM_AES_CBC, Param: iv16}, o)
			found := e.findAll(e.open(ro), template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_LABEL, "generated")})
			e.check(len(found) == 1 && found[0] == o, "%v", found)
			return r
		}})

	// C_GenerateKeyPair for the other curves.
	pairs := func(section, rule, what string, want rv, m uint, pub, priv template) {
		rows = append(rows, row{section, rule, what, want, func(e *env) rv {
			return e.call("C_GenerateKeyPair", e.s, mech(m), pub, priv, new(uint), new(uint))
		}})
	}
	params := func(oid []byte) template { return template{attr(ck.CKA_EC_PARAMS, oid)} }
	for _, g := range []struct {
		name, section string
		usual         string
		mech, key     uint
		right         map[string][]byte
		wrong         [][]byte
	}{
		{"CKM_EC_KEY_PAIR_GEN", "6.3.9", "P-256", ck.CKM_EC_KEY_PAIR_GEN, ck.CKK_EC,
			map[string][]byte{"P-256": curves[0].oid, "P-384": curves[1].oid, "secp256r1": append([]byte{0x13, 9}, "secp256r1"...)}, [][]byte{oid, x25519OID, {0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23}}},
		{"CKM_EC_MONTGOMERY_KEY_PAIR_GEN", "6.3.11", "X25519", ckmMontgomery, ckkECMontgomery,
			map[string][]byte{"X25519": x25519OID, "curve25519": append([]byte{0x13, 10}, "curve25519"...)}, [][]byte{oid, curves[0].oid, {0x06, 0x03, 0x2b, 0x65, 0x6f}}},
		{"CKM_EC_EDWARDS_KEY_PAIR_GEN", "6.3.10", "Ed25519", ckmEdwards, ckkECEdwards, map[string][]byte{"Ed25519": oid}, [][]byte{curves[0].oid, x25519OID}},
	} {
		for name, oid := range g.right {
			pairs(g.section, "C_GenerateKeyPair on the curves of the mechanism", g.name+" "+name, ck.CKR_OK, g.mech, params(oid), template{})
		}
		for _, oid := range g.wrong {
			pairs(g.section, "C_GenerateKeyPair on a curve that the mechanism has not", fmt.Sprintf("%s %x", g.name, oid), ck.CKR_CURVE_NOT_SUPPORTED, g.mech, params(oid), template{})
		}
		pairs(g.section, "C_GenerateKeyPair without CKA_EC_PARAMS", g.name, ck.CKR_TEMPLATE_INCOMPLETE, g.mech, template{}, template{})
		pairs(g.section, "C_GenerateKeyPair with parameters that name no curve", g.name, ck.CKR_DOMAIN_PARAMS_INVALID, g.mech, params([]byte{5, 0}), template{})
		one := params(g.right[g.usual])
		pairs("5.18.2", "class and type of the keys, as the mechanism has them", g.name, ck.CKR_OK, g.mech, with(one, attr(ck.CKA_CLASS, ck.CKO_PUBLIC_KEY), attr(ck.CKA_KEY_TYPE, g.key)),
			template{attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY), attr(ck.CKA_KEY_TYPE, g.key)})
		pairs("5.18.2", "another type of keys", g.name, ck.CKR_TEMPLATE_INCONSISTENT, g.mech, one, template{attr(ck.CKA_KEY_TYPE, ck.CKK_RSA)})
		pairs("5.18.2", "another type of keys", g.name+" public", ck.CKR_TEMPLATE_INCONSISTENT, g.mech, with(one, attr(ck.CKA_KEY_TYPE, ck.CKK_RSA)), template{})
	}
	pairs("5.18.2", "curves that differ in the two templates", "", ck.CKR_TEMPLATE_INCONSISTENT, ck.CKM_EC_KEY_PAIR_GEN, params(curves[0].oid), params(curves[1].oid))
	rows = append(rows,
		row{"6.3.11", "the halves of a pair of X25519 belong together", "", ck.CKR_OK, func(e *env) rv {
			var pub, priv, o uint
			r := e.call("C_GenerateKeyPair", e.s, mech(ckmMontgomery), params(x25519OID), template{}, &pub, &priv)
			point := e.get(pub, ck.CKA_EC_POINT)
			e.ok("C_DeriveKey", e.s, e.ecdh(ck.CKD_NULL, nil, x25519Peer), priv, template(readable), &o)
			e.check(bytes.Equal(e.get(o, ck.CKA_VALUE), ecdhShared(secret32, point[2:])), "the public key is another's")
			e.check(bytes.Equal(e.get(pub, ck.CKA_ID), e.get(priv, ck.CKA_ID)) && len(e.get(pub, ck.CKA_ID)) == 32, "CKA_ID")
			return r
		}},
		row{"6.3.4", "an EC private key is made in the TPM, and none is imported", "", ck.CKR_ATTRIBUTE_READ_ONLY, func(e *env) rv {
			return e.call("C_CreateObject", e.s, template{attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY), attr(ck.CKA_KEY_TYPE, ck.CKK_EC), attr(ck.CKA_EC_PARAMS, curves[0].oid), attr(ck.CKA_VALUE, secret32)}, new(uint))
		}},
		row{"6.3.3", "an EC public key of anybody is imported", "", ck.CKR_OK, func(e *env) rv {
			point := e.get(e.f.obj["P-256 pub"], ck.CKA_EC_POINT)
			o := e.create(template{attr(ck.CKA_CLASS, ck.CKO_PUBLIC_KEY), attr(ck.CKA_KEY_TYPE, ck.CKK_EC), attr(ck.CKA_EC_PARAMS, curves[0].oid), attr(ck.CKA_EC_POINT, point)})
			e.ok("C_SignInit", e.s, mech(ck.CKM_ECDSA_SHA256), e.f.obj["P-256 priv"])
			b := p11tool.Room(64)
			e.ok("C_Sign", e.s, in(message), b)
			e.ok("C_VerifyInit", e.s, mech(ck.CKM_ECDSA_SHA256), o)
			return e.call("C_Verify", e.s, in(message), in(b.Data))
		}},
		row{"6.3.3", "an EC public key that is no point of its curve", "", ck.CKR_ATTRIBUTE_VALUE_INVALID, func(e *env) rv {
			return e.call("C_CreateObject", e.s, template{attr(ck.CKA_CLASS, ck.CKO_PUBLIC_KEY), attr(ck.CKA_KEY_TYPE, ck.CKK_EC), attr(ck.CKA_EC_PARAMS, curves[0].oid),
				attr(ck.CKA_EC_POINT, append([]byte{4, 65, 4}, make([]byte, 64)...))}, new(uint))
		}},
		row{"6.3.8", "an imported private key of X25519 has the public key that follows from it", "", ck.CKR_OK, func(e *env) rv {
			point := e.get(e.create(x25519Private), ck.CKA_EC_POINT)
			e.check(len(point) == 34 && bytes.Equal(point[2:], ecdhPublic(x25519Key)), "%x", point)
			return ck.CKR_OK
		}})

	// What is made from a secret key's template by C_CreateObject.
	creates := func(section, rule, what string, want rv, t template) {
		rows = append(rows, row{section, rule, what, want, func(e *env) rv { return e.call("C_CreateObject", e.s, t, new(uint)) }})
	}
	for _, k := range []struct {
		name, section string
		key           uint
		good, bad     []int
	}{
		{"CKK_GENERIC_SECRET", "6.8", ck.CKK_GENERIC_SECRET, []int{1, 64}, []int{0, 4096}},
		{"CKK_AES", "6.10", ck.CKK_AES, []int{16, 24, 32}, []int{0, 15, 33}},
		{"CKK_CHACHA20", "6.58", ckkChaCha20, []int{32}, []int{0, 16, 31}},
		{"CKK_HKDF", "6.62", ckkHKDF, []int{1, 32}, []int{0, 4096}},
		{"CKK_SHA224_HMAC", "6.21", ck.CKK_SHA224_HMAC, []int{1, 28}, []int{0}}, {"CKK_SHA256_HMAC", "6.22", ck.CKK_SHA256_HMAC, []int{1, 32}, []int{0}},
		{"CKK_SHA384_HMAC", "6.23", ck.CKK_SHA384_HMAC, []int{48}, []int{0}}, {"CKK_SHA512_HMAC", "6.24", ck.CKK_SHA512_HMAC, []int{64}, []int{0}},
		{"CKK_SHA512_224_HMAC", "6.25", ckkSHA512t224HMAC, []int{28}, []int{0}}, {"CKK_SHA512_256_HMAC", "6.26", ckkSHA512t256HMAC, []int{32}, []int{0}},
		{"CKK_SHA3_224_HMAC", "6.28", ckkSHA3x224HMAC, []int{28}, []int{0}}, {"CKK_SHA3_256_HMAC", "6.29", ckkSHA3x256HMAC, []int{32}, []int{0}},
		{"CKK_SHA3_384_HMAC", "6.30", ckkSHA3x384HMAC, []int{48}, []int{0}}, {"CKK_SHA3_512_HMAC", "6.31", ckkSHA3x512HMAC, []int{64}, []int{0}},
	} {
		for _, n := range k.good {
			creates(k.section, "C_CreateObject of a secret key", fmt.Sprintf("%s of %d bytes", k.name, n), ck.CKR_OK, secretKey(k.key, make([]byte, n)))
		}
		for _, n := range k.bad {
			creates(k.section, "C_CreateObject of a secret key of a length that the type does not have", fmt.Sprintf("%s of %d bytes", k.name, n), ck.CKR_ATTRIBUTE_VALUE_INVALID, secretKey(k.key, make([]byte, n)))
		}
		good := secretKey(k.key, make([]byte, k.good[0]))
		creates("4.1.1", "a template that lacks what it must have", k.name+" without CKA_VALUE", ck.CKR_TEMPLATE_INCOMPLETE, without(good, ck.CKA_VALUE))
		creates(k.section, "CKA_VALUE_LEN must not be in the template of C_CreateObject", k.name, ck.CKR_ATTRIBUTE_READ_ONLY, with(good, attr(ck.CKA_VALUE_LEN, k.good[0])))
	}
	aesTemplate := secretKey(ck.CKK_AES, secret32)
	creates("4.1.1", "a template that lacks what it must have", "secret key without CKA_KEY_TYPE", ck.CKR_TEMPLATE_INCOMPLETE, without(aesTemplate, ck.CKA_KEY_TYPE))
	creates("4.7", "another type of key", "secret key", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(without(aesTemplate, ck.CKA_KEY_TYPE), attr(ck.CKA_KEY_TYPE, ck.CKK_DES3)))
	creates("4.1.1", "an attribute of other objects", "secret key", ck.CKR_TEMPLATE_INCONSISTENT, with(aesTemplate, attr(ck.CKA_EC_POINT, "x")))
	creates("4.1.1", "an attribute of a vendor that the token does not know", "secret key", ck.CKR_ATTRIBUTE_TYPE_INVALID, with(aesTemplate, attr(0x80000001, "x")))
	for _, typ := range []uint{ck.CKA_LOCAL, ck.CKA_ALWAYS_SENSITIVE, ck.CKA_NEVER_EXTRACTABLE} {
		creates("4.10", "an attribute that must not be in a template for C_CreateObject", fmt.Sprintf("%#x", typ), ck.CKR_ATTRIBUTE_READ_ONLY, with(aesTemplate, attr(typ, true)))
	}
	creates("4.10", "a trusted secret key without the SO", "", ck.CKR_ATTRIBUTE_READ_ONLY, with(aesTemplate, attr(ck.CKA_TRUSTED, true)))
	creates("4.10", "the right check value", "", ck.CKR_OK, with(aesTemplate, attr(ck.CKA_CHECK_VALUE, aesCheck(secret32))))
	creates("4.10", "another check value", "", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(aesTemplate, attr(ck.CKA_CHECK_VALUE, "abc")))
	creates("4.10", "a check value that is cut", "", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(aesTemplate, attr(ck.CKA_CHECK_VALUE, aesCheck(secret32)[:2])))
	rows = append(rows,
		row{"4.10", "an empty check value prevents one", "", ck.CKR_OK, func(e *env) rv {
			v := []value{{Type: ck.CKA_CHECK_VALUE, Room: 9}}
			r := e.call("C_GetAttributeValue", e.s, e.secret(ck.CKK_AES, secret32, attr(ck.CKA_CHECK_VALUE, "")), v)
			e.check(v[0].Len == 0, "%d bytes", v[0].Len)
			return r
		}},
		row{"4.10", "C_SetAttributeValue with an empty check value destroys it", "", ck.CKR_OK, func(e *env) rv {
			o := e.secret(ck.CKK_AES, secret32)
			r := e.call("C_SetAttributeValue", e.s, o, template{attr(ck.CKA_CHECK_VALUE, "")})
			e.check(len(e.get(o, ck.CKA_CHECK_VALUE)) == 0, "%x", e.get(o, ck.CKA_CHECK_VALUE))
			return r
		}},
		row{"4.10", "C_SetAttributeValue with another check value", "", ck.CKR_ATTRIBUTE_VALUE_INVALID, func(e *env) rv {
			return e.call("C_SetAttributeValue", e.s, e.secret(ck.CKK_AES, secret32), template{attr(ck.CKA_CHECK_VALUE, "abc")})
		}})
	return rows
}

// aesCheck is the check value of an AES key (section 6.10.2).
func aesCheck(key []byte) []byte {
	var block [16]byte
	aesOf(key).Encrypt(block[:], block[:])
	return block[:3]
}

// keyWraps are the mechanisms that wrap.
var keyWraps = []struct {
	name, section string
	mech          uint
	param, wrong  []byte
}{
	{"CKM_AES_KEY_WRAP", "6.16", ck.CKM_AES_KEY_WRAP, nil, []byte{1}},
	{"CKM_AES_KEY_WRAP_KWP", "6.16", ckmKeyWrapKWP, nil, make([]byte, 8)},
	{"CKM_AES_CBC_PAD", "6.10", ck.CKM_AES_CBC_PAD, iv16, nil},
}

// wrapRows are the rows of C_WrapKey and C_UnwrapKey.
func wrapRows() (rows []row) {
	kek := func(e *env, more ...p11tool.Attribute) uint {
		e.Helper()
		return e.secret(ck.CKK_AES, secret32, append([]p11tool.Attribute{attr(ck.CKA_WRAP, true), attr(ck.CKA_UNWRAP, true)}, more...)...)
	}
	extractable := attr(ck.CKA_EXTRACTABLE, true)
	sensitive := attr(ck.CKA_SENSITIVE, true)
	into := template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_KEY_TYPE, ck.CKK_GENERIC_SECRET)}
	kw := mech(ck.CKM_AES_KEY_WRAP)
	wrapped := func(e *env, m *p11tool.Mechanism, kek, key uint) []byte {
		e.Helper()
		b := &buffer{}
		e.ok("C_WrapKey", e.s, m, kek, key, b)
		b = p11tool.Room(int(b.Len))
		e.ok("C_WrapKey", e.s, m, kek, key, b)
		return b.Data
	}
	for _, w := range keyWraps {
		m := &p11tool.Mechanism{Type: w.mech, Param: w.param}
		for _, n := range []int{16, 30, 64} {
			rows = append(rows, row{w.section, "a secret key that is wrapped and unwrapped is the same", fmt.Sprintf("%s of %d bytes", w.name, n), ck.CKR_OK, func(e *env) rv {
				v := bytes.Repeat([]byte{3}, n)
				k := kek(e)
				text := wrapped(e, m, k, e.secret(ck.CKK_GENERIC_SECRET, v, extractable, sensitive))
				var o uint
				r := e.call("C_UnwrapKey", e.s, m, k, in(text), with(into, attr(ck.CKA_VALUE_LEN, n)), &o)
				e.check(bytes.Equal(e.get(o, ck.CKA_VALUE), v), "%x", e.get(o, ck.CKA_VALUE))
				return r
			}})
		}
		for name, known := range map[string]template{"Ed25519": outside.privateKey, "X25519": x25519Private} {
			rows = append(rows, row{"6.7", "a private key that is wrapped as PKCS #8 and unwrapped is the same", w.name + " " + name, ck.CKR_OK, func(e *env) rv {
				k := kek(e)
				key := e.create(with(known, extractable))
				text := wrapped(e, m, k, key)
				var o uint
				r := e.call("C_UnwrapKey", e.s, m, k, in(text), known[:2], &o)
				e.check(bytes.Equal(e.get(o, ck.CKA_EC_POINT), e.get(key, ck.CKA_EC_POINT)), "another key")
				e.check(bytes.Equal(e.get(o, ck.CKA_SENSITIVE), yes), "it is not sensitive")
				return r
			}},
				row{"6.7", "a private key that is unwrapped as one of another type", w.name + " " + name, ck.CKR_WRAPPED_KEY_INVALID, func(e *env) rv {
					k := kek(e)
					other := map[string]uint{"Ed25519": ckkECMontgomery, "X25519": ckkECEdwards}[name]
					return e.call("C_UnwrapKey", e.s, m, k, in(wrapped(e, m, k, e.create(with(known, extractable)))), template{attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY), attr(ck.CKA_KEY_TYPE, other)}, new(uint))
				}},
				row{"6.7", "a secret key that is unwrapped as a private key", w.name + " " + name, ck.CKR_WRAPPED_KEY_INVALID, func(e *env) rv {
					k := kek(e)
					return e.call("C_UnwrapKey", e.s, m, k, in(wrapped(e, m, k, e.secret(ck.CKK_GENERIC_SECRET, make([]byte, 48), extractable))), known[:2], new(uint))
				}})
		}
		wrap := func(rule string, want rv, m *p11tool.Mechanism, kek, key func(e *env) uint) {
			rows = append(rows, row{"5.18.3", "C_WrapKey: " + rule, w.name, want, func(e *env) rv { return e.call("C_WrapKey", e.s, m, kek(e), key(e), p11tool.Room(512)) }})
		}
		unwrap := func(rule string, want rv, m *p11tool.Mechanism, kek func(e *env) uint, t template) {
			rows = append(rows, row{"5.18.4", "C_UnwrapKey: " + rule, w.name, want, func(e *env) rv {
				good := wrapped(e, &p11tool.Mechanism{Type: w.mech, Param: w.param}, e.secret(ck.CKK_AES, secret32, attr(ck.CKA_WRAP, true)), e.secret(ck.CKK_GENERIC_SECRET, secret32, extractable))
				return e.call("C_UnwrapKey", e.s, m, kek(e), in(good), t, new(uint))
			}})
		}
		any := func(e *env) uint { return kek(e) }
		target := func(e *env) uint { return e.secret(ck.CKK_AES, secret32, extractable, sensitive) }
		handle := func(h uint) func(*env) uint { return func(*env) uint { return h } }
		obj := func(name string) func(*env) uint { return func(e *env) uint { return e.f.obj[name] } }
		none := handle(0)
		bad := &p11tool.Mechanism{Type: w.mech, Param: w.wrong}
		wrap("a key that may leave", ck.CKR_OK, m, any, target)
		wrap("a parameter that is none for the mechanism", ck.CKR_MECHANISM_PARAM_INVALID, bad, any, target)
		wrap("a parameter comes before the keys", ck.CKR_MECHANISM_PARAM_INVALID, bad, none, none)
		wrap("wrapping key 0", ck.CKR_WRAPPING_KEY_HANDLE_INVALID, m, none, target)
		wrap("the wrapping key comes before the key", ck.CKR_WRAPPING_KEY_HANDLE_INVALID, m, none, none)
		wrap("a wrapping key that is not there", ck.CKR_WRAPPING_KEY_HANDLE_INVALID, m, handle(0xdeadbeef), target)
		wrap("a data object for the wrapping key", ck.CKR_WRAPPING_KEY_HANDLE_INVALID, m, obj("data"), target)
		wrap("a wrapping key of another type", ck.CKR_WRAPPING_KEY_TYPE_INCONSISTENT, m, func(e *env) uint { return e.secret(ck.CKK_GENERIC_SECRET, secret32, attr(ck.CKA_WRAP, true)) }, target)
		wrap("a public key for the wrapping key", ck.CKR_WRAPPING_KEY_TYPE_INCONSISTENT, m, obj("pair pub"), target)
		wrap("a wrapping key that may not wrap", ck.CKR_KEY_FUNCTION_NOT_PERMITTED, m, func(e *env) uint { return e.secret(ck.CKK_AES, secret32, attr(ck.CKA_UNWRAP, true)) }, target)
		wrap("a wrapping key that is for other mechanisms", ck.CKR_MECHANISM_INVALID, m, func(e *env) uint { return kek(e, attr(ck.CKA_ALLOWED_MECHANISMS, ul(ck.CKM_AES_CBC))) }, target)
		wrap("a wrapping key that is for this mechanism", ck.CKR_OK, m, func(e *env) uint { return kek(e, attr(ck.CKA_ALLOWED_MECHANISMS, ul(w.mech))) }, target)
		wrap("key 0", ck.CKR_KEY_HANDLE_INVALID, m, any, none)
		wrap("a key that is not there", ck.CKR_KEY_HANDLE_INVALID, m, any, handle(0xdeadbeef))
		wrap("a data object for the key", ck.CKR_KEY_HANDLE_INVALID, m, any, obj("data"))
		wrap("a public key for the key", ck.CKR_KEY_HANDLE_INVALID, m, any, obj("pair pub"))
		wrap("a key that is not extractable", ck.CKR_KEY_UNEXTRACTABLE, m, any, func(e *env) uint { return e.secret(ck.CKK_AES, secret32) })
		wrap("a private key of the token, which is not extractable", ck.CKR_KEY_UNEXTRACTABLE, m, any, obj("pair priv"))
		wrap("a key that only a trusted key wraps", ck.CKR_KEY_NOT_WRAPPABLE, m, any, func(e *env) uint {
			return e.secret(ck.CKK_AES, secret32, extractable, attr(ck.CKA_WRAP_WITH_TRUSTED, true))
		})
		wrap("that a key is not extractable comes before that only a trusted key wraps it", ck.CKR_KEY_UNEXTRACTABLE, m, any, func(e *env) uint { return e.secret(ck.CKK_AES, secret32, attr(ck.CKA_WRAP_WITH_TRUSTED, true)) })
		rows = append(rows,
			row{"5.18.3", "C_WrapKey without room tells the length", w.name, ck.CKR_BUFFER_TOO_SMALL, func(e *env) rv {
				k, key := kek(e), target(e)
				n := len(wrapped(e, m, k, key))
				return e.output("C_WrapKey", n-1, uint(n), e.s, m, k, key)
			}},
			row{"5.18.3", "C_WrapKey without a place for the length", w.name, ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_WrapKey", e.s, m, kek(e), target(e), make([]byte, 64), nil) }})

		unwrap("a wrapped key", ck.CKR_OK, m, any, into)
		unwrap("a parameter that is none for the mechanism", ck.CKR_MECHANISM_PARAM_INVALID, bad, any, into)
		unwrap("a parameter comes before the key", ck.CKR_MECHANISM_PARAM_INVALID, bad, none, into)
		unwrap("unwrapping key 0", ck.CKR_UNWRAPPING_KEY_HANDLE_INVALID, m, none, into)
		unwrap("the unwrapping key comes before the template", ck.CKR_UNWRAPPING_KEY_HANDLE_INVALID, m, none, template{})
		unwrap("an unwrapping key that is not there", ck.CKR_UNWRAPPING_KEY_HANDLE_INVALID, m, handle(0xdeadbeef), into)
		unwrap("a certificate for the unwrapping key", ck.CKR_UNWRAPPING_KEY_HANDLE_INVALID, m, obj("certificate"), into)
		unwrap("an unwrapping key of another type", ck.CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT, m, func(e *env) uint { return e.secret(ckkChaCha20, secret32, attr(ck.CKA_UNWRAP, true)) }, into)
		unwrap("an unwrapping key that may not unwrap", ck.CKR_KEY_FUNCTION_NOT_PERMITTED, m, func(e *env) uint { return e.secret(ck.CKK_AES, secret32, attr(ck.CKA_WRAP, true)) }, into)
		unwrap("an unwrapping key that is for other mechanisms", ck.CKR_MECHANISM_INVALID, m, func(e *env) uint { return kek(e, attr(ck.CKA_ALLOWED_MECHANISMS, ul(ck.CKM_AES_CBC))) }, into)
		unwrap("a template without CKA_CLASS", ck.CKR_TEMPLATE_INCOMPLETE, m, any, without(into, ck.CKA_CLASS))
		unwrap("a template without CKA_KEY_TYPE", ck.CKR_TEMPLATE_INCOMPLETE, m, any, without(into, ck.CKA_KEY_TYPE))
		unwrap("a class that is not unwrapped", ck.CKR_TEMPLATE_INCONSISTENT, m, any, template{attr(ck.CKA_CLASS, ck.CKO_DATA), attr(ck.CKA_KEY_TYPE, ck.CKK_AES)})
		unwrap("a type that the class has not", ck.CKR_TEMPLATE_INCONSISTENT, m, any, template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_KEY_TYPE, ckkECEdwards)})
		unwrap("a private key for the TPM", ck.CKR_TEMPLATE_INCONSISTENT, m, any, template{attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY), attr(ck.CKA_KEY_TYPE, ck.CKK_EC)})
		unwrap("CKA_VALUE in the template", ck.CKR_ATTRIBUTE_READ_ONLY, m, any, with(into, attr(ck.CKA_VALUE, secret32)))
		unwrap("CKA_LOCAL in the template", ck.CKR_ATTRIBUTE_READ_ONLY, m, any, with(into, attr(ck.CKA_LOCAL, false)))
		unwrap("CKA_TRUSTED without the SO", ck.CKR_ATTRIBUTE_READ_ONLY, m, any, with(into, attr(ck.CKA_TRUSTED, true)))
		unwrap("an unknown attribute", ck.CKR_ATTRIBUTE_TYPE_INVALID, m, any, with(into, attr(0x80000001, "x")))
		unwrap("CKA_VALUE_LEN that is the key's", ck.CKR_OK, m, any, with(into, attr(ck.CKA_VALUE_LEN, 32)))
		unwrap("CKA_VALUE_LEN that is not the key's", ck.CKR_WRAPPED_KEY_LEN_RANGE, m, any, with(into, attr(ck.CKA_VALUE_LEN, 16)))
		unwrap("CKA_VALUE_LEN that is more than the key's", ck.CKR_WRAPPED_KEY_LEN_RANGE, m, any, with(into, attr(ck.CKA_VALUE_LEN, 33)))
		unwrap("a check value that is the key's", ck.CKR_OK, m, any, with(into, attr(ck.CKA_CHECK_VALUE, digestOf(ck.CKM_SHA_1, secret32)[:3])))
		unwrap("a check value that is another's", ck.CKR_ATTRIBUTE_VALUE_INVALID, m, any, with(into, attr(ck.CKA_CHECK_VALUE, "abc")))
		for what, text := range map[string][]byte{"7 bytes": make([]byte, 7), "no bytes": {}, "41 bytes": make([]byte, 41)} {
			rows = append(rows, row{"5.18.4", "C_UnwrapKey: a length that is none for the mechanism", w.name + " " + what, ck.CKR_WRAPPED_KEY_LEN_RANGE, func(e *env) rv {
				return e.call("C_UnwrapKey", e.s, m, kek(e), in(text), into, new(uint))
			}})
		}
		if w.mech != ck.CKM_AES_CBC_PAD {
			unwrap("what another key has wrapped", ck.CKR_WRAPPED_KEY_INVALID, m, func(e *env) uint { return e.secret(ck.CKK_AES, make([]byte, 32), attr(ck.CKA_UNWRAP, true)) }, into)
		}
		rows = append(rows,
			row{"5.18.4", "C_UnwrapKey: a key of a length that its type has not", w.name, ck.CKR_WRAPPED_KEY_LEN_RANGE, func(e *env) rv {
				k := kek(e)
				return e.call("C_UnwrapKey", e.s, m, k, in(wrapped(e, m, k, e.secret(ck.CKK_GENERIC_SECRET, make([]byte, 40), extractable))), template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_KEY_TYPE, ck.CKK_AES)}, new(uint))
			}},
			row{"5.18.4", "C_UnwrapKey without a place for the key", w.name, ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_UnwrapKey", e.s, m, kek(e), in(make([]byte, 24)), into, nil) }},
			row{"5.18.4", "C_UnwrapKey with NULL for the wrapped key", w.name, ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_UnwrapKey", e.s, m, kek(e), nil, 24, into, new(uint)) }},
			row{"5.18.4", "a failure makes no key", w.name, ck.CKR_WRAPPED_KEY_LEN_RANGE, func(e *env) rv {
				k := kek(e)
				before := len(e.findAll(e.s, nil))
				r := e.call("C_UnwrapKey", e.s, m, k, in(make([]byte, 7)), into, new(uint))
				e.check(len(e.findAll(e.s, nil)) == before, "an object was made")
				return r
			}})
	}
	return append(rows,
		row{"6.16", "CKM_AES_KEY_WRAP is RFC 3394", "section 4.6", ck.CKR_OK, func(e *env) rv {
			k := e.secret(ck.CKK_AES, unhex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"), attr(ck.CKA_WRAP, true))
			key := e.secret(ck.CKK_AES, unhex("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f"), extractable)
			e.compare(unhex("28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"), "C_WrapKey", kw, k, key)
			return ck.CKR_OK
		}},
		row{"6.16", "CKM_AES_KEY_WRAP_KWP is RFC 5649", "section 6", ck.CKR_OK, func(e *env) rv {
			k := e.secret(ck.CKK_AES, unhex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8"), attr(ck.CKA_WRAP, true))
			key := e.secret(ck.CKK_GENERIC_SECRET, unhex("466f7250617369"), extractable)
			e.compare(unhex("afbeb0f07dfbf5419200f2ccb50bb24f"), "C_WrapKey", mech(ckmKeyWrapKWP), k, key)
			return ck.CKR_OK
		}},
		row{"6.16", "an initial value", "CKM_AES_KEY_WRAP", ck.CKR_OK, func(e *env) rv {
			m := &p11tool.Mechanism{Type: ck.CKM_AES_KEY_WRAP, Param: []byte("8 bytes.")}
			k := kek(e)
			text := wrapped(e, m, k, e.secret(ck.CKK_GENERIC_SECRET, secret32, extractable))
			e.gives(ck.CKR_WRAPPED_KEY_INVALID, "C_UnwrapKey", e.s, kw, k, in(text), into, new(uint))
			return e.call("C_UnwrapKey", e.s, m, k, in(text), into, new(uint))
		}},
		row{"6.16", "an initial value", "CKM_AES_KEY_WRAP_KWP", ck.CKR_OK, func(e *env) rv {
			m := &p11tool.Mechanism{Type: ckmKeyWrapKWP, Param: []byte("four")}
			k := kek(e)
			text := wrapped(e, m, k, e.secret(ck.CKK_GENERIC_SECRET, secret32, extractable))
			e.gives(ck.CKR_WRAPPED_KEY_INVALID, "C_UnwrapKey", e.s, mech(ckmKeyWrapKWP), k, in(text), into, new(uint))
			return e.call("C_UnwrapKey", e.s, m, k, in(text), into, new(uint))
		}},
		row{"6.16", "CKM_AES_KEY_WRAP fills up with zeros, less than a semiblock", "", ck.CKR_WRAPPED_KEY_LEN_RANGE, func(e *env) rv {
			k := kek(e)
			text := wrapped(e, kw, k, e.secret(ck.CKK_GENERIC_SECRET, make([]byte, 30), extractable))
			return e.call("C_UnwrapKey", e.s, kw, k, in(text), with(into, attr(ck.CKA_VALUE_LEN, 24)), new(uint))
		}},
		row{"5.18.3", "a key that is too short for the mechanism alone", "", ck.CKR_KEY_SIZE_RANGE, func(e *env) rv {
			return e.call("C_WrapKey", e.s, kw, kek(e), e.secret(ck.CKK_GENERIC_SECRET, make([]byte, 8), extractable), p11tool.Room(64))
		}},
		row{"5.18.3", "C_WrapKey with a mechanism of another kind", "", ck.CKR_MECHANISM_INVALID, func(e *env) rv { return e.call("C_WrapKey", e.s, mech(ck.CKM_AES_GCM), 0, 0, p11tool.Room(64)) }},
		row{"5.18.4", "C_UnwrapKey with a mechanism of another kind", "", ck.CKR_MECHANISM_INVALID, func(e *env) rv {
			return e.call("C_UnwrapKey", e.s, mech(ck.CKM_AES_GCM), 0, in(make([]byte, 24)), into, new(uint))
		}},
		row{"5.18.3", "C_WrapKey without a mechanism", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_WrapKey", e.s, nil, kek(e), 0, p11tool.Room(64)) }},
		row{"4.9", "a private key with CKA_ALWAYS_AUTHENTICATE is not wrapped: there is no operation for the PIN", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			return e.call("C_WrapKey", e.s, kw, kek(e), e.create(with(outside.privateKey, extractable, attr(ck.CKA_ALWAYS_AUTHENTICATE, true))), p11tool.Room(128))
		}},
		row{"4.9", "a private key with CKA_WRAP_WITH_TRUSTED is not wrapped by any key", "", ck.CKR_KEY_NOT_WRAPPABLE, func(e *env) rv {
			return e.call("C_WrapKey", e.s, kw, kek(e), e.create(with(outside.privateKey, extractable, attr(ck.CKA_WRAP_WITH_TRUSTED, true))), p11tool.Room(128))
		}})
}

// trustRows are the rows of CKA_TRUSTED, which only the SO sets, for who wraps.
func trustRows() []row {
	trusted := func(e *env) uint {
		e.Helper()
		o := e.secret(ck.CKK_AES, secret32, attr(ck.CKA_PRIVATE, false), attr(ck.CKA_WRAP, true), attr(ck.CKA_TRUSTED, true))
		e.ok("C_Logout", e.s)
		e.ok("C_Login", e.s, ck.CKU_USER, in(userPIN))
		return o
	}
	wraps := func(what string, want rv, kek func(e *env) uint, more ...p11tool.Attribute) row {
		return row{"4.10", "CKA_WRAP_WITH_TRUSTED lets only a trusted key wrap", what, want, func(e *env) rv {
			k := kek(e)
			return e.call("C_WrapKey", e.s, mech(ck.CKM_AES_KEY_WRAP), k, e.secret(ck.CKK_AES, secret32, append(more, attr(ck.CKA_EXTRACTABLE, true), attr(ck.CKA_WRAP_WITH_TRUSTED, true))...), p11tool.Room(64))
		}}
	}
	return []row{
		wraps("a trusted key", ck.CKR_OK, trusted),
		wraps("another key", ck.CKR_KEY_NOT_WRAPPABLE, func(e *env) uint {
			trusted(e)
			return e.secret(ck.CKK_AES, secret32, attr(ck.CKA_WRAP, true))
		}),
		{"4.10", "the SO makes a secret key trusted", "", ck.CKR_OK, func(e *env) rv {
			o := e.secret(ck.CKK_AES, secret32, attr(ck.CKA_PRIVATE, false))
			r := e.call("C_SetAttributeValue", e.s, o, template{attr(ck.CKA_TRUSTED, true)})
			e.check(bytes.Equal(e.get(o, ck.CKA_TRUSTED), yes), "it is not trusted")
			return r
		}},
		{"4.10", "the user cannot make a secret key trusted", "", ck.CKR_ATTRIBUTE_READ_ONLY, func(e *env) rv {
			o := e.secret(ck.CKK_AES, secret32, attr(ck.CKA_PRIVATE, false))
			e.ok("C_Logout", e.s)
			e.ok("C_Login", e.s, ck.CKU_USER, in(userPIN))
			return e.call("C_SetAttributeValue", e.s, o, template{attr(ck.CKA_TRUSTED, true)})
		}},
		{"5.18.1", "a secret key by the SO", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			return e.call("C_GenerateKey", e.s, mech(ck.CKM_AES_KEY_GEN), template{attr(ck.CKA_VALUE_LEN, 16)}, new(uint))
		}},
		{"5.18.1", "a secret key that is a public object, by the SO", "", ck.CKR_OK, func(e *env) rv {
			return e.call("C_GenerateKey", e.s, mech(ck.CKM_AES_KEY_GEN), template{attr(ck.CKA_VALUE_LEN, 16), attr(ck.CKA_PRIVATE, false), attr(ck.CKA_TRUSTED, true)}, new(uint))
		}},
	}
}

// deriveRows are the rows of C_DeriveKey.
func deriveRows() (rows []row) {
	derives := func(section, rule, what string, want rv, m func(*env) *p11tool.Mechanism, base func(*env) uint, t template) {
		rows = append(rows, row{section, rule, what, want, func(e *env) rv { return e.call("C_DeriveKey", e.s, m(e), base(e), t, new(uint)) }})
	}
	gives := func(section, rule, what string, m func(*env) *p11tool.Mechanism, base func(*env) uint, t template, want []byte) {
		rows = append(rows, row{section, rule, what, ck.CKR_OK, func(e *env) rv {
			var o uint
			r := e.call("C_DeriveKey", e.s, m(e), base(e), with(t, readable...), &o)
			e.check(bytes.Equal(e.get(o, ck.CKA_VALUE), want), "%x, not %x", e.get(o, ck.CKA_VALUE), want)
			e.check(number(e.get(o, ck.CKA_VALUE_LEN)) == uint(len(want)), "CKA_VALUE_LEN")
			return r
		}})
	}
	null := func(e *env) *p11tool.Mechanism { return e.ecdh(ck.CKD_NULL, nil, x25519Peer) }
	kdf := func(e *env) *p11tool.Mechanism { return e.ecdh(ckdSHA256KDF, []byte("shared info"), x25519Peer) }
	x25519 := func(e *env) uint { return e.create(x25519Private) }
	typ := func(key uint, n int) template {
		return template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_KEY_TYPE, key), attr(ck.CKA_VALUE_LEN, n)}
	}
	gives("6.3.17", "CKD_NULL gives the shared secret", "a generic secret", null, x25519, template{}, x25519Shared)
	gives("6.3.17", "CKD_NULL gives the shared secret", "class and type", null, x25519, typ(ck.CKK_GENERIC_SECRET, 32)[:2], x25519Shared)
	gives("6.3.17", "CKD_NULL gives the shared secret", "an AES key", null, x25519, typ(ck.CKK_AES, 32), x25519Shared)
	gives("6.3.17", "CKD_NULL gives the shared secret", "a ChaCha20 key", null, x25519, typ(ckkChaCha20, 32)[:2], x25519Shared)
	gives("6.3.17", "a shorter key loses bytes from the leading end", "an AES key", null, x25519, typ(ck.CKK_AES, 16), x25519Shared[16:])
	gives("6.3.17", "a shorter key loses bytes from the leading end", "a generic secret", null, x25519, typ(ck.CKK_GENERIC_SECRET, 31), x25519Shared[1:])
	gives("6.3.17", "the peer's key as a DER OCTET STRING", "", func(e *env) *p11tool.Mechanism { return e.ecdh(ck.CKD_NULL, nil, append([]byte{4, 32}, x25519Peer...)) }, x25519, template{}, x25519Shared)
	for _, n := range []int{16, 32, 50} {
		gives("6.3.17", "CKD_SHA256_KDF is the KDF of X9.63", fmt.Sprint(n), kdf, x25519, typ(ck.CKK_GENERIC_SECRET, n), x963(x25519Shared, []byte("shared info"), n))
	}
	for what, m := range map[string]func(*env) *p11tool.Mechanism{
		"none":                                func(*env) *p11tool.Mechanism { return mech(ck.CKM_ECDH1_DERIVE) },
		"of another size":                     func(*env) *p11tool.Mechanism { return &p11tool.Mechanism{Type: ck.CKM_ECDH1_DERIVE, Param: []byte{1}} },
		"with a KDF that is not there":        func(e *env) *p11tool.Mechanism { return e.ecdh(99, nil, x25519Peer) },
		"with shared info for CKD_NULL":       func(e *env) *p11tool.Mechanism { return e.ecdh(ck.CKD_NULL, []byte("x"), x25519Peer) },
		"with a public key of 31 bytes":       func(e *env) *p11tool.Mechanism { return e.ecdh(ck.CKD_NULL, nil, x25519Peer[1:]) },
		"without a public key":                func(e *env) *p11tool.Mechanism { return e.ecdh(ck.CKD_NULL, nil, nil) },
		"with a public key that gives nought": func(e *env) *p11tool.Mechanism { return e.ecdh(ck.CKD_NULL, nil, make([]byte, 32)) },
	} {
		derives("6.3.17", "CKM_ECDH1_DERIVE: a parameter that is none", what, ck.CKR_MECHANISM_PARAM_INVALID, m, x25519, template{})
	}
	derives("6.3.17", "a key that is longer than the shared secret", "", ck.CKR_KEY_SIZE_RANGE, null, x25519, typ(ck.CKK_GENERIC_SECRET, 33))
	derives("5.18.5", "C_DeriveKey: a key that may not derive", "CKM_ECDH1_DERIVE", ck.CKR_KEY_FUNCTION_NOT_PERMITTED, null, func(e *env) uint { return e.create(with(x25519Private, attr(ck.CKA_DERIVE, false))) }, template{})
	derives("5.18.5", "C_DeriveKey: a public key", "CKM_ECDH1_DERIVE", ck.CKR_KEY_FUNCTION_NOT_PERMITTED, null, func(e *env) uint { return e.f.obj["X25519 pub"] }, template{})
	derives("5.18.5", "C_DeriveKey: a key of another type", "CKM_ECDH1_DERIVE", ck.CKR_KEY_TYPE_INCONSISTENT, null, func(e *env) uint { return e.secret(ck.CKK_GENERIC_SECRET, secret32) }, template{})
	derives("5.18.5", "C_DeriveKey: a key of Ed25519", "CKM_ECDH1_DERIVE", ck.CKR_KEY_TYPE_INCONSISTENT, null, func(e *env) uint { return e.f.priv() }, template{})
	derives("5.18.5", "C_DeriveKey with a key of the token", "CKM_ECDH1_DERIVE", ck.CKR_OK, null, func(e *env) uint { return e.f.obj["X25519 priv"] }, template{})
	derives("4.9", "a private key with CKA_ALWAYS_AUTHENTICATE derives nothing: there is no operation for the PIN", "", ck.CKR_USER_NOT_LOGGED_IN, null, func(e *env) uint { return e.create(with(x25519Private, attr(ck.CKA_ALWAYS_AUTHENTICATE, true))) }, template{})
	derives("5.18.5", "C_DeriveKey: a mechanism of another kind", "", ck.CKR_MECHANISM_INVALID, func(*env) *p11tool.Mechanism { return mech(ck.CKM_SHA256) }, x25519, template{})
	derives("5.18.5", "C_DeriveKey: a mechanism that is not there", "", ck.CKR_MECHANISM_INVALID, func(*env) *p11tool.Mechanism { return mech(ck.CKM_DH_PKCS_DERIVE) }, func(*env) uint { return 0 }, template{})

	salt, info := []byte("the salt"), []byte("the info")
	both := p11tool.HKDF{Extract: true, Expand: true, PRF: ck.CKM_SHA256, SaltType: ckfHKDFSaltData, Salt: salt, Info: info}
	m := func(p p11tool.HKDF) func(e *env) *p11tool.Mechanism {
		return func(e *env) *p11tool.Mechanism { return e.hkdf(ckmHKDFDerive, p) }
	}
	change := func(f func(*p11tool.HKDF)) func(e *env) *p11tool.Mechanism {
		p := both
		f(&p)
		return m(p)
	}
	hkdfKey := func(more ...p11tool.Attribute) func(e *env) uint {
		return func(e *env) uint { return e.secret(ckkHKDF, secret32, more...) }
	}
	okm := func(key, salt []byte, n int) []byte {
		k, err := hkdf.Key(sha256.New, key, salt, string(info), n)
		if err != nil {
			panic(err)
		}
		return k
	}
	prk, err := hkdf.Extract(sha256.New, secret32, salt)
	if err != nil {
		panic(err)
	}
	expanded, err := hkdf.Expand(sha256.New, secret32, string(info), 40)
	if err != nil {
		panic(err)
	}
	generic := func(n int) template { return typ(ck.CKK_GENERIC_SECRET, n) }
	gives("6.62", "HKDF is RFC 5869: extraction and expansion", "HKDF key", m(both), hkdfKey(), generic(40), okm(secret32, salt, 40))
	gives("6.62", "HKDF is RFC 5869: extraction and expansion", "generic secret", m(both), func(e *env) uint { return e.secret(ck.CKK_GENERIC_SECRET, secret32) }, generic(40), okm(secret32, salt, 40))
	gives("6.62", "HKDF is RFC 5869: extraction and expansion", "without a length: that of the hash", m(both), hkdfKey(), template{}, okm(secret32, salt, 32))
	gives("6.62", "HKDF is RFC 5869: extraction alone", "", change(func(p *p11tool.HKDF) { p.Expand = false }), hkdfKey(), template{}, prk)
	gives("6.62", "HKDF is RFC 5869: expansion alone", "", change(func(p *p11tool.HKDF) { p.Extract = false }), hkdfKey(), generic(40), expanded)
	gives("6.62", "without a salt it is zeros", "", change(func(p *p11tool.HKDF) { p.SaltType, p.Salt = ckfHKDFSaltNull, nil }), hkdfKey(), generic(40), okm(secret32, nil, 40))
	gives("6.62", "the salt is ignored where nothing is extracted", "", change(func(p *p11tool.HKDF) { p.Extract, p.SaltType = false, 99 }), hkdfKey(), generic(40), expanded)
	gives("6.62", "a salt that is a key", "", func(e *env) *p11tool.Mechanism {
		p := both
		p.SaltType, p.Salt, p.SaltKey = ckfHKDFSaltKey, nil, e.secret(ck.CKK_GENERIC_SECRET, salt)
		return e.hkdf(ckmHKDFDerive, p)
	}, hkdfKey(), generic(40), okm(secret32, salt, 40))
	for what, p := range map[string]func(*p11tool.HKDF){
		"neither extraction nor expansion":   func(p *p11tool.HKDF) { p.Extract, p.Expand = false, false },
		"a hash that is not there":           func(p *p11tool.HKDF) { p.PRF = ck.CKM_MD5 },
		"a kind of salt that is not there":   func(p *p11tool.HKDF) { p.SaltType = 99 },
		"a salt for CKF_HKDF_SALT_NULL":      func(p *p11tool.HKDF) { p.SaltType = ckfHKDFSaltNull },
		"CKF_HKDF_SALT_KEY without that key": func(p *p11tool.HKDF) { p.SaltType, p.Salt = ckfHKDFSaltKey, nil },
	} {
		derives("6.62", "HKDF: a parameter that is none", what, ck.CKR_MECHANISM_PARAM_INVALID, change(p), hkdfKey(), template{})
	}
	derives("6.62", "HKDF: a salt key that is not there", "", ck.CKR_KEY_HANDLE_INVALID, change(func(p *p11tool.HKDF) { p.SaltType, p.Salt, p.SaltKey = ckfHKDFSaltKey, nil, 0xdeadbeef }), hkdfKey(), template{})
	derives("6.62", "HKDF: extraction gives no more than a hash", "", ck.CKR_KEY_SIZE_RANGE, change(func(p *p11tool.HKDF) { p.Expand = false }), hkdfKey(), generic(33))
	good := m(both)
	bare := func(*env) *p11tool.Mechanism { return mech(ckmHKDFDerive) }
	handle := func(h uint) func(*env) uint { return func(*env) uint { return h } }
	order := func(rule string, want rv, m func(*env) *p11tool.Mechanism, base func(*env) uint, t template) {
		derives("5.18.5", "C_DeriveKey: "+rule, "CKM_HKDF_DERIVE", want, m, base, t)
	}
	order("a parameter comes before a key", ck.CKR_MECHANISM_PARAM_INVALID, bare, handle(0), template{})
	order("key 0", ck.CKR_KEY_HANDLE_INVALID, good, handle(0), template{})
	order("a key that is not there", ck.CKR_KEY_HANDLE_INVALID, good, handle(0xdeadbeef), template{})
	order("a data object for a key", ck.CKR_KEY_HANDLE_INVALID, good, func(e *env) uint { return e.f.obj["data"] }, template{})
	order("a key comes before a template", ck.CKR_KEY_HANDLE_INVALID, good, handle(0), template{attr(0x80000001, "x")})
	order("a key of another type", ck.CKR_KEY_TYPE_INCONSISTENT, good, func(e *env) uint { return e.secret(ck.CKK_AES, secret32, attr(ck.CKA_DERIVE, true)) }, template{})
	order("a key that may not derive", ck.CKR_KEY_FUNCTION_NOT_PERMITTED, good, hkdfKey(attr(ck.CKA_DERIVE, false)), template{})
	order("a key that is for other mechanisms", ck.CKR_MECHANISM_INVALID, good, hkdfKey(attr(ck.CKA_ALLOWED_MECHANISMS, ul(ckmHKDFData))), template{})
	order("a key that is for this mechanism", ck.CKR_OK, good, hkdfKey(attr(ck.CKA_ALLOWED_MECHANISMS, ul(ckmHKDFDerive))), template{})
	order("another class in the template", ck.CKR_TEMPLATE_INCONSISTENT, good, hkdfKey(), template{attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY)})
	order("a type that secret keys have not", ck.CKR_TEMPLATE_INCONSISTENT, good, hkdfKey(), template{attr(ck.CKA_KEY_TYPE, ckkECEdwards)})
	order("an unknown attribute", ck.CKR_ATTRIBUTE_TYPE_INVALID, good, hkdfKey(), template{attr(0x80000001, "x")})
	order("an attribute of other objects", ck.CKR_TEMPLATE_INCONSISTENT, good, hkdfKey(), template{attr(ck.CKA_EC_PARAMS, oid)})
	order("CKA_VALUE in the template", ck.CKR_ATTRIBUTE_READ_ONLY, good, hkdfKey(), template{attr(ck.CKA_VALUE, secret32)})
	order("a length that the type has not", ck.CKR_ATTRIBUTE_VALUE_INVALID, good, hkdfKey(), typ(ck.CKK_AES, 17))
	order("no length, where the hash has none of the type's", ck.CKR_TEMPLATE_INCOMPLETE, change(func(p *p11tool.HKDF) { p.PRF = ck.CKM_SHA512 }), hkdfKey(), typ(ck.CKK_AES, 0)[:2])
	rows = append(rows,
		row{"5.18.5", "C_DeriveKey without a mechanism", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_DeriveKey", e.s, nil, hkdfKey()(e), template{}, new(uint)) }},
		row{"5.18.5", "C_DeriveKey without a place for the key", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_DeriveKey", e.s, good(e), hkdfKey()(e), template{}, nil) }},
		row{"6.62", "CKM_HKDF_DATA makes a data object", "", ck.CKR_OK, func(e *env) rv {
			var o uint
			r := e.call("C_DeriveKey", e.s, e.hkdf(ckmHKDFData, both), hkdfKey()(e), template{attr(ck.CKA_VALUE_LEN, 40), attr(ck.CKA_LABEL, "derived data")}, &o)
			e.check(number(e.get(o, ck.CKA_CLASS)) == ck.CKO_DATA && bytes.Equal(e.get(o, ck.CKA_VALUE), okm(secret32, salt, 40)), "%x", e.get(o, ck.CKA_VALUE))
			e.check(string(e.get(o, ck.CKA_LABEL)) == "derived data", "its label")
			return r
		}},
		row{"6.62", "CKM_HKDF_DATA for another class", "", ck.CKR_TEMPLATE_INCONSISTENT, func(e *env) rv {
			return e.call("C_DeriveKey", e.s, e.hkdf(ckmHKDFData, both), hkdfKey()(e), template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY)}, new(uint))
		}})
	return rows
}

// tokenKeyRows are the rows of making keys in a token that the session cannot
// change, which is where, with the code for that.
func tokenKeyRows(where string, want rv) (rows []row) {
	token := attr(ck.CKA_TOKEN, true)
	kek := func(e *env) uint { return e.secret(ck.CKK_AES, secret32, attr(ck.CKA_UNWRAP, true)) }
	into := template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_KEY_TYPE, ck.CKK_AES), token}
	hkdf := p11tool.HKDF{Extract: true, PRF: ck.CKM_SHA256, SaltType: ckfHKDFSaltNull}
	add := func(section, rule string, want rv, do func(e *env) rv) {
		rows = append(rows, row{section, rule + " " + where, "", want, do})
	}
	add("5.18.1", "a secret key in the token", want, func(e *env) rv {
		return e.call("C_GenerateKey", e.s, mech(ck.CKM_AES_KEY_GEN), template{attr(ck.CKA_VALUE_LEN, 16), token}, new(uint))
	})
	add("5.18.1", "a template comes before", ck.CKR_TEMPLATE_INCOMPLETE, func(e *env) rv {
		return e.call("C_GenerateKey", e.s, mech(ck.CKM_AES_KEY_GEN), template{token}, new(uint))
	})
	add("5.18.1", "a secret key of the session", ck.CKR_OK, func(e *env) rv {
		return e.call("C_GenerateKey", e.s, mech(ck.CKM_AES_KEY_GEN), template{attr(ck.CKA_VALUE_LEN, 16)}, new(uint))
	})
	for _, halves := range [][2]template{{{token}, {token}}, {{token}, {}}, {{}, {token}}} {
		add("5.18.2", "a key pair of the TPM, or a half of one, in the token", want, func(e *env) rv {
			before := len(e.findAll(e.s, nil))
			r := e.call("C_GenerateKeyPair", e.s, mech(ck.CKM_EC_KEY_PAIR_GEN), with(halves[0], attr(ck.CKA_EC_PARAMS, curves[0].oid)), halves[1], new(uint), new(uint))
			e.check(len(e.findAll(e.s, nil)) == before, "a key was made")
			return r
		})
	}
	add("5.18.2", "a key pair of the TPM that is the session's", ck.CKR_OK, func(e *env) rv {
		return e.call("C_GenerateKeyPair", e.s, mech(ck.CKM_EC_KEY_PAIR_GEN), template{attr(ck.CKA_EC_PARAMS, curves[0].oid)}, template{}, new(uint), new(uint))
	})
	add("5.18.4", "an unwrapped key in the token", want, func(e *env) rv {
		return e.call("C_UnwrapKey", e.s, mech(ck.CKM_AES_KEY_WRAP), kek(e), in(make([]byte, 24)), into, new(uint))
	})
	add("5.18.5", "a derived key in the token", want, func(e *env) rv {
		return e.call("C_DeriveKey", e.s, e.hkdf(ckmHKDFDerive, hkdf), e.secret(ckkHKDF, secret32), template{token}, new(uint))
	})
	add("5.18.5", "derived data in the token", want, func(e *env) rv {
		return e.call("C_DeriveKey", e.s, e.hkdf(ckmHKDFData, hkdf), e.secret(ckkHKDF, secret32), template{token}, new(uint))
	})
	add("5.7.1", "an imported secret key in the token", want, func(e *env) rv {
		return e.call("C_CreateObject", e.s, with(secretKey(ck.CKK_AES, secret32), token), new(uint))
	})
	add("5.7.2", "a copy of a secret key in the token", want, func(e *env) rv {
		return e.call("C_CopyObject", e.s, e.secret(ck.CKK_AES, secret32), template{token}, new(uint))
	})
	return rows
}

// secretObjectRows are the rows of secret keys as objects.
func secretObjectRows() (rows []row) {
	token, public := attr(ck.CKA_TOKEN, true), attr(ck.CKA_PRIVATE, false)
	stored := func(e *env, more ...p11tool.Attribute) uint {
		e.Helper()
		return e.destroyed(e.secret(ck.CKK_AES, secret32, append(more, token, attr(ck.CKA_LABEL, "stored key"), attr(ck.CKA_ID, "stored id"))...))
	}
	for what, x := range map[string]struct {
		t template
		n int
	}{
		"by label":                {template{attr(ck.CKA_LABEL, "stored key")}, 1},
		"by CKA_ID":               {template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_ID, "stored id")}, 1},
		"by class":                {template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY)}, 1},
		"by type":                 {template{attr(ck.CKA_KEY_TYPE, ck.CKK_AES)}, 1},
		"by check value":          {template{attr(ck.CKA_CHECK_VALUE, aesCheck(secret32))}, 1},
		"by length and use":       {template{attr(ck.CKA_VALUE_LEN, 32), attr(ck.CKA_ENCRYPT, true)}, 1},
		"by another type":         {template{attr(ck.CKA_LABEL, "stored key"), attr(ck.CKA_KEY_TYPE, ck.CKK_GENERIC_SECRET)}, 0},
		"never by its value":      {template{attr(ck.CKA_VALUE, secret32)}, 0},
		"not as a private key":    {template{attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY), attr(ck.CKA_LABEL, "stored key")}, 0},
		"not as a session object": {template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_TOKEN, false)}, 0},
	} {
		rows = append(rows, row{"5.7.7", "a secret key is found by its attributes, but never by its value", what, ck.CKR_OK, func(e *env) rv {
			o := stored(e)
			found := e.findAll(e.s, x.t)
			e.check(len(found) == x.n && (x.n == 0 || found[0] == o), "%v", found)
			return ck.CKR_OK
		}})
	}
	crypt := func(e *env, s, key uint) rv {
		e.Helper()
		e.ok("C_EncryptInit", s, &p11tool.Mechanism{Type: ck.CKM_AES_CBC, Param: iv16}, key)
		b := p11tool.Room(32)
		r := e.call("C_Encrypt", s, in(plain), b)
		e.check(r != ck.CKR_OK || bytes.Equal(b.Data, cbc(plain)), "%x", b.Data)
		return r
	}
	for _, name := range []string{"C_SetAttributeValue", "C_CopyObject", "C_DestroyObject"} {
		rows = append(rows, row{"4.4", "CKA_MODIFIABLE, CKA_COPYABLE and CKA_DESTROYABLE are obeyed", name + " of a secret key", ck.CKR_ACTION_PROHIBITED, func(e *env) rv {
			return e.onObject(name, e.secret(ck.CKK_AES, secret32, attr(ck.CKA_MODIFIABLE, false), attr(ck.CKA_COPYABLE, false), attr(ck.CKA_DESTROYABLE, false)))
		}})
	}
	allowed := func(mechanism uint) template { return template{attr(ck.CKA_ALLOWED_MECHANISMS, ul(mechanism))} }
	for _, m := range []uint{ck.CKM_ECDSA_SHA256, ck.CKM_ECDSA_SHA384} {
		want := rv(ck.CKR_OK)
		if m != ck.CKM_ECDSA_SHA256 {
			want = ck.CKR_MECHANISM_INVALID
		}
		for _, init := range []string{"C_SignInit", "C_VerifyInit"} {
			rows = append(rows, row{"4.7", "CKA_ALLOWED_MECHANISMS is obeyed", fmt.Sprintf("%s with ECDSA %#x", init, m), want, func(e *env) rv {
				key := map[string]*uint{"C_SignInit": new(uint), "C_VerifyInit": new(uint)}
				e.ok("C_GenerateKeyPair", e.s, mech(ck.CKM_EC_KEY_PAIR_GEN), with(allowed(ck.CKM_ECDSA_SHA256), attr(ck.CKA_EC_PARAMS, curves[0].oid)), allowed(ck.CKM_ECDSA_SHA256), key["C_VerifyInit"], key["C_SignInit"])
				return e.call(init, e.s, mech(m), *key[init])
			}})
		}
	}
	return append(rows,
		row{"4.7", "CKA_ALLOWED_MECHANISMS is obeyed", "C_DeriveKey with ECDH", ck.CKR_MECHANISM_INVALID, func(e *env) rv {
			return e.call("C_DeriveKey", e.s, e.ecdh(ck.CKD_NULL, nil, x25519Peer), e.create(with(x25519Private, attr(ck.CKA_ALLOWED_MECHANISMS, ul(ckmEdDSA)))), template{}, new(uint))
		}},
		row{"3.4", "a date in month 13", "secret key", ck.CKR_ATTRIBUTE_VALUE_INVALID, func(e *env) rv {
			return e.call("C_CreateObject", e.s, with(secretKey(ck.CKK_AES, secret32), attr(ck.CKA_END_DATE, "20261301")), new(uint))
		}},
		row{"4.4.1", "CKA_UNIQUE_ID of a secret key finds that key alone", "", ck.CKR_OK, func(e *env) rv {
			o := e.secret(ck.CKK_AES, secret32)
			e.secret(ck.CKK_AES, secret32)
			found := e.findAll(e.s, template{attr(ckaUniqueID, e.get(o, ckaUniqueID))})
			e.check(len(found) == 1 && found[0] == o, "%v", found)
			return ck.CKR_OK
		}},
		row{"5.7.1", "a secret key of the token serves other sessions, read-only ones too", "", ck.CKR_OK, func(e *env) rv { return crypt(e, e.open(ro), stored(e)) }},
		row{"5.7.1", "a secret key of the token serves after another login, by another handle", "", ck.CKR_OK, func(e *env) rv {
			o := e.secret(ck.CKK_AES, secret32, token, attr(ck.CKA_LABEL, "stays"))
			e.ok("C_Logout", e.s)
			e.check(len(e.findAll(e.s, template{attr(ck.CKA_LABEL, "stays")})) == 0, "it is found without a login")
			e.ok("C_Login", e.s, ck.CKU_USER, in(userPIN))
			found := e.findAll(e.s, template{attr(ck.CKA_LABEL, "stays")})
			e.check(len(found) == 1 && found[0] != o, "%v", found)
			return crypt(e, e.s, e.destroyed(found[0]))
		}},
		row{"5.7.1", "a secret key of the token that is a public object serves without a login", "", ck.CKR_OK, func(e *env) rv {
			o := e.secret(ck.CKK_AES, secret32, token, public)
			e.ok("C_Logout", e.s)
			r := crypt(e, e.s, o)
			e.ok("C_DestroyObject", e.s, o)
			return r
		}},
		row{"5.7.1", "a secret key of another session serves until that session ends", "", ck.CKR_KEY_HANDLE_INVALID, func(e *env) rv {
			var o uint
			maker := e.open(ro)
			e.ok("C_CreateObject", maker, secretKey(ck.CKK_AES, secret32), &o)
			e.check(crypt(e, e.s, o) == ck.CKR_OK, "it does not serve")
			e.ok("C_EncryptInit", e.s, &p11tool.Mechanism{Type: ck.CKM_AES_CBC, Param: iv16}, o)
			e.ok("C_CloseSession", maker)
			return e.call("C_Encrypt", e.s, in(plain), p11tool.Room(32))
		}},
		row{"5.7.2", "a copy of a secret key encrypts as the key", "", ck.CKR_OK, func(e *env) rv {
			var o uint
			e.ok("C_CopyObject", e.s, stored(e), template{attr(ck.CKA_TOKEN, false)}, &o)
			return crypt(e, e.s, o)
		}},
		row{"5.7.2", "a copy of a secret key with another value", "", ck.CKR_ATTRIBUTE_READ_ONLY, func(e *env) rv {
			return e.call("C_CopyObject", e.s, e.secret(ck.CKK_AES, secret32), template{attr(ck.CKA_VALUE, make([]byte, 32))}, new(uint))
		}},
		row{"5.7.2", "a copy of a private secret key that is public", "", ck.CKR_TEMPLATE_INCONSISTENT, func(e *env) rv {
			return e.call("C_CopyObject", e.s, e.secret(ck.CKK_AES, secret32), template{public}, new(uint))
		}})
}
