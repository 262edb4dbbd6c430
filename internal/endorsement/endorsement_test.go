package endorsement_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/endorsement"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

func authorities(t *testing.T, m *swtpmtest.Maker) []*x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(m.CA())
	if err != nil {
		t.Fatal(err)
	}
	all, err := endorsement.Authorities(data)
	if err != nil || len(all) != 2 {
		t.Fatalf("%d certificates, %v", len(all), err)
	}
	return all
}

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

func TestVerify(t *testing.T) {
	m, other := swtpmtest.NewMaker(t), swtpmtest.NewMaker(t)
	a, b, c := m.Start(), m.Start(), other.Start()
	ours, theirs := authorities(t, m), authorities(t, other)
	e := of(t, a)
	for what, trusted := range map[string][]*x509.Certificate{
		"issuer and root": ours, "the issuer alone": ours[:1], "both makers": append(theirs[:2:2], ours...),
	} {
		leaf, err := endorsement.Verify(e, trusted)
		if err != nil || !bytes.Equal(leaf.Raw, e.Certificates[0]) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The root alone leads there if the TPM, or the offer, has the issuer's.
	if _, err := endorsement.Verify(e, ours[1:]); err == nil {
		t.Error("the issuer's certificate is not needed: the test is blind")
	}
	full := tpm.Endorsement{Public: e.Public, Certificates: append(e.Certificates[:1:1], ours[0].Raw)}
	if _, err := endorsement.Verify(full, ours[1:]); err != nil {
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
		if _, err := endorsement.Verify(x.e, x.trusted); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	if _, err := endorsement.Verify(tpm.Endorsement{Public: e.Public}, ours); !errors.Is(err, endorsement.ErrUncertified) {
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
		if _, err := endorsement.Verify(e, []*x509.Certificate{c}); (err == nil) != x.good {
			t.Errorf("for %s: %v", what, err)
		}
	}
}

func TestAuthorities(t *testing.T) {
	for what, data := range map[string][]byte{
		"nothing":         nil,
		"another block":   pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{1}}),
		"no certificate":  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}),
		"DER, as it were": {0x30, 0x82},
	} {
		if all, err := endorsement.Authorities(data); err == nil {
			t.Errorf("%s: %d certificates", what, len(all))
		}
	}
}
