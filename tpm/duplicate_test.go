package tpm_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
	gotransport "github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

func root(t testing.TB, d *tpm.TPM) (public, name []byte) {
	t.Helper()
	public, name, err := d.Root()
	if err != nil {
		t.Fatal(err)
	}
	if computed, err := tpm.RootName(public); err != nil || !bytes.Equal(computed, name) {
		t.Fatalf("the Name of %x is %x, not %x (%v)", public, computed, name, err)
	}
	return public, name
}

func wrapFor(t testing.TB, root, secret, auth []byte) tpm.Duplicate {
	t.Helper()
	w, err := tpm.WrapFor(root, secret, auth)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func importWrapped(d *tpm.TPM, parent []byte, w tpm.Duplicate, a []byte) ([]byte, error) {
	buf, err := secmem.New(128)
	if err != nil {
		return nil, err
	}
	defer buf.Destroy()
	n, err := d.ImportWrapped(parent, w, a, buf.Bytes())
	return bytes.Clone(buf.Bytes()[:n]), err
}

// What is wrapped for a TPM is imported by it, and by no other.
func TestWrapFor(t *testing.T) {
	other := open(t, swtpmtest.Start(t).Device())
	_, otherName := root(t, other)
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		public, name := root(t, d)
		for _, size := range []int{1, 32, 128} {
			data := make([]byte, size)
			rand.Read(data)
			for _, a := range [][]byte{nil, auth} {
				w := wrapFor(t, public, data, a)
				for range 2 {
					if got, err := importWrapped(d, name, w, a); err != nil || !bytes.Equal(got, data) {
						t.Fatalf("%d bytes: imported %x, %v; want %x", size, got, err, data)
					}
				}
				if bytes.Contains(w.Private, data) && size > 1 {
					t.Error("the secret is in the clear")
				}
				if _, err := importWrapped(other, otherName, w, a); !errors.Is(err, sealstore.ErrBlob) {
					t.Errorf("another TPM: %v", err)
				}
				if _, err := importWrapped(other, name, w, a); !errors.Is(err, sealstore.ErrParent) {
					t.Errorf("another TPM under this one's Name: %v", err)
				}
			}
		}
		w := wrapFor(t, public, secret(), auth)
		if _, err := importWrapped(d, name, w, wrong); !errors.Is(err, sealstore.ErrAuth) {
			t.Errorf("a wrong authorisation value: %v", err)
		}
		for i := 0; i < len(w.Private); i += 7 {
			bad := w
			bad.Private = flipped(w.Private, i)
			if _, err := importWrapped(d, name, bad, auth); !errors.Is(err, sealstore.ErrBlob) {
				t.Errorf("byte %d of the private part changed: %v", i, err)
			}
		}
		for i := 0; i < len(w.Seed); i += 7 {
			bad := w
			bad.Seed = flipped(w.Seed, i)
			if got, err := importWrapped(d, name, bad, auth); err == nil {
				t.Errorf("byte %d of the seed changed: imported %x", i, got)
			}
		}
		for i := range w.Public {
			bad := w
			bad.Public = flipped(w.Public, i)
			if got, err := importWrapped(d, name, bad, auth); err == nil {
				t.Errorf("byte %d of the public part changed: imported %x", i, got)
			}
		}
		if l, err := d.Lockout(); err != nil || l.Counter != 0 {
			t.Errorf("wrong tries were counted: %+v, %v", l, err)
		}
		// Nothing is left in the TPM's three slots.
		for range 4 {
			if _, err := importWrapped(d, name, w, auth); err != nil {
				t.Fatal(err)
			}
		}
		for _, bad := range []struct{ secret, auth []byte }{{nil, auth}, {make([]byte, 129), auth}, {secret(), auth[:31]}} {
			if _, err := tpm.WrapFor(public, bad.secret, bad.auth); err == nil {
				t.Errorf("a secret of %d bytes was wrapped under an authorisation value of %d", len(bad.secret), len(bad.auth))
			}
		}
	})
}

func flipped(p []byte, i int) []byte {
	q := bytes.Clone(p)
	q[i] ^= 1
	return q
}

