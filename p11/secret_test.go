package p11

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"
)

// hexBytes are bytes that a file of vectors has in hexadecimal digits.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// vectors are published test vectors.
var vectors = func() (v struct {
	MAC    []map[string]json.RawMessage
	Cipher []struct {
		Source, Mechanism                   string
		Key, IV, AAD, Plain, Cipher, Prefix hexBytes
	}
	ECDH []struct {
		Source                        string
		Private, Public, Peer, Shared hexBytes
	}
	HKDF []struct {
		Source                    string
		Key, Salt, Info, PRK, OKM hexBytes
	}
	KDF []struct {
		Source, Hash   string
		Z, Shared, Key hexBytes
	}
	Wrap []struct {
		Source, Mechanism string
		KEK, Key, Wrapped hexBytes
	}
	ECDSA []struct {
		Source, Curve                           string
		Message, Public, SHA256, SHA384, SHA512 hexBytes
	}
}) {
	data, err := os.ReadFile("testdata/vectors.json")
	if err == nil {
		err = json.Unmarshal(data, &v)
	}
	if err != nil {
		panic(err)
	}
	return v
}()

var mechanismNames = map[string]MechanismType{
	"AES_CBC": CKM_AES_CBC, "AES_CBC_PAD": CKM_AES_CBC_PAD, "AES_CTR": CKM_AES_CTR, "AES_GCM": CKM_AES_GCM, "CHACHA20_POLY1305": CKM_CHACHA20_POLY1305,
	"AES_KEY_WRAP": CKM_AES_KEY_WRAP, "AES_KEY_WRAP_KWP": CKM_AES_KEY_WRAP_KWP,
	"SHA512_224_HMAC": CKM_SHA512_224_HMAC, "SHA512_256_HMAC": CKM_SHA512_256_HMAC, "SHA3_224_HMAC": CKM_SHA3_224_HMAC, "SHA3_256_HMAC": CKM_SHA3_256_HMAC,
	"SHA3_384_HMAC": CKM_SHA3_384_HMAC, "SHA3_512_HMAC": CKM_SHA3_512_HMAC,
	"SHA224_HMAC": CKM_SHA224_HMAC, "SHA256_HMAC": CKM_SHA256_HMAC, "SHA384_HMAC": CKM_SHA384_HMAC, "SHA512_HMAC": CKM_SHA512_HMAC,
}

// secretTemplate is that of a secret key for C_CreateObject.
func secretTemplate(keyType uint, value []byte, more ...Attribute) []Attribute {
	return append([]Attribute{{CKA_CLASS, ulong(CKO_SECRET_KEY)}, {CKA_KEY_TYPE, ulong(keyType)}, {CKA_VALUE, value}}, more...)
}

func createSecret(t *testing.T, m *Module, h SessionHandle, keyType uint, value []byte, more ...Attribute) ObjectHandle {
	t.Helper()
	o, err := m.CreateObject(h, secretTemplate(keyType, value, more...))
	must(t, err)
	return o
}

// hmacVectors make and verify codes. Of those that are marked as invalid, some are
// made with another hash and cut to the length of this one, and some have a bit
// flipped.
func hmacVectors(t *testing.T, m *Module, h SessionHandle, reached map[MechanismType]bool) {
	for _, v := range vectors.MAC {
		var key, data, mac hexBytes
		for name, to := range map[string]*hexBytes{"key": &key, "data": &data} {
			must(t, json.Unmarshal(v[name], to))
		}
		for _, stored := range [][]byte{no, yes} {
			o := createSecret(t, m, h, CKK_GENERIC_SECRET, key, Attribute{CKA_TOKEN, stored})
			for name, typ := range mechanismNames {
				if !strings.HasSuffix(name, "_HMAC") {
					continue
				}
				if cut := v[name+"_GENERAL"]; cut != nil {
					must(t, json.Unmarshal(cut, &mac))
					if got := sign(t, m, h, Mechanism{Type: typ + 1, Param: ulong(uint(len(mac)))}, o, data); !bytes.Equal(got, mac) {
						t.Errorf("%s %s cut: %x", v["source"], name, got)
					}
				}
				if wrong := v[name+"_INVALID"]; wrong != nil {
					must(t, json.Unmarshal(wrong, &mac))
					must(t, m.VerifyInit(h, Mechanism{Type: typ}, o))
					want(t, CKR_SIGNATURE_INVALID, m.Verify(h, data, mac))
				}
				if wrong := v[name+"_GENERAL_INVALID"]; wrong != nil {
					must(t, json.Unmarshal(wrong, &mac))
					must(t, m.VerifyInit(h, Mechanism{Type: typ + 1, Param: ulong(uint(len(mac)))}, o))
					want(t, CKR_SIGNATURE_INVALID, m.Verify(h, data, mac))
				}
				if v[name] == nil {
					continue
				}
				reached[typ], reached[typ+1] = true, true
				must(t, json.Unmarshal(v[name], &mac))
				if got := sign(t, m, h, Mechanism{Type: typ}, o, data); !bytes.Equal(got, mac) {
					t.Errorf("%s %s: %x", v["source"], name, got)
				}
				// In parts, and cut to a length.
				general := Mechanism{Type: typ + 1, Param: ulong(uint(10))}
				must(t, m.SignInit(h, general, o))
				for _, c := range data {
					must(t, m.SignUpdate(h, []byte{c}))
				}
				out := Output{Buf: make([]byte, 10)}
				must(t, m.SignFinal(h, &out))
				if !bytes.Equal(out.Buf, mac[:10]) {
					t.Errorf("%s %s cut: %x", v["source"], name, out.Buf)
				}
				must(t, m.VerifyInit(h, general, o))
				must(t, m.Verify(h, data, mac[:10]))
				must(t, m.VerifyInit(h, Mechanism{Type: typ}, o))
				want(t, CKR_SIGNATURE_LEN_RANGE, m.Verify(h, data, mac[:10]))
				must(t, m.VerifyInit(h, Mechanism{Type: typ}, o))
				bad := bytes.Clone(mac)
				bad[len(bad)-1] ^= 1
				want(t, CKR_SIGNATURE_INVALID, m.Verify(h, data, bad))
			}
		}
	}
}

