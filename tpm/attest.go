package tpm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// AttestParams says what a TPM shall attest.
type AttestParams struct {
	Parent []byte         // Name of the storage root key of the seal
	Serial string         // of the token: each has an attestation key of its own
	Seal   sealstore.Blob // with its Creation
	Bank   string
	PCRs   []int // rising
	// What the TPM signs along with the PCRs, and along with how the seal was
	// made: at most 32 bytes each.
	QuoteData, CreationData []byte
}

// Attestation is what a TPM states of itself, signed by an attestation key
// (AK). Structures are as the TPM gave them, without a size prefix.
type Attestation struct {
	Endorsement Endorsement
	Key         []byte   // TPMT_PUBLIC of the AK
	Values      [][]byte // of the PCRs, in the order of AttestParams.PCRs
	// TPMS_ATTEST and TPMT_SIGNATURE, of TPM2_Quote and of
	// TPM2_CertifyCreation.
	Quote, QuoteSignature       []byte
	Creation, CreationSignature []byte
}

// attestationTemplate is that of a token's attestation key: a restricted
// signing key, which signs nothing but what the TPM itself states. The key
// follows from the endorsement seed and the token's serial number, so that it
// is there whenever it is asked for, and is stored nowhere.
func attestationTemplate(serial string) tpm2.TPMTPublic {
	x := sha256.Sum256([]byte("icn-p11 attestation key\x00" + serial))
	return ecdsaPublic(tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
		Restricted: true, SignEncrypt: true,
	}, x[:], make([]byte, len(x)))
}

// attestationKey makes a token's attestation key. The caller flushes it.
func (t *TPM) attestationKey(serial string) (*rootKey, error) {
	return t.primary(attestationTemplate(serial), "the attestation key")
}

// Attest has the TPM state its PCRs and how it made a seal. Fails with
// ErrEndorsement where the endorsement hierarchy has a password, and with
// sealstore.ErrIntegrity if the TPM does not know the seal's Creation.
func (t *TPM) Attest(p AttestParams) (a Attestation, err error) {
	sel, err := selection(p.Bank, p.PCRs)
	if err != nil {
		return a, err
	}
	if p.Seal.Creation == nil {
		return a, errors.New("of this seal it was not recorded how the TPM made it")
	}
	ticket, err := tpm2.Unmarshal[tpm2.TPMTTKCreation](p.Seal.Creation.Ticket)
	if err != nil {
		return a, fmt.Errorf("%w: the record of how the seal was made is malformed", sealstore.ErrIntegrity)
	}
	err = t.do("attesting", func() error {
		a = Attestation{}
		ek, certificates, err := t.endorsement()
		if err != nil {
			return err
		}
		t.flushRoot(ek) // there is room for three objects, and they come yet
		a.Endorsement = Endorsement{tpm2.Marshal(ek.public), certificates}
		_, seal, err := t.load(p.Parent, p.Seal)
		if err != nil {
			return err
		}
		ak, err := t.attestationKey(p.Serial)
		if err != nil {
			return err
		}
		defer t.flush(ak.handle)
		a.Key = tpm2.Marshal(ak.public)
		if err := t.quote(&a, ak, sel, p); err != nil {
			return err
		}
		return t.certifyCreation(&a, ak, seal, ticket, p)
	})
	return a, err
}

// signer authorises the use of an attestation key, which its empty
// authorisation value does.
func (k *rootKey) signer() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: tpm2.PasswordAuth(nil)}
}

// ownScheme stands for the signature scheme that the key has.
var ownScheme = tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}

// quote reads PCRs and has them stated (TPM2_Quote; Part 3, 18.4).
func (t *TPM) quote(a *Attestation, ak *rootKey, sel tpm2.TPMLPCRSelection, p AttestParams) error {
	values, err := t.readPCRs(p.Bank, p.PCRs)
	if err != nil {
		return err
	}
	r, err := tpm2.Quote{
		SignHandle: ak.signer(), QualifyingData: tpm2.TPM2BData{Buffer: p.QuoteData}, InScheme: ownScheme, PCRSelect: sel,
	}.Execute(t.link)
	if err != nil {
		return fmt.Errorf("quoting PCRs: %w", err)
	}
	stated, err := r.Quoted.Contents()
	if err != nil {
		return err
	}
	info, err := stated.Attested.Quote()
	if err != nil {
		return err
	}
	if want := sha256.Sum256(slices.Concat(values...)); !bytes.Equal(info.PCRDigest.Buffer, want[:]) {
		return tpm2.TPMRCPCRChanged // between the two; do tries once more
	}
	a.Values, a.Quote, a.QuoteSignature = values, r.Quoted.Bytes(), tpm2.Marshal(r.Signature)
	return nil
}

// certifyCreation has stated how the TPM made a seal (TPM2_CertifyCreation;
// Part 3, 18.3).
func (t *TPM) certifyCreation(a *Attestation, ak *rootKey, seal *loadedKey, ticket *tpm2.TPMTTKCreation, p AttestParams) error {
	hash := sha256.Sum256(p.Seal.Creation.Data)
	r, err := tpm2.CertifyCreation{
		SignHandle: ak.signer(), ObjectHandle: tpm2.NamedHandle{Handle: seal.handle, Name: seal.name},
		QualifyingData: tpm2.TPM2BData{Buffer: p.CreationData}, CreationHash: tpm2.TPM2BDigest{Buffer: hash[:]},
		InScheme: ownScheme, CreationTicket: *ticket,
	}.Execute(t.link)
	if errors.Is(err, tpm2.TPMRCTicket) {
		return fmt.Errorf("%w: the record of how the seal was made is not this TPM's", sealstore.ErrIntegrity)
	}
	if err != nil {
		return fmt.Errorf("certifying how the seal was made: %w", err)
	}
	a.Creation, a.CreationSignature = r.CertifyInfo.Bytes(), tpm2.Marshal(r.Signature)
	return nil
}

// AttestationKey gives the public part of a token's attestation key, a
// TPMT_PUBLIC.
func (t *TPM) AttestationKey(serial string) (public []byte, err error) {
	err = t.do("making the attestation key", func() error {
		k, err := t.attestationKey(serial)
		if err != nil {
			return err
		}
		t.flush(k.handle)
		public = tpm2.Marshal(k.public)
		return nil
	})
	return public, err
}

// ActivateKey is ActivateRoot for a token's attestation key. What is activated
// crosses the bus encrypted to the storage root key whose Name is parent.
func (t *TPM) ActivateKey(parent []byte, serial string, credential, dst []byte) (n int, err error) {
	return t.activate(parent, credential, dst, func(*rootKey) (*rootKey, error) { return t.attestationKey(serial) })
}
