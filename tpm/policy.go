package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// A bound seal has the policy
//
//	PolicyPCR(values) → PolicyAuthorize(approver) → PolicyAuthValue
//
// (Part 1, 19.7). The approver is an ECDSA key: whoever holds it can approve
// other PCR values by a signature, without touching a seal. So a re-binding
// after a firmware update is one file written, however many keys there are;
// the values before and after an update can be approved at the same time; and
// the user's PIN is not needed for it.

// authorizePolicy computes authPolicy in software.
func authorizePolicy(approver *tpm2.TPMTPublic) (tpm2.TPM2BDigest, error) {
	name, err := tpm2.ObjectName(approver)
	if err != nil {
		return tpm2.TPM2BDigest{}, err
	}
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return tpm2.TPM2BDigest{}, err
	}
	// PolicyAuthorize starts from zero whatever was there before.
	err = errors.Join(
		tpm2.PolicyAuthorize{KeySign: *name}.Update(calc),
		tpm2.PolicyAuthValue{}.Update(calc))
	return tpm2.TPM2BDigest{Buffer: calc.Hash().Digest}, err
}

// pcrPolicy computes the digest that PolicyPCR leaves, and the digest of the
// PCR values that it is given.
func pcrPolicy(sel tpm2.TPMLPCRSelection, values [][]byte) (policy, pcrDigest tpm2.TPM2BDigest, err error) {
	d := sha256.Sum256(slices.Concat(values...))
	pcrDigest.Buffer = d[:]
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return policy, pcrDigest, err
	}
	err = tpm2.PolicyPCR{PcrDigest: pcrDigest, Pcrs: sel}.Update(calc)
	policy.Buffer = calc.Hash().Digest
	return policy, pcrDigest, err
}

var banks = map[string]struct {
	alg  tpm2.TPMIAlgHash
	size int
}{
	"sha1":   {tpm2.TPMAlgSHA1, 20},
	"sha256": {tpm2.TPMAlgSHA256, 32},
	"sha384": {tpm2.TPMAlgSHA384, 48},
	"sha512": {tpm2.TPMAlgSHA512, 64},
}

// selection makes the PCR selection of a bank. The numbers are 0 to 23, in
// rising order: that is the order in which the TPM hashes the values.
func selection(bank string, pcrs []int) (tpm2.TPMLPCRSelection, error) {
	b, ok := banks[bank]
	if !ok {
		return tpm2.TPMLPCRSelection{}, fmt.Errorf("pcr_bank %q is none of sha1, sha256, sha384, sha512", bank)
	}
	nums := make([]uint, len(pcrs))
	for i, n := range pcrs {
		if n < 0 || n > 23 || i > 0 && n <= pcrs[i-1] {
			return tpm2.TPMLPCRSelection{}, fmt.Errorf("PCRs %v: not between 0 and 23, in rising order", pcrs)
		}
		nums[i] = uint(n)
	}
	if len(nums) == 0 {
		return tpm2.TPMLPCRSelection{}, errors.New("no PCRs are named")
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: b.alg, PCRSelect: tpm2.PCClientCompatible.PCRs(nums...),
	}}}, nil
}

// PCRs implements sealstore.Sealer.
func (t *TPM) PCRs(bank string, pcrs []int) (values [][]byte, err error) {
	if _, err := selection(bank, pcrs); err != nil {
		return nil, err
	}
	err = t.do("reading PCRs", func() (err error) {
		values, err = t.readPCRs(bank, pcrs)
		return err
	})
	return values, err
}

var errNoPCR = errors.New("has no value in the bank")

// readPCRs asks for each PCR alone, since a TPM answers for as many at a time
// as it likes.
func (t *TPM) readPCRs(bank string, pcrs []int) (values [][]byte, err error) {
	for _, n := range pcrs {
		sel, err := selection(bank, []int{n})
		if err != nil {
			return nil, err
		}
		r, err := tpm2.PCRRead{PCRSelectionIn: sel}.Execute(t.link)
		if err != nil {
			return nil, fmt.Errorf("reading PCR %d: %w", n, err)
		}
		if len(r.PCRSelectionOut.PCRSelections) == 0 {
			return nil, errFrame
		}
		if len(r.PCRValues.Digests) != 1 || len(r.PCRValues.Digests[0].Buffer) != banks[bank].size {
			return nil, fmt.Errorf("PCR %d %w %s: choose another pcr_bank", n, errNoPCR, bank)
		}
		values = append(values, r.PCRValues.Digests[0].Buffer)
	}
	return values, nil
}

