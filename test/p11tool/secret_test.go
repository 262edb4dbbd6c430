package p11tool

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"testing"

	"github.com/miekg/pkcs11"
)

// Constants of PKCS#11 v3 that the client package does not have.
const (
	ckkECMontgomery = 0x41
	ckmMontgomery   = 0x1056 // CKM_EC_MONTGOMERY_KEY_PAIR_GEN
	ckmKeyWrapKWP   = 0x210B
)

// Secret keys and X25519 through the C interface: what the module makes, the
// standard library takes, and the other way round.
func TestSecretKeys(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		c := newToken(t)
		key := make([]byte, 32)
		rand.Read(key)
		create := func(keyType uint, more ...*pkcs11.Attribute) pkcs11.ObjectHandle {
			t.Helper()
			o, err := c.CreateObject(c.s, append([]*pkcs11.Attribute{
				attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, keyType),
				attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_VALUE, key),
			}, more...))
			ok(t, "C_CreateObject", err)
			return o
		}
		aesKey := create(pkcs11.CKK_AES, attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_UNWRAP, true))
		message, aad, nonce := []byte("a message of some length, in two blocks"), []byte("associated"), []byte("twelve bytes")

		block, err := aes.NewCipher(key)
		ok(t, "AES", err)
		gcm, err := cipher.NewGCM(block)
		ok(t, "GCM", err)
		params := pkcs11.NewGCMParams(nonce, aad, 128)
		defer params.Free()
		gcmMech := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}
		ok(t, "C_EncryptInit", c.EncryptInit(c.s, gcmMech, aesKey))
		text, err := c.Encrypt(c.s, message)
		ok(t, "C_Encrypt", err)
		equal(t, "GCM", text, gcm.Seal(nil, nonce, message, aad))
		ok(t, "C_DecryptInit", c.DecryptInit(c.s, gcmMech, aesKey))
		back, err := c.Decrypt(c.s, text)
		ok(t, "C_Decrypt", err)
		equal(t, "GCM decrypted", back, message)

		ok(t, "C_EncryptInit", c.EncryptInit(c.s, mech(pkcs11.CKM_AES_CBC_PAD, make([]byte, 16)...), aesKey))
		var parts []byte
		for _, part := range split(message) {
			out, err := c.EncryptUpdate(c.s, part)
			ok(t, "C_EncryptUpdate", err)
			parts = append(parts, out...)
		}
		last, err := c.EncryptFinal(c.s)
		ok(t, "C_EncryptFinal", err)
		plain := append(bytes.Clone(parts), last...)
		cipher.NewCBCDecrypter(block, make([]byte, 16)).CryptBlocks(plain, plain)
		equal(t, "CBC in parts", bytes.TrimRight(plain, "\x09"), message)

		mac := create(pkcs11.CKK_GENERIC_SECRET)
		ok(t, "C_SignInit", c.SignInit(c.s, mech(pkcs11.CKM_SHA256_HMAC), mac))
		got, err := c.Sign(c.s, message)
		ok(t, "C_Sign", err)
		h := hmac.New(sha256.New, key)
		h.Write(message)
		equal(t, "HMAC", got, h.Sum(nil))

		// X25519 with a key of the standard library.
		pub, priv, err := c.GenerateKeyPair(c.s, mech(ckmMontgomery),
			[]*pkcs11.Attribute{attr(pkcs11.CKA_EC_PARAMS, []byte{0x06, 0x03, 0x2b, 0x65, 0x6e})},
			[]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true)})
		ok(t, "C_GenerateKeyPair", err)
		attrs, err := c.GetAttributeValue(c.s, pub, []*pkcs11.Attribute{attr(pkcs11.CKA_EC_POINT, nil)})
		ok(t, "C_GetAttributeValue", err)
		own, err := ecdh.X25519().GenerateKey(rand.Reader)
		ok(t, "X25519", err)
		peer, err := ecdh.X25519().NewPublicKey(attrs[0].Value[2:])
		ok(t, "X25519", err)
		shared, err := own.ECDH(peer)
		ok(t, "X25519", err)
		derived, err := c.DeriveKey(c.s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDH1_DERIVE,
			pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, own.PublicKey().Bytes()))}, priv,
			[]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
				attr(pkcs11.CKA_SENSITIVE, false), attr(pkcs11.CKA_EXTRACTABLE, true)})
		ok(t, "C_DeriveKey", err)
		attrs, err = c.GetAttributeValue(c.s, derived, []*pkcs11.Attribute{attr(pkcs11.CKA_VALUE, nil)})
		ok(t, "C_GetAttributeValue", err)
		equal(t, "shared secret", attrs[0].Value, shared)

		// HKDF: the parameter is a structure with two pointers.
		salt, info := []byte("salt"), []byte("info")
		hk, free := HKDFParams(HKDF{Extract: true, Expand: true, PRF: pkcs11.CKM_SHA256, SaltType: 2, Salt: salt, Info: info})
		defer free()
		okm, err := c.DeriveKey(c.s, mech(0x402A, hk...), create(pkcs11.CKK_GENERIC_SECRET),
			[]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
				attr(pkcs11.CKA_VALUE_LEN, 16), attr(pkcs11.CKA_EXTRACTABLE, true)})
		ok(t, "C_DeriveKey by HKDF", err)
		prk := hmac.New(sha256.New, salt)
		prk.Write(key)
		expand := hmac.New(sha256.New, prk.Sum(nil))
		expand.Write(append(bytes.Clone(info), 1))
		attrs, err = c.GetAttributeValue(c.s, okm, []*pkcs11.Attribute{attr(pkcs11.CKA_VALUE, nil)})
		ok(t, "C_GetAttributeValue", err)
		equal(t, "HKDF", attrs[0].Value, expand.Sum(nil)[:16])

		// A key that may leave goes out wrapped, and comes back.
		generated, err := c.GenerateKey(c.s, mech(pkcs11.CKM_AES_KEY_GEN), []*pkcs11.Attribute{
			attr(pkcs11.CKA_VALUE_LEN, 32), attr(pkcs11.CKA_EXTRACTABLE, true), attr(pkcs11.CKA_SENSITIVE, true)})
		ok(t, "C_GenerateKey", err)
		wrapped, err := c.WrapKey(c.s, mech(ckmKeyWrapKWP), aesKey, generated)
		ok(t, "C_WrapKey", err)
		again, err := c.UnwrapKey(c.s, mech(ckmKeyWrapKWP), aesKey, wrapped, []*pkcs11.Attribute{
			attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES)})
		ok(t, "C_UnwrapKey", err)
		var texts [][]byte
		for _, o := range []pkcs11.ObjectHandle{generated, again} {
			ok(t, "C_EncryptInit", c.EncryptInit(c.s, gcmMech, o))
			text, err := c.Encrypt(c.s, message)
			ok(t, "C_Encrypt", err)
			texts = append(texts, text)
		}
		equal(t, "with the key that went out and came back", texts[1], texts[0])
		_, err = c.GetAttributeValue(c.s, generated, []*pkcs11.Attribute{attr(pkcs11.CKA_VALUE, nil)})
		want(t, "the value of a sensitive key", err, pkcs11.CKR_ATTRIBUTE_SENSITIVE)
	})
}
