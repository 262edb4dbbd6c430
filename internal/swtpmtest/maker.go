package swtpmtest

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// NV indices of the certificates that a Maker's TPMs hold: of an RSA-2048 and
// an ECC P-384 endorsement key.
const (
	CertificateRSA = 0x01C00002
	CertificateECC = 0x01C00016
)

// Maker is who makes TPMs and certifies their endorsement keys, by a
// certificate authority of its own.
type Maker struct {
	t   testing.TB
	dir string
}

// NewMaker sets up a maker whose files go with the test.
func NewMaker(t testing.TB) *Maker {
	t.Helper()
	m := &Maker{t, t.TempDir()}
	ca := filepath.Join(m.dir, "ca")
	if err := os.Mkdir(ca, 0o700); err != nil {
		t.Fatal(err)
	}
	localca, err := exec.LookPath("swtpm_localca")
	if err != nil {
		t.Fatalf("looking for swtpm_localca (Debian package swtpm-tools): %v", err)
	}
	for name, text := range map[string]string{
		"setup.conf": fmt.Sprintf("create_certs_tool=%s\ncreate_certs_tool_config=%s\ncreate_certs_tool_options=%s\nactive_pcr_banks=sha256\n",
			localca, m.file("localca.conf"), m.file("localca.options")),
		"localca.conf": fmt.Sprintf("statedir=%s\nsigningkey=%s/signkey.pem\nissuercert=%s/issuercert.pem\ncertserial=%s/certserial\n", ca, ca, ca, ca),
		// Without these a platform certificate fails.
		"localca.options": "--platform-manufacturer Maker\n--platform-version 2.1\n--platform-model Machine\n",
	} {
		if err := os.WriteFile(m.file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *Maker) file(name string) string { return filepath.Join(m.dir, name) }

// CA is a PEM file with the maker's certificates: the issuer of those of the
// endorsement keys, then its root. It exists once a TPM was made.
func (m *Maker) CA() string {
	m.t.Helper()
	var all []byte
	for _, name := range []string{"issuercert.pem", "swtpm-localca-rootca-cert.pem"} {
		b, err := os.ReadFile(filepath.Join(m.dir, "ca", name))
		if err != nil {
			m.t.Fatal(err)
		}
		all = append(all, b...)
	}
	path := m.file("ca.pem")
	if err := os.WriteFile(path, all, 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// Certificates reads those of CA.
func (m *Maker) Certificates() (all []*x509.Certificate) {
	m.t.Helper()
	data, err := os.ReadFile(m.CA())
	if err != nil {
		m.t.Fatal(err)
	}
	for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			m.t.Fatal(err)
		}
		all = append(all, c)
	}
	if len(all) != 2 {
		m.t.Fatalf("%d certificates", len(all))
	}
	return all
}

// Start makes a TPM with certificates of its endorsement keys and of its
// platform, and starts it. It ends with the test.
func (m *Maker) Start() *TPM {
	m.t.Helper()
	return startFrom(m.t, 0, m.make)
}

// make makes the state of a new TPM in a directory.
func (m *Maker) make(dir string) {
	m.t.Helper()
	setup := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", dir, "--config", m.file("setup.conf"),
		"--createek", "--create-ek-cert", "--create-platform-cert", "--not-overwrite")
	if out, err := setup.CombinedOutput(); err != nil {
		m.t.Fatalf("swtpm_setup (Debian packages swtpm-tools and gnutls-bin): %v\n%s", err, out)
	}
	// It says nothing where it fails and takes the state away again.
	if _, err := os.Stat(filepath.Join(dir, "tpm2-00.permall")); err != nil {
		m.t.Fatalf("swtpm_setup has made no TPM: %v", err)
	}
}

// Undefine removes an NV index of the platform, such as a certificate's.
func (s *TPM) Undefine(index uint32) {
	s.t.Helper()
	c, err := linuxudstpm.Open(s.Path())
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	h := tpm2.TPMHandle(index)
	public, err := tpm2.NVReadPublic{NVIndex: h}.Execute(c)
	if err == nil {
		_, err = tpm2.NVUndefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: h, Name: public.NVName},
		}.Execute(c)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// Define makes an NV index of the platform, as a TPM's maker does.
func (s *TPM) Define(index uint32, data []byte) {
	s.t.Helper()
	c, err := linuxudstpm.Open(s.Path())
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	public := tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(index), NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{PlatformCreate: true, PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true},
	}
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	_, err = tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(public)}.Execute(c)
	if err != nil {
		s.t.Fatal(err)
	}
	defined, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(c)
	if err != nil {
		s.t.Fatal(err)
	}
	const chunk = 512
	for at := 0; at < len(data); at += chunk {
		_, err := tpm2.NVWrite{
			AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: defined.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[at:min(at+chunk, len(data))]}, Offset: uint16(at),
		}.Execute(c)
		if err != nil {
			s.t.Fatal(err)
		}
		// The index has another Name once it was written.
		if defined, err = (tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}).Execute(c); err != nil {
			s.t.Fatal(err)
		}
	}
}