func TestHMAC(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	o := createSecret(t, m, h, CKK_SHA256_HMAC, []byte("key"))
	want(t, CKR_KEY_TYPE_INCONSISTENT, m.SignInit(h, Mechanism{Type: CKM_SHA512_HMAC}, o))
	for _, p := range []any{[]byte{1}, ulong(uint(0)), ulong(uint(33)), nil} {
		want(t, CKR_MECHANISM_PARAM_INVALID, m.SignInit(h, Mechanism{Type: CKM_SHA256_HMAC_GENERAL, Param: p}, o))
	}
	want(t, CKR_MECHANISM_PARAM_INVALID, m.SignInit(h, Mechanism{Type: CKM_SHA256_HMAC, Param: ulong(uint(4))}, o))
	unusable := createSecret(t, m, h, CKK_SHA256_HMAC, []byte("key"), Attribute{CKA_SIGN, no})
	want(t, CKR_KEY_FUNCTION_NOT_PERMITTED, m.SignInit(h, Mechanism{Type: CKM_SHA256_HMAC}, unusable))
}

// cipherParam makes the parameter of a vector's mechanism.
func cipherParam(typ MechanismType, iv, aad []byte) any {
	switch typ {
	case CKM_AES_GCM, CKM_CHACHA20_POLY1305:
		return &AEADParams{Nonce: iv, AAD: aad, TagBits: 128}
	case CKM_AES_CTR:
		return append(ulong(uint(128)), iv...)
	}
	return iv
}

// inParts runs an operation over parts of a size.
func inParts(t *testing.T, data []byte, size int, update func([]byte, *Output) error, final func(*Output) error) ([]byte, error) {
	t.Helper()
	var all []byte
	take := func(f func(*Output) error) error {
		q := Output{Query: true}
		if err := f(&q); err != nil {
			return err
		}
		out := Output{Buf: make([]byte, q.Len)}
		err := f(&out)
		all = append(all, out.Buf[:min(int(out.Len), len(out.Buf))]...)
		return err
	}
	for len(data) > 0 {
		n := min(size, len(data))
		part := data[:n]
		data = data[n:]
		if err := take(func(o *Output) error { return update(part, o) }); err != nil {
			return nil, err
		}
	}
	return all, take(final)
}

func cipherVectors(t *testing.T, m *Module, h SessionHandle, reached map[MechanismType]bool) {
	for _, v := range vectors.Cipher {
		typ := mechanismNames[v.Mechanism]
		reached[typ] = true
		keyType := CKK_AES
		if typ == CKM_CHACHA20_POLY1305 {
			keyType = CKK_CHACHA20
		}
		mech := Mechanism{Type: typ, Param: cipherParam(typ, v.IV, v.AAD)}
		for _, stored := range [][]byte{no, yes} {
			o := createSecret(t, m, h, keyType, v.Key, Attribute{CKA_TOKEN, stored})
			must(t, m.EncryptInit(h, mech, o))
			q := Output{Query: true}
			must(t, m.Encrypt(h, v.Plain, &q))
			short := Output{Buf: make([]byte, q.Len-1)}
			want(t, CKR_BUFFER_TOO_SMALL, m.Encrypt(h, v.Plain, &short))
			out := Output{Buf: make([]byte, q.Len)}
			must(t, m.Encrypt(h, v.Plain, &out))
			text := out.Buf[:out.Len]
			if v.Cipher != nil && !bytes.Equal(text, v.Cipher) || !bytes.HasPrefix(text, v.Prefix) {
				t.Errorf("%s: %x", v.Source, text)
			}
			want(t, CKR_OPERATION_NOT_INITIALIZED, m.Encrypt(h, v.Plain, &out))

			must(t, m.DecryptInit(h, mech, o))
			back := Output{Buf: make([]byte, len(text))}
			must(t, m.Decrypt(h, text, &back))
			if !bytes.Equal(back.Buf[:back.Len], v.Plain) {
				t.Errorf("%s: decrypts to %x", v.Source, back.Buf[:back.Len])
			}
			for _, size := range []int{1, 15, 16, 17, 33} {
				must(t, m.EncryptInit(h, mech, o))
				got, err := inParts(t, v.Plain, size, func(p []byte, o *Output) error { return m.EncryptUpdate(h, p, o) }, func(o *Output) error { return m.EncryptFinal(h, o) })
				if err != nil || !bytes.Equal(got, text) {
					t.Errorf("%s in parts of %d: %x, %v", v.Source, size, got, err)
				}
				must(t, m.DecryptInit(h, mech, o))
				got, err = inParts(t, text, size, func(p []byte, o *Output) error { return m.DecryptUpdate(h, p, o) }, func(o *Output) error { return m.DecryptFinal(h, o) })
				if err != nil || !bytes.Equal(got, v.Plain) {
					t.Errorf("%s decrypted in parts of %d: %x, %v", v.Source, size, got, err)
				}
			}
			if typ == CKM_AES_GCM || typ == CKM_CHACHA20_POLY1305 {
				bad := bytes.Clone(text)
				bad[0] ^= 1
				must(t, m.DecryptInit(h, mech, o))
				want(t, CKR_AEAD_DECRYPT_FAILED, m.Decrypt(h, bad, &back))
				must(t, m.DecryptInit(h, mech, o))
				want(t, CKR_ENCRYPTED_DATA_LEN_RANGE, m.Decrypt(h, bad[:15], &back))
			}
		}
	}
}

