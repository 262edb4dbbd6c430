package p11

import (
	"bytes"
	"crypto/aes"
	stdecdh "crypto/ecdh"
	"crypto/hmac"
	"math/big"
	"slices"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/keywrap"
)

// fuzzKey is the key of the mechanisms whose parameters are fuzzed.
var fuzzKey = bytes.Repeat([]byte{7}, 32)

// reuse writes something else to the caller's memory, which is free again once
// an Init function has returned.
func reuse(memory ...[]byte) {
	for _, p := range memory {
		for i := range p {
			p[i]++
		}
	}
}

// accepts checks that a parameter is refused with the one code that there is for
// it, or is right. What is no structure at all never is.
func accepts(t *testing.T, what string, err error, right bool) bool {
	t.Helper()
	if (err == nil) != right || err != nil && err != CKR_MECHANISM_PARAM_INVALID {
		t.Errorf("%s: %v", what, err)
	}
	return err == nil && right
}

// crypt runs an encryption or decryption, in two parts that meet at cut.
func crypt(parse func(any) (cipherRun, error), param any, decrypt bool, text []byte, cut int) ([]byte, error) {
	run, err := parse(param)
	if err != nil {
		return nil, err
	}
	head, err := run.next(fuzzKey, decrypt, text[:cut], false)
	if err != nil {
		return nil, err
	}
	tail, err := run.next(fuzzKey, decrypt, text[cut:], true)
	return slices.Concat(head, tail), err
}

// FuzzAEADParams reads the parameters of AES-GCM and ChaCha20-Poly1305.
func FuzzAEADParams(f *testing.F) {
	for _, gcm := range []bool{true, false} {
		f.Add(gcm, make([]byte, 12), []byte("aad"), uint(128), []byte("text"))
		f.Add(gcm, make([]byte, 12), []byte{}, uint(96), []byte{})
		f.Add(gcm, make([]byte, 12), []byte{}, uint(100), []byte("text"))
		f.Add(gcm, make([]byte, 16), []byte{}, uint(128), []byte("text"))
		f.Add(gcm, make([]byte, 16), []byte{}, uint(120), []byte("text"))
		f.Add(gcm, make([]byte, 257), []byte{}, uint(128), []byte("text"))
		f.Add(gcm, []byte{}, []byte{}, uint(128), []byte("text"))
	}
	f.Fuzz(func(t *testing.T, gcm bool, nonce, aad []byte, tag uint, text []byte) {
		parse, right := parseChaCha, len(nonce) == 12 && tag == 128
		if gcm {
			parse = parseGCM
			right = tag == 128 && len(nonce) >= 1 && len(nonce) <= 256 || len(nonce) == 12 && slices.Contains([]uint{96, 104, 112, 120}, tag)
		}
		for _, other := range []any{nil, nonce, &EdDSAParams{Context: nonce}} {
			_, err := parse(other)
			accepts(t, "another parameter", err, false)
		}
		param := &AEADParams{Nonce: bytes.Clone(nonce), AAD: bytes.Clone(aad), TagBits: tag}
		run, err := parse(param)
		if !accepts(t, "parameter", err, right) {
			return
		}
		reuse(param.Nonce, param.AAD)
		param = &AEADParams{Nonce: nonce, AAD: aad, TagBits: tag}
		sealed, err := run.next(fuzzKey, false, text, true)
		if err != nil || len(sealed) != len(text)+int(tag/8) {
			t.Fatalf("%d bytes of %d: %v", len(sealed), len(text), err)
		}
		if back, err := crypt(parse, param, true, sealed, len(sealed)/2); err != nil || !bytes.Equal(back, text) {
			t.Errorf("%x, not %x: %v", back, text, err)
		}
		if full, err := crypt(parse, &AEADParams{Nonce: nonce, AAD: aad, TagBits: 128}, false, text, 0); err != nil || !bytes.HasPrefix(full, sealed) {
			t.Errorf("%x is not the beginning of %x: %v", sealed, full, err)
		}
		// Each parameter has texts of its own.
		for _, other := range []*AEADParams{
			{Nonce: append([]byte{nonce[0] ^ 1}, nonce[1:]...), AAD: aad, TagBits: tag},
			{Nonce: nonce, AAD: append(bytes.Clone(aad), 0), TagBits: tag},
		} {
			if _, err := crypt(parse, other, true, sealed, 0); err != CKR_AEAD_DECRYPT_FAILED {
				t.Errorf("%+v: %v", other, err)
			}
		}
	})
}

