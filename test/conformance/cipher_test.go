package conformance

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"

	ck "github.com/miekg/pkcs11"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/InterCooperative-Network/icn-p11/test/p11tool"
)

// secretKey is the template of a secret key that the tests know.
func secretKey(typ uint, value []byte) template {
	return template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_KEY_TYPE, typ), attr(ck.CKA_VALUE, value)}
}

// secret makes a secret key of the row's session.
func (e *env) secret(typ uint, value []byte, more ...p11tool.Attribute) uint {
	e.Helper()
	return e.create(with(secretKey(typ, value), more...))
}

var (
	secret32 = []byte("0123456789abcdefghijklmnopqrstuv")
	iv16     = []byte("initial value 16")
	nonce12  = []byte("nonce of 12.")
	aad      = []byte("additional data")
	plain    = []byte("two blocks of sixteen bytes each")
)

// param makes a parameter that lives as long as the row.
func (e *env) param(param []byte, free func()) []byte {
	e.Cleanup(free)
	return param
}

// padded is PKCS #7.
func padded(b []byte) []byte {
	n := aes.BlockSize - len(b)%aes.BlockSize
	return append(bytes.Clone(b), bytes.Repeat([]byte{byte(n)}, n)...)
}

func aesOf(key []byte) cipher.Block {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	return b
}

func cbc(text []byte) []byte {
	out := make([]byte, len(text))
	cipher.NewCBCEncrypter(aesOf(secret32), iv16).CryptBlocks(out, text)
	return out
}

// aead is the reference of a mode with a tag.
func aead(a cipher.AEAD, err error) func([]byte) []byte {
	if err != nil {
		panic(err)
	}
	return func(text []byte) []byte { return a.Seal(nil, nonce12, text, aad) }
}

// modes are the mechanisms that encrypt.
var modes = []struct {
	name, section string
	mech, key     uint
	param         func(*env) []byte
	encrypt       func(text []byte) []byte // what it makes, by another implementation
	block         int                      // what a text is a multiple of
	tag           int
	wrong         map[string]func(*env) []byte // parameters that are none
}{
	{name: "CKM_AES_CBC", section: "6.10", mech: ck.CKM_AES_CBC, key: ck.CKK_AES, block: 16,
		param: func(*env) []byte { return iv16 }, encrypt: cbc,
		wrong: map[string]func(*env) []byte{"none": bytesOf(nil), "of 15 bytes": bytesOf(iv16[:15]), "of 17 bytes": bytesOf(make([]byte, 17))}},
	{name: "CKM_AES_CBC_PAD", section: "6.10", mech: ck.CKM_AES_CBC_PAD, key: ck.CKK_AES,
		param: func(*env) []byte { return iv16 }, encrypt: func(text []byte) []byte { return cbc(padded(text)) },
		wrong: map[string]func(*env) []byte{"none": bytesOf(nil), "of 15 bytes": bytesOf(iv16[:15]), "of 17 bytes": bytesOf(make([]byte, 17))}},
	{name: "CKM_AES_CTR", section: "6.11", mech: ck.CKM_AES_CTR, key: ck.CKK_AES,
		param: func(*env) []byte { return append(ul(128), iv16...) },
		encrypt: func(text []byte) []byte {
			out := make([]byte, len(text))
			cipher.NewCTR(aesOf(secret32), iv16).XORKeyStream(out, text)
			return out
		},
		wrong: map[string]func(*env) []byte{"none": bytesOf(nil), "of the block alone": bytesOf(iv16), "with a counter of 0 bits": bytesOf(append(ul(0), iv16...)),
			"with a counter of 129 bits": bytesOf(append(ul(129), iv16...))}},
	{name: "CKM_AES_GCM", section: "6.13", mech: ck.CKM_AES_GCM, key: ck.CKK_AES, tag: 16,
		param: gcm(nonce12, 128), encrypt: aead(cipher.NewGCM(aesOf(secret32))),
		wrong: map[string]func(*env) []byte{"none": bytesOf(nil), "of another size": bytesOf(iv16), "without a nonce": gcm(nil, 128), "with a tag of 129 bits": gcm(nonce12, 129),
			"with a tag of 136 bits": gcm(nonce12, 136), "with a tag of 0 bits": gcm(nonce12, 0)}},
	{name: "CKM_CHACHA20_POLY1305", section: "6.61", mech: ckmChaCha20Poly1305, key: ckkChaCha20, tag: 16,
		param: chacha(nonce12, 96), encrypt: aead(chacha20poly1305.New(secret32)),
		wrong: map[string]func(*env) []byte{"none": bytesOf(nil), "of another size": bytesOf(iv16), "without a nonce": chacha(nil, 0), "with a nonce of 128 bits": chacha(iv16, 128)}},
}