func TestCipherRules(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	aes := createSecret(t, m, h, CKK_AES, make([]byte, 32))
	chacha := createSecret(t, m, h, CKK_CHACHA20, make([]byte, 32))
	iv := make([]byte, 16)
	cbc, pad := Mechanism{Type: CKM_AES_CBC, Param: iv}, Mechanism{Type: CKM_AES_CBC_PAD, Param: iv}
	big := func() *Output { return &Output{Buf: make([]byte, 256)} }

	want(t, CKR_KEY_TYPE_INCONSISTENT, m.EncryptInit(h, cbc, chacha))
	want(t, CKR_KEY_HANDLE_INVALID, m.EncryptInit(h, cbc, 9999))
	want(t, CKR_MECHANISM_INVALID, m.EncryptInit(h, Mechanism{Type: CKM_SHA256}, aes))
	want(t, CKR_MECHANISM_INVALID, m.EncryptInit(h, Mechanism{Type: CKM_AES_KEY_WRAP}, aes))
	for _, bad := range []Mechanism{
		{Type: CKM_AES_CBC}, {Type: CKM_AES_CBC, Param: iv[:15]}, {Type: CKM_AES_CTR, Param: iv},
		{Type: CKM_AES_CTR, Param: append(ulong(uint(129)), iv...)}, {Type: CKM_AES_CTR, Param: append(ulong(uint(0)), iv...)},
		{Type: CKM_AES_GCM, Param: iv}, {Type: CKM_AES_GCM, Param: &AEADParams{TagBits: 128}},
		{Type: CKM_AES_GCM, Param: &AEADParams{Nonce: iv[:12], TagBits: 64}}, {Type: CKM_AES_GCM, Param: &AEADParams{Nonce: iv, TagBits: 96}},
	} {
		want(t, CKR_MECHANISM_PARAM_INVALID, m.EncryptInit(h, bad, aes))
	}
	want(t, CKR_MECHANISM_PARAM_INVALID, m.EncryptInit(h, Mechanism{Type: CKM_CHACHA20_POLY1305, Param: &AEADParams{Nonce: iv, TagBits: 128}}, chacha))

	must(t, m.EncryptInit(h, cbc, aes))
	want(t, CKR_OPERATION_ACTIVE, m.EncryptInit(h, cbc, aes))
	must(t, m.DecryptInit(h, cbc, aes)) // another function
	want(t, CKR_DATA_LEN_RANGE, m.Encrypt(h, iv[:15], big()))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.Encrypt(h, iv, big()))
	want(t, CKR_ENCRYPTED_DATA_LEN_RANGE, m.Decrypt(h, iv[:15], big()))

	// Data in parts cannot be ended in one, and the other way round.
	must(t, m.EncryptInit(h, cbc, aes))
	must(t, m.EncryptUpdate(h, iv, big()))
	want(t, CKR_OPERATION_ACTIVE, m.Encrypt(h, iv, big()))
	must(t, m.SessionCancel(h, CKF_ENCRYPT))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.EncryptFinal(h, big()))

	// Padding that is none.
	must(t, m.EncryptInit(h, cbc, aes))
	out := big()
	must(t, m.Encrypt(h, bytes.Repeat([]byte{17}, 16), out))
	must(t, m.DecryptInit(h, pad, aes))
	want(t, CKR_ENCRYPTED_DATA_INVALID, m.Decrypt(h, out.Buf[:16], big()))
	must(t, m.DecryptInit(h, pad, aes))
	want(t, CKR_ENCRYPTED_DATA_LEN_RANGE, m.Decrypt(h, nil, big()))

	// A counter of 8 bits, and the end of its blocks.
	last := bytes.Clone(iv)
	last[15] = 0xfe
	ctr := Mechanism{Type: CKM_AES_CTR, Param: append(ulong(uint(8)), last...)}
	must(t, m.EncryptInit(h, ctr, aes))
	must(t, m.Encrypt(h, make([]byte, 32), big()))
	must(t, m.EncryptInit(h, ctr, aes))
	want(t, CKR_DATA_LEN_RANGE, m.Encrypt(h, make([]byte, 33), big()))
	// A counter that begins with its last block, and must not carry into the nonce.
	for _, bits := range []uint{57, 58, 64, 65, 127} {
		end := Mechanism{Type: CKM_AES_CTR, Param: append(ulong(bits), bytes.Repeat([]byte{0xff}, 16)...)}
		must(t, m.EncryptInit(h, end, aes))
		must(t, m.Encrypt(h, make([]byte, 16), big()))
		must(t, m.EncryptInit(h, end, aes))
		want(t, CKR_DATA_LEN_RANGE, m.Encrypt(h, make([]byte, 17), big()))
	}
	// A carry over the lower half of the counter.
	carry := bytes.Repeat([]byte{0xff}, 16)
	carry[0] = 0
	full := Mechanism{Type: CKM_AES_CTR, Param: append(ulong(uint(128)), carry...)}
	whole := big()
	must(t, m.EncryptInit(h, full, aes))
	must(t, m.Encrypt(h, make([]byte, 80), whole))
	must(t, m.EncryptInit(h, full, aes))
	parts, err := inParts(t, make([]byte, 80), 7, func(p []byte, o *Output) error { return m.EncryptUpdate(h, p, o) }, func(o *Output) error { return m.EncryptFinal(h, o) })
	if err != nil || !bytes.Equal(parts, whole.Buf[:80]) {
		t.Errorf("%x, %v, want %x", parts, err, whole.Buf[:80])
	}

	// The output over the input.
	same := bytes.Repeat([]byte{5}, 32)
	must(t, m.EncryptInit(h, cbc, aes))
	must(t, m.Encrypt(h, same, &Output{Buf: same}))
	must(t, m.DecryptInit(h, cbc, aes))
	must(t, m.Decrypt(h, same, &Output{Buf: same}))
	if !bytes.Equal(same, bytes.Repeat([]byte{5}, 32)) {
		t.Errorf("in place: %x", same)
	}

	// A logout ends what was under way with a private key.
	must(t, m.EncryptInit(h, cbc, aes))
	must(t, m.EncryptUpdate(h, iv, big()))
	must(t, m.Logout(h))
	if err := m.EncryptUpdate(h, iv, big()); err == nil {
		t.Error("an encryption goes on after the logout")
	}
}

// OpenSC 0.26 asks each key for CKA_VERIFY_RECOVER.
func TestSecretKeyRecovers(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	for typ, size := range map[MechanismType]uint{CKM_AES_KEY_GEN: 32, CKM_GENERIC_SECRET_KEY_GEN: 20} {
		key, err := m.GenerateKey(h, Mechanism{Type: typ}, []Attribute{{CKA_VALUE_LEN, ulong(size)}})
		must(t, err)
		if v := get(t, m, h, key, CKA_VERIFY_RECOVER); !bytes.Equal(v, no) {
			t.Errorf("CKA_VERIFY_RECOVER %x", v)
		}
	}
}

// Every encoding of the curve that a client sends makes the same kind of key.
func TestX25519Params(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	for _, params := range [][]byte{montgomeryOID, montgomeryOldOID, montgomeryName, []byte("\x13\x0bcurve25519")} {
		pub, priv, err := m.GenerateKeyPair(h, Mechanism{Type: CKM_EC_MONTGOMERY_KEY_PAIR_GEN}, []Attribute{{CKA_EC_PARAMS, params}}, nil)
		if err != nil {
			t.Errorf("%x: %v", params, err)
			continue
		}
		for _, o := range []ObjectHandle{pub, priv} {
			if got := get(t, m, h, o, CKA_EC_PARAMS); !bytes.Equal(got, montgomeryOID) {
				t.Errorf("%x reads back as %x", params, got)
			}
		}
	}
}

