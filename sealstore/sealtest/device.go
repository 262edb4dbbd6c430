package sealtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"math/big"
	"slices"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// deviceKeys: keys that the device makes sign for the user, stay in it, and
// stay as they were made.
func deviceKeys(t *testing.T, f *fixture) {
	tok := f.recoverable(t, nil)
	digest := make([]byte, 32)
	digest[0] = 7
	verifies := func(public, sig []byte, err error) {
		t.Helper()
		ok(t, err)
		p, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), public)
		ok(t, err)
		if len(sig) != 64 || !ecdsa.Verify(p, digest, new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
			t.Errorf("signature %x", sig)
		}
	}
	k, err := tok.NewKey(true, "P-256")
	ok(t, err)
	sig, err := tok.SignWith(k, digest)
	verifies(k.Public, sig, err)
	o, err := tok.CreateKey([]byte("the key"), k)
	ok(t, err)
	if !o.Device || o.Sealed || !o.Private {
		t.Errorf("%+v", o)
	}
	if got := all(t, tok)[o.ID]; !got.Device || got.Sealed || string(got.Body) != "the key" {
		t.Errorf("%+v", got)
	}
	sig, err = tok.Sign(o.ID, digest)
	verifies(k.Public, sig, err)
	public, err := tok.NewKey(false, "P-256")
	ok(t, err)
	free, err := tok.CreateKey([]byte("a public key"), public)
	ok(t, err)
	_, err = tok.NewKey(true, "P-123")
	fails(t, err, sealstore.ErrCurve)
	_, err = unseal(t, tok, o.ID)
	fails(t, err, sealstore.ErrNotFound)

	// Another process has it too, once the user has logged in.
	other, err := f.open(t).Token(serial(t, tok))
	ok(t, err)
	_, err = other.Sign(o.ID, digest)
	fails(t, err, sealstore.ErrLocked)
	sig, err = other.Sign(free.ID, digest)
	verifies(public.Public, sig, err)
	ok(t, other.Login(sealstore.User, UserPIN))
	sig, err = other.Sign(o.ID, digest)
	verifies(k.Public, sig, err)

	// A copy of the object has the same key.
	again, err := tok.Key(o.ID)
	ok(t, err)
	twin, err := tok.CreateKey([]byte("twin"), again)
	ok(t, err)
	sig, err = tok.Sign(twin.ID, digest)
	verifies(k.Public, sig, err)

	// What is taken out of the token does not have it.
	c, err := tok.Export(UserPIN, SOPIN, nil)
	ok(t, err)
	if len(c.Objects) != 0 || len(c.Fixed) != 3 || !slices.Contains(c.Fixed, o.ID) {
		t.Errorf("%d objects, %d stay behind", len(c.Objects), len(c.Fixed))
	}
	c.Destroy()

	// A binding that comes later does not bind it; one that was there does, and
	// cannot be taken from it.
	ok(t, tok.Bind(UserPIN, SOPIN, sealstore.BindingSpec{Bank: "sha256", PCRs: []int{7}}, nil))
	if n, err := tok.Unbound(); err != nil || n != 3 {
		t.Errorf("%d keys are not bound: %v", n, err)
	}
	sig, err = tok.Sign(o.ID, digest)
	verifies(k.Public, sig, err)
	bound, err := tok.NewKey(true, "P-256")
	ok(t, err)
	b, err := tok.CreateKey(nil, bound)
	ok(t, err)
	sig, err = tok.Sign(b.ID, digest)
	verifies(bound.Public, sig, err)
	if err := tok.Unbind(UserPIN, SOPIN, nil); err == nil {
		t.Error("the binding was taken away from a key that needs it")
	}
	f.suite.Extend(t, f.device, 7)
	_, err = tok.Sign(b.ID, digest)
	fails(t, err, sealstore.ErrPCR)
	ok(t, tok.Rebind(SOPIN, nil))
	sig, err = tok.Sign(b.ID, digest)
	verifies(bound.Public, sig, err)
	ok(t, tok.DeleteObject(b.ID))
	ok(t, tok.Unbind(UserPIN, SOPIN, nil))
	sig, err = tok.Sign(o.ID, digest)
	verifies(k.Public, sig, err)
}
