package endorsement_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/endorsement"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

func of(t *testing.T, s *swtpmtest.TPM) tpm.Endorsement {
	t.Helper()
	d, err := tpm.New(tpm.Config{Device: s.Device()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	e, err := d.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestCertified(t *testing.T) {
	m, other := swtpmtest.NewMaker(t), swtpmtest.NewMaker(t)
	a, b, c := m.Start(), m.Start(), other.Start()
	ours, theirs := m.Certificates(), other.Certificates()
	e := of(t, a)
	for what, trusted := range map[string][]*x509.Certificate{
		"issuer and root": ours, "the issuer alone": ours[:1], "both makers": append(theirs[:2:2], ours...),
	} {
		if err := endorsement.Certified(e, trusted); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The root alone leads there if the TPM, or the offer, has the issuer's.
	if err := endorsement.Certified(e, ours[1:]); err == nil {
		t.Error("the issuer's certificate is not needed: the test is blind")
	}
	full := tpm.Endorsement{Public: e.Public, Certificates: append(e.Certificates[:1:1], ours[0].Raw)}
	if err := endorsement.Certified(full, ours[1:]); err != nil {
		t.Errorf("with the issuer's certificate: %v", err)
	}
	for what, x := range map[string]struct {
		e       tpm.Endorsement
		trusted []*x509.Certificate
	}{
		"another maker":                   {e, theirs},
		"nobody is trusted":               {e, nil},
		"another TPM's certificate":       {tpm.Endorsement{Public: e.Public, Certificates: of(t, b).Certificates}, ours},
		"another maker's TPM":             {of(t, c), ours},
		"an authority's":                  {tpm.Endorsement{Public: e.Public, Certificates: [][]byte{ours[0].Raw}}, ours},
		"a certificate that is none":      {tpm.Endorsement{Public: e.Public, Certificates: [][]byte{[]byte("none")}}, ours},
		"a key that is none":              {tpm.Endorsement{Public: []byte("none"), Certificates: e.Certificates}, ours},
		"a signature of the wrong issuer": {tpm.Endorsement{Public: e.Public, Certificates: [][]byte{flip(e.Certificates[0])}}, ours},
	} {
		if err := endorsement.Certified(x.e, x.trusted); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	if err := endorsement.Certified(tpm.Endorsement{Public: e.Public}, ours); err == nil {
		t.Errorf("without a certificate: %v", err)
	}
}

// flip changes the last byte, which is the signature's.
func flip(p []byte) []byte {
	q := bytes.Clone(p)
	q[len(q)-1] ^= 1
	return q
}

// A certificate for another purpose, of whomever, makes no endorsement key.
func TestPurpose(t *testing.T) {
	for what, x := range map[string]struct {
		purposes []asn1.ObjectIdentifier
		good     bool
	}{
		"none":                 {nil, true},
		"an endorsement key":   {[]asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}, true},
		"a platform":           {[]asn1.ObjectIdentifier{{2, 23, 133, 8, 2}}, false},
		"a server, by another": {[]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 1}}, false},
	} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		point, err := key.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		public := tpm2.ECCEKTemplate
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		})
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), UnknownExtKeyUsage: x.purposes}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		e := tpm.Endorsement{Public: tpm2.Marshal(public), Certificates: [][]byte{der}}
		if err := endorsement.Certified(e, []*x509.Certificate{c}); (err == nil) != x.good {
			t.Errorf("for %s: %v", what, err)
		}
	}
}
