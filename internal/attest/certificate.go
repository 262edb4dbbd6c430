package attest

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/endorsement"
)

// Object identifiers of the TCG (EK Credential Profile, 3.2).
var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidManufacturer   = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidModel          = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidVersion        = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
)

// certificate tells whether somebody trusted has certified the endorsement
// key.
func (e *parsed) certificate(r *Report, policy Policy) {
	const id = "ek-certificate"
	if err := checkEndorsementKey(e.ek); err != nil {
		r.add(id, err, "")
		return
	}
	if len(e.Endorsement.Certificates) == 0 {
		if policy.CA != nil {
			r.add(id, errors.New("the TPM has no certificate of its endorsement key"), "")
			return
		}
		r.open(id, "that the endorsement key is a TPM's: the TPM has no certificate of it")
		return
	}
	chain, err := endorsement.Chain(e.ek, e.Endorsement.Certificates)
	if err == nil && policy.CA == nil {
		r.open(id, "that the endorsement key is a TPM's: its certificate was not checked, since no maker is trusted (--ek-ca)")
		return
	}
	if err == nil {
		// described reads the names that are left aside there.
		err = endorsement.Verify(chain, policy.CA, policy.Now)
	}
	r.add(id, err, "somebody who is trusted has certified the endorsement key, as that of %s", described(chain))
}

// checkEndorsementKey checks that a key is one that only decrypts, and for its
// TPM only.
func checkEndorsementKey(public *tpm2.TPMTPublic) error {
	a := public.ObjectAttributes
	if !a.Restricted || !a.Decrypt || a.SignEncrypt || !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin {
		return errors.New("the endorsement key has not the attributes of one")
	}
	key, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return fmt.Errorf("the endorsement key is of no use: %w", err)
	}
	// What a challenge is encrypted by, besides the key.
	symmetric := key.SymmetricParameters()
	bits, err := symmetric.KeyBits.AES()
	if err != nil || symmetric.Algorithm != tpm2.TPMAlgAES || *bits != 128 && *bits != 256 ||
		!slices.Contains([]tpm2.TPMAlgID{tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA384, tpm2.TPMAlgSHA512}, key.NameAlg()) {
		return errors.New("the endorsement key goes with other algorithms than AES and SHA-2")
	}
	return nil
}

// described names the TPM that a certificate is about, as far as it tells.
func described(chain []*x509.Certificate) string {
	if chain == nil {
		return ""
	}
	var parts []string
	for _, a := range tpmNames(chain[0]) {
		what := map[string]string{oidManufacturer.String(): "manufacturer", oidModel.String(): "model", oidVersion.String(): "version"}[a.Type.String()]
		if text, ok := a.Value.(string); ok && what != "" {
			parts = append(parts, fmt.Sprintf("%s %q", what, text))
		}
	}
	if len(parts) == 0 {
		return "a TPM that it does not describe"
	}
	return "a TPM: " + strings.Join(parts, ", ")
}

// tpmNames reads the directory names in SubjectAltName (RFC 5280, 4.2.1.6).
func tpmNames(leaf *x509.Certificate) (all []pkix.AttributeTypeAndValue) {
	for _, extension := range leaf.Extensions {
		if !extension.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(extension.Value, &names); err != nil || len(rest) > 0 {
			return nil
		}
		for _, name := range names {
			const directoryName = 4
			var rdns pkix.RDNSequence
			if name.Class != asn1.ClassContextSpecific || name.Tag != directoryName {
				continue
			}
			if rest, err := asn1.Unmarshal(name.Bytes, &rdns); err != nil || len(rest) > 0 {
				continue
			}
			for _, set := range rdns {
				all = append(all, set...)
			}
		}
	}
	return all
}
