// Package attest writes and checks evidence of an identity: what a TPM states
// about itself and about the seal of an Ed25519 key, with the signature of
// that key. Checking takes no TPM, and nothing of the machine that the
// evidence is about. docs/attestation.md tells what each point proves, and has
// the formats.
package attest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/did"
)

// Version is that of all the formats here.
const Version = 1

// Types of the formats.
const (
	evidenceType  = "icn-p11 attestation evidence"
	challengeType = "icn-p11 attestation challenge"
	stateType     = "icn-p11 attestation challenge state"
	responseType  = "icn-p11 attestation response"
	reportType    = "icn-p11 attestation report"
)

// Sizes in bytes.
const (
	// minNonce is the length of the shortest nonce: nobody can have prepared
	// evidence for one that was drawn at random.
	minNonce = 16
	maxNonce = 32

	// MaxFile bounds every file of this package.
	MaxFile = 128 << 10

	maxCertificates = 16
	maxCertificate  = 8 << 10
	maxStructure    = 2 << 10 // of a TPM structure
)

// Hex is written as hexadecimal digits.
type Hex []byte

// MarshalText implements encoding.TextMarshaler.
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hex) UnmarshalText(text []byte) (err error) {
	*h, err = hex.AppendDecode([]byte{}, text)
	return err
}

// Evidence is what a machine gives about a key. TPM structures are as the TPM
// gave them, without a size prefix, and in base64.
type Evidence struct {
	Type        string      `json:"type"`
	Version     int         `json:"version"`
	Nonce       Hex         `json:"nonce"`
	DID         string      `json:"did"`
	Endorsement Endorsement `json:"endorsement"`
	Key         []byte      `json:"attestation_key"` // TPMT_PUBLIC
	Quote       Quote       `json:"quote"`
	Creation    Creation    `json:"creation"`
	Signature   []byte      `json:"signature,omitempty"` // of the identity, over Message
}

// Endorsement is the TPM's endorsement key (EK).
type Endorsement struct {
	Public       []byte   `json:"public"`       // TPMT_PUBLIC
	Certificates [][]byte `json:"certificates"` // DER: the key's, then issuers'
}

// Quote is what TPM2_Quote states.
type Quote struct {
	Bank      string `json:"pcr_bank"`
	PCRs      []PCR  `json:"pcrs"`
	Statement []byte `json:"statement"` // TPMS_ATTEST
	Signature []byte `json:"signature"` // TPMT_SIGNATURE
}

// PCR is the value of one.
type PCR struct {
	PCR   int `json:"pcr"`
	Value Hex `json:"value"`
}

// Creation is what TPM2_CertifyCreation states about the key's seal.
type Creation struct {
	Seal []byte `json:"seal"` // TPMT_PUBLIC
	Data []byte `json:"data"` // TPMS_CREATION_DATA
	// Approver is the TPMT_PUBLIC of the key that approves the states of the
	// platform in which the seal opens; nil: it opens in any.
	Approver  []byte `json:"approver,omitempty"`
	Statement []byte `json:"statement"` // TPMS_ATTEST
	Signature []byte `json:"signature"` // TPMT_SIGNATURE
}

// New gives evidence with its fixed fields set.
func New(nonce []byte, public [ed25519.PublicKeySize]byte) *Evidence {
	return &Evidence{Type: evidenceType, Version: Version, Nonce: nonce, DID: did.Encode(public)}
}

// CheckNonce refuses a nonce that is too short to be unforeseeable, or too
// long.
func CheckNonce(nonce []byte) error {
	if len(nonce) < minNonce || len(nonce) > maxNonce {
		return fmt.Errorf("a nonce has %d to %d bytes, not %d", minNonce, maxNonce, len(nonce))
	}
	return nil
}

// QuoteData is what the TPM signs along with the PCRs.
func QuoteData(nonce []byte, public [ed25519.PublicKeySize]byte) []byte {
	return bound("icn-p11 attestation quote v1\x00", nonce, public)
}

// CreationData is what the TPM signs along with how it made the seal.
func CreationData(nonce []byte, public [ed25519.PublicKeySize]byte) []byte {
	return bound("icn-p11 attestation creation v1\x00", nonce, public)
}

// bound ties a statement of the TPM to nonce and key. The tag keeps one for
// another.
func bound(tag string, nonce []byte, public [ed25519.PublicKeySize]byte) []byte {
	d := sha256.Sum256(slices.Concat([]byte(tag), []byte{byte(len(nonce))}, nonce, public[:]))
	return d[:]
}

// Message is what the identity signs: all the evidence but the signature
// itself. Whoever holds the key vouches with it for all of it.
func (e *Evidence) Message() ([]byte, error) {
	unsigned := *e
	unsigned.Signature = nil
	text, err := json.Marshal(&unsigned)
	if err != nil {
		return nil, err
	}
	d := sha256.Sum256(text)
	return append([]byte("icn-p11 attestation identity v1\x00"), d[:]...), nil
}

// Digest names the evidence: SHA-256 of its text without white space.
func (e *Evidence) Digest() ([]byte, error) {
	text, err := json.Marshal(e)
	d := sha256.Sum256(text)
	return d[:], err
}

// Encode writes one of this package's formats for a file.
func Encode(v any) ([]byte, error) {
	text, err := json.MarshalIndent(v, "", "  ")
	return append(text, '\n'), err
}