func bytesOf(b []byte) func(*env) []byte { return func(*env) []byte { return b } }

func gcm(iv []byte, tagBits uint) func(*env) []byte {
	return func(e *env) []byte { return e.param(p11tool.GCMParams(iv, aad, tagBits)) }
}

func chacha(nonce []byte, length uint) func(*env) []byte {
	return func(e *env) []byte { return e.param(p11tool.ChaChaParams(nonce, length, aad)) }
}

// direction is encryption or decryption, with the sections of its four functions.
type direction struct {
	init, one, update, final string
	section                  string
	usage                    uint
	long                     rv // of data of a bad length
}

var (
	encryption = direction{"C_EncryptInit", "C_Encrypt", "C_EncryptUpdate", "C_EncryptFinal", "5.8.", ck.CKA_ENCRYPT, ck.CKR_DATA_LEN_RANGE}
	decryption = direction{"C_DecryptInit", "C_Decrypt", "C_DecryptUpdate", "C_DecryptFinal", "5.10.", ck.CKA_DECRYPT, ck.CKR_ENCRYPTED_DATA_LEN_RANGE}
)

// run gives data to an operation in parts of a size, and gathers what comes out.
func (e *env) run(d direction, data []byte, size int) ([]byte, rv) {
	e.Helper()
	var all []byte
	for len(data) > 0 {
		n := min(size, len(data))
		b := p11tool.Room(n + 32)
		e.ok(d.update, e.s, in(data[:n]), b)
		all = append(all, b.Data[:b.Len]...)
		data = data[n:]
	}
	b := p11tool.Room(len(all) + 1024)
	r := e.call(d.final, e.s, b)
	if r == ck.CKR_OK {
		all = append(all, b.Data[:b.Len]...)
	}
	return all, r
}