// FuzzCBCParams reads the initial block of AES-CBC.
func FuzzCBCParams(f *testing.F) {
	for _, pad := range []bool{true, false} {
		f.Add(pad, make([]byte, 16), make([]byte, 32), uint16(7))
		f.Add(pad, make([]byte, 16), []byte("text"), uint16(1))
		f.Add(pad, make([]byte, 15), []byte{}, uint16(0))
		f.Add(pad, make([]byte, 17), []byte{}, uint16(0))
	}
	f.Fuzz(func(t *testing.T, pad bool, iv, text []byte, at uint16) {
		parse := parseCBC
		if pad {
			parse = parseCBCPad
		}
		for _, other := range []any{nil, &AEADParams{Nonce: iv}} {
			_, err := parse(other)
			accepts(t, "another parameter", err, false)
		}
		_, err := parse(iv)
		if !accepts(t, "initial block", err, len(iv) == 16) {
			return
		}
		cut := int(at) % (len(text) + 1)
		out, err := crypt(parse, iv, false, text, cut)
		switch {
		case !pad && len(text)%16 != 0:
			if err != CKR_DATA_LEN_RANGE {
				t.Errorf("%d bytes: %v", len(text), err)
			}
			return
		case err != nil || len(out)%16 != 0 || pad && len(out) <= len(text):
			t.Fatalf("%d bytes of %d: %v", len(out), len(text), err)
		}
		if back, err := crypt(parse, iv, true, out, cut); err != nil || !bytes.Equal(back, text) {
			t.Errorf("%x, not %x: %v", back, text, err)
		}
		// The definition (NIST SP 800-38A, section 6.2).
		block, _ := aes.NewCipher(fuzzKey)
		before := iv
		for i := 0; i+16 <= len(text); i += 16 {
			x := make([]byte, 16)
			for j := range x {
				x[j] = text[i+j] ^ before[j]
			}
			block.Encrypt(x, x)
			if before = x; !bytes.Equal(x, out[i:i+16]) {
				t.Fatalf("the block at %d is %x, not %x", i, out[i:i+16], x)
			}
		}
	})
}

// FuzzCTRParams reads the parameters of AES-CTR: a counter never begins again,
// and changes no bit beside its own.
func FuzzCTRParams(f *testing.F) {
	ctr := func(bits uint, block ...byte) []byte {
		return append(ulong(bits), append(make([]byte, 16-len(block)), block...)...)
	}
	for _, bits := range []uint{0, 1, 8, 57, 58, 63, 64, 65, 127, 128, 129, Unavailable} {
		f.Add(ctr(bits), make([]byte, 40), uint16(20))
		f.Add(ctr(bits, bytes.Repeat([]byte{0xff}, 16)...), make([]byte, 40), uint16(16))
		f.Add(ctr(bits, bytes.Repeat([]byte{0xff}, 8)...), make([]byte, 17), uint16(3))
	}
	f.Add(ctr(64)[1:], []byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, param, text []byte, at uint16) {
		for _, other := range []any{nil, &AEADParams{Nonce: param}} {
			_, err := parseCTR(other)
			accepts(t, "another parameter", err, false)
		}
		_, err := parseCTR(param)
		if !accepts(t, "parameter", err, len(param) == ulongSize+16 && ulongOf(param[:ulongSize]) >= 1 && ulongOf(param[:ulongSize]) <= 128) {
			return
		}
		cut := int(at) % (len(text) + 1)
		out, err := crypt(parseCTR, param, false, text, cut)
		bits, first := ulongOf(param[:ulongSize]), new(big.Int).SetBytes(param[ulongSize:])
		period := new(big.Int).Lsh(big.NewInt(1), bits)
		count := new(big.Int).Mod(first, period)
		rest := new(big.Int).Sub(first, count)
		block, _ := aes.NewCipher(fuzzKey)
		want := bytes.Clone(text)
		for i := 0; i < len(text); i += 16 {
			if bits < 128 && count.Cmp(period) == 0 {
				if err != CKR_DATA_LEN_RANGE {
					t.Errorf("a counter of %d bits at %x and %d bytes: %v", bits, first, len(text), err)
				}
				return
			}
			var x [16]byte
			new(big.Int).Add(rest, new(big.Int).Mod(count, period)).FillBytes(x[:])
			block.Encrypt(x[:], x[:])
			for j := i; j < min(i+16, len(text)); j++ {
				want[j] ^= x[j-i]
			}
			count.Add(count, big.NewInt(1))
		}
		if err != nil || !bytes.Equal(out, want) {
			t.Errorf("a counter of %d bits at %x: %x, not %x: %v", bits, first, out, want, err)
		}
	})
}

