package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

const serial = "0123456789abcdef"

var about = []byte("a public key of 32 bytes, or so.")

func attestParams(t testing.TB, d *tpm.TPM) tpm.AttestParams {
	t.Helper()
	p := parent(t, d)
	b, err := d.Seal(p, secret(), auth, sealstore.SealOptions{About: about})
	if err != nil {
		t.Fatal(err)
	}
	return tpm.AttestParams{
		Parent: p, Serial: serial, Seal: b, Bank: "sha256", PCRs: []int{0, 7},
		QuoteData: []byte("for the quote"), CreationData: []byte("for the creation"),
	}
}

// stated checks that an attestation key has signed a statement.
func stated(t testing.TB, ak, statement, signature []byte) *tpm2.TPMSAttest {
	t.Helper()
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](ak)
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.Pub(*public)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](signature)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := sig.Signature.ECDSA()
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(statement)
	if !ecdsa.Verify(key.(*ecdsa.PublicKey), digest[:], new(big.Int).SetBytes(rs.SignatureR.Buffer), new(big.Int).SetBytes(rs.SignatureS.Buffer)) {
		t.Fatal("the signature is wrong")
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](statement)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAttest(t *testing.T) {
	certifiedTPMs(t, func(t *testing.T, s *swtpmtest.TPM) {
		d := open(t, s.Device())
		s.Extend(7, bytes.Repeat([]byte{7}, 32))
		p := attestParams(t, d)
		before := d.Commands()
		a, err := d.Attest(p)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d commands", d.Commands()-before)
		if e, _ := endorsement(t, d); !bytes.Equal(e.Public, a.Endorsement.Public) || !slices.EqualFunc(e.Certificates, a.Endorsement.Certificates, bytes.Equal) {
			t.Error("another endorsement key")
		}
		values, err := d.PCRs("sha256", []int{0, 7})
		if err != nil || !slices.EqualFunc(values, a.Values, bytes.Equal) {
			t.Errorf("PCRs %x, want %x (%v)", a.Values, values, err)
		}
		quote := stated(t, a.Key, a.Quote, a.QuoteSignature)
		info, err := quote.Attested.Quote()
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256(slices.Concat(values...))
		if !bytes.Equal(info.PCRDigest.Buffer, digest[:]) || !bytes.Equal(quote.ExtraData.Buffer, p.QuoteData) {
			t.Errorf("quoted %+v", quote)
		}
		creation := stated(t, a.Key, a.Creation, a.CreationSignature)
		made, err := creation.Attested.Creation()
		if err != nil {
			t.Fatal(err)
		}
		public, err := tpm2.Unmarshal[tpm2.TPMTPublic](p.Seal.Public)
		if err != nil {
			t.Fatal(err)
		}
		name, err := tpm2.ObjectName(public)
		hash := sha256.Sum256(p.Seal.Creation.Data)
		if err != nil || !bytes.Equal(made.ObjectName.Buffer, name.Buffer) || !bytes.Equal(made.CreationHash.Buffer, hash[:]) ||
			!bytes.Equal(creation.ExtraData.Buffer, p.CreationData) {
			t.Errorf("certified %+v", creation)
		}
		if h := handles(t, s); len(h) != 0 {
			t.Errorf("left in the TPM: %x", h)
		}

		// After a restart, from another process, with a persistent root key and
		// a connection that is kept, it is the same attestation key.
		s.Restart()
		persist(t, s)
		for _, device := range []string{s.Device(), s.Device() + ",exclusive"} {
			again, err := open(t, device).Attest(p)
			if err != nil || !bytes.Equal(again.Key, a.Key) {
				t.Errorf("another attestation key (%v)", err)
			}
		}
	})
}

