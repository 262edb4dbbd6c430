// Package memseal is a sealstore.Sealer without a TPM, for tests. It keeps the
// rules that the store depends on: what is sealed opens under one parent and
// one authorisation value only, wrong values are counted, and a blob that was
// altered or comes from elsewhere is refused.
package memseal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// Op is an operation of a Sealer, as counted and as made to fail.
type Op string

// The operations.
const (
	OpParent     Op = "Parent"
	OpDevice     Op = "Device"
	OpSeal       Op = "Seal"
	OpNewKey     Op = "NewKey"
	OpSign       Op = "Sign"
	OpUnseal     Op = "Unseal"
	OpTryLoad    Op = "TryLoad"
	OpChangeAuth Op = "ChangeAuth"
	OpRandom     Op = "Random"
	OpLockout    Op = "Lockout"
)

// MaxTries is the number of wrong authorisation values that leads to lockout.
const MaxTries = 5

const (
	magic     = "MEMS"
	nameSize  = 16
	authSize  = 32
	maxSecret = 128
)

// Sealer implements sealstore.Sealer.
type Sealer struct {
	mu       sync.Mutex
	aead     cipher.AEAD
	parent   []byte
	device   [32]byte
	tries    uint32
	pcrs     [24][32]byte
	counts   map[Op]int
	fail     func(Op) error
	released int
	closed   bool
}

var _ sealstore.Sealer = (*Sealer)(nil)

// New returns a device of its own.
func New() *Sealer {
	var key [32]byte
	rand.Read(key[:])
	return WithKey(key)
}

// WithKey returns the device that a key stands for, so that several processes
// can have the same one. Each counts wrong tries on its own.
func WithKey(key [32]byte) *Sealer {
	b, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(b)
	if err != nil {
		panic(err)
	}
	name := sha256.Sum256(append([]byte("memseal parent"), key[:]...))
	return &Sealer{device: sha256.Sum256(append([]byte("memseal device"), key[:]...)), aead: aead, parent: append([]byte{0x00, 0x0b}, name[:]...), counts: map[Op]int{}}
}

// Fail has f decide about every operation from now on; nil lets all through.
func (s *Sealer) Fail(f func(Op) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

// Count returns how often an operation was asked for.
func (s *Sealer) Count(op Op) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[op]
}

// Commands returns how many operations were asked for in all.
func (s *Sealer) Commands() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.counts {
		n += c
	}
	return n
}

// Released returns how often Release was called.
func (s *Sealer) Released() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.released
}

// ResetLockout forgets the wrong tries, as time does.
func (s *Sealer) ResetLockout() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tries = 0
}

// ReplaceParent gives the device another storage root key, as TPM2_Clear does.
func (s *Sealer) ReplaceParent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parent = append([]byte(nil), s.parent...)
	s.parent[len(s.parent)-1] ^= 1
}

// begin counts an operation. s.mu is held.
func (s *Sealer) begin(op Op) error {
	s.counts[op]++
	if s.closed {
		return fmt.Errorf("memseal: %w: closed", sealstore.ErrUnavailable)
	}
	if s.fail != nil {
		return s.fail(op)
	}
	return nil
}

// Parent implements sealstore.Sealer.
func (s *Sealer) Parent() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpParent); err != nil {
		return nil, err
	}
	return bytes.Clone(s.parent), nil
}

// Device implements sealstore.Sealer.
func (s *Sealer) Device() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpDevice); err != nil {
		return nil, err
	}
	return bytes.Clone(s.device[:]), nil
}

// Seal implements sealstore.Sealer.
func (s *Sealer) Seal(parent, secret, auth []byte, o sealstore.SealOptions) (sealstore.Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpSeal); err != nil {
		return sealstore.Blob{}, err
	}
	if err := s.checkParent(parent); err != nil {
		return sealstore.Blob{}, err
	}
	if len(secret) == 0 || len(secret) > maxSecret {
		return sealstore.Blob{}, fmt.Errorf("memseal: a secret of %d bytes", len(secret))
	}
	public := s.public(o)
	b, err := s.wrap(public, auth, secret)
	b.Binding = o.Binding
	if len(o.About) > 0 {
		data := append(bytes.Clone(public), o.About...)
		ticket := sha256.Sum256(append(bytes.Clone(s.device[:]), data...))
		b.Creation = &sealstore.Creation{About: bytes.Clone(o.About), Data: data, Ticket: ticket[:]}
	}
	return b, err
}

// Movable tells whether a seal was made as one.
func Movable(b sealstore.Blob) bool {
	return len(b.Public) > len(magic) && b.Public[len(magic)]&flagMovable != 0
}

// public makes a public part.
func (s *Sealer) public(o sealstore.SealOptions) []byte {
	public := append([]byte(magic), 0)
	if o.DictionaryAttack {
		public[len(magic)] |= flagLockout
	}
	if o.Movable {
		public[len(magic)] |= flagMovable
	}
	public = append(public, random(nameSize)...)
	if o.Binding != nil {
		public[len(magic)] |= flagBound
		h := sha256.Sum256(o.Binding.Approver)
		public = append(public, h[:]...)
	}
	return public
}

