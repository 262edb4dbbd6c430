package tpm_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"math/big"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// A key that the TPM has made signs, with its authorisation value alone, and
// the TPM gives it to nobody.
func TestKeysOfTheTPM(t *testing.T) {
	chip := swtpmtest.Start(t)
	for _, device := range []string{chip.Device(), chip.Device() + ",exclusive"} {
		d := open(t, device)
		p := parent(t, d)
		for name, curve := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384()} {
			b, point, err := d.NewKey(p, name, auth, sealstore.SealOptions{})
			if err != nil {
				t.Fatal(err)
			}
			public, err := ecdsa.ParseUncompressedPublicKey(curve, point)
			if err != nil {
				t.Fatal(err)
			}
			area, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
			if err != nil {
				t.Fatal(err)
			}
			if a := area.ObjectAttributes; !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.SignEncrypt || a.Decrypt || a.Restricted {
				t.Errorf("%+v", a)
			}
			h256, h384 := sha256.Sum256([]byte("message")), sha512.Sum384([]byte("message"))
			digest := h256[:]
			if name == "P-384" {
				digest = h384[:]
			}
			for range 3 {
				sig, err := d.Sign(p, b, auth, digest)
				if err != nil {
					t.Fatal(err)
				}
				n := len(sig) / 2
				if !ecdsa.Verify(public, digest, new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])) {
					t.Errorf("%s: the signature does not verify", name)
				}
			}
			if _, err := d.Sign(p, b, wrong, digest); !errors.Is(err, sealstore.ErrAuth) {
				t.Errorf("a wrong authorisation value: %v", err)
			}
			if _, err := d.Sign(p, b, auth, digest[:20]); err == nil {
				t.Error("a short digest is signed")
			}
			if _, err := unseal(d, p, b, auth); err == nil {
				t.Error("a key is unsealed")
			}
		}
		if _, _, err := d.NewKey(p, "P-521", auth, sealstore.SealOptions{}); !errors.Is(err, sealstore.ErrCurve) {
			t.Errorf("P-521: %v", err)
		}
		d.Close()
	}
}
