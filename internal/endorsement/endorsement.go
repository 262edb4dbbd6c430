// Package endorsement finds out whether an endorsement key is that of a TPM
// that somebody certifies whom one trusts with it.
package endorsement

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// Object identifiers in certificates (EK Credential Profile, 3.2).
var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidEKCertificate  = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
)

// Chain reads the certificate of an endorsement key, and after it those that
// lead from it to somebody trusted; nil if there is none.
func Chain(public *tpm2.TPMTPublic, certificates [][]byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for i, der := range certificates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the endorsement key cannot be read: %w", i+1, err)
		}
		chain = append(chain, c)
	}
	if chain == nil {
		return nil, nil
	}
	key, err := tpm2.Pub(*public)
	if err != nil {
		return nil, fmt.Errorf("the endorsement key is of no use: %w", err)
	}
	if k, ok := key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(chain[0].PublicKey) {
		return nil, errors.New("the certificate is of another key than the endorsement key")
	}
	return chain, nil
}

// Verify checks the chain of an endorsement key up to a trusted certificate. A
// zero now is the present.
func Verify(chain, trusted []*x509.Certificate, now time.Time) error {
	leaf := chain[0]
	switch usages := len(leaf.ExtKeyUsage) + len(leaf.UnknownExtKeyUsage); {
	case leaf.IsCA:
		return errors.New("the certificate of the endorsement key is one of an issuer")
	case usages > 0 && !slices.ContainsFunc(leaf.UnknownExtKeyUsage, oidEKCertificate.Equal):
		return errors.New("the certificate of the endorsement key is for another purpose")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range trusted {
		roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	// A subject that is named in SubjectAltName alone, as the TCG has it for a
	// TPM, makes the extension critical, and crypto/x509 does not take such
	// names for handled.
	checked := *leaf
	checked.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(leaf.UnhandledCriticalExtensions), oidSubjectAltName.Equal)
	_, err := checked.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("nobody who is trusted has certified the endorsement key: %w", err)
	}
	return nil
}

// Certified checks that somebody trusted has certified an endorsement key.
func Certified(e tpm.Endorsement, trusted []*x509.Certificate) error {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.Public)
	if err != nil || !bytes.Equal(tpm2.Marshal(*public), e.Public) {
		return errors.New("the endorsement key is malformed")
	}
	chain, err := Chain(public, e.Certificates)
	if err == nil && chain == nil {
		err = errors.New("the TPM has no certificate of its endorsement key")
	}
	if err != nil {
		return err
	}
	return Verify(chain, trusted, time.Time{})
}
