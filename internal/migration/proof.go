package migration

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// MaxProof is the size of the largest proof, in bytes.
const MaxProof = 1 << 20

// Proof shows that the target of a parcel holds every Ed25519 key in it: each
// has signed the challenge that only who opens the parcel finds.
type Proof struct {
	Offer      ID
	Serial     Serial
	RootName   []byte
	Nonce      [nonceSize]byte
	Signatures []Signature // by rising public key
}

// Signature is that of one key.
type Signature struct {
	Public    [ed25519.PublicKeySize]byte
	Signature [ed25519.SignatureSize]byte
}

type proofText struct {
	Type       string          `json:"type"`
	Version    int             `json:"version"`
	Offer      hexBytes        `json:"offer"`
	Serial     hexBytes        `json:"serial"`
	RootName   hexBytes        `json:"srk_name"`
	Nonce      hexBytes        `json:"nonce"`
	Signatures []signatureText `json:"signatures"`
}

type signatureText struct {
	Public    hexBytes `json:"public"`
	Signature hexBytes `json:"signature"`
}

const proofType = "icn-p11 migration proof"

// Encode gives the text of a proof.
func (p *Proof) Encode() []byte {
	t := proofText{Type: proofType, Version: version, Offer: p.Offer[:], Serial: p.Serial[:], RootName: p.RootName, Nonce: p.Nonce[:]}
	for i := range p.Signatures {
		s := &p.Signatures[i]
		t.Signatures = append(t.Signatures, signatureText{s.Public[:], s.Signature[:]})
	}
	return encodeText(t)
}

// ParseProof reads the text of a proof. It says nothing of its signatures.
func ParseProof(data []byte) (*Proof, error) {
	p, err := parseProof(data)
	if err != nil {
		return nil, fmt.Errorf("this is no proof of a migration: %w", err)
	}
	return p, nil
}

func parseProof(data []byte) (*Proof, error) {
	var t proofText
	if err := decodeText(data, MaxProof, &t); err != nil {
		return nil, err
	}
	switch {
	case t.Type != proofType:
		return nil, fmt.Errorf("its type is %q, not %q", t.Type, proofType)
	case t.Version != version:
		return nil, fmt.Errorf("its version is %d, but this program knows %d only", t.Version, version)
	case len(t.Signatures) == 0:
		return nil, errors.New("it has no signature")
	}
	p := &Proof{RootName: t.RootName}
	if !t.Offer.sized(p.Offer[:]) || !t.Serial.sized(p.Serial[:]) || len(p.RootName) != nameSize || !t.Nonce.sized(p.Nonce[:]) {
		return nil, errors.New("a part of it has not the right size")
	}
	for _, s := range t.Signatures {
		var sig Signature
		if !s.Public.sized(sig.Public[:]) || !s.Signature.sized(sig.Signature[:]) {
			return nil, errors.New("a signature has not the right size")
		}
		if last := len(p.Signatures) - 1; last >= 0 && bytes.Compare(p.Signatures[last].Public[:], sig.Public[:]) >= 0 {
			return nil, errors.New("the signatures are not in order")
		}
		p.Signatures = append(p.Signatures, sig)
	}
	return p, nil
}

// message is what each key signs. No other program signs anything that begins
// like it.
func (p *Proof) message() []byte {
	return slices.Concat([]byte("icn-p11 1 migration proof\x00"), p.Offer[:], p.Serial[:], p.RootName, p.Nonce[:])
}

// Expected is what the source remembers of a parcel, to know the proof of its
// arrival. The challenge is not among it, so that the source cannot make the
// proof itself.
type Expected struct {
	Offer    ID
	Serial   Serial
	RootName []byte
	Nonce    [sha256.Size]byte // SHA-256 of the challenge
	Keys     [sha256.Size]byte // of the public keys, in order
}

var (
	errOtherProof = errors.New("the proof is of another migration than the one that is pending")
	errBadProof   = errors.New("the proof is forged or altered: a signature is wrong")
)

