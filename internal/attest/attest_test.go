package attest_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/attest"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// machine is a TPM with an identity sealed to it.
type machine struct {
	t      testing.TB
	swtpm  *swtpmtest.TPM
	tpm    *tpm.TPM
	serial string
	parent []byte
	key    ed25519.PrivateKey
	seal   sealstore.Blob
}

const pcrBank = "sha256"

var pcrs = []int{0, 7}

// newMachine seals a new identity to a TPM.
func newMachine(t testing.TB, s *swtpmtest.TPM, o sealstore.SealOptions) *machine {
	t.Helper()
	d, err := tpm.New(tpm.Config{Device: s.Device(), KeyHandle: 0x81000001})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	m := &machine{t: t, swtpm: s, tpm: d, serial: "0123456789abcdef"}
	if m.parent, err = d.Parent(); err != nil {
		t.Fatal(err)
	}
	if _, m.key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	m.reseal(o)
	return m
}

func (m *machine) reseal(o sealstore.SealOptions) {
	m.t.Helper()
	var err error
	o.About = m.key[32:]
	if m.seal, err = m.tpm.Seal(m.parent, m.key.Seed(), bytes.Repeat([]byte("a"), 32), o); err != nil {
		m.t.Fatal(err)
	}
}

// binding is one to the PCRs as they are.
func (m *machine) binding() *sealstore.Binding {
	m.t.Helper()
	secret := bytes.Repeat([]byte{1}, 32)
	b := &sealstore.Binding{Bank: pcrBank, PCRs: pcrs}
	var err error
	if b.Approver, err = m.tpm.Approver(secret); err != nil {
		m.t.Fatal(err)
	}
	values, err := m.tpm.PCRs(pcrBank, pcrs)
	if err != nil {
		m.t.Fatal(err)
	}
	a, err := m.tpm.Approve(b, values, secret)
	if err != nil {
		m.t.Fatal(err)
	}
	b.Approvals = []sealstore.Approval{a}
	return b
}

func (m *machine) public() [32]byte { return [32]byte(m.key[32:]) }

