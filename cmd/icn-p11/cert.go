package main

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

func (a *app) certCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "cert",
		Short: "Request, import and export certificates for the keys of a token",
	},
		a.certRequest(),
		a.certImport(),
		a.certExport(),
	)
}

// signer signs with a key in the module, as crypto/x509 wants it.
type signer struct {
	m      *module
	s      p11.SessionHandle
	key    p11.ObjectHandle
	public ed25519.PublicKey
}

func (m *module) signer(s p11.SessionHandle, k tokenKey) (*signer, error) {
	private, err := m.halves(s, k, p11.CKO_PRIVATE_KEY)
	if err != nil {
		return nil, err
	}
	if len(private) != 1 {
		return nil, fmt.Errorf("key %s has %s: its ID, %x, must name one", printable(k.label), count(len(private), "private half"), k.id)
	}
	return &signer{m, s, private[0], k.public[:]}, nil
}

func (k *signer) Public() crypto.PublicKey { return k.public }

func (k *signer) Sign(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != 0 {
		return nil, errors.New("Ed25519 signs messages, not digests")
	}
	if err := k.m.SignInit(k.s, p11.Mechanism{Type: p11.CKM_EDDSA}, k.key); err != nil {
		return nil, err
	}
	out := &p11.Output{Buf: make([]byte, ed25519.SignatureSize)}
	if err := k.m.Sign(k.s, message, out); err != nil {
		return nil, err
	}
	return out.Buf[:out.Len], nil
}

// requestResult is what cert request prints.
type requestResult struct {
	Subject string `json:"subject"`
	Key     string `json:"key"` // its label
	PEM     string `json:"pem,omitempty"`
	DryRun  bool   `json:"dry_run,omitempty"`
}

// request is what goes into a certificate or the request for one.
type request struct {
	subject string
	names   []string
	self    bool
	days    int
}

func (a *app) certRequest() *cobra.Command {
	var c change
	var r request
	cmd := &cobra.Command{
		Use:   "request TOKEN [KEY] --subject DN",
		Short: "Make a certificate request, or a self-signed certificate",
		Long: `Make a certificate request (PKCS#10) signed with a key of the token, and print it
as PEM; with --self-signed, a certificate. DN is like CN=node,O=ICN. --name adds a
DNS name, an IP address, an e-mail address or a URI. The user PIN is needed.`,
		Example: `  icn-p11 cert request node --subject CN=node,O=ICN --name node.example.org
  icn-p11 cert request node --subject CN=node --self-signed --days 3650`,
		Args:              tokenAndOne("KEY"),
		ValidArgsFunction: completeToken,
		RunE: a.does(func(cmd *cobra.Command, args []string) error {
			subject, err := parseDN(r.subject)
			if err != nil {
				return err
			}
			switch {
			case cmd.Flags().Changed("days") && !r.self:
				return usage("--days goes with --self-signed")
			case r.days < 1 || r.days > 36525:
				return usage("--days is between 1 and 36525")
			}
			t, err := r.template(subject)
			if err != nil {
				return err
			}
			if c.dryRun {
				return a.wouldSign(args[0], optional(args), func(k tokenKey) error {
					return a.outcome(c, requestResult{Subject: subject.String(), Key: k.label, DryRun: true}, "Key %s signs for %s", printable(k.label), subject)
				})
			}
			p, token, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			var der []byte
			var k tokenKey
			err = p.asUser(token, c.user, func(m *module, s p11.SessionHandle) (err error) {
				if k, err = m.key(s, token, optional(args)); err != nil {
					return err
				}
				sign, err := m.signer(s, k)
				if err != nil {
					return err
				}
				der, err = r.sign(t, sign)
				return err
			})
			if err != nil {
				return err
			}
			kind := "CERTIFICATE REQUEST"
			if r.self {
				kind = "CERTIFICATE"
			}
			text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
			if c.json {
				return a.json(requestResult{Subject: subject.String(), Key: k.label, PEM: string(text)})
			}
			_, err = a.out.Write(text)
			return err
		}),
	}
	f := cmd.Flags()
	f.StringVar(&r.subject, "subject", "", "distinguished name, like CN=node,O=ICN")
	f.StringArrayVar(&r.names, "name", nil, "DNS name, IP address, e-mail address or URI; several times for several")
	f.BoolVar(&r.self, "self-signed", false, "make a self-signed certificate instead of a request")
	f.IntVar(&r.days, "days", 365, "how long the self-signed certificate is valid")
	noCompletion(cmd, "subject", "name", "days")
	c.flags(cmd, false, true, false)
	return cmd
}