// cipherRows are the rows of encryption and decryption.
func cipherRows() (rows []row) {
	for _, d := range []direction{encryption, decryption} {
		rows = append(rows, cipherInitRows(d)...)
		for _, m := range modes {
			from, to := plain, m.encrypt(plain)
			if d.usage == ck.CKA_DECRYPT {
				from, to = to, from
			}
			begin := func(e *env) {
				e.Helper()
				e.ok(d.init, e.s, &p11tool.Mechanism{Type: m.mech, Param: m.param(e)}, e.secret(m.key, secret32))
			}
			add := func(section, rule string, want rv, do func(e *env) rv) {
				rows = append(rows, row{section, rule, m.name, want, func(e *env) rv {
					begin(e)
					return do(e)
				}})
			}
			one := func(e *env) rv {
				b := p11tool.Room(len(to) + 16)
				r := e.call(d.one, e.s, in(from), b)
				e.check(r != ck.CKR_OK || bytes.Equal(b.Data[:b.Len], to), "%x, not %x", b.Data[:b.Len], to)
				return r
			}
			over := func(e *env) rv { return e.call(d.update, e.s, in(from), p11tool.Room(len(to)+32)) }
			// The length of a text with padding is known once it is decrypted.
			asked := len(to)
			if m.mech == ck.CKM_AES_CBC_PAD && d.usage == ck.CKA_DECRYPT {
				asked = len(from)
			}
			add(m.section, d.one+": the result is another implementation's", ck.CKR_OK, one)
			add(d.section+"2", d.one+" with NULL tells the length, and the operation goes on", ck.CKR_OK, func(e *env) rv {
				e.check(e.output(d.one, -1, uint(asked), e.s, in(from)) == ck.CKR_OK, "NULL")
				return one(e)
			})
			add(d.section+"2", d.one+" without room tells the length, and the operation goes on", ck.CKR_OK, func(e *env) rv {
				for _, n := range []int{0, 1, len(to) - 1} {
					b := p11tool.Room(n)
					e.check(e.call(d.one, e.s, in(from), b) == ck.CKR_BUFFER_TOO_SMALL && b.Len >= uint(len(to)) && b.Len <= uint(asked), "%d bytes: %d", n, b.Len)
				}
				return one(e)
			})
			add(d.section+"2", d.one+" with just enough room", ck.CKR_OK, func(e *env) rv { return e.output(d.one, len(to), uint(len(to)), e.s, in(from)) })
			add(d.section+"2", d.one+" ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
				e.check(one(e) == ck.CKR_OK, "the first")
				return one(e)
			})
			add(d.section+"2", d.one+" with NULL for data ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
				e.gives(ck.CKR_ARGUMENTS_BAD, d.one, e.s, nil, 1, p11tool.Room(64))
				return over(e)
			})
			add(d.section+"2", d.one+" without a place for the length ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
				e.gives(ck.CKR_ARGUMENTS_BAD, d.one, e.s, in(from), make([]byte, 64), nil)
				return over(e)
			})
			add(d.section+"2", d.one+" after "+d.update+", which goes on", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
				b := p11tool.Room(64)
				e.ok(d.update, e.s, in(from[:20]), b)
				got := bytes.Clone(b.Data[:b.Len])
				r := one(e)
				rest, last := e.run(d, from[20:], 100)
				e.check(last == ck.CKR_OK && bytes.Equal(append(got, rest...), to), "%x, %v afterwards", append(got, rest...), last)
				return r
			})
			add(d.section+"3", d.update+" that only told the length is no part: "+d.one+" may follow", ck.CKR_OK, func(e *env) rv {
				e.ok(d.update, e.s, in(from), &buffer{})
				return one(e)
			})
			add(d.section+"3", d.update+" with NULL ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
				e.gives(ck.CKR_ARGUMENTS_BAD, d.update, e.s, nil, 1, p11tool.Room(64))
				return over(e)
			})
			add(d.section+"3", d.update+" without a place for the length ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
				e.gives(ck.CKR_ARGUMENTS_BAD, d.update, e.s, in(from), make([]byte, 64), nil)
				return over(e)
			})
			for _, size := range []int{1, 15, 16, 17} {
				rows = append(rows, row{d.section + "4", d.final + ": data in parts gives what it gives in one", m.name, ck.CKR_OK, func(e *env) rv {
					begin(e)
					got, r := e.run(d, from, size)
					e.check(bytes.Equal(got, to), "in parts of %d: %x, not %x", size, got, to)
					return r
				}})
			}
			add(d.section+"4", d.final+" ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
				_, r := e.run(d, from, 100)
				e.check(r == ck.CKR_OK, "%v", r)
				return e.call(d.final, e.s, p11tool.Room(64))
			})
			add(d.section+"4", d.final+" without a place for the length ends the operation", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
				e.gives(ck.CKR_ARGUMENTS_BAD, d.final, e.s, make([]byte, 64), nil)
				return over(e)
			})
			if last := len(to); m.tag != 0 || m.mech == ck.CKM_AES_CBC_PAD && d.usage == ck.CKA_ENCRYPT {
				if m.tag == 0 {
					last = 16 // the padding
				}
				add(d.section+"4", d.final+" with NULL or without room tells the length, and the operation goes on", ck.CKR_OK, func(e *env) rv {
					b := p11tool.Room(64)
					e.ok(d.update, e.s, in(from), b)
					e.check(m.tag == 0 || b.Len == 0, "%d bytes before the end", b.Len)
					e.check(e.output(d.final, -1, uint(last), e.s) == ck.CKR_OK, "NULL")
					e.check(e.output(d.final, last-1, uint(last), e.s) == ck.CKR_BUFFER_TOO_SMALL, "too little room")
					return e.output(d.final, last, uint(last), e.s)
				})
			} else if m.block != 0 {
				add(d.section+"3", d.update+" without room tells the length and takes nothing", ck.CKR_OK, func(e *env) rv {
					e.check(e.output(d.update, -1, 32, e.s, in(from)) == ck.CKR_OK, "NULL")
					e.check(e.output(d.update, 31, 32, e.s, in(from)) == ck.CKR_BUFFER_TOO_SMALL, "too little room")
					got, r := e.run(d, from, 100)
					e.check(bytes.Equal(got, to), "%x", got)
					return r
				})
			}
			rows = append(rows,
				row{d.section + "2", d.one + " without " + d.init, m.name, ck.CKR_OPERATION_NOT_INITIALIZED, one},
				row{d.section + "3", d.update + " without " + d.init, m.name, ck.CKR_OPERATION_NOT_INITIALIZED, over},
				row{d.section + "4", d.final + " without " + d.init, m.name, ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.call(d.final, e.s, p11tool.Room(64)) }})
			// Lengths that are none.
			bad := map[string][]byte{}
			switch {
			case m.block != 0:
				bad["15 bytes"], bad["17 bytes"] = from[:15], from[:17]
			case m.mech == ck.CKM_AES_CBC_PAD && d.usage == ck.CKA_DECRYPT:
				bad["15 bytes"], bad["17 bytes"], bad["no bytes"] = from[:15], from[:17], from[:0]
			case m.tag != 0 && d.usage == ck.CKA_DECRYPT:
				bad["15 bytes"], bad["no bytes"] = from[:15], from[:0]
			}
			for name, data := range bad {
				add(d.section+"2", d.one+" of a length that is none for the mechanism", d.long, func(e *env) rv { return e.call(d.one, e.s, in(data), p11tool.Room(64)) })
				add(d.section+"4", d.final+" after a length that is none for the mechanism, which ends the operation", d.long, func(e *env) rv {
					_, r := e.run(d, data, 7)
					e.gives(ck.CKR_OPERATION_NOT_INITIALIZED, d.final, e.s, p11tool.Room(64))
					e.check(r == d.long, "%s: %v", name, r)
					return r
				})
			}
			for rule, param := range m.wrong {
				rows = append(rows, row{d.section + "1", d.init + ": a parameter that is none for the mechanism", m.name + " " + rule, ck.CKR_MECHANISM_PARAM_INVALID, func(e *env) rv {
					return e.call(d.init, e.s, &p11tool.Mechanism{Type: m.mech, Param: param(e)}, e.secret(m.key, secret32))
				}})
			}
			if m.tag != 0 && d.usage == ck.CKA_DECRYPT {
				for _, at := range []int{0, len(from) - 1} {
					altered := bytes.Clone(from)
					altered[at] ^= 1
					add(m.section, "text or tag that was altered: nothing comes out, and the operation ends", ckrAEADDecryptFailed, func(e *env) rv {
						b := p11tool.Room(len(to))
						r := e.call(d.one, e.s, in(altered), b)
						e.check(bytes.Equal(b.Data, make([]byte, len(to))), "%x came out", b.Data)
						e.check(over(e) == ck.CKR_OPERATION_NOT_INITIALIZED, "the operation goes on")
						return r
					})
				}
			}
		}
	}
	return append(rows, specialModes()...)
}

