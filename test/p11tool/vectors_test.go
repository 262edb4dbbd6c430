package p11tool

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/pkcs11"
)

const vectors = "../../internal/eddsa/testdata"

// TestRFC8032 signs and verifies the vectors of RFC 8032, section 7, with
// imported keys.
func TestRFC8032(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		var list []struct{ Name, Variant, Seed, Public, Message, Context, Signature string }
		b, err := os.ReadFile(filepath.Join(vectors, "rfc8032.json"))
		ok(t, "vectors", err)
		ok(t, "vectors", json.Unmarshal(b, &list))
		seen := map[string]bool{}
		c := newToken(t)
		for _, x := range list {
			seen[x.Variant] = true
			v := variant{name: x.Name, plain: x.Variant == "Ed25519", ph: x.Variant == "Ed25519ph", context: unhex(t, x.Context)}
			msg, sig, pub := unhex(t, x.Message), unhex(t, x.Signature), unhex(t, x.Public)
			public := c.create(publicTemplate(derPoint(pub), true))
			for _, token := range []bool{true, false} {
				priv := c.create(privateTemplate(unhex(t, x.Seed), token))
				equal(t, x.Name+": public key", c.get(priv, pkcs11.CKA_EC_POINT), derPoint(pub))
				for _, parts := range [][][]byte{nil, split(msg)} {
					equal(t, x.Name, c.signParts(v, priv, msg, parts), sig)
					want(t, x.Name, c.verifyParts(v, public, msg, sig, parts), pkcs11.CKR_OK)
				}
			}
		}
		if len(seen) != 3 || len(list) < 10 {
			t.Errorf("%d vectors of %v", len(list), seen)
		}
	})
}

// TestWycheproof verifies Wycheproof's signatures, one-shot and in parts,
// and makes those again whose private key the file has.
func TestWycheproof(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		files, err := filepath.Glob(filepath.Join(vectors, "*.json"))
		ok(t, "vectors", err)
		c := newToken(t)
		ran := 0
		for _, file := range files {
			b, err := os.ReadFile(file)
			ok(t, "vectors", err)
			type key struct{ Curve, PK, SK string }
			var set struct {
				TestGroups []struct {
					Key, PublicKey key
					Tests          []struct {
						TcID                      int
						Comment, Msg, Sig, Result string
					}
				}
			}
			// The other vectors of the directory are lists.
			if err := json.Unmarshal(b, &set); err != nil {
				continue
			}
			for _, g := range set.TestGroups {
				k := g.PublicKey
				if k.PK == "" {
					k = g.Key
				}
				if k.Curve != "edwards25519" {
					continue
				}
				public := c.create(publicTemplate(unhex(t, k.PK), false))
				var priv pkcs11.ObjectHandle
				if k.SK != "" {
					priv = c.create(privateTemplate(unhex(t, k.SK), false))
				}
				for _, x := range g.Tests {
					ran++
					msg, sig := unhex(t, x.Msg), unhex(t, x.Sig)
					codes := []uint{pkcs11.CKR_OK}
					switch {
					case x.Result == "valid":
						if priv != 0 {
							equal(t, x.Comment, c.signParts(variants[0], priv, msg, nil), sig)
						}
					case len(sig) != 64:
						codes = []uint{pkcs11.CKR_SIGNATURE_LEN_RANGE}
					default:
						codes = []uint{pkcs11.CKR_SIGNATURE_INVALID}
					}
					for _, parts := range [][][]byte{nil, split(msg)} {
						if err := c.verifyParts(variants[0], public, msg, sig, parts); err != nil || codes[0] != pkcs11.CKR_OK {
							want(t, filepath.Base(file)+": "+x.Comment, err, codes...)
						}
					}
				}
			}
		}
		if ran < 80 {
			t.Errorf("%d cases in %v", ran, files)
		}
	})
}