// template collects what both kinds have.
func (r *request) template(subject pkix.Name) (*x509.Certificate, error) {
	t := &x509.Certificate{
		Subject:               subject,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	for _, n := range r.names {
		u, err := url.Parse(n)
		switch {
		case net.ParseIP(n) != nil:
			t.IPAddresses = append(t.IPAddresses, net.ParseIP(n))
		case err == nil && u.Scheme != "" && (u.Host != "" || u.Opaque != ""):
			t.URIs = append(t.URIs, u)
		case strings.Contains(n, "@"):
			t.EmailAddresses = append(t.EmailAddresses, n)
		case n == "" || strings.ContainsAny(n, " /:"):
			return nil, usage("--name %s is no DNS name, IP address, e-mail address or URI", n)
		default:
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	return t, nil
}

func (r *request) sign(t *x509.Certificate, key *signer) ([]byte, error) {
	if !r.self {
		return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: t.Subject, DNSNames: t.DNSNames, EmailAddresses: t.EmailAddresses, IPAddresses: t.IPAddresses, URIs: t.URIs,
		}, key)
	}
	// 20 bytes, and positive (RFC 5280, 4.1.2.2).
	serial := make([]byte, 20)
	rand.Read(serial)
	serial[0] = serial[0]&0x7f | 0x40
	t.SerialNumber = new(big.Int).SetBytes(serial)
	t.NotBefore = time.Now().Add(-time.Hour).UTC() // clocks differ
	t.NotAfter = t.NotBefore.AddDate(0, 0, r.days)
	return x509.CreateCertificate(rand.Reader, t, t, key.public, key)
}

// The attribute types of a distinguished name that RFC 4514 names.
var dnTypes = map[string]func(*pkix.Name) *[]string{
	"O": func(n *pkix.Name) *[]string { return &n.Organization }, "OU": func(n *pkix.Name) *[]string { return &n.OrganizationalUnit },
	"C": func(n *pkix.Name) *[]string { return &n.Country }, "L": func(n *pkix.Name) *[]string { return &n.Locality },
	"ST": func(n *pkix.Name) *[]string { return &n.Province }, "STREET": func(n *pkix.Name) *[]string { return &n.StreetAddress },
}

// parseDN reads TYPE=VALUE pairs with commas between them; a backslash makes
// the next character part of the value.
func parseDN(s string) (pkix.Name, error) {
	var name pkix.Name
	if s == "" {
		return name, usage("--subject is needed, like CN=node,O=ICN")
	}
	for _, pair := range splitEscaped(s) {
		key, value, ok := strings.Cut(pair, "=")
		key, value = strings.ToUpper(strings.TrimSpace(key)), strings.TrimSpace(value)
		switch field := dnTypes[key]; {
		case !ok || value == "":
			return name, usage("--subject: %q is not TYPE=VALUE", pair)
		case field != nil:
			*field(&name) = append(*field(&name), value)
		case key == "CN" && name.CommonName == "":
			name.CommonName = value
		case key == "SERIALNUMBER" && name.SerialNumber == "":
			name.SerialNumber = value
		case key == "CN" || key == "SERIALNUMBER":
			return name, usage("--subject: %s is given twice", key)
		default:
			return name, usage("--subject: %s is none of CN, O, OU, C, L, ST, STREET, SERIALNUMBER", key)
		}
	}
	return name, nil
}

func splitEscaped(s string) []string {
	var parts []string
	var part strings.Builder
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			part.WriteRune(r)
			escaped = false
		case r == '\\':
			escaped = true
		case r == ',':
			parts = append(parts, part.String())
			part.Reset()
		default:
			part.WriteRune(r)
		}
	}
	return append(parts, part.String())
}