// evidence is made as the command makes it.
func (m *machine) evidence(nonce []byte) *attest.Evidence {
	m.t.Helper()
	a, err := m.tpm.Attest(tpm.AttestParams{
		Parent: m.parent, Serial: m.serial, Seal: m.seal, Bank: pcrBank, PCRs: pcrs,
		QuoteData: attest.QuoteData(nonce, m.public()), CreationData: attest.CreationData(nonce, m.public()),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	e := attest.New(nonce, m.public())
	e.Endorsement = attest.Endorsement{Public: a.Endorsement.Public, Certificates: a.Endorsement.Certificates}
	if e.Endorsement.Certificates == nil {
		e.Endorsement.Certificates = [][]byte{}
	}
	e.Key = a.Key
	e.Quote = attest.Quote{Bank: pcrBank, Statement: a.Quote, Signature: a.QuoteSignature}
	for i, v := range a.Values {
		e.Quote.PCRs = append(e.Quote.PCRs, attest.PCR{PCR: pcrs[i], Value: v})
	}
	e.Creation = attest.Creation{Seal: m.seal.Public, Data: m.seal.Creation.Data, Statement: a.Creation, Signature: a.CreationSignature}
	if m.seal.Binding != nil {
		e.Creation.Approver = m.seal.Binding.Approver
	}
	m.sign(e)
	return e
}

// sign has the identity sign evidence, whatever is in it.
func (m *machine) sign(e *attest.Evidence) {
	m.t.Helper()
	message, err := e.Message()
	if err != nil {
		m.t.Fatal(err)
	}
	e.Signature = ed25519.Sign(m.key, message)
}

// respond answers a challenge as the command does.
func (m *machine) respond(c *attest.Challenge) (*attest.Response, error) {
	secret, err := secmem.New(tpm.MaxCredential)
	if err != nil {
		return nil, err
	}
	defer secret.Destroy()
	n, err := m.tpm.ActivateKey(m.parent, m.serial, c.Credential, secret.Bytes())
	if err != nil {
		return nil, err
	}
	return c.Respond(secret.Bytes()[:n]), nil
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := attest.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// again makes a copy of evidence that can be changed.
func again(t testing.TB, e *attest.Evidence) *attest.Evidence {
	t.Helper()
	c := &attest.Evidence{}
	if err := reparse(encode(t, e), c); err != nil {
		t.Fatal(err)
	}
	return c
}

func reparse(data []byte, into any) error { return json.Unmarshal(data, into) }

func newNonce() []byte {
	b := make([]byte, 32)
	rand.Read(b)
	return b
}

// strict is a policy that asks for everything.
func (m *machine) strict(nonce []byte, ca []*x509.Certificate) attest.Policy {
	m.t.Helper()
	public := m.public()
	p := attest.Policy{Nonce: nonce, DID: &public, PCRs: map[int][]byte{}, CA: ca, Now: time.Now()}
	values, err := m.tpm.PCRs(pcrBank, pcrs)
	if err != nil {
		m.t.Fatal(err)
	}
	for i, n := range pcrs {
		p.PCRs[n] = values[i]
	}
	return p
}

// want checks results: "proved", "failed" and "not proved" for lists of IDs.
// Points that are not named have to be proved.
func want(t testing.TB, r *attest.Report, results map[attest.Result]string) {
	t.Helper()
	expected := map[string]attest.Result{}
	for result, ids := range results {
		for id := range strings.FieldsSeq(ids) {
			if _, ok := r.Point(id); !ok {
				t.Errorf("there is no point %s", id)
			}
			expected[id] = result
		}
	}
	ok := true
	for _, p := range r.Points {
		result, named := expected[p.ID]
		if !named {
			result = attest.Proved
		}
		if p.Result != result {
			t.Errorf("%s is %s (%s), want %s", p.ID, p.Result, p.Text, result)
		}
		ok = ok && p.Result != attest.Failed
	}
	if r.OK != ok {
		t.Errorf("OK is %t with these points: %+v", r.OK, r.Points)
	}
}

// never is what nothing proves.
const never = "seed copies "

// kinds runs f on a TPM of each kind of certified endorsement key.
func kinds(t *testing.T, f func(t *testing.T, maker *swtpmtest.Maker, m *machine)) {
	for _, kind := range []string{"ECC", "RSA"} {
		t.Run(kind, func(t *testing.T) {
			maker := swtpmtest.NewMaker(t)
			s := maker.Start()
			if kind == "RSA" {
				s.Undefine(swtpmtest.CertificateECC)
			}
			f(t, maker, newMachine(t, s, sealstore.SealOptions{}))
		})
	}
}

func TestVerify(t *testing.T) {
	kinds(t, func(t *testing.T, maker *swtpmtest.Maker, m *machine) {
		nonce := newNonce()
		data := encode(t, m.evidence(nonce))
		t.Logf("%d bytes of evidence", len(data))

		// What a verifier who knows nothing but the nonce hears.
		r := attest.Verify(data, attest.Policy{Nonce: nonce, Now: time.Now()})
		want(t, r, map[attest.Result]string{attest.NotProved: never + "did pcr-expected seal-bound ek-certificate attestation-key-in-tpm genuine-tpm"})

		policy := m.strict(nonce, maker.Certificates())
		required := policy
		required.Require = []string{"genuine-tpm", "seal-fixed", "pcr-7", "pcr-9"}
		want(t, attest.Verify(data, required), map[attest.Result]string{attest.NotProved: never + "seal-bound attestation-key-in-tpm", attest.Failed: "genuine-tpm pcr-9"})
		r = attest.Verify(data, policy)
		want(t, r, map[attest.Result]string{attest.NotProved: never + "seal-bound attestation-key-in-tpm genuine-tpm"})
		if p, _ := r.Point("ek-certificate"); !strings.Contains(p.Text, `manufacturer "id:00001014", model "swtpm", version "id:20191023"`) {
			t.Errorf("the maker is not named: %s", p.Text)
		}

		c, state, err := attest.NewChallenge(data, newNonce(), tpm.Credential)
		if err != nil {
			t.Fatal(err)
		}
		if policy.Response, err = m.respond(c); err != nil {
			t.Fatal(err)
		}
		policy.State = state
		for _, id := range attest.Provable() {
			if id != "seal-bound" {
				policy.Require = append(policy.Require, id)
			}
		}
		r = attest.Verify(data, policy)
		want(t, r, map[attest.Result]string{attest.NotProved: never + "seal-bound"})
		for i, id := range strings.Fields("evidence nonce did identity-signature attestation-key quote pcr-values pcr-0 pcr-7 boot creation seal seal-fixed seal-bound ek-certificate attestation-key-in-tpm genuine-tpm seed copies") {
			if i >= len(r.Points) || r.Points[i].ID != id {
				t.Fatalf("point %d is not %s: %+v", i, id, r.Points)
			}
		}
	})
}

func TestVerifySeals(t *testing.T) {
	m := newMachine(t, swtpmtest.Start(t), sealstore.SealOptions{})
	nonce := newNonce()
	verify := func(o sealstore.SealOptions) *attest.Report {
		t.Helper()
		m.reseal(o)
		return attest.Verify(encode(t, m.evidence(nonce)), attest.Policy{Nonce: nonce, Now: time.Now()})
	}
	// A TPM without certificates.
	open := never + "did pcr-expected ek-certificate attestation-key-in-tpm genuine-tpm "
	want(t, verify(sealstore.SealOptions{}), map[attest.Result]string{attest.NotProved: open + "seal-bound"})
	want(t, verify(sealstore.SealOptions{Movable: true}), map[attest.Result]string{attest.NotProved: open + "seal-bound seal-fixed"})
	want(t, verify(sealstore.SealOptions{Binding: m.binding()}), map[attest.Result]string{attest.NotProved: open})
	want(t, verify(sealstore.SealOptions{Binding: m.binding(), Movable: true}), map[attest.Result]string{attest.NotProved: open + "seal-fixed"})

	r := attest.Verify(encode(t, m.evidence(nonce)), attest.Policy{Nonce: nonce, Now: time.Now(), CA: []*x509.Certificate{}})
	want(t, r, map[attest.Result]string{attest.NotProved: never + "did pcr-expected seal-fixed attestation-key-in-tpm genuine-tpm", attest.Failed: "ek-certificate"})
}
