package memseal

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

var curves = map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384()}

// NewKey implements sealstore.Sealer.
func (s *Sealer) NewKey(parent []byte, curve string, auth []byte, o sealstore.SealOptions) (b sealstore.Blob, public []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpNewKey); err != nil {
		return b, nil, err
	}
	if err := s.checkParent(parent); err != nil {
		return b, nil, err
	}
	c, ok := curves[curve]
	if !ok {
		return b, nil, fmt.Errorf("memseal: %s: %w", curve, sealstore.ErrCurve)
	}
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		return b, nil, err
	}
	raw, err := k.Bytes()
	if err != nil {
		return b, nil, err
	}
	defer clear(raw)
	if public, err = k.PublicKey.Bytes(); err != nil {
		return b, nil, err
	}
	b, err = s.wrap(s.public(o), auth, append([]byte(curve), raw...))
	b.Binding = o.Binding
	return b, public, err
}

// Sign implements sealstore.Sealer.
func (s *Sealer) Sign(parent []byte, b sealstore.Blob, auth []byte, digest []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpSign); err != nil {
		return nil, err
	}
	secret, err := s.unwrap(parent, b, auth, true)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	const name = len("P-256")
	if len(secret) < name || curves[string(secret[:name])] == nil {
		return nil, fmt.Errorf("memseal: %w: it is no key", sealstore.ErrBlob)
	}
	c := curves[string(secret[:name])]
	size := (c.Params().BitSize + 7) / 8
	if len(digest) != size {
		return nil, fmt.Errorf("memseal: a digest of %d bytes for a key of %d", len(digest), size)
	}
	k, err := ecdsa.ParseRawPrivateKey(c, secret[name:])
	if err != nil {
		return nil, err
	}
	x, y, err := ecdsa.Sign(rand.Reader, k, digest)
	if err != nil {
		return nil, err
	}
	return slices.Concat(x.FillBytes(make([]byte, size)), y.FillBytes(make([]byte, size))), nil
}