// certRow is a certificate as the verbs of cert print it.
type certRow struct {
	Label   string    `json:"label"`
	ID      string    `json:"id"`
	Subject string    `json:"subject"`
	Issuer  string    `json:"issuer"`
	Until   time.Time `json:"not_after"`
	Key     string    `json:"key,omitempty"` // label of the key in the token
	DryRun  bool      `json:"dry_run,omitempty"`
	id, der []byte
}

func (a *app) certImport() *cobra.Command {
	var c change
	var label string
	cmd := &cobra.Command{
		Use:   "import TOKEN FILE",
		Short: "Store certificates in a token",
		Long: `Store the certificates of FILE, PEM or DER, in a token. One for a key of the token
gets that key's ID and label, so that applications find both together. The user
PIN is needed.`,
		Example:           "  icn-p11 cert import node node.crt",
		Args:              tokenAnd("FILE"),
		ValidArgsFunction: tokenThenFile,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			certs, err := readCertificates(args[1])
			if err != nil {
				return err
			}
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			var rows []certRow
			add := func(m *module, s p11.SessionHandle) error {
				var err error
				if rows, err = m.certificateRows(s, certs, label); err != nil || c.dryRun {
					return explain(err)
				}
				for i, cert := range certs {
					if err := m.storeCertificate(s, cert, rows[i]); err != nil {
						return explain(err)
					}
				}
				return nil
			}
			if c.dryRun {
				if err = p.inModule(t, add); err == nil {
					err = p.changeable(t, sealstore.User)
				}
				for i := range rows {
					rows[i].DryRun = true
				}
			} else {
				err = p.asUser(t, c.user, add)
			}
			if err != nil {
				return err
			}
			if c.json {
				return a.json(rows)
			}
			for _, r := range rows {
				about := ""
				if r.Key != "" {
					about = " for key " + printable(r.Key)
				}
				a.outcome(c, nil, "Certificate %s%s is stored in token %s", printable(r.Subject), about, printable(t.Label))
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&label, "label", "", "label of the certificates (default: that of the key, or the common name)")
	noCompletion(cmd, "label")
	c.flags(cmd, false, true, false)
	return cmd
}

// readCertificates reads one DER or any number of PEM certificates.
func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	rest := data
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		c, err := x509.ParseCertificate(data)
		if err != nil {
			return nil, fmt.Errorf("%s holds no certificate, neither PEM nor DER", path)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// certificateRows finds out how certificates are to be stored, and that none
// of them is there yet.
func (m *module) certificateRows(s p11.SessionHandle, certs []*x509.Certificate, label string) ([]certRow, error) {
	keys, err := m.keys(s)
	if err != nil {
		return nil, err
	}
	var rows []certRow
	for i, c := range certs {
		same, err := m.find(s, p11.Attribute{Type: p11.CKA_CLASS, Value: ulong(p11.CKO_CERTIFICATE)}, p11.Attribute{Type: p11.CKA_VALUE, Value: c.Raw})
		if err != nil {
			return nil, err
		}
		if len(same) > 0 {
			return nil, fmt.Errorf("the certificate of %s is in the token already", printable(c.Subject.String()))
		}
		if slices.ContainsFunc(certs[:i], c.Equal) {
			return nil, fmt.Errorf("the certificate of %s is given twice", printable(c.Subject.String()))
		}
		row := certRow{Label: label, Subject: c.Subject.String(), Issuer: c.Issuer.String(), Until: c.NotAfter, id: c.SubjectKeyId}
		if k := keyOf(c, keys); k != nil {
			row.id, row.Key = k.id, k.label
		}
		row.ID = hex.EncodeToString(row.id)
		row.Label = cmp.Or(label, row.Key, c.Subject.CommonName)
		rows = append(rows, row)
	}
	return rows, nil
}

// keyOf is the key that a certificate is for, nil if it is none of these.
func keyOf(c *x509.Certificate, keys []tokenKey) *tokenKey {
	public, ok := c.PublicKey.(ed25519.PublicKey)
	i := slices.IndexFunc(keys, func(k tokenKey) bool { return ok && bytes.Equal(public, k.public[:]) })
	if i < 0 {
		return nil
	}
	return &keys[i]
}

func (m *module) storeCertificate(s p11.SessionHandle, c *x509.Certificate, row certRow) error {
	serial, err := asn1.Marshal(c.SerialNumber)
	if err != nil {
		return err
	}
	yes, no := []byte{1}, []byte{0}
	_, err = m.CreateObject(s, []p11.Attribute{
		{Type: p11.CKA_CLASS, Value: ulong(p11.CKO_CERTIFICATE)},
		{Type: p11.CKA_CERTIFICATE_TYPE, Value: ulong(p11.CKC_X_509)},
		{Type: p11.CKA_TOKEN, Value: yes},
		{Type: p11.CKA_PRIVATE, Value: no},
		{Type: p11.CKA_LABEL, Value: []byte(row.Label)},
		{Type: p11.CKA_ID, Value: row.id},
		{Type: p11.CKA_SUBJECT, Value: c.RawSubject},
		{Type: p11.CKA_ISSUER, Value: c.RawIssuer},
		{Type: p11.CKA_SERIAL_NUMBER, Value: serial},
		{Type: p11.CKA_VALUE, Value: c.Raw},
	})
	return err
}

func (a *app) certExport() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "export TOKEN [CERT]",
		Short: "Print certificates of a token",
		Long: `Print the certificates of a token as PEM: all, or those with the label or the ID
CERT. Those of the token's keys come first. Needs no PIN.`,
		Example: `  icn-p11 cert export node >node.crt
  icn-p11 cert export node --json`,
		Args:              tokenAndOne("CERT"),
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			var rows []certRow
			err = p.inModule(t, func(m *module, s p11.SessionHandle) (err error) {
				rows, err = m.certificates(s, optional(args))
				return explain(err)
			})
			switch {
			case err != nil:
				return err
			case len(rows) == 0:
				return noCertificate(t, optional(args))
			case asJSON:
				return a.json(rows)
			}
			var text []byte
			for _, r := range rows {
				text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.der})...)
			}
			_, err = a.out.Write(text)
			return err
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what they say as JSON instead")
	return cmd
}