func TestX25519(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	v := vectors.ECDH[0]
	for _, stored := range [][]byte{no, yes} {
		key, err := m.CreateObject(h, []Attribute{
			{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC_MONTGOMERY)}, {CKA_TOKEN, stored},
			{CKA_EC_PARAMS, montgomeryName}, {CKA_VALUE, v.Private},
		})
		must(t, err)
		if p := get(t, m, h, key, CKA_EC_POINT); !bytes.Equal(p[2:], v.Public) {
			t.Errorf("public key %x", p)
		}
		if p := get(t, m, h, key, CKA_EC_PARAMS); !bytes.Equal(p, montgomeryOID) {
			t.Errorf("EC_PARAMS %x", p)
		}
		for _, public := range [][]byte{v.Peer, append(curve25519.octets(), v.Peer...)} {
			o, err := m.DeriveKey(h, Mechanism{Type: CKM_ECDH1_DERIVE, Param: &ECDHParams{KDF: CKD_NULL, Public: public}}, key,
				[]Attribute{{CKA_EXTRACTABLE, yes}, {CKA_SENSITIVE, no}})
			must(t, err)
			if z := get(t, m, h, o, CKA_VALUE); !bytes.Equal(z, v.Shared) {
				t.Errorf("shared secret %x", z)
			}
			if n := get(t, m, h, o, CKA_VALUE_LEN); ulongOf(n) != 32 {
				t.Errorf("length %x", n)
			}
			short, err := m.DeriveKey(h, Mechanism{Type: CKM_ECDH1_DERIVE, Param: &ECDHParams{KDF: CKD_NULL, Public: public}}, key,
				[]Attribute{{CKA_EXTRACTABLE, yes}, {CKA_KEY_TYPE, ulong(CKK_AES)}, {CKA_VALUE_LEN, ulong(uint(16))}})
			must(t, err)
			if z := get(t, m, h, short, CKA_VALUE); !bytes.Equal(z, v.Shared[16:]) {
				t.Errorf("the end of the shared secret: %x", z)
			}
		}
		want(t, CKR_KEY_TYPE_INCONSISTENT, m.SignInit(h, pure, key))
		for _, bad := range []any{
			nil, []byte{1}, &ECDHParams{KDF: CKD_NULL, Public: v.Peer[:31]}, &ECDHParams{KDF: 2, Public: v.Peer},
			&ECDHParams{KDF: CKD_NULL, Public: v.Peer, Shared: []byte{1}}, &ECDHParams{KDF: CKD_NULL, Public: make([]byte, 32)},
		} {
			_, err := m.DeriveKey(h, Mechanism{Type: CKM_ECDH1_DERIVE, Param: bad}, key, nil)
			want(t, CKR_MECHANISM_PARAM_INVALID, err)
		}
		_, err = m.DeriveKey(h, Mechanism{Type: CKM_ECDH1_DERIVE, Param: &ECDHParams{KDF: CKD_NULL, Public: v.Peer}}, key,
			[]Attribute{{CKA_KEY_TYPE, ulong(CKK_GENERIC_SECRET)}, {CKA_VALUE_LEN, ulong(uint(33))}})
		want(t, CKR_KEY_SIZE_RANGE, err)
	}
	// Two keys of the token agree, by every KDF.
	pair := func() (pub, priv ObjectHandle) {
		pub, priv, err := m.GenerateKeyPair(h, Mechanism{Type: CKM_EC_MONTGOMERY_KEY_PAIR_GEN},
			[]Attribute{{CKA_EC_PARAMS, montgomeryOID}}, []Attribute{{CKA_TOKEN, yes}})
		must(t, err)
		return pub, priv
	}
	aPub, a := pair()
	bPub, b := pair()
	for kdf := range map[uint]bool{CKD_NULL: true, CKD_SHA224_KDF: true, CKD_SHA256_KDF: true, CKD_SHA384_KDF: true, CKD_SHA512_KDF: true} {
		var shared []byte
		if kdf != CKD_NULL {
			shared = []byte("info")
		}
		values := map[string]bool{}
		for key, peer := range map[ObjectHandle]ObjectHandle{a: bPub, b: aPub} {
			o, err := m.DeriveKey(h, Mechanism{Type: CKM_ECDH1_DERIVE, Param: &ECDHParams{KDF: kdf, Shared: shared, Public: get(t, m, h, peer, CKA_EC_POINT)}}, key,
				[]Attribute{{CKA_CLASS, ulong(CKO_SECRET_KEY)}, {CKA_KEY_TYPE, ulong(CKK_AES)}, {CKA_VALUE_LEN, ulong(uint(32))}, {CKA_EXTRACTABLE, yes}})
			must(t, err)
			values[string(get(t, m, h, o, CKA_VALUE))] = true
		}
		if len(values) != 1 {
			t.Errorf("KDF %d: the two sides do not agree", kdf)
		}
	}
	_, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_PUBLIC_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC_MONTGOMERY)},
		{CKA_EC_PARAMS, edwardsOID}, {CKA_EC_POINT, v.Peer}})
	want(t, CKR_CURVE_NOT_SUPPORTED, err)
}

