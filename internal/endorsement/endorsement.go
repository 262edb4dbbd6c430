// Package endorsement finds out whether an endorsement key is that of a TPM
// that somebody certifies whom one trusts with it.
package endorsement

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// subjectAltName of an endorsement key's certificate holds the TPM's maker and
// model as a directory name (EK Credential Profile, 3.2.9), which crypto/x509
// does not know and therefore refuses where it is critical.
var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// purpose is what a certificate that names purposes is for (the same, 3.2.16).
var purpose = asn1.ObjectIdentifier{2, 23, 133, 8, 1}

// ErrUncertified: nobody has certified the key.
var ErrUncertified = errors.New("its TPM has no certificate of its maker")

// Authorities reads the certificates in a PEM file.
func Authorities(data []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("it holds no certificate in PEM")
	}
	return all, nil
}

// Verify checks that an endorsement key has a certificate, and that this leads
// to one of those that are trusted. It gives the key's certificate.
func Verify(e tpm.Endorsement, trusted []*x509.Certificate) (*x509.Certificate, error) {
	if len(e.Certificates) == 0 {
		return nil, ErrUncertified
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.Public)
	if err != nil || !bytes.Equal(tpm2.Marshal(*public), e.Public) {
		return nil, errors.New("the endorsement key is malformed")
	}
	key, err := tpm2.Pub(*public)
	if err != nil {
		return nil, err
	}
	chain := make([]*x509.Certificate, len(e.Certificates))
	for i, der := range e.Certificates {
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("certificate %d of the endorsement key: %w", i, err)
		}
	}
	leaf := chain[0]
	if k, ok := key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is of another endorsement key")
	}
	switch purposes := len(leaf.ExtKeyUsage) + len(leaf.UnknownExtKeyUsage); {
	case leaf.IsCA:
		return nil, errors.New("the certificate is none of an endorsement key: it is an authority's")
	case purposes > 0 && !slices.ContainsFunc(leaf.UnknownExtKeyUsage, purpose.Equal):
		return nil, errors.New("the certificate is for another purpose than an endorsement key")
	}
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, subjectAltName.Equal)
	o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	for _, c := range trusted {
		o.Roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(o); err != nil {
		return nil, fmt.Errorf("the certificate of its endorsement key: %w", err)
	}
	return leaf, nil
}
