package conformance

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"hash"
	"math/big"

	ck "github.com/miekg/pkcs11"

	"github.com/InterCooperative-Network/icn-p11/test/p11tool"
)

// hashes are the hash of each digest mechanism, by another implementation.
var hashes = map[uint]func() hash.Hash{
	ck.CKM_SHA_1: sha1.New, ck.CKM_SHA224: sha256.New224, ck.CKM_SHA256: sha256.New, ck.CKM_SHA384: sha512.New384, ck.CKM_SHA512: sha512.New,
	ckmSHA512t224: sha512.New512_224, ckmSHA512t256: sha512.New512_256,
	ckmSHA3x224: func() hash.Hash { return sha3.New224() }, ck.CKM_SHA3_256: func() hash.Hash { return sha3.New256() },
	ck.CKM_SHA3_384: func() hash.Hash { return sha3.New384() }, ck.CKM_SHA3_512: func() hash.Hash { return sha3.New512() },
}

// macs are the mechanisms of HMAC; that of a length which is given follows each
// by number.
var macs = []struct {
	name, section   string
	mech, hash, key uint
}{
	{"CKM_SHA224_HMAC", "6.21", 0x256, ck.CKM_SHA224, ck.CKK_SHA224_HMAC},
	{"CKM_SHA256_HMAC", "6.22", ck.CKM_SHA256_HMAC, ck.CKM_SHA256, ck.CKK_SHA256_HMAC},
	{"CKM_SHA384_HMAC", "6.23", ck.CKM_SHA384_HMAC, ck.CKM_SHA384, ck.CKK_SHA384_HMAC},
	{"CKM_SHA512_HMAC", "6.24", ck.CKM_SHA512_HMAC, ck.CKM_SHA512, ck.CKK_SHA512_HMAC},
	{"CKM_SHA512_224_HMAC", "6.25", 0x049, ckmSHA512t224, ckkSHA512t224HMAC},
	{"CKM_SHA512_256_HMAC", "6.26", 0x04D, ckmSHA512t256, ckkSHA512t256HMAC},
	{"CKM_SHA3_224_HMAC", "6.28", 0x2B6, ckmSHA3x224, ckkSHA3x224HMAC},
	{"CKM_SHA3_256_HMAC", "6.29", 0x2B1, ck.CKM_SHA3_256, ckkSHA3x256HMAC},
	{"CKM_SHA3_384_HMAC", "6.30", 0x2C1, ck.CKM_SHA3_384, ckkSHA3x384HMAC},
	{"CKM_SHA3_512_HMAC", "6.31", 0x2D1, ck.CKM_SHA3_512, ckkSHA3x512HMAC},
}

func digestOf(mechanism uint, data []byte) []byte {
	h := hashes[mechanism]()
	h.Write(data)
	return h.Sum(nil)
}

// hmacOf is the code of a message under secret32.
func hmacOf(mechanism uint, data []byte) []byte {
	for _, m := range macs {
		if m.mech == mechanism {
			h := hmac.New(hashes[m.hash], secret32)
			h.Write(data)
			return h.Sum(nil)
		}
	}
	panic("no such mechanism")
}