func hkdfVectors(t *testing.T, m *Module, h SessionHandle, reached map[MechanismType]bool) {
	for _, v := range vectors.HKDF {
		reached[CKM_HKDF_DERIVE], reached[CKM_HKDF_DATA] = true, true
		for _, keyType := range []uint{CKK_HKDF, CKK_GENERIC_SECRET} {
			key := createSecret(t, m, h, keyType, v.Key)
			p := HKDFParams{PRF: CKM_SHA256, SaltType: CKF_HKDF_SALT_NULL, Info: v.Info}
			if len(v.Salt) > 0 {
				p.SaltType, p.Salt = CKF_HKDF_SALT_DATA, v.Salt
			}
			derive := func(base ObjectHandle, extract, expand bool, n int) (ObjectHandle, []byte) {
				p.Extract, p.Expand = extract, expand
				o, err := m.DeriveKey(h, Mechanism{Type: CKM_HKDF_DERIVE, Param: &p}, base,
					[]Attribute{{CKA_KEY_TYPE, ulong(CKK_GENERIC_SECRET)}, {CKA_VALUE_LEN, ulong(uint(n))}, {CKA_EXTRACTABLE, yes}})
				must(t, err)
				return o, get(t, m, h, o, CKA_VALUE)
			}
			if _, okm := derive(key, true, true, len(v.OKM)); !bytes.Equal(okm, v.OKM) {
				t.Errorf("%s: %x", v.Source, okm)
			}
			prk, value := derive(key, true, false, len(v.PRK))
			if !bytes.Equal(value, v.PRK) {
				t.Errorf("%s: PRK %x", v.Source, value)
			}
			if _, okm := derive(prk, false, true, len(v.OKM)); !bytes.Equal(okm, v.OKM) {
				t.Errorf("%s in two steps: %x", v.Source, okm)
			}
			if len(v.Salt) > 0 {
				// The salt as a key; and one that is not looked at.
				p.SaltType, p.Salt, p.SaltKey = CKF_HKDF_SALT_KEY, nil, createSecret(t, m, h, CKK_GENERIC_SECRET, v.Salt)
				if _, okm := derive(key, true, true, len(v.OKM)); !bytes.Equal(okm, v.OKM) {
					t.Errorf("%s with a key for salt: %x", v.Source, okm)
				}
				p.SaltKey = 9999
				if _, okm := derive(prk, false, true, len(v.OKM)); !bytes.Equal(okm, v.OKM) {
					t.Errorf("%s with a salt that is not used: %x", v.Source, okm)
				}
				p.SaltType, p.Salt = CKF_HKDF_SALT_DATA, v.Salt
			}
			p.Extract, p.Expand = true, true
			o, err := m.DeriveKey(h, Mechanism{Type: CKM_HKDF_DATA, Param: &p}, key, []Attribute{{CKA_VALUE_LEN, ulong(uint(len(v.OKM)))}, {CKA_LABEL, []byte("d")}})
			must(t, err)
			if d := get(t, m, h, o, CKA_VALUE); !bytes.Equal(d, v.OKM) || ulongOf(get(t, m, h, o, CKA_CLASS)) != CKO_DATA {
				t.Errorf("%s as data: %x", v.Source, d)
			}
		}
	}
}

func TestHKDF(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	key := createSecret(t, m, h, CKK_HKDF, []byte("key"))
	for _, bad := range []HKDFParams{
		{PRF: CKM_SHA256, SaltType: CKF_HKDF_SALT_NULL}, {Extract: true, PRF: CKM_AES_CBC, SaltType: CKF_HKDF_SALT_NULL},
		{Extract: true, PRF: CKM_SHA256, SaltType: 4}, {Extract: true, PRF: CKM_SHA256, SaltType: CKF_HKDF_SALT_NULL, Salt: []byte{1}},
	} {
		_, err := m.DeriveKey(h, Mechanism{Type: CKM_HKDF_DERIVE, Param: &bad}, key, nil)
		want(t, CKR_MECHANISM_PARAM_INVALID, err)
	}
	for rv, salt := range map[RV]ObjectHandle{
		CKR_KEY_HANDLE_INVALID: 9999, CKR_KEY_TYPE_INCONSISTENT: createSecret(t, m, h, CKK_AES, make([]byte, 16)),
		CKR_KEY_FUNCTION_NOT_PERMITTED: createSecret(t, m, h, CKK_HKDF, []byte("salt"), Attribute{CKA_DERIVE, no}), CKR_OK: key,
	} {
		_, err := m.DeriveKey(h, Mechanism{Type: CKM_HKDF_DERIVE, Param: &HKDFParams{Extract: true, PRF: CKM_SHA256, SaltType: CKF_HKDF_SALT_KEY, SaltKey: salt}}, key, nil)
		want(t, rv, RVOf(err))
	}
}

