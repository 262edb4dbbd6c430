package p11

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"math/big"
	"testing"
)

// ecdsaVerifies checks a signature with the standard library.
func ecdsaVerifies(public *ecdsa.PublicKey, digest, sig []byte) bool {
	n := len(sig) / 2
	return ecdsa.Verify(public, digest, new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:]))
}

func TestECDSA(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	gen := Mechanism{Type: CKM_EC_KEY_PAIR_GEN}
	message := []byte("message")
	for _, c := range []struct {
		params [][]byte
		oid    []byte
		curve  elliptic.Curve
	}{{[][]byte{p256OID, p256Name}, p256OID, elliptic.P256()}, {[][]byte{p384OID, p384Name}, p384OID, elliptic.P384()}} {
		for i, params := range c.params {
			stored := boolBytes(i == 0)
			pub, priv, err := m.GenerateKeyPair(h, gen, []Attribute{{CKA_TOKEN, stored}, {CKA_EC_PARAMS, params}}, []Attribute{{CKA_TOKEN, stored}})
			must(t, err)
			info := get(t, m, h, pub, CKA_PUBLIC_KEY_INFO)
			key, err := x509.ParsePKIXPublicKey(info)
			must(t, err)
			public, ok := key.(*ecdsa.PublicKey)
			if !ok || public.Curve != c.curve {
				t.Fatalf("%T", key)
			}
			der, err := x509.MarshalPKIXPublicKey(public)
			must(t, err)
			if !bytes.Equal(der, info) {
				t.Errorf("SubjectPublicKeyInfo %x", info)
			}
			for _, o := range []ObjectHandle{pub, priv} {
				point := get(t, m, h, o, CKA_EC_POINT)
				raw, err := public.Bytes()
				must(t, err)
				if !bytes.Equal(point, append([]byte{4, byte(len(raw))}, raw...)) || !bytes.Equal(get(t, m, h, o, CKA_EC_PARAMS), c.oid) || !bytes.Equal(get(t, m, h, o, CKA_LOCAL), yes) {
					t.Errorf("point %x", point)
				}
				if n := len(find(t, m, h, Attribute{CKA_EC_POINT, raw}, Attribute{CKA_EC_PARAMS, params})); n != 2 {
					t.Errorf("found %d by its point", n)
				}
			}
			for typ, v := range map[AttributeType][]byte{CKA_SENSITIVE: yes, CKA_EXTRACTABLE: no, CKA_ALWAYS_SENSITIVE: yes, CKA_NEVER_EXTRACTABLE: yes, CKA_KEY_GEN_MECHANISM: ulong(CKM_EC_KEY_PAIR_GEN)} {
				if got := get(t, m, h, priv, typ); !bytes.Equal(got, v) {
					t.Errorf("attribute %x: %x", typ, got)
				}
			}
			q := []AttributeOut{{Type: CKA_VALUE, Buf: make([]byte, 64)}}
			want(t, CKR_ATTRIBUTE_SENSITIVE, m.GetAttributeValue(h, priv, q))

			copied, err := m.CopyObject(h, priv, []Attribute{{CKA_TOKEN, no}})
			must(t, err)
			kept, err := m.CopyObject(h, priv, []Attribute{{CKA_TOKEN, yes}})
			must(t, err)
			for _, o := range []ObjectHandle{priv, copied, kept} {
				for typ, hash := range map[MechanismType]crypto.Hash{CKM_ECDSA_SHA256: crypto.SHA256, CKM_ECDSA_SHA384: crypto.SHA384, CKM_ECDSA_SHA512: crypto.SHA512} {
					d := hash.New()
					d.Write(message)
					digest := d.Sum(nil)
					if sig := sign(t, m, h, Mechanism{Type: typ}, o, message); !ecdsaVerifies(public, digest, sig) {
						t.Errorf("%x: the signature does not verify", typ)
					}
					sig := sign(t, m, h, Mechanism{Type: CKM_ECDSA}, o, digest)
					if !ecdsaVerifies(public, digest, sig) {
						t.Error("CKM_ECDSA: the signature does not verify")
					}
					must(t, m.VerifyInit(h, Mechanism{Type: typ}, pub))
					must(t, m.VerifyUpdate(h, message[:3]))
					must(t, m.VerifyUpdate(h, message[3:]))
					must(t, m.VerifyFinal(h, sig))
					must(t, m.VerifyInit(h, Mechanism{Type: typ}, pub))
					want(t, CKR_SIGNATURE_INVALID, m.Verify(h, message[1:], sig))
					must(t, m.VerifyInit(h, Mechanism{Type: typ}, pub))
					want(t, CKR_SIGNATURE_LEN_RANGE, m.Verify(h, message, sig[1:]))
				}
				// A digest shorter than the curve counts as the number it is.
				if sig := sign(t, m, h, Mechanism{Type: CKM_ECDSA}, o, message); !ecdsaVerifies(public, append(make([]byte, len(sig)/2-len(message)), message...), sig) {
					t.Error("a short digest: the signature does not verify")
				}
			}
			want(t, CKR_KEY_TYPE_INCONSISTENT, m.SignInit(h, pure, priv))
			// Without a hash there are no parts.
			raw := Mechanism{Type: CKM_ECDSA}
			for _, parts := range []func() error{
				func() error { return m.SignUpdate(h, message) }, func() error { return m.SignFinal(h, &Output{Query: true}) },
			} {
				must(t, m.SignInit(h, raw, priv))
				want(t, CKR_OPERATION_NOT_INITIALIZED, parts())
				want(t, CKR_OPERATION_NOT_INITIALIZED, m.Sign(h, message, &Output{Query: true}))
			}
			for _, parts := range []func() error{
				func() error { return m.VerifyUpdate(h, message) }, func() error { return m.VerifyFinal(h, message) },
			} {
				must(t, m.VerifyInit(h, raw, pub))
				want(t, CKR_OPERATION_NOT_INITIALIZED, parts())
				want(t, CKR_OPERATION_NOT_INITIALIZED, m.Verify(h, message, message))
			}
			must(t, m.VerifySignatureInit(h, raw, pub, message))
			want(t, CKR_OPERATION_NOT_INITIALIZED, m.VerifySignatureFinal(h))
			_, err = m.DeriveKey(h, Mechanism{Type: CKM_ECDH1_DERIVE, Param: &ECDHParams{KDF: CKD_NULL, Public: make([]byte, 32)}}, priv, nil)
			want(t, CKR_KEY_TYPE_INCONSISTENT, err)
		}
	}
	_, _, err := m.GenerateKeyPair(h, gen, nil, nil)
	want(t, CKR_TEMPLATE_INCOMPLETE, err)
	_, _, err = m.GenerateKeyPair(h, gen, []Attribute{{CKA_EC_PARAMS, edwardsOID}}, nil)
	want(t, CKR_CURVE_NOT_SUPPORTED, err)
	_, _, err = m.GenerateKeyPair(h, gen, []Attribute{{CKA_EC_PARAMS, p256OID}}, []Attribute{{CKA_EC_PARAMS, p384OID}})
	want(t, CKR_TEMPLATE_INCONSISTENT, err)
	// Nobody gives the TPM a private key of another origin.
	_, err = m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC)}, {CKA_EC_PARAMS, p256OID}, {CKA_VALUE, make([]byte, 32)}})
	want(t, CKR_ATTRIBUTE_READ_ONLY, err)
	_, err = m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC)}, {CKA_EC_PARAMS, p256OID}})
	want(t, CKR_TEMPLATE_INCONSISTENT, err)
	// A public key of anybody verifies.
	point := append([]byte{4}, make([]byte, 64)...)
	_, err = m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_PUBLIC_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC)}, {CKA_EC_PARAMS, p256OID}, {CKA_EC_POINT, point}})
	want(t, CKR_ATTRIBUTE_VALUE_INVALID, err) // no point of the curve
	kek := createSecret(t, m, h, CKK_AES, make([]byte, 32), Attribute{CKA_WRAP, yes})
	for _, o := range find(t, m, h, Attribute{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}) {
		want(t, CKR_KEY_UNEXTRACTABLE, m.WrapKey(h, Mechanism{Type: CKM_AES_KEY_WRAP}, kek, o, &Output{Query: true}))
	}
}