// macRows are the rows of HMAC.
func macRows() (rows []row) {
	for _, m := range macs {
		code := hmacOf(m.mech, message)
		wrong := bytes.Clone(code)
		wrong[len(wrong)-1] ^= 1
		general := func(n uint) *p11tool.Mechanism { return &p11tool.Mechanism{Type: m.mech + 1, Param: ul(n)} }
		add := func(rule string, want rv, do func(e *env) rv) {
			rows = append(rows, row{m.section, rule, m.name, want, do})
		}
		for _, key := range []uint{ck.CKK_GENERIC_SECRET, m.key} {
			add("HMAC: the code is another implementation's", ck.CKR_OK, func(e *env) rv {
				e.ok("C_SignInit", e.s, mech(m.mech), e.secret(key, secret32))
				e.check(e.output("C_Sign", -1, uint(len(code)), e.s, in(message)) == ck.CKR_OK, "NULL")
				e.check(e.output("C_Sign", len(code)-1, uint(len(code)), e.s, in(message)) == ck.CKR_BUFFER_TOO_SMALL, "too little room")
				e.compare(code, "C_Sign", in(message))
				return ck.CKR_OK
			})
			add("HMAC: the right code", ck.CKR_OK, func(e *env) rv {
				e.ok("C_VerifyInit", e.s, mech(m.mech), e.secret(key, secret32))
				return e.call("C_Verify", e.s, in(message), in(code))
			})
		}
		add("HMAC: a code in parts is the one in one call", ck.CKR_OK, func(e *env) rv {
			e.ok("C_SignInit", e.s, mech(m.mech), e.secret(m.key, secret32))
			e.ok("C_SignUpdate", e.s, in(message[:3]))
			e.ok("C_SignUpdate", e.s, in(message[3:]))
			e.compare(code, "C_SignFinal")
			return ck.CKR_OK
		})
		add("HMAC: a wrong code", ck.CKR_SIGNATURE_INVALID, func(e *env) rv {
			e.ok("C_VerifyInit", e.s, mech(m.mech), e.secret(m.key, secret32))
			return e.call("C_Verify", e.s, in(message), in(wrong))
		})
		add("HMAC: a code of another length", ck.CKR_SIGNATURE_LEN_RANGE, func(e *env) rv {
			e.ok("C_VerifyInit", e.s, mech(m.mech), e.secret(m.key, secret32))
			e.ok("C_VerifyUpdate", e.s, in(message))
			return e.call("C_VerifyFinal", e.s, in(code[:10]))
		})
		add("HMAC: a code that comes first", ck.CKR_OK, func(e *env) rv {
			e.ok("C_VerifySignatureInit", e.s, mech(m.mech), e.secret(m.key, secret32), in(code))
			return e.call("C_VerifySignature", e.s, in(message))
		})
		for _, n := range []int{1, 10, len(code)} {
			add("HMAC of a length that is given: the beginning of the code", ck.CKR_OK, func(e *env) rv {
				key := e.secret(m.key, secret32)
				e.ok("C_SignInit", e.s, general(uint(n)), key)
				e.compare(code[:n], "C_Sign", in(message))
				e.ok("C_VerifyInit", e.s, general(uint(n)), key)
				return e.call("C_Verify", e.s, in(message), in(code[:n]))
			})
		}
		for what, param := range map[string][]byte{"none": nil, "0": ul(0), "longer than the code": ul(uint(len(code)) + 1), "of one byte": {1}} {
			rows = append(rows, row{m.section, "HMAC of a length that is given: a parameter that is no length", m.name + " " + what, ck.CKR_MECHANISM_PARAM_INVALID, func(e *env) rv {
				return e.call("C_SignInit", e.s, &p11tool.Mechanism{Type: m.mech + 1, Param: param}, e.secret(m.key, secret32))
			}})
		}
		add("HMAC with a parameter", ck.CKR_MECHANISM_PARAM_INVALID, func(e *env) rv {
			return e.call("C_SignInit", e.s, &p11tool.Mechanism{Type: m.mech, Param: ul(4)}, e.secret(m.key, secret32))
		})
		add("HMAC with the key of another hash", ck.CKR_KEY_TYPE_INCONSISTENT, func(e *env) rv {
			other := uint(ck.CKK_SHA256_HMAC)
			if m.key == other {
				other = ck.CKK_SHA512_HMAC
			}
			return e.call("C_SignInit", e.s, mech(m.mech), e.secret(other, secret32))
		})
	}
	for _, f := range []struct {
		name, section string
		usage         uint
	}{{"C_SignInit", "5.13.1", ck.CKA_SIGN}, {"C_VerifyInit", "5.15.1", ck.CKA_VERIFY}} {
		begin := func(rule string, want rv, m *p11tool.Mechanism, key func(e *env) uint) {
			rows = append(rows, row{f.section, f.name + " with a secret key: " + rule, "", want, func(e *env) rv { return e.call(f.name, e.s, m, key(e)) }})
		}
		sha256 := mech(ck.CKM_SHA256_HMAC)
		generic := func(more ...p11tool.Attribute) func(*env) uint {
			return func(e *env) uint { return e.secret(ck.CKK_GENERIC_SECRET, secret32, more...) }
		}
		begin("a key that may not do it", ck.CKR_KEY_FUNCTION_NOT_PERMITTED, sha256, generic(attr(f.usage, false)))
		begin("a key that is for other mechanisms", ck.CKR_MECHANISM_INVALID, sha256, generic(attr(ck.CKA_ALLOWED_MECHANISMS, ul(ck.CKM_SHA512_HMAC))))
		begin("a key that is for this mechanism", ck.CKR_OK, sha256, generic(attr(ck.CKA_ALLOWED_MECHANISMS, ul(ck.CKM_SHA256_HMAC))))
		begin("an AES key for HMAC", ck.CKR_KEY_TYPE_INCONSISTENT, sha256, func(e *env) uint { return e.secret(ck.CKK_AES, secret32, attr(f.usage, true)) })
		begin("a private key for HMAC", ck.CKR_KEY_TYPE_INCONSISTENT, sha256, func(e *env) uint { return e.f.priv() })
		begin("a secret key for EdDSA", ck.CKR_KEY_TYPE_INCONSISTENT, mech(ckmEdDSA), generic())
		begin("a parameter comes before a key", ck.CKR_MECHANISM_PARAM_INVALID, mech(ck.CKM_SHA256_HMAC+1), func(*env) uint { return 0 })
	}
	return append(rows,
		row{"5.14.1", "C_MessageSignInit with HMAC, which is not for messages", "", ck.CKR_MECHANISM_INVALID, func(e *env) rv {
			return e.call("C_MessageSignInit", e.s, mech(ck.CKM_SHA256_HMAC), e.secret(ck.CKK_GENERIC_SECRET, secret32))
		}},
		row{"5.6.10", "C_Logout in the middle of a code", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			e.ok("C_SignInit", e.s, mech(ck.CKM_SHA256_HMAC), e.secret(ck.CKK_GENERIC_SECRET, secret32))
			e.ok("C_Logout", e.s)
			return e.call("C_Sign", e.s, in(message), p11tool.Room(32))
		}},
		row{"5.12.4", "C_DigestKey of a secret key that may be read", "", ck.CKR_OK, func(e *env) rv {
			e.ok("C_DigestInit", e.s, mech(ck.CKM_SHA256))
			e.ok("C_DigestUpdate", e.s, in(message))
			r := e.call("C_DigestKey", e.s, e.secret(ck.CKK_GENERIC_SECRET, secret32, attr(ck.CKA_EXTRACTABLE, true)))
			e.compare(digestOf(ck.CKM_SHA256, append(bytes.Clone(message), secret32...)), "C_DigestFinal")
			return r
		}},
		row{"5.12.4", "C_DigestKey of a secret key that is sensitive", "", ck.CKR_KEY_INDIGESTIBLE, func(e *env) rv {
			e.ok("C_DigestInit", e.s, mech(ck.CKM_SHA256))
			return e.call("C_DigestKey", e.s, e.secret(ck.CKK_GENERIC_SECRET, secret32, attr(ck.CKA_SENSITIVE, true), attr(ck.CKA_EXTRACTABLE, true)))
		}},
		row{"5.12.4", "C_DigestKey of a secret key that is not extractable", "", ck.CKR_KEY_INDIGESTIBLE, func(e *env) rv {
			e.ok("C_DigestInit", e.s, mech(ck.CKM_SHA256))
			return e.call("C_DigestKey", e.s, e.secret(ck.CKK_GENERIC_SECRET, secret32))
		}})
}