const approverSize = 32

// approverKey derives the approver's key from a secret. A value that is no
// scalar of the curve is hashed on; one in 2^32 is.
func approverKey(secret []byte) (*ecdsa.PrivateKey, error) {
	if len(secret) != approverSize {
		return nil, fmt.Errorf("an approver's secret has %d bytes, not %d", approverSize, len(secret))
	}
	const prefix = "icn-p11 approver\x00"
	var in [len(prefix) + approverSize]byte
	copy(in[copy(in[:], prefix):], secret)
	d := sha256.Sum256(in[:])
	secmem.Wipe(in[:])
	for range 8 {
		if k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d[:]); err == nil {
			secmem.Wipe(d[:])
			return k, nil
		}
		d = sha256.Sum256(d[:])
	}
	return nil, errors.New("no approver key follows from the secret")
}

func approverPublic(k *ecdsa.PublicKey) (*tpm2.TPMTPublic, error) {
	point, err := k.Bytes() // uncompressed: 4, x, y
	if err != nil {
		return nil, err
	}
	public := ecdsaPublic(tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true}, point[1:33], point[33:])
	return &public, nil
}

// ecdsaPublic is the public area of a key that makes ECDSA signatures over
// SHA-256 on P-256. x and y are of 32 bytes.
func ecdsaPublic(attributes tpm2.TPMAObject, x, y []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgECC,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: attributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
			KDF:     tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: x},
			Y: tpm2.TPM2BECCParameter{Buffer: y},
		}),
	}
}

// Approver implements sealstore.Sealer. The result is a TPMT_PUBLIC.
func (t *TPM) Approver(secret []byte) (public []byte, err error) {
	secmem.Compute(func() {
		var k *ecdsa.PrivateKey
		if k, err = approverKey(secret); err != nil {
			return
		}
		var p *tpm2.TPMTPublic
		if p, err = approverPublic(&k.PublicKey); err == nil {
			public = tpm2.Marshal(*p)
		}
	})
	return public, err
}

// Approve implements sealstore.Sealer: it signs the PCR policy of values, and
// has the TPM check the signature. The ticket that the TPM gives for it holds
// until the TPM is cleared.
func (t *TPM) Approve(b *sealstore.Binding, values [][]byte, secret []byte) (a sealstore.Approval, err error) {
	sel, err := selection(b.Bank, b.PCRs)
	if err != nil {
		return a, err
	}
	if len(values) != len(b.PCRs) {
		return a, fmt.Errorf("%d values for %d PCRs", len(values), len(b.PCRs))
	}
	for i, v := range values {
		if len(v) != banks[b.Bank].size {
			return a, fmt.Errorf("the value for PCR %d has %d bytes; those of the %s bank have %d", b.PCRs[i], len(v), b.Bank, banks[b.Bank].size)
		}
	}
	policy, _, err := pcrPolicy(sel, values)
	if err != nil {
		return a, err
	}
	digest := sha256.Sum256(policy.Buffer) // of approvedPolicy and an empty policyRef
	secmem.Compute(func() {
		var k *ecdsa.PrivateKey
		if k, err = approverKey(secret); err != nil {
			return
		}
		r, s, e := ecdsa.Sign(rand.Reader, k, digest[:])
		if err = e; err == nil {
			a.Signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		}
	})
	if err != nil {
		return a, err
	}
	a.Values = values
	err = t.do("approving PCR values", func() error {
		ticket, err := t.ticket(b, &a, digest[:])
		if err == nil {
			a.Ticket = tpm2.Marshal(*ticket)
		}
		return err
	})
	return a, err
}

