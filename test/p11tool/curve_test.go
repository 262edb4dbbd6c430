package p11tool

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"testing"

	"github.com/miekg/pkcs11"
)

// The spellings of the curve that clients send.
var spellings = map[string][]byte{
	"OID":             oid,
	"PrintableString": append([]byte{0x13, 0x0c}, "edwards25519"...),
	// 1.3.6.1.4.1.11591.15.1, from before RFC 8410.
	"old OID": {0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01},
}

// checkKey reads the encodings of a key, which are the same on both halves
// whatever was given.
func (c *client) checkKey(what string, o pkcs11.ObjectHandle, pub []byte) {
	c.t.Helper()
	equal(c.t, what+": CKA_EC_PARAMS", c.get(o, pkcs11.CKA_EC_PARAMS), oid)
	equal(c.t, what+": CKA_EC_POINT", c.get(o, pkcs11.CKA_EC_POINT), derPoint(pub))
	equal(c.t, what+": CKA_PUBLIC_KEY_INFO", c.get(o, pkcs11.CKA_PUBLIC_KEY_INFO), append(bytes.Clone(spki), pub...))
	equal(c.t, what+": CKA_ID", c.get(o, pkcs11.CKA_ID), pub)
	equal(c.t, what+": CKA_KEY_TYPE", c.get(o, pkcs11.CKA_KEY_TYPE), []byte{ckkECEdwards, 0, 0, 0, 0, 0, 0, 0})
}

func TestEncodings(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		for name, params := range spellings {
			for _, token := range []bool{true, false} {
				// GnuTLS and pkcs11-provider leave CLASS and KEY_TYPE out;
				// GnuTLS 3.7 sends CKM_EDDSA; pkcs11-tool wants DERIVE.
				for _, m := range []uint{ckmEdwards, ckmEdDSA} {
					pub, priv, err := c.GenerateKeyPair(c.s, mech(m),
						[]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, token), attr(pkcs11.CKA_EC_PARAMS, params), attr(pkcs11.CKA_VERIFY, true), attr(pkcs11.CKA_DERIVE, true)},
						[]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, token), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_DERIVE, true)})
					ok(t, "C_GenerateKeyPair with "+name, err)
					key, err := point(c.Ctx, c.s, pub)
					ok(t, "public key", err)
					c.checkKey(name+", generated public", pub, key)
					c.checkKey(name+", generated private", priv, key)
					ok(t, "sign", signChecked(c.Ctx, c.s, priv, key, []byte(name)))
				}
				key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte(name)[:1], 32))
				pub := key.Public().(ed25519.PublicKey)
				template := privateTemplate(key.Seed(), token)
				for _, a := range template {
					if a.Type == pkcs11.CKA_EC_PARAMS {
						a.Value = params
					}
				}
				c.checkKey(name+", imported private", c.create(template), pub)
				for _, p := range [][]byte{pub, derPoint(pub)} {
					template := publicTemplate(p, token)
					for _, a := range template {
						if a.Type == pkcs11.CKA_EC_PARAMS {
							a.Value = params
						}
					}
					c.checkKey(name+", imported public", c.create(template), pub)
				}
			}
		}
		own := c.create(privateTemplate(bytes.Repeat([]byte{3}, 32), true, attr(pkcs11.CKA_ID, []byte("mine"))))
		equal(t, "CKA_ID that was given", c.get(own, pkcs11.CKA_ID), []byte("mine"))
	})
}

// TestRawPoint reads CKA_EC_POINT as PKCS#11 v3.1 has it.
func TestRawPoint(t *testing.T) {
	isolated(t, setup{extra: "ec_point_encoding = \"raw\"\n"}, func(t *testing.T, _ *place) {
		c := newToken(t)
		// A raw key that begins as a DER OCTET STRING would: 04 1e.
		pub := findPoint(t, 0x04, 0x1e)
		for _, p := range [][]byte{pub, derPoint(pub)} {
			o := c.create(publicTemplate(p, true))
			equal(t, "CKA_EC_POINT", c.get(o, pkcs11.CKA_EC_POINT), pub)
		}
		_, priv := c.generate("k", true)
		if n := len(c.get(priv, pkcs11.CKA_EC_POINT)); n != 32 {
			t.Errorf("CKA_EC_POINT of a private key has %d bytes", n)
		}
	})
}