// specialModes are the rows of what single modes have.
func specialModes() []row {
	crypt := func(section, rule string, want rv, d direction, mechanism uint, param func(*env) []byte, key uint, data []byte, do func(e *env, out []byte)) row {
		return row{section, rule, "", want, func(e *env) rv {
			e.ok(d.init, e.s, &p11tool.Mechanism{Type: mechanism, Param: param(e)}, e.secret(key, secret32))
			b := p11tool.Room(256)
			r := e.call(d.one, e.s, in(data), b)
			if do != nil && r == ck.CKR_OK {
				do(e, b.Data[:b.Len])
			}
			return r
		}}
	}
	iv := bytesOf(iv16)
	short := aead(cipher.NewGCMWithTagSize(aesOf(secret32), 12))(plain)
	long := func(text []byte) []byte {
		a, err := cipher.NewGCMWithNonceSize(aesOf(secret32), 16)
		if err != nil {
			panic(err)
		}
		return a.Seal(nil, iv16, text, aad)
	}(plain)
	is := func(want []byte) func(*env, []byte) {
		return func(e *env, got []byte) { e.check(bytes.Equal(got, want), "%x, not %x", got, want) }
	}
	rows := []row{
		crypt("6.10", "CKM_AES_CBC of no bytes", ck.CKR_OK, encryption, ck.CKM_AES_CBC, iv, ck.CKK_AES, nil, is(nil)),
		crypt("6.10", "CKM_AES_CBC_PAD of no bytes is a block of padding", ck.CKR_OK, encryption, ck.CKM_AES_CBC_PAD, iv, ck.CKK_AES, nil, is(cbc(padded(nil)))),
		crypt("6.10", "CKM_AES_CBC_PAD of 31 bytes", ck.CKR_OK, encryption, ck.CKM_AES_CBC_PAD, iv, ck.CKK_AES, plain[:31], is(cbc(padded(plain[:31])))),
		crypt("6.13", "CKM_AES_GCM of no bytes is a tag", ck.CKR_OK, encryption, ck.CKM_AES_GCM, gcm(nonce12, 128), ck.CKK_AES, nil, is(modes[3].encrypt(nil))),
		crypt("6.13", "CKM_AES_GCM with a tag of 96 bits", ck.CKR_OK, encryption, ck.CKM_AES_GCM, gcm(nonce12, 96), ck.CKK_AES, plain, is(short)),
		crypt("6.13", "CKM_AES_GCM with a tag of 96 bits, decrypted", ck.CKR_OK, decryption, ck.CKM_AES_GCM, gcm(nonce12, 96), ck.CKK_AES, short, is(plain)),
		crypt("6.13", "CKM_AES_GCM with a nonce of 16 bytes", ck.CKR_OK, encryption, ck.CKM_AES_GCM, gcm(iv16, 128), ck.CKK_AES, plain, is(long)),
		crypt("6.13", "CKM_AES_GCM with other additional data", ckrAEADDecryptFailed, decryption, ck.CKM_AES_GCM,
			func(e *env) []byte { return e.param(p11tool.GCMParams(nonce12, nil, 128)) }, ck.CKK_AES, modes[3].encrypt(plain), nil),
		crypt("6.61", "CKM_CHACHA20_POLY1305 with a length of the nonce in bytes, as NSS has it", ck.CKR_OK, encryption, ckmChaCha20Poly1305, chacha(nonce12, 12), ckkChaCha20, plain, is(modes[4].encrypt(plain))),
		crypt("6.61", "CKM_CHACHA20_POLY1305 with other additional data", ckrAEADDecryptFailed, decryption, ckmChaCha20Poly1305,
			func(e *env) []byte { return e.param(p11tool.ChaChaParams(nonce12, 96, nil)) }, ckkChaCha20, modes[4].encrypt(plain), nil),
		crypt("6.11", "CKM_AES_CTR of as many blocks as the counter has", ck.CKR_OK, encryption, ck.CKM_AES_CTR,
			bytesOf(append(ul(8), append(make([]byte, 15), 0xfe)...)), ck.CKK_AES, plain, nil),
		crypt("6.11", "CKM_AES_CTR of more blocks than the counter has", ck.CKR_DATA_LEN_RANGE, encryption, ck.CKM_AES_CTR,
			bytesOf(append(ul(8), append(make([]byte, 15), 0xff)...)), ck.CKK_AES, plain, nil),
		crypt("6.11", "CKM_AES_CTR of more blocks than the counter has, decrypted", ck.CKR_ENCRYPTED_DATA_LEN_RANGE, decryption, ck.CKM_AES_CTR,
			bytesOf(append(ul(8), append(make([]byte, 15), 0xff)...)), ck.CKK_AES, plain, nil),
	}
	for name, last := range map[string][]byte{"of 0 bytes": bytes.Repeat([]byte{0}, 16), "of 17 bytes": bytes.Repeat([]byte{17}, 16), "of bytes that differ": append(bytes.Repeat([]byte{1}, 13), 9, 3, 3)} {
		rows = append(rows, row{"6.10", "CKM_AES_CBC_PAD: padding that is none", name, ck.CKR_ENCRYPTED_DATA_INVALID, func(e *env) rv {
			e.ok("C_DecryptInit", e.s, &p11tool.Mechanism{Type: ck.CKM_AES_CBC_PAD, Param: iv16}, e.secret(ck.CKK_AES, secret32))
			return e.call("C_Decrypt", e.s, in(cbc(append(bytes.Clone(plain), last...))), p11tool.Room(64))
		}})
	}
	return rows
}