// ticket has the TPM verify an approval's signature.
func (t *TPM) ticket(b *sealstore.Binding, a *sealstore.Approval, digest []byte) (*tpm2.TPMTTKVerified, error) {
	if len(a.Signature) != 64 {
		return nil, fmt.Errorf("%w: an approval's signature is malformed", sealstore.ErrIntegrity)
	}
	key, err := tpm2.LoadExternal{InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](b.Approver), Hierarchy: tpm2.TPMRHOwner}.Execute(t.link)
	if err != nil {
		return nil, fmt.Errorf("loading the approver's key: %w", err)
	}
	defer t.flush(key.ObjectHandle)
	r, err := tpm2.VerifySignature{
		KeyHandle: key.ObjectHandle,
		Digest:    tpm2.TPM2BDigest{Buffer: digest},
		Signature: tpm2.TPMTSignature{
			SigAlg: tpm2.TPMAlgECDSA,
			Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
				Hash:       tpm2.TPMAlgSHA256,
				SignatureR: tpm2.TPM2BECCParameter{Buffer: a.Signature[:32]},
				SignatureS: tpm2.TPM2BECCParameter{Buffer: a.Signature[32:]},
			}),
		},
	}.Execute(t.link)
	if errors.Is(err, tpm2.TPMRCSignature) {
		return nil, fmt.Errorf("%w: an approval of PCR values is not signed by the token's approver", sealstore.ErrIntegrity)
	}
	if err != nil {
		return nil, fmt.Errorf("verifying an approval: %w", err)
	}
	return &r.Validation, nil
}

// satisfy runs the policy of a bound seal in a policy session. The session's
// policy is reset by the command that it authorises.
func (t *TPM) satisfy(s *hmacSession, b *sealstore.Binding) error {
	sel, err := selection(b.Bank, b.PCRs)
	if err != nil {
		return err
	}
	approver := tpm2.BytesAs2B[tpm2.TPMTPublic](b.Approver)
	public, err := approver.Contents()
	if err != nil {
		return fmt.Errorf("%w: the approver's key is malformed", sealstore.ErrIntegrity)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return err
	}
	for i := range b.Approvals {
		a := &b.Approvals[i]
		policy, pcrDigest, err := pcrPolicy(sel, a.Values)
		if err != nil {
			return err
		}
		_, err = tpm2.PolicyPCR{PolicySession: s.Handle(), PcrDigest: pcrDigest, Pcrs: sel}.Execute(t.link)
		if errors.Is(err, tpm2.TPMRCValue) {
			continue // these are not the values now; nothing was added to the policy
		}
		if err != nil {
			return fmt.Errorf("checking PCRs: %w", err)
		}
		authorize := func(ticket *tpm2.TPMTTKVerified) error {
			_, err := tpm2.PolicyAuthorize{
				PolicySession: s.Handle(), ApprovedPolicy: policy, KeySign: *name, CheckTicket: *ticket,
			}.Execute(t.link)
			return err
		}
		ticket, err := tpm2.Unmarshal[tpm2.TPMTTKVerified](a.Ticket)
		if err == nil {
			err = authorize(ticket)
		}
		if err != nil {
			// No ticket, or one from before the owner hierarchy was changed.
			digest := sha256.Sum256(policy.Buffer)
			if ticket, err = t.ticket(b, a, digest[:]); err != nil {
				return err
			}
			if err := authorize(ticket); err != nil {
				return fmt.Errorf("authorising PCR values: %w", err)
			}
		}
		if _, err := (tpm2.PolicyAuthValue{PolicySession: s.Handle()}).Execute(t.link); err != nil {
			return fmt.Errorf("authorising by PIN: %w", err)
		}
		return nil
	}
	now, err := t.readPCRs(b.Bank, b.PCRs)
	if err != nil {
		return err
	}
	if b.Open(now) {
		return tpm2.TPMRCPCRChanged // since the policy was tried; do tries once more
	}
	return b.Mismatch(now)
}

// Bound implements sealstore.Sealer.
func (t *TPM) Bound(b sealstore.Blob) bool {
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
	return err == nil && len(p.AuthPolicy.Buffer) > 0
}