// TestAmbiguousPoint imports raw public keys that look like the header of a
// DER OCTET STRING.
func TestAmbiguousPoint(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		for _, second := range []byte{0x1e, 0x20} {
			pub := findPoint(t, 0x04, second)
			for _, p := range [][]byte{pub, derPoint(pub)} {
				c.checkKey("ambiguous key", c.create(publicTemplate(p, false)), pub)
			}
		}
	})
}

// findPoint makes keys until a public key begins with two bytes.
func findPoint(t *testing.T, a, b byte) ed25519.PublicKey {
	t.Helper()
	seed := make([]byte, 32)
	for i := range 5_000_000 {
		seed[0], seed[1], seed[2] = byte(i), byte(i>>8), byte(i>>16)
		pub := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
		if pub[0] == a && pub[1] == b {
			return pub
		}
	}
	t.Fatal("no such key")
	return nil
}

// TestOtherCurves refuses what is not Ed25519, with the standard's code.
func TestOtherCurves(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		before := len(c.find())
		generate := func(params []byte) error {
			_, _, err := c.GenerateKeyPair(c.s, mech(ckmEdwards),
				[]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_EC_PARAMS, params)},
				[]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true)})
			return err
		}
		for name, text := range map[string]string{
			"Ed448":             "06032b6571",
			"edwards448":        "130a" + hex.EncodeToString([]byte("edwards448")),
			"X25519":            "06032b656e",
			"curve25519":        "130a" + hex.EncodeToString([]byte("curve25519")),
			"P-256":             "06082a8648ce3d030107",
			"an unknown string": "1303666f6f",
		} {
			params := unhex(t, text)
			want(t, "C_GenerateKeyPair with "+name, generate(params), pkcs11.CKR_CURVE_NOT_SUPPORTED)
			for _, template := range [][]*pkcs11.Attribute{privateTemplate(make([]byte, 32), true), publicTemplate(make([]byte, 32), true)} {
				for _, a := range template {
					if a.Type == pkcs11.CKA_EC_PARAMS {
						a.Value = params
					}
				}
				_, err := c.CreateObject(c.s, template)
				want(t, "C_CreateObject with "+name, err, pkcs11.CKR_CURVE_NOT_SUPPORTED)
			}
		}
		for name, params := range map[string][]byte{"rubbish": {1, 2, 3}, "a cut OID": oid[:4], "trailing bytes": append(bytes.Clone(oid), 0)} {
			want(t, "C_GenerateKeyPair with "+name, generate(params), pkcs11.CKR_CURVE_NOT_SUPPORTED, pkcs11.CKR_DOMAIN_PARAMS_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID)
		}
		_, _, err := c.GenerateKeyPair(c.s, mech(ckmEdwards), nil, nil)
		want(t, "C_GenerateKeyPair without CKA_EC_PARAMS", err, pkcs11.CKR_TEMPLATE_INCOMPLETE)
		_, _, err = c.GenerateKeyPair(c.s, mech(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN), nil, nil)
		want(t, "C_GenerateKeyPair for RSA", err, pkcs11.CKR_MECHANISM_INVALID)

		badPoint := bytes.Repeat([]byte{0xff}, 32)
		for what, template := range map[string][]*pkcs11.Attribute{
			"a seed of 31 bytes":      privateTemplate(make([]byte, 31), true),
			"a seed of 64 bytes":      privateTemplate(make([]byte, 64), true),
			"a point of 31 bytes":     publicTemplate(make([]byte, 31), true),
			"no point of the curve":   publicTemplate(badPoint, true),
			"the same as DER":         publicTemplate(derPoint(badPoint), true),
			"a point of another seed": privateTemplate(make([]byte, 32), true, attr(pkcs11.CKA_EC_POINT, make([]byte, 32))),
		} {
			_, err := c.CreateObject(c.s, template)
			want(t, "C_CreateObject with "+what, err, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)
		}
		if n := len(c.find()); n != before {
			t.Errorf("refused templates left %d objects", n-before)
		}
	})
}