// cipherInitRows are the rows of the order in which an Init function looks at what
// it is given.
func cipherInitRows(d direction) []row {
	name := d.init
	cbc := func(e *env) *p11tool.Mechanism { return &p11tool.Mechanism{Type: ck.CKM_AES_CBC, Param: iv16} }
	bare := func(t uint) func(*env) *p11tool.Mechanism {
		return func(*env) *p11tool.Mechanism { return mech(t) }
	}
	aesKey := func(more ...p11tool.Attribute) func(*env) uint {
		return func(e *env) uint { return e.secret(ck.CKK_AES, secret32, more...) }
	}
	obj := func(name string) func(*env) uint { return func(e *env) uint { return e.f.obj[name] } }
	handle := func(h uint) func(*env) uint { return func(*env) uint { return h } }
	begin := func(rule string, want rv, m func(*env) *p11tool.Mechanism, key func(*env) uint) row {
		return row{d.section + "1", name + ": " + rule, "", want, func(e *env) rv { return e.call(name, e.s, m(e), key(e)) }}
	}
	others := func(e *env) uint { return e.secret(ckkChaCha20, secret32, attr(d.usage, false)) }
	rows := []row{
		begin("a key that may do it", ck.CKR_OK, cbc, aesKey()),
		begin("a mechanism of another kind", ck.CKR_MECHANISM_INVALID, bare(ck.CKM_SHA256), aesKey()),
		begin("a mechanism that wraps alone", ck.CKR_MECHANISM_INVALID, bare(ck.CKM_AES_KEY_WRAP), aesKey()),
		begin("a mechanism that is not there", ck.CKR_MECHANISM_INVALID, bare(ck.CKM_RSA_PKCS), aesKey()),
		begin("a mechanism comes before a key", ck.CKR_MECHANISM_INVALID, bare(ck.CKM_RSA_PKCS), handle(0)),
		begin("a parameter comes before a key", ck.CKR_MECHANISM_PARAM_INVALID, bare(ck.CKM_AES_CBC), handle(0)),
		begin("key 0", ck.CKR_KEY_HANDLE_INVALID, cbc, handle(0)),
		begin("a key that is not there", ck.CKR_KEY_HANDLE_INVALID, cbc, handle(0xdeadbeef)),
		begin("a data object for a key", ck.CKR_KEY_HANDLE_INVALID, cbc, obj("data")),
		begin("a certificate for a key", ck.CKR_KEY_HANDLE_INVALID, cbc, obj("certificate")),
		begin("a key of another type", ck.CKR_KEY_TYPE_INCONSISTENT, cbc, func(e *env) uint { return e.secret(ckkChaCha20, secret32) }),
		begin("a generic secret", ck.CKR_KEY_TYPE_INCONSISTENT, cbc, func(e *env) uint { return e.secret(ck.CKK_GENERIC_SECRET, secret32) }),
		begin("a private key", ck.CKR_KEY_TYPE_INCONSISTENT, cbc, obj("pair priv")),
		begin("a public key", ck.CKR_KEY_TYPE_INCONSISTENT, cbc, obj("pair pub")),
		begin("a key's type comes before its use", ck.CKR_KEY_TYPE_INCONSISTENT, cbc, others),
		begin("a key that may not do it", ck.CKR_KEY_FUNCTION_NOT_PERMITTED, cbc, aesKey(attr(d.usage, false))),
		begin("a key's use comes before its mechanisms", ck.CKR_KEY_FUNCTION_NOT_PERMITTED, cbc, aesKey(attr(d.usage, false), attr(ck.CKA_ALLOWED_MECHANISMS, ul(ck.CKM_AES_CTR)))),
		begin("a key that is for other mechanisms", ck.CKR_MECHANISM_INVALID, cbc, aesKey(attr(ck.CKA_ALLOWED_MECHANISMS, append(ul(ck.CKM_AES_CTR), ul(ck.CKM_AES_GCM)...)))),
		begin("a key that is for this mechanism", ck.CKR_OK, cbc, aesKey(attr(ck.CKA_ALLOWED_MECHANISMS, append(ul(ck.CKM_AES_CTR), ul(ck.CKM_AES_CBC)...)))),
		{"4.7", "CKA_START_DATE and CKA_END_DATE are for reference only", name + " after the last day", ck.CKR_OK, func(e *env) rv {
			return e.call(name, e.s, cbc(e), e.secret(ck.CKK_AES, secret32, attr(ck.CKA_START_DATE, "20010101"), attr(ck.CKA_END_DATE, "20011231")))
		}},
		{"4.7", "CKA_START_DATE and CKA_END_DATE are for reference only", name + " before the first day", ck.CKR_OK, func(e *env) rv {
			return e.call(name, e.s, cbc(e), e.secret(ck.CKK_AES, secret32, attr(ck.CKA_START_DATE, "99991231")))
		}},
		{d.section + "1", name + " while such an operation is active", "", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok(name, e.s, cbc(e), aesKey()(e))
			return e.call(name, e.s, cbc(e), aesKey()(e))
		}},
		{d.section + "1", name + " while an operation is active comes before the mechanism", "", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok(name, e.s, cbc(e), aesKey()(e))
			return e.call(name, e.s, mech(ck.CKM_RSA_PKCS), 0)
		}},
		{d.section + "1", name + " beside operations of all other functions", "", ck.CKR_OK, func(e *env) rv {
			key := aesKey()(e)
			for _, other := range []string{"C_EncryptInit", "C_DecryptInit"} {
				if other != name {
					e.ok(other, e.s, cbc(e), key)
				}
			}
			e.ok("C_DigestInit", e.s, mech(ck.CKM_SHA256))
			e.ok("C_SignInit", e.s, mech(ckmEdDSA), e.f.priv())
			e.ok("C_VerifyInit", e.s, mech(ckmEdDSA), e.f.pub())
			e.ok("C_FindObjectsInit", e.s, template(nil))
			return e.call(name, e.s, cbc(e), key)
		}},
		{d.section + "1", name + " without a mechanism ends the operation", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.ok(name, e.s, nil, 0) // of none
			e.ok(name, e.s, cbc(e), aesKey()(e))
			e.ok(name, e.s, nil, 0)
			return e.call(d.one, e.s, in(plain), p11tool.Room(64))
		}},
		{"5.6.10", "C_Logout ends an operation with a private key", d.one, ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			e.ok(name, e.s, cbc(e), aesKey()(e))
			e.ok("C_Logout", e.s)
			return e.call(d.one, e.s, in(plain), p11tool.Room(64))
		}},
		{"5.6.10", "C_Logout ends an operation with a private key", d.update, ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			e.ok(name, e.s, cbc(e), aesKey()(e))
			e.ok(d.update, e.s, in(plain), p11tool.Room(64))
			e.ok("C_Logout", e.s)
			return e.call(d.update, e.s, in(plain), p11tool.Room(64))
		}},
		{"5.6.10", "an operation with a private key does not go on after another login", d.final, ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			e.ok(name, e.s, cbc(e), aesKey()(e))
			e.ok(d.update, e.s, in(plain), p11tool.Room(64))
			e.ok("C_Logout", e.s)
			e.ok("C_Login", e.s, ck.CKU_USER, in(userPIN))
			return e.call(d.final, e.s, p11tool.Room(64))
		}},
		{d.section + "2", "a key that is destroyed meanwhile", d.one, ck.CKR_KEY_HANDLE_INVALID, func(e *env) rv {
			key := aesKey()(e)
			e.ok(name, e.s, cbc(e), key)
			e.ok("C_DestroyObject", e.s, key)
			return e.call(d.one, e.s, in(plain), p11tool.Room(64))
		}},
	}
	return rows
}

