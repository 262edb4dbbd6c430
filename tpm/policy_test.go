package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"math/big"
	"net"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// bind makes a binding to PCRs 0 and 7 as they are now.
func bind(t *testing.T, d *tpm.TPM, approver []byte) *sealstore.Binding {
	t.Helper()
	public, err := d.Approver(approver)
	if err != nil {
		t.Fatal(err)
	}
	b := &sealstore.Binding{Bank: "sha256", PCRs: []int{0, 7}, Approver: public}
	b.Approvals = []sealstore.Approval{approve(t, d, b, values(t, d, b), approver)}
	return b
}

func values(t *testing.T, d *tpm.TPM, b *sealstore.Binding) [][]byte {
	t.Helper()
	v, err := d.PCRs(b.Bank, b.PCRs)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func approve(t *testing.T, d *tpm.TPM, b *sealstore.Binding, v [][]byte, approver []byte) sealstore.Approval {
	t.Helper()
	a, err := d.Approve(b, v, approver)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func bound(t *testing.T, d *tpm.TPM, p, data []byte, b *sealstore.Binding) sealstore.Blob {
	t.Helper()
	blob, err := d.Seal(p, data, auth, sealstore.SealOptions{DictionaryAttack: true, Binding: b})
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

var extension = bytes.Repeat([]byte{0xaa}, 32)

// extend changes a PCR, as other firmware would, after closing d: an
// exclusive connection would keep us out.
func extend(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM, pcr int) {
	t.Helper()
	d.Release()
	s.Extend(pcr, extension)
}

func extended(v []byte) []byte {
	d := sha256.Sum256(append(bytes.Clone(v), extension...))
	return d[:]
}

func TestBinding(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		p, data, approver := parent(t, d), secret(), secret()
		b := bind(t, d, approver)
		blob := bound(t, d, p, data, b)
		wantSecret(t, d, p, blob, auth, data)
		wantSecret(t, d, p, blob, auth, data)
		if _, err := unseal(d, p, sealstore.Blob{Public: blob.Public, Private: blob.Private}, auth); err == nil {
			t.Error("a bound seal opens by its authorisation value alone")
		}
		if _, err := unseal(d, p, blob, wrong); !errors.Is(err, sealstore.ErrAuth) {
			t.Errorf("wrong value: %v", err)
		}
		before, err := d.Lockout()
		if err != nil || before.Counter != 1 {
			t.Fatalf("%+v, %v", before, err)
		}

		extend(t, s, d, 3)
		wantSecret(t, d, p, blob, auth, data) // not one of the bound PCRs
		old := values(t, d, b)
		extend(t, s, d, 7)
		if _, err := unseal(d, p, blob, auth); !errors.Is(err, sealstore.ErrPCR) {
			t.Fatalf("with another PCR 7: %v", err)
		}
		if l, err := d.Lockout(); err != nil || l.Counter != before.Counter {
			t.Errorf("a PCR mismatch counts as a wrong PIN: %+v, %v", l, err)
		}
		now := values(t, d, b)
		if !bytes.Equal(now[1], extended(old[1])) || !bytes.Equal(now[0], old[0]) {
			t.Errorf("PCRs %x, want 7 extended from %x", now, old)
		}
		b.Approvals = []sealstore.Approval{approve(t, d, b, now, approver)}
		wantSecret(t, d, p, blob, auth, data)

		// Approved before the change: both states open.
		b.Approvals = append(b.Approvals, approve(t, d, b, [][]byte{now[0], extended(now[1])}, approver))
		wantSecret(t, d, p, blob, auth, data)
		extend(t, s, d, 7)
		wantSecret(t, d, p, blob, auth, data)

		changed, err := d.ChangeAuth(p, blob, auth, wrong)
		if err != nil {
			t.Fatal(err)
		}
		wantSecret(t, d, p, changed, wrong, data)
	})
}

func TestApprovalsAreVerified(t *testing.T) {
	s := swtpmtest.Start(t)
	d := open(t, s.Device())
	p, data, approver := parent(t, d), secret(), secret()
	b := bind(t, d, approver)
	blob := bound(t, d, p, data, b)
	good := b.Approvals[0]

	noTicket := good
	noTicket.Ticket = nil
	b.Approvals[0] = noTicket
	wantSecret(t, d, p, blob, auth, data)
	badTicket := good
	badTicket.Ticket = bytes.Clone(good.Ticket)
	badTicket.Ticket[len(badTicket.Ticket)-1] ^= 1
	b.Approvals[0] = badTicket
	wantSecret(t, d, p, blob, auth, data)
	forged := noTicket
	forged.Signature = bytes.Clone(good.Signature)
	forged.Signature[40] ^= 1
	b.Approvals[0] = forged
	if _, err := unseal(d, p, blob, auth); !errors.Is(err, sealstore.ErrIntegrity) {
		t.Errorf("forged signature: %v", err)
	}

	// Another approver's approval, also with that approver named.
	other := bind(t, d, secret())
	b.Approvals = other.Approvals
	if _, err := unseal(d, p, blob, auth); err == nil {
		t.Error("another approver's approval opens the seal")
	}
	if _, err := unseal(d, p, sealstore.Blob{Public: blob.Public, Private: blob.Private, Binding: other}, auth); err == nil {
		t.Error("another binding opens the seal")
	}
	b.Approvals = nil
	if _, err := unseal(d, p, blob, auth); !errors.Is(err, sealstore.ErrPCR) {
		t.Errorf("nothing approved: %v", err)
	}
	b.Approvals = []sealstore.Approval{good}
	wantSecret(t, d, p, blob, auth, data)
	if h := handles(t, s); len(h) != 0 {
		t.Errorf("left in the TPM: %x", h)
	}
	for _, bad := range []sealstore.Binding{{Bank: "md5", PCRs: []int{0}}, {Bank: "sha256", PCRs: []int{7, 0}}, {Bank: "sha256"}, {Bank: "sha256", PCRs: []int{24}}} {
		if _, err := d.Approve(&bad, nil, approver); err == nil {
			t.Errorf("%+v was approved", bad)
		}
	}
}

// The digest in the seal is what a trial session on the TPM arrives at.
func TestPolicyDigest(t *testing.T) {
	s := swtpmtest.Start(t)
	d := open(t, s.Device())
	p, data, approver := parent(t, d), secret(), secret()
	b := bind(t, d, approver)
	blob := bound(t, d, p, data, b)
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](blob.Public)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sess, end, err := tpm2.PolicySession(bare{c}, tpm2.TPMAlgSHA256, 16, tpm2.Trial())
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	approverKey, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Approver)
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(approverKey)
	if err != nil {
		t.Fatal(err)
	}
	// In a trial session neither the PCRs nor the ticket are checked.
	none := tpm2.TPMTTKVerified{Tag: tpm2.TPMSTVerified, Hierarchy: tpm2.TPMRHOwner}
	if _, err := (tpm2.PolicyAuthorize{PolicySession: sess.Handle(), KeySign: *name, CheckTicket: none}).Execute(bare{c}); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.PolicyAuthValue{PolicySession: sess.Handle()}).Execute(bare{c}); err != nil {
		t.Fatal(err)
	}
	r, err := tpm2.PolicyGetDigest{PolicySession: sess.Handle()}.Execute(bare{c})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.PolicyDigest.Buffer, public.AuthPolicy.Buffer) {
		t.Errorf("computed %x, the TPM has %x", public.AuthPolicy.Buffer, r.PolicyDigest.Buffer)
	}
	if public.ObjectAttributes.UserWithAuth {
		t.Error("the authorisation value alone opens a bound seal")
	}

	// What the approver has signed is what PolicyPCR with these values leaves.
	pcrs, end, err := tpm2.PolicySession(bare{c}, tpm2.TPMAlgSHA256, 16, tpm2.Trial())
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	_, err = tpm2.PolicyPCR{PolicySession: pcrs.Handle(), Pcrs: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(0, 7),
	}}}}.Execute(bare{c})
	if err != nil {
		t.Fatal(err)
	}
	if r, err = (tpm2.PolicyGetDigest{PolicySession: pcrs.Handle()}).Execute(bare{c}); err != nil {
		t.Fatal(err)
	}
	point, err := approverKey.Unique.ECC()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, point.X.Buffer, point.Y.Buffer))
	if err != nil {
		t.Fatal(err)
	}
	digest, sig := sha256.Sum256(r.PolicyDigest.Buffer), b.Approvals[0].Signature
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Error("the approver has signed another digest than the TPM arrives at")
	}
}

func TestCommandsPerBoundUnseal(t *testing.T) {
	s := swtpmtest.Start(t)
	d := open(t, s.Device()+",exclusive")
	p, data := parent(t, d), secret()
	blob, err := d.Seal(p, data, auth, sealstore.SealOptions{Binding: bind(t, d, secret())})
	if err != nil {
		t.Fatal(err)
	}
	wantSecret(t, d, p, blob, auth, data)
	before := d.Commands()
	wantSecret(t, d, p, blob, auth, data)
	if n := d.Commands() - before; n != 4 {
		t.Errorf("a warm unseal of a bound seal took %d commands", n)
	}
	d.Close()
	persist(t, s)
	e := open(t, s.Device())
	wantSecret(t, e, p, blob, auth, data)
	before = e.Commands()
	wantSecret(t, e, p, blob, auth, data)
	if n := e.Commands() - before; n > 8 {
		t.Errorf("on a shared TPM it took %d", n)
	}
}