// What a secret key tells of itself, and to whom.
func TestSecretKeyAttributes(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	value := bytes.Repeat([]byte{7}, 32)
	for _, stored := range [][]byte{no, yes} {
		for _, c := range []struct {
			sensitive, extractable []byte
			readable               bool
		}{{no, yes, true}, {no, no, false}, {yes, yes, false}, {yes, no, false}} {
			o := createSecret(t, m, h, CKK_AES, value, Attribute{CKA_TOKEN, stored}, Attribute{CKA_SENSITIVE, c.sensitive}, Attribute{CKA_EXTRACTABLE, c.extractable})
			q := []AttributeOut{{Type: CKA_VALUE, Buf: make([]byte, 32)}, {Type: CKA_VALUE_LEN, Buf: make([]byte, 8)}}
			err := m.GetAttributeValue(h, o, q)
			if c.readable {
				must(t, err)
				if !bytes.Equal(q[0].Buf, value) {
					t.Errorf("value %x", q[0].Buf)
				}
			} else {
				want(t, CKR_ATTRIBUTE_SENSITIVE, err)
				if q[0].Len != Unavailable || bytes.Contains(q[0].Buf, []byte{7}) {
					t.Errorf("%+v", q[0])
				}
			}
			if ulongOf(q[1].Buf) != 32 {
				t.Errorf("length %x", q[1].Buf)
			}
			for typ, v := range map[AttributeType][]byte{CKA_LOCAL: no, CKA_ALWAYS_SENSITIVE: no, CKA_NEVER_EXTRACTABLE: no, CKA_PRIVATE: yes, CKA_ENCRYPT: yes, CKA_SIGN: no, CKA_WRAP: no} {
				if got := get(t, m, h, o, typ); !bytes.Equal(got, v) {
					t.Errorf("attribute %x: %x, want %x", typ, got, v)
				}
			}
			if found := find(t, m, h, Attribute{CKA_VALUE, value}); len(found) != 0 {
				t.Error("a key is found by its value")
			}
			must(t, m.DestroyObject(h, o))
		}
	}
	// The check value of AES is the beginning of an encrypted block of zeros.
	o := createSecret(t, m, h, CKK_AES, make([]byte, 16))
	if kcv := get(t, m, h, o, CKA_CHECK_VALUE); hex.EncodeToString(kcv) != "66e94b" {
		t.Errorf("check value %x", kcv)
	}
	// That of the others is the beginning of their SHA-1 hash.
	for _, typ := range []uint{CKK_CHACHA20, CKK_GENERIC_SECRET, CKK_SHA256_HMAC} {
		if kcv := get(t, m, h, createSecret(t, m, h, typ, make([]byte, 32)), CKA_CHECK_VALUE); hex.EncodeToString(kcv) != "de8a84" {
			t.Errorf("check value %x", kcv)
		}
	}
	// It need not be there, and can be taken away; the key does without.
	bare := createSecret(t, m, h, CKK_AES, make([]byte, 16), Attribute{CKA_TOKEN, yes}, Attribute{CKA_CHECK_VALUE, empty})
	stored := createSecret(t, m, h, CKK_AES, make([]byte, 16), Attribute{CKA_TOKEN, yes}, Attribute{CKA_CHECK_VALUE, []byte{0x66, 0xe9, 0x4b}})
	want(t, CKR_ATTRIBUTE_VALUE_INVALID, m.SetAttributeValue(h, stored, []Attribute{{CKA_CHECK_VALUE, []byte{1, 2, 3}}}))
	must(t, m.SetAttributeValue(h, stored, []Attribute{{CKA_CHECK_VALUE, empty}}))
	want(t, CKR_ATTRIBUTE_VALUE_INVALID, m.SetAttributeValue(h, stored, []Attribute{{CKA_CHECK_VALUE, []byte{0x66, 0xe9, 0x4b}}}))
	for _, o := range []ObjectHandle{bare, stored} {
		if kcv := get(t, m, h, o, CKA_CHECK_VALUE); len(kcv) != 0 {
			t.Errorf("check value %x", kcv)
		}
		must(t, m.EncryptInit(h, Mechanism{Type: CKM_AES_CBC, Param: make([]byte, 16)}, o))
		out := Output{Buf: make([]byte, 16)}
		must(t, m.Encrypt(h, make([]byte, 16), &out))
		if hex.EncodeToString(out.Buf[:3]) != "66e94b" {
			t.Errorf("encrypts to %x", out.Buf)
		}
	}
	_, err := m.CreateObject(h, secretTemplate(CKK_AES, make([]byte, 16), Attribute{CKA_CHECK_VALUE, []byte{1, 2, 3}}))
	want(t, CKR_ATTRIBUTE_VALUE_INVALID, err)
	for _, c := range []struct {
		keyType uint
		size    int
	}{{CKK_AES, 15}, {CKK_AES, 64}, {CKK_CHACHA20, 16}, {CKK_GENERIC_SECRET, 0}, {CKK_GENERIC_SECRET, maxSecretKey + 1}, {0x13, 8}} {
		_, err := m.CreateObject(h, secretTemplate(c.keyType, make([]byte, c.size)))
		want(t, CKR_ATTRIBUTE_VALUE_INVALID, err)
	}
	_, err = m.CreateObject(h, secretTemplate(CKK_AES, make([]byte, 16), Attribute{CKA_EC_PARAMS, edwardsOID}))
	want(t, CKR_TEMPLATE_INCONSISTENT, err)
	_, err = m.CreateObject(h, secretTemplate(CKK_AES, make([]byte, 16), Attribute{CKA_VALUE_LEN, ulong(uint(16))}))
	want(t, CKR_ATTRIBUTE_READ_ONLY, err)
}

func TestGenerateSecretKey(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	for _, c := range []struct {
		typ     MechanismType
		keyType uint
		size    int
	}{
		{CKM_AES_KEY_GEN, CKK_AES, 16}, {CKM_AES_KEY_GEN, CKK_AES, 24}, {CKM_AES_KEY_GEN, CKK_AES, 32},
		{CKM_GENERIC_SECRET_KEY_GEN, CKK_GENERIC_SECRET, 1}, {CKM_GENERIC_SECRET_KEY_GEN, CKK_GENERIC_SECRET, maxSecretKey},
		{CKM_CHACHA20_KEY_GEN, CKK_CHACHA20, 32}, {CKM_HKDF_KEY_GEN, CKK_HKDF, 32},
	} {
		for _, stored := range [][]byte{no, yes} {
			o, err := m.GenerateKey(h, Mechanism{Type: c.typ}, []Attribute{{CKA_TOKEN, stored}, {CKA_VALUE_LEN, ulong(uint(c.size))}, {CKA_SENSITIVE, yes}})
			must(t, err)
			for typ, v := range map[AttributeType][]byte{
				CKA_KEY_TYPE: ulong(c.keyType), CKA_VALUE_LEN: ulong(uint(c.size)), CKA_LOCAL: yes, CKA_KEY_GEN_MECHANISM: ulong(c.typ),
				CKA_ALWAYS_SENSITIVE: yes, CKA_NEVER_EXTRACTABLE: yes,
			} {
				if got := get(t, m, h, o, typ); !bytes.Equal(got, v) {
					t.Errorf("attribute %x: %x, want %x", typ, got, v)
				}
			}
		}
	}
	gen := Mechanism{Type: CKM_AES_KEY_GEN}
	_, err := m.GenerateKey(h, gen, nil)
	want(t, CKR_TEMPLATE_INCOMPLETE, err)
	_, err = m.GenerateKey(h, gen, []Attribute{{CKA_VALUE_LEN, ulong(uint(17))}})
	want(t, CKR_ATTRIBUTE_VALUE_INVALID, err)
	_, err = m.GenerateKey(h, gen, []Attribute{{CKA_VALUE_LEN, ulong(uint(16))}, {CKA_KEY_TYPE, ulong(CKK_CHACHA20)}})
	want(t, CKR_TEMPLATE_INCONSISTENT, err)
	_, err = m.GenerateKey(h, Mechanism{Type: CKM_AES_KEY_GEN, Param: []byte{1}}, []Attribute{{CKA_VALUE_LEN, ulong(uint(16))}})
	want(t, CKR_MECHANISM_PARAM_INVALID, err)
	_, err = m.GenerateKey(h, keygen, nil)
	want(t, CKR_MECHANISM_INVALID, err)
}