// FuzzECDHParams reads the parameters of X25519, and compares what is derived
// with crypto/ecdh and the definition of the KDF.
func FuzzECDHParams(f *testing.F) {
	key, err := stdecdh.X25519().NewPrivateKey(fuzzKey)
	must(f, err)
	for kdf := range uint(10) {
		f.Add(kdf, []byte{}, key.PublicKey().Bytes(), uint16(32))
		f.Add(kdf, []byte("shared"), append(curve25519.octets(), key.PublicKey().Bytes()...), uint16(70))
	}
	f.Add(CKD_NULL, []byte{}, make([]byte, 32), uint16(16)) // of low order
	f.Add(CKD_NULL, []byte{}, make([]byte, 33), uint16(16))
	f.Fuzz(func(t *testing.T, kdf uint, shared, public []byte, size uint16) {
		_, err := parseECDH(public)
		accepts(t, "another parameter", err, false)
		raw := public
		if len(raw) == 34 && raw[0] == 4 && raw[1] == 32 {
			raw = raw[2:]
		}
		hashed := kdf >= CKD_SHA224_KDF && kdf <= CKD_SHA512_KDF
		d, err := parseECDH(&ECDHParams{KDF: kdf, Shared: shared, Public: public})
		if !accepts(t, "parameter", err, len(raw) == 32 && (hashed && len(shared) <= maxValue || kdf == CKD_NULL && len(shared) == 0)) {
			return
		}
		if d.class() != CKO_PRIVATE_KEY || d.second() != 0 || d.usual() > d.most() {
			t.Errorf("class %d, another key %d, %d bytes of %d", d.class(), d.second(), d.usual(), d.most())
		}
		got := make([]byte, 1+int(size)%d.most())
		err = d.derive(got, fuzzKey, nil)
		peer, _ := stdecdh.X25519().NewPublicKey(raw)
		z, low := key.ECDH(peer)
		if low != nil {
			if err != CKR_MECHANISM_PARAM_INVALID {
				t.Errorf("a public key of low order: %v", err)
			}
			return
		}
		want := z[32-min(len(got), 32):]
		if hashed {
			want = nil
			for n := byte(1); len(want) < len(got); n++ { // SEC 1, section 3.6.1
				h := x963[kdf]()
				h.Write(slices.Concat(z, []byte{0, 0, 0, n}, shared))
				want = h.Sum(want)
			}
			want = want[:len(got)]
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("KDF %d: %x, not %x: %v", kdf, got, want, err)
		}
	})
}