// curves are those of ECDSA, with the fixture that lies on each.
var curves = []struct {
	name  string
	oid   []byte
	curve elliptic.Curve
}{
	{"P-256", []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}, elliptic.P256()},
	{"P-384", []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22}, elliptic.P384()},
}

// ecPublic is the key of a public key object; nil if it has none.
func (e *env) ecPublic(o uint, c elliptic.Curve) *ecdsa.PublicKey {
	e.Helper()
	point := e.get(o, ck.CKA_EC_POINT)
	n := c.Params().BitSize/4 + 1
	if len(point) != n+2 || point[0] != 4 || int(point[1]) != n {
		e.Fatalf("CKA_EC_POINT is %x", point)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(c, point[2:])
	if err != nil {
		e.Fatal(err)
	}
	return key
}

// ecdsaValid checks a signature by another implementation.
func ecdsaValid(key *ecdsa.PublicKey, digest, sig []byte) bool {
	n := len(sig) / 2
	return ecdsa.Verify(key, digest, new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:]))
}

// ecdsaRows are the rows of ECDSA with keys of the TPM.
func ecdsaRows() (rows []row) {
	for _, c := range curves {
		size := c.curve.Params().BitSize / 4
		pub, priv := c.name+" pub", c.name+" priv"
		for _, m := range []struct {
			name, section string
			mech, hash    uint
		}{{"CKM_ECDSA", "6.3.12", ck.CKM_ECDSA, 0}, {"CKM_ECDSA_SHA256", "6.3.13", ck.CKM_ECDSA_SHA256, ck.CKM_SHA256},
			{"CKM_ECDSA_SHA384", "6.3.13", ck.CKM_ECDSA_SHA384, ck.CKM_SHA384}, {"CKM_ECDSA_SHA512", "6.3.13", ck.CKM_ECDSA_SHA512, ck.CKM_SHA512}} {
			// A digest that is longer than the curve counts with its beginning.
			data, digest := message, digestOf(ck.CKM_SHA512, message)
			if m.hash == 0 {
				data = digest
			} else {
				digest = digestOf(m.hash, message)
			}
			add := func(rule string, want rv, do func(e *env) rv) {
				rows = append(rows, row{m.section, rule, m.name + " " + c.name, want, do})
			}
			signed := func(e *env) []byte {
				e.Helper()
				e.ok("C_SignInit", e.s, mech(m.mech), e.f.obj[priv])
				b := p11tool.Room(size)
				e.ok("C_Sign", e.s, in(data), b)
				return b.Data
			}
			add("ECDSA: another implementation verifies a signature, which is r and s", ck.CKR_OK, func(e *env) rv {
				sig := signed(e)
				e.check(ecdsaValid(e.ecPublic(e.f.obj[pub], c.curve), digest, sig), "%x", sig)
				return ck.CKR_OK
			})
			add("ECDSA: the length is that of r and s", ck.CKR_OK, func(e *env) rv {
				e.ok("C_SignInit", e.s, mech(m.mech), e.f.obj[priv])
				e.check(e.output("C_Sign", -1, uint(size), e.s, in(data)) == ck.CKR_OK, "NULL")
				e.check(e.output("C_Sign", size-1, uint(size), e.s, in(data)) == ck.CKR_BUFFER_TOO_SMALL, "too little room")
				return e.output("C_Sign", size, uint(size), e.s, in(data))
			})
			add("ECDSA: the right signature", ck.CKR_OK, func(e *env) rv {
				sig := signed(e)
				e.ok("C_VerifyInit", e.s, mech(m.mech), e.f.obj[pub])
				return e.call("C_Verify", e.s, in(data), in(sig))
			})
			add("ECDSA: a signature that comes first", ck.CKR_OK, func(e *env) rv {
				e.ok("C_VerifySignatureInit", e.s, mech(m.mech), e.f.obj[pub], in(signed(e)))
				return e.call("C_VerifySignature", e.s, in(data))
			})
			add("ECDSA: a wrong signature", ck.CKR_SIGNATURE_INVALID, func(e *env) rv {
				sig := signed(e)
				sig[size-1] ^= 1
				e.ok("C_VerifyInit", e.s, mech(m.mech), e.f.obj[pub])
				return e.call("C_Verify", e.s, in(data), in(sig))
			})
			for _, n := range []int{0, size - 1, size + 1} {
				add("ECDSA: a signature of another length", ck.CKR_SIGNATURE_LEN_RANGE, func(e *env) rv {
					e.ok("C_VerifyInit", e.s, mech(m.mech), e.f.obj[pub])
					return e.call("C_Verify", e.s, in(data), in(make([]byte, n)))
				})
			}
			add("ECDSA: r and s that are 0", ck.CKR_SIGNATURE_INVALID, func(e *env) rv {
				e.ok("C_VerifyInit", e.s, mech(m.mech), e.f.obj[pub])
				return e.call("C_Verify", e.s, in(data), in(make([]byte, size)))
			})
			parts := func(e *env, init string, key uint) rv {
				e.ok(init+"Init", e.s, mech(m.mech), key)
				return e.call(init+"Update", e.s, in(data))
			}
			if m.hash == 0 {
				for _, x := range []struct{ init, key string }{{"C_Sign", priv}, {"C_Verify", pub}} {
					add("ECDSA without a hash is for data in one part: "+x.init+"Update ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
						r := parts(e, x.init, e.f.obj[x.key])
						e.ok(x.init+"Init", e.s, mech(m.mech), e.f.obj[x.key])
						return r
					})
				}
				add("ECDSA without a hash is for data in one part: C_SignFinal ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
					e.ok("C_SignInit", e.s, mech(m.mech), e.f.obj[priv])
					r := e.call("C_SignFinal", e.s, p11tool.Room(size))
					e.ok("C_SignInit", e.s, mech(m.mech), e.f.obj[priv])
					return r
				})
			} else {
				add("ECDSA with a hash: a signature in parts", ck.CKR_OK, func(e *env) rv {
					e.check(parts(e, "C_Sign", e.f.obj[priv]) == ck.CKR_OK, "C_SignUpdate")
					b := p11tool.Room(size)
					e.ok("C_SignFinal", e.s, b)
					e.check(ecdsaValid(e.ecPublic(e.f.obj[pub], c.curve), digest, b.Data), "%x", b.Data)
					e.check(parts(e, "C_Verify", e.f.obj[pub]) == ck.CKR_OK, "C_VerifyUpdate")
					return e.call("C_VerifyFinal", e.s, in(b.Data))
				})
			}
			for _, x := range []struct{ init, key, other, edwards string }{{"C_SignInit", priv, pub, "pair priv"}, {"C_VerifyInit", pub, priv, "pair pub"}} {
				add("ECDSA: "+x.init+" with a parameter", ck.CKR_MECHANISM_PARAM_INVALID, func(e *env) rv {
					return e.call(x.init, e.s, &p11tool.Mechanism{Type: m.mech, Param: []byte{1}}, e.f.obj[x.key])
				})
				add("ECDSA: "+x.init+" with the other half of the pair", ck.CKR_KEY_FUNCTION_NOT_PERMITTED, func(e *env) rv { return e.call(x.init, e.s, mech(m.mech), e.f.obj[x.other]) })
				add("ECDSA: "+x.init+" with a key of Ed25519", ck.CKR_KEY_TYPE_INCONSISTENT, func(e *env) rv { return e.call(x.init, e.s, mech(m.mech), e.f.obj[x.edwards]) })
				add("ECDSA: "+x.init+" of EdDSA with a key of the TPM", ck.CKR_KEY_TYPE_INCONSISTENT, func(e *env) rv { return e.call(x.init, e.s, mech(ckmEdDSA), e.f.obj[x.key]) })
			}
		}
		rows = append(rows,
			row{"6.3.12", "ECDSA: a digest shorter than the curve is the number it is", c.name, ck.CKR_OK, func(e *env) rv {
				digest := digestOf(ck.CKM_SHA_1, message)
				e.ok("C_SignInit", e.s, mech(ck.CKM_ECDSA), e.f.obj[priv])
				b := p11tool.Room(size)
				r := e.call("C_Sign", e.s, in(digest), b)
				e.check(ecdsaValid(e.ecPublic(e.f.obj[pub], c.curve), append(make([]byte, size/2-len(digest)), digest...), b.Data), "%x", b.Data)
				return r
			}},
			row{"5.18.5", "C_DeriveKey with a key that signs alone", c.name, ck.CKR_KEY_TYPE_INCONSISTENT, func(e *env) rv {
				return e.call("C_DeriveKey", e.s, e.ecdh(ck.CKD_NULL, nil, x25519Peer), e.f.obj[priv], template{}, new(uint))
			}},
			row{"5.18.3", "a private key of the TPM cannot be wrapped", c.name, ck.CKR_KEY_UNEXTRACTABLE, func(e *env) rv {
				return e.call("C_WrapKey", e.s, mech(ck.CKM_AES_KEY_WRAP), e.secret(ck.CKK_AES, secret32, attr(ck.CKA_WRAP, true)), e.f.obj[priv], p11tool.Room(256))
			}},
			row{"5.7.2", "a copy of a private key of the TPM signs as the key", c.name, ck.CKR_OK, func(e *env) rv {
				var o uint
				r := e.call("C_CopyObject", e.s, e.f.obj[priv], template{attr(ck.CKA_TOKEN, false)}, &o)
				e.ok("C_SignInit", e.s, mech(ck.CKM_ECDSA), o)
				b := p11tool.Room(size)
				e.ok("C_Sign", e.s, in(digestOf(ck.CKM_SHA256, message)), b)
				e.check(ecdsaValid(e.ecPublic(e.f.obj[pub], c.curve), digestOf(ck.CKM_SHA256, message), b.Data), "%x", b.Data)
				return r
			}},
			row{"5.7.2", "a copy of a private key of the TPM that is extractable", c.name, ck.CKR_ATTRIBUTE_READ_ONLY, func(e *env) rv {
				return e.call("C_CopyObject", e.s, e.f.obj[priv], template{attr(ck.CKA_TOKEN, false), attr(ck.CKA_EXTRACTABLE, true)}, new(uint))
			}})
	}
	return append(rows,
		row{"4.9", "a key of the TPM with CKA_ALWAYS_AUTHENTICATE needs a login for each signature", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			e.ok("C_SignInit", e.s, mech(ck.CKM_ECDSA_SHA256), e.f.obj["P-256 always priv"])
			return e.output("C_Sign", 64, 64, e.s, in(message))
		}},
		row{"4.9", "which C_Login with CKU_CONTEXT_SPECIFIC is", "P-256", ck.CKR_OK, func(e *env) rv {
			e.ok("C_SignInit", e.s, mech(ck.CKM_ECDSA_SHA256), e.f.obj["P-256 always priv"])
			e.ok("C_Login", e.s, ck.CKU_CONTEXT_SPECIFIC, in(userPIN))
			return e.output("C_Sign", 64, 64, e.s, in(message))
		}},
		row{"5.14.1", "C_MessageSignInit with ECDSA, which is not for messages", "", ck.CKR_MECHANISM_INVALID, func(e *env) rv {
			return e.call("C_MessageSignInit", e.s, mech(ck.CKM_ECDSA_SHA256), e.f.obj["P-256 priv"])
		}})
}