// wrapped wraps a key, asking for the length first.
func wrapped(t *testing.T, m *Module, h SessionHandle, mech Mechanism, kek, key ObjectHandle) []byte {
	t.Helper()
	q := Output{Query: true}
	must(t, m.WrapKey(h, mech, kek, key, &q))
	want(t, CKR_BUFFER_TOO_SMALL, m.WrapKey(h, mech, kek, key, &Output{Buf: make([]byte, q.Len-1)}))
	out := Output{Buf: make([]byte, q.Len)}
	must(t, m.WrapKey(h, mech, kek, key, &out))
	return out.Buf[:out.Len]
}

func TestWrap(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	kek := createSecret(t, m, h, CKK_AES, bytes.Repeat([]byte{1}, 32), Attribute{CKA_WRAP, yes}, Attribute{CKA_UNWRAP, yes}, Attribute{CKA_TOKEN, yes})
	mechs := []Mechanism{{Type: CKM_AES_KEY_WRAP}, {Type: CKM_AES_KEY_WRAP_KWP}, {Type: CKM_AES_CBC_PAD, Param: make([]byte, 16)}}
	value := bytes.Repeat([]byte{9}, 24)
	seed := bytes.Repeat([]byte{3}, 32)
	readable := []Attribute{{CKA_EXTRACTABLE, yes}}
	for _, mech := range mechs {
		key := createSecret(t, m, h, CKK_AES, value, Attribute{CKA_EXTRACTABLE, yes})
		w := wrapped(t, m, h, mech, kek, key)
		back, err := m.UnwrapKey(h, mech, kek, w, append([]Attribute{{CKA_CLASS, ulong(CKO_SECRET_KEY)}, {CKA_KEY_TYPE, ulong(CKK_AES)}, {CKA_TOKEN, yes}}, readable...))
		must(t, err)
		if v := get(t, m, h, back, CKA_VALUE); !bytes.Equal(v, value) {
			t.Errorf("unwrapped %x", v)
		}
		for typ, v := range map[AttributeType][]byte{CKA_LOCAL: no, CKA_ALWAYS_SENSITIVE: no, CKA_NEVER_EXTRACTABLE: no} {
			if got := get(t, m, h, back, typ); !bytes.Equal(got, v) {
				t.Errorf("attribute %x: %x", typ, got)
			}
		}
		_, err = m.UnwrapKey(h, mech, kek, w, []Attribute{{CKA_CLASS, ulong(CKO_SECRET_KEY)}, {CKA_KEY_TYPE, ulong(CKK_CHACHA20)}})
		want(t, CKR_WRAPPED_KEY_LEN_RANGE, err)
		_, err = m.UnwrapKey(h, mech, kek, w, []Attribute{{CKA_KEY_TYPE, ulong(CKK_AES)}})
		want(t, CKR_TEMPLATE_INCOMPLETE, err)
		if mech.Type != CKM_AES_CBC_PAD {
			bad := bytes.Clone(w)
			bad[3] ^= 1
			_, err = m.UnwrapKey(h, mech, kek, bad, []Attribute{{CKA_CLASS, ulong(CKO_SECRET_KEY)}, {CKA_KEY_TYPE, ulong(CKK_AES)}})
			want(t, CKR_WRAPPED_KEY_INVALID, err)
		}

		// A private key, as PKCS #8.
		priv, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC_EDWARDS)},
			{CKA_EC_PARAMS, edwardsOID}, {CKA_EXTRACTABLE, yes}, {CKA_VALUE, seed}})
		must(t, err)
		w = wrapped(t, m, h, mech, kek, priv)
		tmpl := []Attribute{{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC_EDWARDS)}, {CKA_TOKEN, yes}}
		again, err := m.UnwrapKey(h, mech, kek, w, tmpl)
		must(t, err)
		if !bytes.Equal(sign(t, m, h, pure, again, []byte("m")), sign(t, m, h, pure, priv, []byte("m"))) {
			t.Error("the unwrapped key signs otherwise")
		}
		tmpl[1].Value = ulong(CKK_EC_MONTGOMERY)
		_, err = m.UnwrapKey(h, mech, kek, w, tmpl)
		want(t, CKR_WRAPPED_KEY_INVALID, err)
	}

	// An initial value, and a key that is filled up with zeros.
	odd := []byte("a generic secret of 30 bytes..")
	for _, mech := range []Mechanism{{Type: CKM_AES_KEY_WRAP}, {Type: CKM_AES_KEY_WRAP, Param: bytes.Repeat([]byte{1}, 8)}, {Type: CKM_AES_KEY_WRAP_KWP, Param: bytes.Repeat([]byte{2}, 4)}} {
		w := wrapped(t, m, h, mech, kek, createSecret(t, m, h, CKK_GENERIC_SECRET, odd, Attribute{CKA_EXTRACTABLE, yes}))
		tmpl := []Attribute{{CKA_CLASS, ulong(CKO_SECRET_KEY)}, {CKA_KEY_TYPE, ulong(CKK_GENERIC_SECRET)}, {CKA_VALUE_LEN, ulong(uint(len(odd)))}}
		o, err := m.UnwrapKey(h, mech, kek, w, tmpl)
		must(t, err)
		// What was unwrapped is extractable unless the template says otherwise.
		if v := get(t, m, h, o, CKA_VALUE); !bytes.Equal(v, odd) {
			t.Errorf("unwrapped %q", v)
		}
		for _, n := range []uint{24, 33} {
			tmpl[2].Value = ulong(n)
			_, err = m.UnwrapKey(h, mech, kek, w, tmpl)
			want(t, CKR_WRAPPED_KEY_LEN_RANGE, err)
		}
	}
	pkcs8 := append(pkcs8Head(edwards25519), seed...)
	for n, good := range map[int]bool{0: true, 7: true, 8: false} {
		if key := parsePKCS8(edwards25519, append(bytes.Clone(pkcs8), make([]byte, n)...), true); good != bytes.Equal(key, seed) {
			t.Errorf("PKCS #8 with %d zeros: %x", n, key)
		}
	}
	if parsePKCS8(edwards25519, append(bytes.Clone(pkcs8), 0), false) != nil || parsePKCS8(edwards25519, append(bytes.Clone(pkcs8), 1), true) != nil {
		t.Error("PKCS #8 with something behind it")
	}

	out := func() *Output { return &Output{Buf: make([]byte, 256)} }
	kw := mechs[0]
	key := createSecret(t, m, h, CKK_AES, value, Attribute{CKA_EXTRACTABLE, yes})
	want(t, CKR_KEY_UNEXTRACTABLE, m.WrapKey(h, kw, kek, createSecret(t, m, h, CKK_AES, value), out()))
	want(t, CKR_WRAPPING_KEY_HANDLE_INVALID, m.WrapKey(h, kw, 9999, key, out()))
	want(t, CKR_KEY_HANDLE_INVALID, m.WrapKey(h, kw, kek, 9999, out()))
	want(t, CKR_KEY_FUNCTION_NOT_PERMITTED, m.WrapKey(h, kw, key, key, out()))
	want(t, CKR_MECHANISM_PARAM_INVALID, m.WrapKey(h, Mechanism{Type: CKM_AES_KEY_WRAP, Param: []byte{1}}, kek, key, out()))
	want(t, CKR_MECHANISM_INVALID, m.WrapKey(h, Mechanism{Type: CKM_AES_GCM}, kek, key, out()))
	want(t, CKR_KEY_SIZE_RANGE, m.WrapKey(h, kw, kek, createSecret(t, m, h, CKK_GENERIC_SECRET, []byte("odd"), Attribute{CKA_EXTRACTABLE, yes}), out()))
	generic := createSecret(t, m, h, CKK_GENERIC_SECRET, value, Attribute{CKA_WRAP, yes}, Attribute{CKA_UNWRAP, yes})
	want(t, CKR_WRAPPING_KEY_TYPE_INCONSISTENT, m.WrapKey(h, kw, generic, key, out()))
	_, err := m.UnwrapKey(h, kw, generic, make([]byte, 24), []Attribute{{CKA_CLASS, ulong(CKO_SECRET_KEY)}, {CKA_KEY_TYPE, ulong(CKK_AES)}})
	want(t, CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT, err)
	_, err = m.UnwrapKey(h, kw, 9999, make([]byte, 24), []Attribute{{CKA_CLASS, ulong(CKO_SECRET_KEY)}})
	want(t, CKR_UNWRAPPING_KEY_HANDLE_INVALID, err)
	trusting := createSecret(t, m, h, CKK_AES, value, Attribute{CKA_EXTRACTABLE, yes}, Attribute{CKA_WRAP_WITH_TRUSTED, yes})
	want(t, CKR_KEY_NOT_WRAPPABLE, m.WrapKey(h, kw, kek, trusting, out()))
	_, err = m.CreateObject(h, secretTemplate(CKK_AES, value, Attribute{CKA_TRUSTED, yes}))
	want(t, CKR_ATTRIBUTE_READ_ONLY, err) // only the SO trusts

	// In a token that is not recoverable no private key can be extracted.
	stored, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC_EDWARDS)}, {CKA_TOKEN, yes},
		{CKA_EC_PARAMS, edwardsOID}, {CKA_EXTRACTABLE, yes}, {CKA_VALUE, seed}})
	must(t, err)
	if v := get(t, m, h, stored, CKA_EXTRACTABLE); !bytes.Equal(v, no) {
		t.Error("a private key of the token is extractable")
	}
	want(t, CKR_KEY_UNEXTRACTABLE, m.WrapKey(h, kw, kek, stored, out()))
}