// FuzzHKDFParams reads the parameters of HKDF, and compares what is derived with
// RFC 5869.
func FuzzHKDFParams(f *testing.F) {
	for kind := range uint(6) {
		f.Add(true, true, uint(CKM_SHA256), kind, []byte("salt"), uint(0), []byte("info"), uint16(100))
		f.Add(true, false, uint(CKM_SHA512), kind, []byte{}, uint(5), []byte("info"), uint16(16))
		f.Add(false, true, uint(CKM_SHA3_384), kind, []byte("salt"), uint(5), []byte{}, uint16(48))
	}
	f.Add(false, false, uint(CKM_SHA256), CKF_HKDF_SALT_NULL, []byte{}, uint(0), []byte{}, uint16(1))
	f.Add(true, true, uint(CKM_SHA_1), CKF_HKDF_SALT_NULL, []byte{}, uint(0), []byte{}, uint16(1))
	f.Fuzz(func(t *testing.T, extract, expand bool, prf, kind uint, salt []byte, saltKey uint, info []byte, size uint16) {
		_, err := parseHKDF(info)
		accepts(t, "another parameter", err, false)
		row := mechanisms[MechanismType(prf)]
		right := (extract || expand) && row != nil && row.info.Flags == CKF_DIGEST && row.typ != CKM_SHA_1 && len(salt) <= maxValue && len(info) <= maxValue
		keyed := extract && kind == CKF_HKDF_SALT_KEY
		if extract {
			right = right && (kind == CKF_HKDF_SALT_DATA || kind == CKF_HKDF_SALT_NULL && len(salt) == 0 || keyed && len(salt) == 0 && saltKey != 0)
		}
		param := &HKDFParams{Extract: extract, Expand: expand, PRF: MechanismType(prf), SaltType: kind,
			Salt: bytes.Clone(salt), SaltKey: ObjectHandle(saltKey), Info: bytes.Clone(info)}
		d, err := parseHKDF(param)
		if !accepts(t, "parameter", err, right) {
			return
		}
		reuse(param.Salt, param.Info)
		if d.class() != CKO_SECRET_KEY || (d.second() != 0) != keyed || keyed && d.second() != ObjectHandle(saltKey) || d.usual() > d.most() {
			t.Errorf("class %d, another key %d, %d bytes of %d", d.class(), d.second(), d.usual(), d.most())
		}
		var second []byte
		if keyed {
			second = []byte("another key")
			salt = second
		}
		got := make([]byte, 1+int(size)%d.most())
		if err := d.derive(got, fuzzKey, second); err != nil {
			t.Fatal(err)
		}
		mac := func(key []byte, parts ...[]byte) []byte {
			h := hmac.New(row.digest, key)
			h.Write(slices.Concat(parts...))
			return h.Sum(nil)
		}
		want := fuzzKey
		if extract {
			want = mac(salt, fuzzKey)
		}
		if expand {
			prk, last := want, []byte(nil)
			want = nil
			for n := byte(1); len(want) < len(got); n++ {
				last = mac(prk, last, info, []byte{n})
				want = append(want, last...)
			}
		}
		if !bytes.Equal(got, want[:len(got)]) {
			t.Errorf("%x, not %x", got, want[:len(got)])
		}
	})
}

// FuzzMACParams reads the parameters of HMACs: the length of the code, or none.
func FuzzMACParams(f *testing.F) {
	for i := range hmacMechanisms {
		f.Add(uint8(i), true, ulong(uint(1)))
		f.Add(uint8(i), true, ulong(uint(hmacMechanisms[i].mac().Size())))
		f.Add(uint8(i), true, ulong(uint(hmacMechanisms[i].mac().Size())+1))
		f.Add(uint8(i), true, ulong(uint(0)))
		f.Add(uint8(i), true, []byte{1})
		f.Add(uint8(i), false, []byte{})
	}
	f.Fuzz(func(t *testing.T, which uint8, given bool, v []byte) {
		row := &hmacMechanisms[int(which)%len(hmacMechanisms)]
		want, right := row.mac().Size(), !row.macParam && !given
		var param any
		if given {
			param = v
		}
		if row.macParam && given && len(v) == ulongSize && ulongOf(v) >= 1 && ulongOf(v) <= uint(want) {
			want, right = int(ulongOf(v)), true
		}
		n, err := row.macSize(param)
		if accepts(t, row.name, err, right) && n != want {
			t.Errorf("%s: a code of %d bytes, not %d", row.name, n, want)
		}
	})
}

