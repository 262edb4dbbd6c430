package attest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// Challenge asks a machine whether the two keys of its evidence are in one
// TPM. It is no secret.
type Challenge struct {
	Type     string `json:"type"`
	Version  int    `json:"version"`
	Evidence Hex    `json:"evidence"` // its digest
	// Names of the keys, by which a machine sees that the challenge is not for
	// it.
	EndorsementKey Hex    `json:"endorsement_key"`
	AttestationKey Hex    `json:"attestation_key"`
	Credential     []byte `json:"credential"` // TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET
}

// State is what the verifier keeps until the response. Nobody can make the
// response from it, but whoever can change it can have any one accepted.
type State struct {
	Type     string `json:"type"`
	Version  int    `json:"version"`
	Evidence Hex    `json:"evidence"` // its digest
	Response Hex    `json:"response"` // SHA-256 of the right one's MAC
}

// Response answers a challenge.
type Response struct {
	Type     string `json:"type"`
	Version  int    `json:"version"`
	Evidence Hex    `json:"evidence"` // its digest
	MAC      Hex    `json:"mac"`
}

// SecretSize is the size of the secret in a challenge, in bytes.
const SecretSize = 32

// NewChallenge makes a challenge for evidence. Whoever opens the secret in it
// holds both keys; credential encrypts it to the endorsement key, for a key of
// that Name (tpm.Credential).
func NewChallenge(data, secret []byte, credential func(ek, name, secret []byte) ([]byte, error)) (*Challenge, *State, error) {
	if len(secret) != SecretSize {
		return nil, nil, fmt.Errorf("the secret of a challenge has %d bytes, not %d", SecretSize, len(secret))
	}
	e, err := parse(data)
	if err != nil {
		return nil, nil, err
	}
	digest, err := e.Digest()
	if err != nil {
		return nil, nil, err
	}
	c, err := credential(e.Endorsement.Public, e.akName, secret)
	if err != nil {
		return nil, nil, err
	}
	expected := sha256.Sum256(responseMAC(digest, secret))
	return &Challenge{challengeType, Version, digest, e.ekName, e.akName, c}, &State{stateType, Version, digest, expected[:]}, nil
}

// For tells whether a challenge is for a machine with these keys, given as
// TPMT_PUBLIC.
func (c *Challenge) For(ek, ak []byte) (bool, error) {
	for _, key := range []struct{ public, name []byte }{{ek, c.EndorsementKey}, {ak, c.AttestationKey}} {
		public, err := structure[tpm2.TPMTPublic](key.public)
		if err != nil {
			return false, err
		}
		name, err := tpm2.ObjectName(public)
		if err != nil || !bytes.Equal(name.Buffer, key.name) {
			return false, err
		}
	}
	return true, nil
}

// Respond answers a challenge with the secret that was in it.
func (c *Challenge) Respond(secret []byte) *Response {
	return &Response{responseType, Version, c.Evidence, responseMAC(c.Evidence, secret)}
}

// responseMAC binds the answer to the evidence that the challenge was for.
func responseMAC(digest, secret []byte) (mac []byte) {
	secmem.Compute(func() {
		h := hmac.New(sha256.New, secret)
		h.Write([]byte("icn-p11 attestation response v1\x00"))
		h.Write(digest)
		mac = h.Sum(nil)
	})
	return mac
}

// check compares a response with the expected one.
func (s *State) check(digest []byte, r *Response) error {
	mac := sha256.Sum256(r.MAC)
	switch {
	case !bytes.Equal(s.Evidence, digest):
		return errors.New("the challenge was for other evidence than this")
	case !bytes.Equal(r.Evidence, digest):
		return errors.New("the response is about other evidence than this")
	case !bytes.Equal(mac[:], s.Response):
		return errors.New("the response is wrong: the attestation key is not in the TPM of this endorsement key")
	}
	return nil
}

// ParseChallenge reads a challenge strictly.
func ParseChallenge(data []byte) (*Challenge, error) {
	c := &Challenge{}
	if err := decode(data, c); err != nil {
		return nil, err
	}
	if err := kind(c.Type, c.Version, challengeType); err != nil {
		return nil, err
	}
	if len(c.Evidence) != sha256.Size || len(c.EndorsementKey) == 0 || len(c.EndorsementKey) > maxName ||
		len(c.AttestationKey) == 0 || len(c.AttestationKey) > maxName || len(c.Credential) == 0 || len(c.Credential) > maxStructure {
		return nil, errors.New("a member has an impossible size")
	}
	return c, nil
}

// maxName is the size of the longest Name: that by SHA-512.
const maxName = 2 + 64

// ParseState reads a verifier's state strictly.
func ParseState(data []byte) (*State, error) {
	s := &State{}
	if err := decode(data, s); err != nil {
		return nil, err
	}
	if err := kind(s.Type, s.Version, stateType); err != nil {
		return nil, err
	}
	if len(s.Evidence) != sha256.Size || len(s.Response) != sha256.Size {
		return nil, errors.New("a member has an impossible size")
	}
	return s, nil
}

// ParseResponse reads a response strictly.
func ParseResponse(data []byte) (*Response, error) {
	r := &Response{}
	if err := decode(data, r); err != nil {
		return nil, err
	}
	if err := kind(r.Type, r.Version, responseType); err != nil {
		return nil, err
	}
	if len(r.Evidence) != sha256.Size || len(r.MAC) != sha256.Size {
		return nil, errors.New("a member has an impossible size")
	}
	return r, nil
}

func kind(got string, version int, want string) error {
	if got != want || version != Version {
		return fmt.Errorf("it is no %s of version %d", want, Version)
	}
	return nil
}