// Secret keys are there after another login, and copies are as good.
func TestSecretKeysStay(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	value := bytes.Repeat([]byte{0, 1}, 16)
	key := createSecret(t, m, h, CKK_CHACHA20, value, Attribute{CKA_TOKEN, yes}, Attribute{CKA_LABEL, []byte("stays")})
	mech := Mechanism{Type: CKM_CHACHA20_POLY1305, Param: &AEADParams{Nonce: make([]byte, 12), TagBits: 128}}
	crypt := func(o ObjectHandle) []byte {
		out := Output{Buf: make([]byte, 64)}
		must(t, m.EncryptInit(h, mech, o))
		must(t, m.Encrypt(h, []byte("message"), &out))
		return out.Buf[:out.Len]
	}
	aead, _ := chacha20poly1305.New(value)
	text := aead.Seal(nil, make([]byte, 12), []byte("message"), nil)
	copies := []ObjectHandle{key}
	for _, tmpl := range [][]Attribute{{{CKA_TOKEN, no}}, {{CKA_TOKEN, yes}}} {
		c, err := m.CopyObject(h, key, tmpl)
		must(t, err)
		copies = append(copies, c)
	}
	ofSession, err := m.CopyObject(h, createSecret(t, m, h, CKK_CHACHA20, value), nil)
	must(t, err)
	for _, o := range append(copies, ofSession) {
		if got := crypt(o); !bytes.Equal(got, text) {
			t.Errorf("%x", got)
		}
	}
	must(t, m.Logout(h))
	if found := find(t, m, h, Attribute{CKA_CLASS, ulong(CKO_SECRET_KEY)}); len(found) != 0 {
		t.Error("private keys are found after the logout")
	}
	must(t, m.Login(h, CKU_USER, []byte(userPIN)))
	found := find(t, m, h, Attribute{CKA_LABEL, []byte("stays")})
	if len(found) != 2 {
		t.Fatalf("%d keys", len(found))
	}
	for _, o := range found {
		if got := crypt(o); !bytes.Equal(got, text) {
			t.Errorf("%x", got)
		}
	}
}

// TestLongAEAD: what is encrypted in many parts is not copied for each of them,
// and an end without room can be repeated.
func TestLongAEAD(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	key := createSecret(t, m, h, CKK_AES, make([]byte, 32))
	gcm := Mechanism{Type: CKM_AES_GCM, Param: &AEADParams{Nonce: make([]byte, 12), TagBits: 128}}
	msg := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	whole := Output{Buf: make([]byte, len(msg)+16)}
	must(t, m.EncryptInit(h, gcm, key))
	must(t, m.Encrypt(h, msg, &whole))

	must(t, m.EncryptInit(h, gcm, key))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for part := range slices.Chunk(msg, 1024) {
		must(t, m.EncryptUpdate(h, part, &Output{Buf: []byte{}}))
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 20*uint64(len(msg)) {
		t.Errorf("%d bytes allocated for a message of %d", n, len(msg))
	}
	out := Output{Buf: make([]byte, 100)}
	want(t, CKR_BUFFER_TOO_SMALL, m.EncryptFinal(h, &out))
	out.Buf = make([]byte, out.Len)
	must(t, m.EncryptFinal(h, &out))
	if !bytes.Equal(out.Buf, whole.Buf) {
		t.Error("in parts it is another ciphertext")
	}
}