// certificates lists those of a token with a label or an ID, or all; a chain
// begins with the certificate of the token's key.
func (m *module) certificates(s p11.SessionHandle, want string) ([]certRow, error) {
	keys, err := m.keys(s)
	if err != nil {
		return nil, err
	}
	found, err := m.find(s, p11.Attribute{Type: p11.CKA_CLASS, Value: ulong(p11.CKO_CERTIFICATE)})
	if err != nil {
		return nil, err
	}
	var rows []certRow
	for _, o := range found {
		r, err := m.row(s, o)
		if err != nil {
			return nil, err
		}
		if want != "" && want != r.Label && strings.ToLower(want) != r.ID {
			continue
		}
		der, err := m.attribute(s, o, p11.CKA_VALUE)
		if err != nil {
			return nil, err
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %s: %w", printable(r.Label), err)
		}
		row := certRow{Label: r.Label, ID: r.ID, Subject: c.Subject.String(), Issuer: c.Issuer.String(), Until: c.NotAfter, der: der}
		if k := keyOf(c, keys); k != nil {
			row.Key = k.label
		}
		rows = append(rows, row)
	}
	last := func(r certRow) int {
		if r.Key == "" {
			return 1
		}
		return 0
	}
	slices.SortFunc(rows, func(a, b certRow) int {
		return cmp.Or(last(a)-last(b), strings.Compare(a.Label, b.Label), strings.Compare(a.ID, b.ID), bytes.Compare(a.der, b.der))
	})
	return rows, nil
}

func noCertificate(t sealstore.TokenInfo, want string) error {
	if want == "" {
		return fmt.Errorf("token %s holds no certificate", printable(t.Label))
	}
	return fmt.Errorf("token %s holds no certificate %q", printable(t.Label), want)
}

// tokenThenFile completes TOKEN FILE.
func tokenThenFile(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return completeToken(cmd, args, prefix)
}