// publicCipherRows are the rows of secret keys where nobody is logged in.
func publicCipherRows() []row {
	public := attr(ck.CKA_PRIVATE, false)
	return []row{
		{"5.7.1", "a secret key without a login", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			return e.call("C_CreateObject", e.s, secretKey(ck.CKK_AES, secret32), new(uint))
		}},
		{"5.18.1", "a secret key without a login", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			return e.call("C_GenerateKey", e.s, mech(ck.CKM_AES_KEY_GEN), template{attr(ck.CKA_VALUE_LEN, 16)}, new(uint))
		}},
		{"5.18.1", "a secret key that is a public object, without a login", "", ck.CKR_OK, func(e *env) rv {
			return e.call("C_GenerateKey", e.s, mech(ck.CKM_AES_KEY_GEN), template{attr(ck.CKA_VALUE_LEN, 16), public}, new(uint))
		}},
		{"5.18.4", "an unwrapped key without a login", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			return e.call("C_UnwrapKey", e.s, mech(ck.CKM_AES_KEY_WRAP), e.secret(ck.CKK_AES, secret32, public, attr(ck.CKA_UNWRAP, true)), in(make([]byte, 24)),
				template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY), attr(ck.CKA_KEY_TYPE, ck.CKK_AES)}, new(uint))
		}},
		{"5.18.5", "a derived key without a login", "", ck.CKR_USER_NOT_LOGGED_IN, func(e *env) rv {
			return e.call("C_DeriveKey", e.s, e.hkdf(ckmHKDFDerive, p11tool.HKDF{Extract: true, PRF: ck.CKM_SHA256, SaltType: ckfHKDFSaltNull}),
				e.secret(ckkHKDF, secret32, public), template{}, new(uint))
		}},
		{"5.18.5", "a derived key that is a public object, without a login", "", ck.CKR_OK, func(e *env) rv {
			return e.call("C_DeriveKey", e.s, e.hkdf(ckmHKDFDerive, p11tool.HKDF{Extract: true, PRF: ck.CKM_SHA256, SaltType: ckfHKDFSaltNull}),
				e.secret(ckkHKDF, secret32, public), template{public}, new(uint))
		}},
		{"5.8.2", "an encryption with a public object needs no login", "", ck.CKR_OK, func(e *env) rv {
			e.ok("C_EncryptInit", e.s, &p11tool.Mechanism{Type: ck.CKM_AES_CBC, Param: iv16}, e.secret(ck.CKK_AES, secret32, public))
			b := p11tool.Room(32)
			r := e.call("C_Encrypt", e.s, in(plain), b)
			e.check(bytes.Equal(b.Data, cbc(plain)), "%x", b.Data)
			return r
		}},
	}
}