func TestAttestationKeys(t *testing.T) {
	s := swtpmtest.Start(t)
	d := open(t, s.Device())
	key := func(d *tpm.TPM, serial string) []byte {
		t.Helper()
		k, err := d.AttestationKey(serial)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	one := key(d, serial)
	if !bytes.Equal(key(d, serial), one) {
		t.Error("the key of a token is another the second time")
	}
	if bytes.Equal(key(d, "0000000000000000"), one) {
		t.Error("two tokens have the same key")
	}
	if bytes.Equal(key(open(t, swtpmtest.Start(t).Device()), serial), one) {
		t.Error("two TPMs have the same key")
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](one)
	if err != nil {
		t.Fatal(err)
	}
	a := public.ObjectAttributes
	if !a.Restricted || !a.SignEncrypt || a.Decrypt || !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin {
		t.Errorf("%+v", a)
	}
}

func TestActivateKey(t *testing.T) {
	certifiedTPMs(t, func(t *testing.T, s *swtpmtest.TPM) {
		d := open(t, s.Device())
		e, _ := endorsement(t, d)
		p := parent(t, d)
		name := func(serial string) []byte {
			t.Helper()
			k, err := d.AttestationKey(serial)
			if err != nil {
				t.Fatal(err)
			}
			public, err := tpm2.Unmarshal[tpm2.TPMTPublic](k)
			if err != nil {
				t.Fatal(err)
			}
			n, err := tpm2.ObjectName(public)
			if err != nil {
				t.Fatal(err)
			}
			return n.Buffer
		}
		buf, err := secmem.New(tpm.MaxCredential)
		if err != nil {
			t.Fatal(err)
		}
		defer buf.Destroy()
		want := secret()
		c := credential(t, e.Public, name(serial), want)
		n, err := d.ActivateKey(p, serial, c, buf.Bytes())
		if err != nil || !bytes.Equal(buf.Bytes()[:n], want) {
			t.Errorf("activated %x, %v; want %x", buf.Bytes()[:n], err, want)
		}
		if _, err := d.ActivateKey(p, "0000000000000000", c, buf.Bytes()); !errors.Is(err, tpm.ErrCredential) {
			t.Errorf("for the key of another token: %v", err)
		}
		if _, err := d.ActivateRoot(p, c, buf.Bytes()); !errors.Is(err, tpm.ErrCredential) {
			t.Errorf("for the storage root key: %v", err)
		}
		if h := handles(t, s); len(h) != 0 {
			t.Errorf("left in the TPM: %x", h)
		}
	})
}

// What a TPM does not know it does not attest.
func TestAttestRefusals(t *testing.T) {
	s := swtpmtest.Start(t)
	d := open(t, s.Device())
	good := attestParams(t, d)
	other := attestParams(t, d)
	if _, err := d.Attest(good); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, want error, change func(p *tpm.AttestParams, c *sealstore.Creation)) {
		t.Helper()
		p, c := good, *good.Seal.Creation
		change(&p, &c)
		if p.Seal.Creation != nil {
			p.Seal.Creation = &c
		}
		if _, err := d.Attest(p); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("no record", nil, func(p *tpm.AttestParams, c *sealstore.Creation) { p.Seal.Creation = nil })
	refused("another seal's record", sealstore.ErrIntegrity, func(p *tpm.AttestParams, c *sealstore.Creation) { *c = *other.Seal.Creation })
	refused("another ticket", sealstore.ErrIntegrity, func(p *tpm.AttestParams, c *sealstore.Creation) { c.Ticket = other.Seal.Creation.Ticket })
	refused("a malformed ticket", sealstore.ErrIntegrity, func(p *tpm.AttestParams, c *sealstore.Creation) { c.Ticket = c.Ticket[:3] })
	refused("an altered record", sealstore.ErrIntegrity, func(p *tpm.AttestParams, c *sealstore.Creation) {
		c.Data = bytes.Clone(c.Data)
		c.Data[len(c.Data)-1] ^= 1
	})
	refused("a damaged seal", sealstore.ErrBlob, func(p *tpm.AttestParams, c *sealstore.Creation) { p.Seal.Private = p.Seal.Private[1:] })
	refused("another parent", sealstore.ErrParent, func(p *tpm.AttestParams, c *sealstore.Creation) { p.Parent = make([]byte, 34) })
	refused("no such PCR", nil, func(p *tpm.AttestParams, c *sealstore.Creation) { p.PCRs = []int{24} })
	refused("no such bank", nil, func(p *tpm.AttestParams, c *sealstore.Creation) { p.Bank = "md5" })
	if h := handles(t, s); len(h) != 0 {
		t.Errorf("left in the TPM: %x", h)
	}
	setPassword(t, s, tpm2.TPMRHEndorsement, "secret")
	if _, err := d.Attest(good); !errors.Is(err, tpm.ErrEndorsement) {
		t.Errorf("with a password on the endorsement hierarchy: %v", err)
	}
}

// A PCR that is extended between reading and quoting has it done again.
func TestPCRsMoveBeforeTheQuote(t *testing.T) {
	s := swtpmtest.Start(t)
	proxy := swtpmtest.StartProxy(t, s)
	d := open(t, proxy.Device())
	p := attestParams(t, d)
	proxy.Decide(swtpmtest.Once(tpm2.TPMCCPCRRead, func(answer []byte) []byte {
		answer = bytes.Clone(answer)
		answer[len(answer)-1] ^= 1 // an older value
		return answer
	}))
	a, err := d.Attest(p)
	if err != nil {
		t.Fatal(err)
	}
	if n := proxy.Count(tpm2.TPMCCQuote); n != 2 {
		t.Errorf("quoted %d times", n)
	}
	proxy.Decide(nil)
	values, err := d.PCRs("sha256", []int{0, 7})
	if err != nil || !slices.EqualFunc(values, a.Values, bytes.Equal) {
		t.Errorf("PCRs %x, want %x (%v)", a.Values, values, err)
	}
}

// Behind a resource manager handles are others than the TPM's.
func TestAttestBehindABroker(t *testing.T) {
	s := swtpmtest.Start(t)
	b := swtpmtest.StartBroker(t, s.Path())
	d := open(t, b.Device())
	p := attestParams(t, d)
	for range 3 {
		a, err := d.Attest(p)
		if err != nil {
			t.Fatal(err)
		}
		stated(t, a.Key, a.Quote, a.QuoteSignature)
		stated(t, a.Key, a.Creation, a.CreationSignature)
		wantActivated(t, d, a.Endorsement.Public)
	}
}
