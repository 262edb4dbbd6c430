package p11

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"hash"
	"os"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
)

// TestVectors runs published vectors, each family's in a test of its own, and then
// asks for the mechanisms that none of them has reached.
func TestVectors(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	reached := map[MechanismType]bool{}
	for _, family := range []struct {
		name string
		run  func(*testing.T, *Module, SessionHandle, map[MechanismType]bool)
	}{
		{"digests", digestVectors}, {"HMAC", hmacVectors}, {"EdDSA", eddsaVectors}, {"ECDSA", ecdsaVectors},
		{"ciphers", cipherVectors}, {"key wrap", wrapVectors}, {"ECDH", ecdhVectors}, {"HKDF", hkdfVectors},
	} {
		t.Run(family.name, func(t *testing.T) { family.run(t, m, h, reached) })
	}
	t.Run("every mechanism", func(t *testing.T) {
		for typ, row := range mechanisms {
			// What only makes keys makes others each time.
			const functions = CKF_ENCRYPT | CKF_DECRYPT | CKF_DIGEST | CKF_SIGN | CKF_VERIFY | CKF_WRAP | CKF_UNWRAP | CKF_DERIVE
			if row.info.Flags&functions != 0 && !reached[typ] {
				t.Errorf("mechanism %#x has no vectors", uint(typ))
			}
		}
	})
}

// eddsaVectors are those of RFC 8032, section 7, of all three schemes.
func eddsaVectors(t *testing.T, m *Module, h SessionHandle, reached map[MechanismType]bool) {
	var list []struct {
		Name, Variant                             string
		Seed, Public, Message, Context, Signature hexBytes
	}
	b, err := os.ReadFile("../internal/eddsa/testdata/rfc8032.json")
	must(t, err)
	must(t, json.Unmarshal(b, &list))
	for _, v := range list {
		mech := pure
		if v.Variant != "Ed25519" {
			mech.Param = &EdDSAParams{Ph: v.Variant == "Ed25519ph", Context: v.Context}
		}
		priv, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC_EDWARDS)}, {CKA_EC_PARAMS, edwardsOID}, {CKA_VALUE, v.Seed}})
		must(t, err)
		pub, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_PUBLIC_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC_EDWARDS)}, {CKA_EC_PARAMS, edwardsOID}, {CKA_EC_POINT, v.Public}})
		must(t, err)
		if got := sign(t, m, h, mech, priv, v.Message); !bytes.Equal(got, v.Signature) || len(got) != eddsa.SignatureSize {
			t.Errorf("%s: %x", v.Name, got)
		}
		must(t, m.VerifyInit(h, mech, pub))
		must(t, m.Verify(h, v.Message, v.Signature))
		reached[CKM_EDDSA] = true
	}
}

// ecdsaVectors verifies; the signatures of the TPM are others each time.
func ecdsaVectors(t *testing.T, m *Module, h SessionHandle, reached map[MechanismType]bool) {
	for _, v := range vectors.ECDSA {
		params := map[string][]byte{"P-256": p256OID, "P-384": p384OID}[v.Curve]
		pub, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_PUBLIC_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC)}, {CKA_EC_PARAMS, params}, {CKA_EC_POINT, v.Public}})
		must(t, err)
		digest256, digest384, digest512 := sha256.Sum256(v.Message), sha512.Sum384(v.Message), sha512.Sum512(v.Message)
		for _, s := range []struct {
			typ         MechanismType
			digest, sig []byte
		}{{CKM_ECDSA_SHA256, digest256[:], v.SHA256}, {CKM_ECDSA_SHA384, digest384[:], v.SHA384}, {CKM_ECDSA_SHA512, digest512[:], v.SHA512}} {
			for typ, message := range map[MechanismType][]byte{s.typ: v.Message, CKM_ECDSA: s.digest} {
				reached[typ] = true
				must(t, m.VerifyInit(h, Mechanism{Type: typ}, pub))
				if err := m.Verify(h, message, s.sig); err != nil {
					t.Errorf("%s of %s, %#x: %v", v.Source, v.Curve, uint(typ), err)
				}
				bad := bytes.Clone(s.sig)
				bad[0] ^= 1
				must(t, m.VerifyInit(h, Mechanism{Type: typ}, pub))
				want(t, CKR_SIGNATURE_INVALID, m.Verify(h, message, bad))
			}
		}
	}
}

func wrapVectors(t *testing.T, m *Module, h SessionHandle, reached map[MechanismType]bool) {
	for _, v := range vectors.Wrap {
		mech := Mechanism{Type: mechanismNames[v.Mechanism]}
		reached[mech.Type] = true
		kek := createSecret(t, m, h, CKK_AES, v.KEK, Attribute{CKA_WRAP, yes}, Attribute{CKA_UNWRAP, yes})
		key := createSecret(t, m, h, CKK_GENERIC_SECRET, v.Key, Attribute{CKA_EXTRACTABLE, yes})
		if got := wrapped(t, m, h, mech, kek, key); !bytes.Equal(got, v.Wrapped) {
			t.Errorf("%s: %x", v.Source, got)
		}
		back, err := m.UnwrapKey(h, mech, kek, v.Wrapped, []Attribute{{CKA_CLASS, ulong(CKO_SECRET_KEY)}, {CKA_KEY_TYPE, ulong(CKK_GENERIC_SECRET)}})
		must(t, err)
		if got := get(t, m, h, back, CKA_VALUE); !bytes.Equal(got, v.Key) {
			t.Errorf("%s unwrapped: %x", v.Source, got)
		}
	}
}

// ecdhVectors are those of X25519, and of the KDF by itself.
func ecdhVectors(t *testing.T, m *Module, h SessionHandle, reached map[MechanismType]bool) {
	for _, v := range vectors.ECDH {
		reached[CKM_ECDH1_DERIVE] = true
		key, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}, {CKA_KEY_TYPE, ulong(CKK_EC_MONTGOMERY)}, {CKA_EC_PARAMS, montgomeryOID}, {CKA_VALUE, v.Private}})
		must(t, err)
		o, err := m.DeriveKey(h, Mechanism{Type: CKM_ECDH1_DERIVE, Param: &ECDHParams{KDF: CKD_NULL, Public: v.Peer}}, key, []Attribute{{CKA_EXTRACTABLE, yes}})
		must(t, err)
		if z := get(t, m, h, o, CKA_VALUE); !bytes.Equal(z, v.Shared) {
			t.Errorf("%s: %x", v.Source, z)
		}
	}
	for _, v := range vectors.KDF {
		newHash := map[string]func() hash.Hash{"SHA256": sha256.New, "SHA512": sha512.New}[v.Hash]
		key := make([]byte, len(v.Key))
		if deriveX963(key, newHash(), v.Z, v.Shared); !bytes.Equal(key, v.Key) {
			t.Errorf("%s: %x", v.Source, key)
		}
	}
}