// dualRows are the rows of the functions that continue two operations.
func dualRows() (rows []row) {
	aesCTR := func(e *env) *p11tool.Mechanism {
		return &p11tool.Mechanism{Type: ck.CKM_AES_CTR, Param: append(ul(128), iv16...)}
	}
	hmac := func(e *env, name string) {
		e.Helper()
		e.ok(name, e.s, mech(ck.CKM_SHA256_HMAC), e.secret(ck.CKK_GENERIC_SECRET, secret32))
	}
	digest := func(e *env) { e.Helper(); e.ok("C_DigestInit", e.s, mech(ck.CKM_SHA256)) }
	code := hmacOf(ck.CKM_SHA256_HMAC, plain)
	sum := digestOf(ck.CKM_SHA256, plain)
	for _, f := range []struct {
		name, section string
		d             direction
		beside        func(*env)
		end           func(*env)      // ends the other operation, and compares
		over          func(e *env) rv // continues the other operation
	}{
		{"C_DigestEncryptUpdate", "5.17.1", encryption, digest, func(e *env) { e.compare(sum, "C_DigestFinal") }, func(e *env) rv { return e.call("C_DigestUpdate", e.s, in(plain)) }},
		{"C_DecryptDigestUpdate", "5.17.2", decryption, digest, func(e *env) { e.compare(sum, "C_DigestFinal") }, func(e *env) rv { return e.call("C_DigestUpdate", e.s, in(plain)) }},
		{"C_SignEncryptUpdate", "5.17.3", encryption, func(e *env) { hmac(e, "C_SignInit") }, func(e *env) { e.compare(code, "C_SignFinal") }, func(e *env) rv { return e.call("C_SignUpdate", e.s, in(plain)) }},
		{"C_DecryptVerifyUpdate", "5.17.4", decryption, func(e *env) { hmac(e, "C_VerifyInit") }, func(e *env) { e.ok("C_VerifyFinal", e.s, in(code)) }, func(e *env) rv { return e.call("C_VerifyUpdate", e.s, in(plain)) }},
	} {
		from, to := plain, modes[2].encrypt(plain)
		if f.d.usage == ck.CKA_DECRYPT {
			from, to = to, from
		}
		begin := func(e *env) {
			e.Helper()
			e.ok(f.d.init, e.s, aesCTR(e), e.secret(ck.CKK_AES, secret32))
		}
		add := func(rule string, want rv, do func(e *env) rv) {
			rows = append(rows, row{f.section, f.name + rule, "", want, do})
		}
		add(" continues both operations", ck.CKR_OK, func(e *env) rv {
			begin(e)
			f.beside(e)
			a, b := p11tool.Room(10), p11tool.Room(len(from))
			e.ok(f.name, e.s, in(from[:10]), a)
			r := e.call(f.name, e.s, in(from[10:]), b)
			e.check(bytes.Equal(append(a.Data[:a.Len], b.Data[:b.Len]...), to), "%x %x", a.Data, b.Data[:b.Len])
			e.ok(f.d.final, e.s, p11tool.Room(16))
			f.end(e)
			return r
		})
		add(" with NULL or without room tells the length and moves neither", ck.CKR_OK, func(e *env) rv {
			begin(e)
			f.beside(e)
			e.check(e.output(f.name, -1, uint(len(to)), e.s, in(from)) == ck.CKR_OK, "NULL")
			e.check(e.output(f.name, len(to)-1, uint(len(to)), e.s, in(from)) == ck.CKR_BUFFER_TOO_SMALL, "too little room")
			b := p11tool.Room(len(to))
			r := e.call(f.name, e.s, in(from), b)
			e.check(bytes.Equal(b.Data, to), "%x", b.Data)
			f.end(e)
			return r
		})
		add(" without the encryption or decryption, and the other goes on", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			f.beside(e)
			r := e.call(f.name, e.s, in(from), p11tool.Room(64))
			e.check(f.over(e) == ck.CKR_OK, "the other operation ended")
			return r
		})
		add(" without the other operation, and the encryption or decryption goes on", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			begin(e)
			r := e.call(f.name, e.s, in(from), p11tool.Room(64))
			b := p11tool.Room(64)
			e.ok(f.d.one, e.s, in(from), b)
			e.check(bytes.Equal(b.Data[:b.Len], to), "%x", b.Data[:b.Len])
			return r
		})
		for what, args := range map[string][]any{"NULL for data": {nil, 1, p11tool.Room(64)}, "no place for the length": {in(from), make([]byte, 64), nil}} {
			rows = append(rows, row{f.section, f.name + " with bad arguments ends both operations", what, ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
				begin(e)
				f.beside(e)
				r := e.call(f.name, append([]any{e.s}, args...)...)
				e.check(f.over(e) == ck.CKR_OPERATION_NOT_INITIALIZED, "the other goes on")
				e.gives(ck.CKR_OPERATION_NOT_INITIALIZED, f.d.update, e.s, in(from), p11tool.Room(64))
				return r
			}})
		}
	}
	return append(rows,
		row{"5.17.3", "C_SignEncryptUpdate with a mechanism that signs in one part alone ends both operations", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv {
			e.ok("C_EncryptInit", e.s, aesCTR(e), e.secret(ck.CKK_AES, secret32))
			e.ok("C_SignInit", e.s, mech(ck.CKM_ECDSA), e.f.obj["P-256 priv"])
			r := e.call("C_SignEncryptUpdate", e.s, in(plain), p11tool.Room(64))
			e.gives(ck.CKR_OPERATION_NOT_INITIALIZED, "C_EncryptUpdate", e.s, in(plain), p11tool.Room(64))
			return r
		}})
}

// compare calls a function of variable output that must give want.
func (e *env) compare(want []byte, name string, args ...any) {
	e.Helper()
	b := p11tool.Room(len(want))
	e.ok(name, append(append([]any{e.s}, args...), b)...)
	e.check(bytes.Equal(b.Data[:b.Len], want), "%s gives %x, not %x", name, b.Data[:b.Len], want)
}