// Nothing is wrapped to a key that could give it away: one that is not of the
// template, such as one that can be duplicated or that decrypts at will.
func TestRootName(t *testing.T) {
	public, _ := root(t, open(t, swtpmtest.Start(t).Device()))
	change := func(f func(p *tpm2.TPMTPublic)) []byte {
		t.Helper()
		p, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
		if err != nil {
			t.Fatal(err)
		}
		f(p)
		return tpm2.Marshal(*p)
	}
	point := func(x, y []byte) tpm2.TPMUPublicID {
		return tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y},
		})
	}
	for what, p := range map[string][]byte{
		"nothing":             nil,
		"one byte too few":    public[:len(public)-1],
		"one byte too many":   append(bytes.Clone(public), 0),
		"without fixedTPM":    change(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }),
		"not restricted":      change(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false }),
		"without fixedParent": change(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false }),
		"made elsewhere":      change(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false }),
		"with a policy":       change(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = make([]byte, 32) }),
		"another name hash":   change(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 }),
		"RSA":                 tpm2.Marshal(tpm2.RSASRKTemplate),
		"a signing key":       change(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = true }),
		"off the curve": change(func(p *tpm2.TPMTPublic) {
			p.Unique = point(bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{1}, 32))
		}),
		"a short coordinate": change(func(p *tpm2.TPMTPublic) { p.Unique = point([]byte{1}, make([]byte, 32)) }),
	} {
		if name, err := tpm.RootName(p); err == nil {
			t.Errorf("%s: has the Name %x", what, name)
		}
		if _, err := tpm.WrapFor(p, secret(), auth); err == nil {
			t.Errorf("%s: was wrapped to", what)
		}
	}
}

// What a credential for a storage root key proves rests on this: a TPM opens
// none for an object of which it has the public part only, and takes no private
// part made elsewhere for a key that claims never to leave its TPM.
func TestCredentialNeedsTheKeyItself(t *testing.T) {
	_, ours := root(t, open(t, swtpmtest.Start(t).Device()))
	s := swtpmtest.Start(t)
	d := open(t, s.Device())
	public, name := root(t, d)
	e, err := d.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	credential := func(name []byte) []byte {
		t.Helper()
		c, err := tpm.Credential(e.Public, name, secret())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	buf := make([]byte, tpm.MaxCredential)
	if _, err := d.ActivateRoot(name, credential(name), buf); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ActivateRoot(name, credential(ours), buf); !errors.Is(err, tpm.ErrCredential) {
		t.Errorf("for another TPM's root key: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := linuxudstpm.Open(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	loaded, err := tpm2.LoadExternal{InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](public), Hierarchy: tpm2.TPMRHOwner}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.ECCEKTemplate)}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	blob := credential(loaded.Name.Buffer)
	n := int(blob[0])<<8 | int(blob[1])
	_, err = tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle: tpm2.AuthHandle{Handle: ek.ObjectHandle, Name: ek.Name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16,
			func(c gotransport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
				_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, PolicySession: session, NonceTPM: nonce}.Execute(c)
				return err
			})},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: blob[2 : 2+n]},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: blob[2+n+2:]},
	}.Execute(c)
	if !errors.Is(err, tpm2.TPMRCAuthUnavailable) {
		t.Errorf("for a public part alone: %v", err)
	}

	// A key of one's own making, with the attributes of a storage root key.
	k, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point := k.PublicKey().Bytes()
	made := tpm2.ECCSRKTemplate
	made.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	if _, err := tpm.RootName(tpm2.Marshal(made)); err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.LoadExternal{
		InPrivate: tpm2.New2B(tpm2.TPMTSensitive{
			SensitiveType: tpm2.TPMAlgECC,
			Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: k.Bytes()}),
		}),
		InPublic: tpm2.New2B(made), Hierarchy: tpm2.TPMRHNull,
	}.Execute(c)
	if !errors.Is(err, tpm2.TPMRCAttributes) {
		t.Errorf("a key made elsewhere: %v", err)
	}
}
