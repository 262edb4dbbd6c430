package attest

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// Object identifiers of the TCG (EK Credential Profile, 3.2).
var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidEKCertificate  = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
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
	leaf, issuers, err := e.certificates()
	if err == nil && policy.CA == nil {
		r.open(id, "that the endorsement key is a TPM's: its certificate was not checked, since no maker is trusted (--ek-ca)")
		return
	}
	if err == nil {
		err = verifyChain(leaf, issuers, policy)
	}
	r.add(id, err, "somebody who is trusted has certified the endorsement key, as that of %s", described(leaf))
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

// certificates reads the certificate of the endorsement key, and others that
// lead from it to somebody trusted.
func (e *parsed) certificates() (leaf *x509.Certificate, issuers []*x509.Certificate, err error) {
	for i, der := range e.Endorsement.Certificates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, fmt.Errorf("certificate %d of the endorsement key cannot be read: %w", i+1, err)
		}
		issuers = append(issuers, c)
	}
	leaf, issuers = issuers[0], issuers[1:]
	key, err := tpm2.Pub(*e.ek)
	if err != nil {
		return nil, nil, fmt.Errorf("the endorsement key is of no use: %w", err)
	}
	if k, ok := key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(leaf.PublicKey) {
		return nil, nil, errors.New("the certificate is of another key than the endorsement key")
	}
	return leaf, issuers, nil
}

// verifyChain checks a certificate of an endorsement key up to a trusted one.
func verifyChain(leaf *x509.Certificate, issuers []*x509.Certificate, policy Policy) error {
	switch usages := len(leaf.ExtKeyUsage) + len(leaf.UnknownExtKeyUsage); {
	case leaf.IsCA:
		return errors.New("the certificate of the endorsement key is one of an issuer")
	case usages > 0 && !slices.ContainsFunc(leaf.UnknownExtKeyUsage, oidEKCertificate.Equal):
		return errors.New("the certificate of the endorsement key is for another purpose")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range policy.CA {
		roots.AddCert(c)
	}
	for _, c := range issuers {
		between.AddCert(c)
	}
	// A subject that is named in SubjectAltName alone, as the TCG has it for a
	// TPM, makes the extension critical, and crypto/x509 does not take such
	// names for handled. described reads them.
	checked := *leaf
	checked.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(leaf.UnhandledCriticalExtensions), oidSubjectAltName.Equal)
	_, err := checked.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: policy.Now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("nobody who is trusted has certified the endorsement key: %w", err)
	}
	return nil
}

// described names the TPM that a certificate is about, as far as it tells.
func described(leaf *x509.Certificate) string {
	if leaf == nil {
		return ""
	}
	var parts []string
	for _, a := range tpmNames(leaf) {
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