// Check tells whether a proof is the one that is expected.
func (p *Proof) Check(e Expected) error {
	var keys [][]byte
	for i := range p.Signatures {
		keys = append(keys, p.Signatures[i].Public[:])
	}
	if p.Offer != e.Offer || p.Serial != e.Serial || !bytes.Equal(p.RootName, e.RootName) || sha256.Sum256(p.Nonce[:]) != e.Nonce || keysDigest(keys) != e.Keys {
		return errOtherProof
	}
	return p.verify()
}

func (p *Proof) verify() error {
	message := p.message()
	for i := range p.Signatures {
		s := &p.Signatures[i]
		if !eddsa.Verify(s.Public[:], message, s.Signature[:], eddsa.Params{}) {
			return errBadProof
		}
	}
	return nil
}

// Proves tells whether a proof is of this parcel, with all its keys.
func (x *Opened) Proves(p *Proof) bool {
	var keys [][]byte
	for _, o := range x.in.objects {
		if isKey(o.about) {
			keys = append(keys, o.about)
		}
	}
	return p.Check(Expected{Offer: x.Offer, Serial: x.Serial, RootName: x.RootName, Nonce: sha256.Sum256(x.in.nonce[:]), Keys: keysDigest(keys)}) == nil
}

// Prove makes the proof. unseal writes the secret of an object, as the target
// has sealed it, to secret memory, and gives its length.
func (x *Opened) Prove(unseal func(id sealstore.ID, dst []byte) (int, error)) (*Proof, error) {
	p := &Proof{Offer: x.Offer, Serial: x.Serial, RootName: x.RootName, Nonce: x.in.nonce}
	message := p.message()
	seed, err := secmem.New(sealstore.MaxSecret)
	if err != nil {
		return nil, err
	}
	defer seed.Destroy()
	for _, o := range x.in.objects {
		if !isKey(o.about) || slices.ContainsFunc(p.Signatures, func(s Signature) bool { return bytes.Equal(s.Public[:], o.about) }) {
			continue
		}
		n, err := unseal(o.id, seed.Bytes())
		if err != nil {
			return nil, err
		}
		s, err := sign(seed.Bytes()[:n], o.about, message)
		if err != nil {
			return nil, fmt.Errorf("object %x: %w", o.id, err)
		}
		p.Signatures = append(p.Signatures, s)
	}
	if len(p.Signatures) == 0 {
		return nil, ErrNoKey
	}
	slices.SortFunc(p.Signatures, func(a, b Signature) int { return bytes.Compare(a.Public[:], b.Public[:]) })
	return p, nil
}

// ErrNoKey: possession of a token is proved by its Ed25519 keys.
var ErrNoKey = errors.New("the token has no Ed25519 key, by which its arrival could be proved")

// sign signs with a seed, after it has made sure whose it is.
func sign(seed, public, message []byte) (s Signature, err error) {
	k, err := eddsa.NewKey(seed)
	if err != nil {
		return s, err
	}
	defer k.Destroy()
	if s.Public = k.Public(); !bytes.Equal(s.Public[:], public) {
		return s, errWrongKey
	}
	err = k.Sign(s.Signature[:], eddsa.Params{}, message)
	return s, err
}

var errWrongKey = errors.New("the key is not the one that its public half says")

// isKey tells whether a seal is of an Ed25519 key, whose public half it is about.
func isKey(about []byte) bool { return len(about) == ed25519.PublicKeySize }

// checkKey makes sure that the secret of a key is that of its public half.
func checkKey(o *sealstore.Content) error {
	if !isKey(o.About) {
		return nil
	}
	public, err := eddsa.PublicOf(o.Secret)
	if err != nil {
		return err
	}
	if !bytes.Equal(public[:], o.About) {
		return errWrongKey
	}
	return nil
}

// keysDigest is that of public keys, each taken once.
func keysDigest(keys [][]byte) [sha256.Size]byte {
	slices.SortFunc(keys, bytes.Compare)
	return sha256.Sum256(slices.Concat(slices.CompactFunc(keys, bytes.Equal)...))
}