// FuzzWrapParams reads the parameters of the mechanisms that wrap keys, and takes
// back what they wrapped; of what they did not wrap there is one encoding.
func FuzzWrapParams(f *testing.F) {
	for which := range uint8(3) {
		for _, n := range []int{0, 4, 8, 15, 16, 17} {
			f.Add(which, true, make([]byte, n), []byte("sixteen bytes 16"))
			f.Add(which, true, bytes.Repeat([]byte{9}, n), []byte("a text"))
		}
		f.Add(which, false, []byte{}, []byte("sixteen bytes 16"))
	}
	rows := []*mechanism{mechanisms[CKM_AES_KEY_WRAP], mechanisms[CKM_AES_KEY_WRAP_KWP], mechanisms[CKM_AES_CBC_PAD]}
	f.Fuzz(func(t *testing.T, which uint8, given bool, iv, text []byte) {
		i := int(which) % len(rows)
		right := !given && i < 2 || given && len(iv) == []int{keywrap.IVSize, keywrap.PaddedIVSize, 16}[i]
		var param any
		if given {
			param = iv
		}
		do := func(parse func(any) (wrapRun, error), in []byte) ([]byte, error) {
			run, err := parse(param)
			if err != nil {
				return nil, err
			}
			return run(fuzzKey, in)
		}
		for _, parse := range []func(any) (wrapRun, error){rows[i].wrap, rows[i].unwrap} {
			_, err := parse(&AEADParams{Nonce: iv})
			accepts(t, "another parameter", err, false)
			_, err = parse(param)
			accepts(t, "initial value", err, right)
		}
		if !right {
			return
		}
		wrapped, err := do(rows[i].wrap, text)
		switch {
		case err == CKR_WRAPPED_KEY_LEN_RANGE && (i == 0 && len(text) <= 8 || len(text) == 0):
		case err != nil:
			t.Errorf("%d bytes: %v", len(text), err)
		default:
			back, err := do(rows[i].unwrap, wrapped)
			want := text
			if rows[i].zeroPads {
				want = append(bytes.Clone(text), make([]byte, -len(text)&(semiblock-1))...)
			}
			if err != nil || !bytes.Equal(back, want) {
				t.Errorf("%x, not %x: %v", back, want, err)
			}
		}
		back, err := do(rows[i].unwrap, text)
		switch err {
		case nil:
			if again, err := do(rows[i].wrap, back); err != nil || !bytes.Equal(again, text) {
				t.Errorf("%x is unwrapped, and wrapped as %x: %v", text, again, err)
			}
		case CKR_WRAPPED_KEY_LEN_RANGE, CKR_WRAPPED_KEY_INVALID:
		default:
			t.Errorf("%x: %v", text, err)
		}
	})
}

// FuzzPKCS8 reads private keys that were unwrapped.
func FuzzPKCS8(f *testing.F) {
	for _, c := range []*curve{edwards25519, curve25519} {
		key := append(pkcs8Head(c), fuzzKey...)
		f.Add(key, true)
		f.Add(append(bytes.Clone(key), make([]byte, semiblock-1)...), true)
		f.Add(append(bytes.Clone(key), make([]byte, semiblock)...), true)
		f.Add(append(bytes.Clone(key), 0), false)
		public := append(bytes.Clone(key), append([]byte{0x81, 0x21, 0x00}, fuzzKey...)...) // [1] of RFC 8410
		public[1] += 35
		f.Add(public, false)
	}
	f.Fuzz(func(t *testing.T, text []byte, zeroPads bool) {
		for _, c := range []*curve{edwards25519, curve25519} {
			key := parsePKCS8(c, text, zeroPads)
			if key == nil {
				if head := pkcs8Head(c); bytes.HasPrefix(text, head) && len(text) == len(head)+pairSecretSize {
					t.Errorf("%x: refused", text)
				}
				continue
			}
			if len(key) != pairSecretSize || !bytes.Contains(text, slices.Concat(c.oid, []byte{0x04, 0x22, 0x04, 0x20}, key)) {
				t.Errorf("%x: the key %x", text, key)
			}
			if parsePKCS8(c, append(bytes.Clone(text), 1), zeroPads) != nil {
				t.Errorf("%x with a byte behind it", text)
			}
		}
	})
}
