package migration

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// MaxOffer is the size of the largest offer, in bytes.
const MaxOffer = 64 << 10

// maxCertificates bounds how many certificates an offer has.
const maxCertificates = 16

// Offer says to what a token can be sent. Nothing in it is confidential, but
// all of it matters: whoever exchanges it receives the token. So its sender
// compares its Fingerprint.
type Offer struct {
	ID ID
	// Key is the offer's own, for X25519. Its private half stays in the
	// target's store and is destroyed with the offer.
	Key         [KeySize]byte
	RootName    []byte          // of the target's storage root key
	RootPublic  []byte          // TPMT_PUBLIC
	Endorsement tpm.Endorsement // of the target's TPM
}

// KeySize is that of an offer's key and its private half, in bytes.
const KeySize = 32

type offerText struct {
	Type         string        `json:"type"`
	Version      int           `json:"version"`
	ID           hexBytes      `json:"id"`
	Key          hexBytes      `json:"key"`
	RootName     hexBytes      `json:"srk_name"`
	RootPublic   hexBytes      `json:"srk_public"`
	EKPublic     hexBytes      `json:"ek_public"`
	Certificates []base64Bytes `json:"ek_certificates"`
}

const offerType = "icn-p11 migration offer"

// NewOffer draws the identifier and the key of an offer. The private half goes
// to secret, which is secret memory.
func NewOffer(secret []byte) (*Offer, error) {
	o := new(Offer)
	if _, err := rand.Read(o.ID[:]); err != nil {
		return nil, err
	}
	var err error
	secmem.Compute(func() {
		var k *ecdh.PrivateKey
		if k, err = ecdh.X25519().GenerateKey(rand.Reader); err == nil {
			raw := k.Bytes()
			copy(secret, raw)
			secmem.Wipe(raw)
			copy(o.Key[:], k.PublicKey().Bytes())
		}
	})
	return o, err
}

// Encode gives the text of an offer.
func (o *Offer) Encode() []byte {
	t := offerText{
		Type: offerType, Version: version, ID: o.ID[:], Key: o.Key[:],
		RootName: o.RootName, RootPublic: o.RootPublic, EKPublic: o.Endorsement.Public, Certificates: []base64Bytes{},
	}
	for _, c := range o.Endorsement.Certificates {
		t.Certificates = append(t.Certificates, c)
	}
	return encodeText(t)
}

// Fingerprint is the SHA-256 of the text, in hexadecimal digits.
func (o *Offer) Fingerprint() string {
	sum := sha256.Sum256(o.Encode())
	return hex.EncodeToString(sum[:])
}

// ParseOffer reads the text of an offer. It checks that the storage root key is
// one that nothing leaves again, and has the Name that is claimed; it cannot
// tell whose TPM it is.
func ParseOffer(data []byte) (*Offer, error) {
	o, err := parseOffer(data)
	if err != nil {
		return nil, fmt.Errorf("the offer is of no use: %w", err)
	}
	return o, nil
}

func parseOffer(data []byte) (*Offer, error) {
	var t offerText
	if err := decodeText(data, MaxOffer, &t); err != nil {
		return nil, err
	}
	switch {
	case t.Type != offerType:
		return nil, fmt.Errorf("its type is %q, not %q", t.Type, offerType)
	case t.Version != version:
		return nil, fmt.Errorf("its version is %d, but this program knows %d only", t.Version, version)
	case len(t.Certificates) > maxCertificates:
		return nil, fmt.Errorf("it has %d certificates, more than %d", len(t.Certificates), maxCertificates)
	case t.Certificates == nil:
		return nil, errors.New("it has no list of certificates")
	}
	o := &Offer{RootName: t.RootName, RootPublic: t.RootPublic, Endorsement: tpm.Endorsement{Public: t.EKPublic}}
	if !t.ID.sized(o.ID[:]) || !t.Key.sized(o.Key[:]) {
		return nil, errors.New("its identifier or key has not the right size")
	}
	if _, err := ecdh.X25519().NewPublicKey(o.Key[:]); err != nil {
		return nil, err
	}
	for _, c := range t.Certificates {
		if len(c) == 0 {
			return nil, errors.New("it has an empty certificate")
		}
		o.Endorsement.Certificates = append(o.Endorsement.Certificates, c)
	}
	name, err := tpm.RootName(o.RootPublic)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(name, o.RootName) {
		return nil, errors.New("the Name of its storage root key does not follow from the public part")
	}
	if _, err := tpm.Credential(o.Endorsement.Public, name, make([]byte, tpm.MaxCredential)); err != nil {
		return nil, err
	}
	return o, nil
}