// decode reads one of this package's formats. But for white space there is one
// text for each content: what is unknown, written twice, in another order or
// in another way is refused.
func decode(data []byte, into any) error {
	if len(data) > MaxFile {
		return fmt.Errorf("it has more than %d KiB", MaxFile>>10)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return errors.New("it is empty")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	var given bytes.Buffer
	if err := json.Compact(&given, data); err != nil {
		return err // something stands behind it
	}
	text, err := json.Marshal(into)
	if err == nil && !bytes.Equal(text, given.Bytes()) {
		err = errors.New("it is not written as this version writes it: members are missing, doubled, or in another order")
	}
	return err
}

// structure reads a TPM structure, with nothing behind it.
func structure[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](data []byte) (*T, error) {
	if len(data) == 0 || len(data) > maxStructure {
		return nil, fmt.Errorf("it has %d bytes", len(data))
	}
	v, err := tpm2.Unmarshal[T, P](data)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(*v), data) {
		return nil, errors.New("bytes are left over")
	}
	return v, nil
}

// parsed is evidence with its structures taken apart.
type parsed struct {
	*Evidence
	public         ed25519.PublicKey
	ek, ak         *tpm2.TPMTPublic
	ekName, akName []byte
	quote          *tpm2.TPMSAttest
	quoteSig       *tpm2.TPMTSignature
	seal           *tpm2.TPMTPublic
	sealName       []byte
	data           *tpm2.TPMSCreationData
	approver       *tpm2.TPMTPublic // nil: none
	creation       *tpm2.TPMSAttest
	creationSig    *tpm2.TPMTSignature
}

// banks are the hash algorithms of PCR banks.
var banks = map[string]tpm2.TPMAlgID{
	"sha1": tpm2.TPMAlgSHA1, "sha256": tpm2.TPMAlgSHA256, "sha384": tpm2.TPMAlgSHA384, "sha512": tpm2.TPMAlgSHA512,
}

// parse reads evidence strictly. It does not say that anything in it is true.
func parse(data []byte) (*parsed, error) {
	e := &Evidence{}
	if err := decode(data, e); err != nil {
		return nil, err
	}
	if err := kind(e.Type, e.Version, evidenceType); err != nil {
		return nil, err
	}
	if err := CheckNonce(e.Nonce); err != nil {
		return nil, err
	}
	key, err := did.Parse(e.DID)
	if err != nil {
		return nil, err
	}
	if did.Encode(key) != e.DID {
		return nil, errors.New("its DID is not in base58btc")
	}
	if len(e.Signature) != ed25519.SignatureSize {
		return nil, fmt.Errorf("its signature has %d bytes", len(e.Signature))
	}
	if err := e.Endorsement.check(); err != nil {
		return nil, err
	}
	if err := e.Quote.check(); err != nil {
		return nil, err
	}
	p := &parsed{Evidence: e, public: key[:]}
	return p, p.structures()
}

func (e *Endorsement) check() error {
	if e.Certificates == nil || len(e.Certificates) > maxCertificates {
		return fmt.Errorf("not 0 to %d certificates", maxCertificates)
	}
	for _, c := range e.Certificates {
		if len(c) == 0 || len(c) > maxCertificate {
			return fmt.Errorf("a certificate has %d bytes", len(c))
		}
	}
	return nil
}

func (q *Quote) check() error {
	hash, err := banks[q.Bank].Hash()
	if err != nil {
		return errors.New("its pcr_bank is none of sha1, sha256, sha384, sha512")
	}
	if len(q.PCRs) == 0 {
		return errors.New("it has no PCRs")
	}
	last := -1
	for _, r := range q.PCRs {
		if r.PCR <= last || r.PCR > 23 {
			return errors.New("its PCRs are not between 0 and 23, in rising order")
		}
		if len(r.Value) != hash.Size() {
			return fmt.Errorf("the value of PCR %d has %d bytes", r.PCR, len(r.Value))
		}
		last = r.PCR
	}
	return nil
}

// structures takes the TPM's structures apart.
func (p *parsed) structures() (err error) {
	read := func(what string, f func() error) {
		if err == nil {
			if e := f(); e != nil {
				err = fmt.Errorf("%s: %w", what, e)
			}
		}
	}
	object := func(what string, data []byte, public **tpm2.TPMTPublic, name *[]byte) {
		read(what, func() (err error) {
			if *public, err = structure[tpm2.TPMTPublic](data); err != nil {
				return err
			}
			n, err := tpm2.ObjectName(*public)
			if err == nil {
				*name = n.Buffer
			}
			return err
		})
	}
	statement := func(what string, data, signature []byte, s **tpm2.TPMSAttest, sig **tpm2.TPMTSignature) {
		read(what, func() (err error) {
			*s, err = structure[tpm2.TPMSAttest](data)
			return err
		})
		read("the signature of "+what, func() (err error) {
			*sig, err = structure[tpm2.TPMTSignature](signature)
			return err
		})
	}
	object("the endorsement key", p.Endorsement.Public, &p.ek, &p.ekName)
	object("the attestation key", p.Key, &p.ak, &p.akName)
	statement("the quote", p.Quote.Statement, p.Quote.Signature, &p.quote, &p.quoteSig)
	object("the seal", p.Creation.Seal, &p.seal, &p.sealName)
	read("the seal's creation data", func() (err error) {
		p.data, err = structure[tpm2.TPMSCreationData](p.Creation.Data)
		return err
	})
	if p.Creation.Approver != nil {
		var name []byte
		object("the approver", p.Creation.Approver, &p.approver, &name)
	}
	statement("the seal's certificate of creation", p.Creation.Statement, p.Creation.Signature, &p.creation, &p.creationSig)
	return err
}