// wrap encrypts under the public part, as a TPM wraps under the object's Name.
func (s *Sealer) wrap(public, auth, secret []byte) (sealstore.Blob, error) {
	if len(auth) != 0 && len(auth) != authSize {
		return sealstore.Blob{}, fmt.Errorf("memseal: an authorisation value of %d bytes", len(auth))
	}
	plain := append([]byte{byte(len(auth))}, auth...)
	plain = append(plain, secret...)
	nonce := random(s.aead.NonceSize())
	private := s.aead.Seal(nonce, nonce, plain, append(bytes.Clone(s.parent), public...))
	clear(plain)
	return sealstore.Blob{Public: public, Private: private}, nil
}

// Unseal implements sealstore.Sealer.
func (s *Sealer) Unseal(parent []byte, b sealstore.Blob, auth, dst []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpUnseal); err != nil {
		return 0, err
	}
	secret, err := s.unwrap(parent, b, auth, true)
	if err != nil {
		return 0, err
	}
	defer clear(secret)
	if len(secret) > len(dst) {
		return 0, fmt.Errorf("memseal: %d bytes do not fit into %d", len(secret), len(dst))
	}
	return copy(dst, secret), nil
}

// ChangeAuth implements sealstore.Sealer.
func (s *Sealer) ChangeAuth(parent []byte, b sealstore.Blob, oldAuth, newAuth []byte) (sealstore.Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpChangeAuth); err != nil {
		return sealstore.Blob{}, err
	}
	// Changing the value is the administrator's role: no policy is asked for.
	secret, err := s.unwrap(parent, b, oldAuth, false)
	if err != nil {
		return sealstore.Blob{}, err
	}
	defer clear(secret)
	changed, err := s.wrap(bytes.Clone(b.Public), newAuth, secret)
	changed.Binding = b.Binding
	return changed, err
}

// TryLoad implements sealstore.Sealer.
func (s *Sealer) TryLoad(parent []byte, b sealstore.Blob) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpTryLoad); err != nil {
		return err
	}
	plain, err := s.load(parent, b)
	clear(plain)
	return err
}

// load gives the authorisation value, behind its length, and the secret.
func (s *Sealer) load(parent []byte, b sealstore.Blob) ([]byte, error) {
	if err := s.checkParent(parent); err != nil {
		return nil, err
	}
	size := len(magic) + 1 + nameSize
	if len(b.Public) > len(magic) && b.Public[len(magic)]&flagBound != 0 {
		size += sha256.Size
	}
	if len(b.Public) != size || string(b.Public[:len(magic)]) != magic || len(b.Private) < s.aead.NonceSize() {
		return nil, fmt.Errorf("memseal: %w", sealstore.ErrBlob)
	}
	n := s.aead.NonceSize()
	plain, err := s.aead.Open(nil, b.Private[:n], b.Private[n:], append(bytes.Clone(s.parent), b.Public...))
	if err != nil {
		return nil, fmt.Errorf("memseal: %w", sealstore.ErrBlob)
	}
	return plain, nil
}

func (s *Sealer) unwrap(parent []byte, b sealstore.Blob, auth []byte, policy bool) ([]byte, error) {
	plain, err := s.load(parent, b)
	if err != nil {
		return nil, err
	}
	if policy {
		if err := s.checkBinding(b); err != nil {
			clear(plain)
			return nil, err
		}
	}
	counts := b.Public[len(magic)]&flagLockout != 0
	if counts && s.tries >= MaxTries {
		clear(plain)
		return nil, fmt.Errorf("memseal: %w", sealstore.ErrLockout)
	}
	k := int(plain[0])
	if subtle.ConstantTimeCompare(plain[1:1+k], auth) != 1 {
		clear(plain)
		if counts {
			s.tries++
		}
		return nil, fmt.Errorf("memseal: %w", sealstore.ErrAuth)
	}
	return plain[1+k:], nil
}

func (s *Sealer) checkParent(parent []byte) error {
	if !bytes.Equal(parent, s.parent) {
		return fmt.Errorf("memseal: %w", sealstore.ErrParent)
	}
	return nil
}

// Random implements sealstore.Sealer.
func (s *Sealer) Random(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpRandom); err != nil {
		return err
	}
	_, err := rand.Read(p)
	return err
}

// Lockout implements sealstore.Sealer.
func (s *Sealer) Lockout() (sealstore.Lockout, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(OpLockout); err != nil {
		return sealstore.Lockout{}, err
	}
	return sealstore.Lockout{
		Counter: s.tries, Max: MaxTries, Interval: 10 * time.Minute, Recovery: time.Hour,
		InLockout: s.tries >= MaxTries,
	}, nil
}

// Release implements sealstore.Sealer.
func (s *Sealer) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released++
}

// Close implements sealstore.Sealer.
func (s *Sealer) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("memseal: closed twice")
	}
	s.closed = true
	return nil
}

func random(n int) []byte {
	p := make([]byte, n)
	rand.Read(p)
	return p
}
