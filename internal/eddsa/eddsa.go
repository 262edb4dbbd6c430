// Package eddsa makes and checks Ed25519 signatures (RFC 8032, section 5.1)
// with private keys that stay in secret memory.
//
// crypto/ed25519 is used for verification alone: its private-key functions
// keep copies of the expanded key on the Go heap. The signer here keeps seed,
// scalar and prefix in one secret page, and what it derives from them on the
// stack, inside [secmem.Compute].
package eddsa

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"filippo.io/edwards25519"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// Sizes in bytes.
const (
	SeedSize      = 32
	PublicKeySize = 32
	SignatureSize = 64
)

// maxContext is the length of the longest context, in bytes.
const maxContext = 255

// Variant is one of the three signature schemes of RFC 8032, section 5.1.
type Variant int

const (
	Pure Variant = iota // Ed25519
	Ctx                 // Ed25519ctx
	Ph                  // Ed25519ph
)

func (v Variant) String() string {
	return [...]string{Pure: "Ed25519", Ctx: "Ed25519ctx", Ph: "Ed25519ph"}[v]
}

// Params says how a message is signed. Pure takes no context; Ctx takes one
// that is not empty; Ph may have one.
type Params struct {
	Variant Variant
	Context []byte
}

var (
	errParams = errors.New("eddsa: context does not fit the variant")
	errWiped  = errors.New("eddsa: the key was wiped")
)

func (p Params) check() error {
	n := len(p.Context)
	if n > maxContext || p.Variant == Pure && n != 0 || p.Variant == Ctx && n == 0 {
		return errParams
	}
	return nil
}

// Key is an expanded private key.
type Key struct {
	buf    *secmem.Buffer
	secret *expanded // in buf
	public [PublicKeySize]byte
}

// expanded is the layout of a key's secret page. The scalar is kept as the
// library computes with it, so that a signature does not convert it.
type expanded struct {
	scalar edwards25519.Scalar
	seed   [SeedSize]byte
	prefix [32]byte
}

// Known stands for a seed whose key was made before: it tells that seed again,
// and its public key. The hash gives away no more of the seed than the public
// key does; a salt makes it one of this process alone.
type Known struct {
	salt, hash [sha256.Size]byte
	public     [PublicKeySize]byte
}

// Known gives what NewKey of a [Known] needs to tell the key again. It must
// not run beside Destroy.
func (k *Key) Known() *Known {
	n := &Known{public: k.public}
	rand.Read(n.salt[:]) // never fails since Go 1.24
	secmem.Compute(func() { n.hash = n.hashOf(k.secret.seed[:]) })
	return n
}

func (n *Known) hashOf(seed []byte) [sha256.Size]byte {
	var in [sha256.Size + SeedSize]byte
	copy(in[copy(in[:], n.salt[:]):], seed)
	defer secmem.Wipe(in[:])
	return sha256.Sum256(in[:])
}

// NewKey expands a seed of 32 bytes. The seed is copied; the caller wipes its own.
func NewKey(seed []byte) (*Key, error) { return (*Known)(nil).NewKey(seed) }

// NewKey is the function of that name, and spares it most of the time where
// the seed is the known one: its public key need not be computed. A nil Known
// knows none.
func (n *Known) NewKey(seed []byte) (*Key, error) {
	if len(seed) != SeedSize {
		return nil, fmt.Errorf("eddsa: a seed has %d bytes, not %d", SeedSize, len(seed))
	}
	buf, err := secmem.New(int(unsafe.Sizeof(expanded{})))
	if err != nil {
		return nil, err
	}
	// A page is aligned for any type.
	k := &Key{buf: buf, secret: (*expanded)(unsafe.Pointer(unsafe.SliceData(buf.Bytes())))}
	secmem.Compute(func() { k.expand(seed, n) })
	return k, nil
}

func (k *Key) expand(seed []byte, n *Known) {
	copy(k.secret.seed[:], seed)
	h := sha512.Sum512(k.secret.seed[:])
	if _, err := k.secret.scalar.SetBytesWithClamping(h[:32]); err != nil {
		panic(err) // only for a wrong length
	}
	copy(k.secret.prefix[:], h[32:])
	secmem.Wipe(h[:])
	if n != nil && n.hashOf(k.secret.seed[:]) == n.hash {
		k.public = n.public
		return
	}
	var p edwards25519.Point
	copy(k.public[:], p.ScalarBaseMult(&k.secret.scalar).Bytes())
}

// PublicOf gives the public key that belongs to a seed, which stays the caller's
// to wipe.
func PublicOf(seed []byte) (public [PublicKeySize]byte, err error) {
	k, err := NewKey(seed)
	if err != nil {
		return public, err
	}
	defer k.Destroy()
	return k.public, nil
}

// Public gives the public key.
func (k *Key) Public() [PublicKeySize]byte { return k.public }

// Seed writes the seed to dst, which has at least 32 bytes of secret memory.
func (k *Key) Seed(dst []byte) {
	secmem.Compute(func() { copy(dst, k.secret.seed[:]) })
}

// Destroy wipes the key. It must not run beside Sign.
func (k *Key) Destroy() {
	k.secret = nil
	k.buf.Destroy()
}

// Sign writes the signature of msg to sig, which has 64 bytes.
func (k *Key) Sign(sig []byte, p Params, msg []byte) error {
	if k.secret == nil {
		return errWiped
	}
	if len(sig) != SignatureSize {
		return fmt.Errorf("eddsa: a signature has %d bytes, not %d", SignatureSize, len(sig))
	}
	if err := p.check(); err != nil {
		return err
	}
	if p.Variant != Ph && len(msg) > shortMessage {
		own := copies.Get().(*[]byte)
		defer keepCopy(own)
		*own = append((*own)[:0], msg...)
		msg = *own
	}
	secmem.Compute(func() { k.sign(sig, p, msg) })
	return nil
}

// sign is RFC 8032, section 5.1.6. The message is hashed twice. Were it another
// one the second time, under the same r, a signature of the first would give
// the key away, so both hashes are of a copy: msg belongs to the caller, may
// overlap sig, and may be changed by another thread or process meanwhile. Of a
// long one Sign has made the copy.
func (k *Key) sign(sig []byte, p Params, msg []byte) {
	var own [shortMessage]byte
	if p.Variant == Ph {
		digest := sha512.Sum512(msg)
		msg = append(own[:0], digest[:]...)
	} else if len(msg) <= len(own) {
		msg = append(own[:0], msg...)
	}
	var dom [len(domPrefix) + 2 + maxContext]byte
	d := p.dom2(&dom)

	var h [sha512.Size]byte
	var r, c, s edwards25519.Scalar
	var bigR edwards25519.Point
	hash(&h, d, k.secret.prefix[:], msg)
	mustScalar(r.SetUniformBytes(h[:]))
	encodedR := bigR.ScalarBaseMult(&r).Bytes()
	hash(&h, d, encodedR, k.public[:], msg)
	mustScalar(c.SetUniformBytes(h[:]))
	copy(sig[:32], encodedR)
	copy(sig[32:], s.MultiplyAdd(&c, &k.secret.scalar, &r).Bytes())

	secmem.Wipe(h[:])
	secmem.Wipe(unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r)))
}

// shortMessage is the length of a message, in bytes, of which sign makes its
// copy on the stack.
const shortMessage = 1024

// copies is room for copies of longer messages: fresh memory costs the kernel
// as much as a signature takes.
var copies = sync.Pool{New: func() any { return new([]byte) }}

func keepCopy(p *[]byte) {
	const most = 1 << 20
	if cap(*p) <= most {
		copies.Put(p)
	}
}

func mustScalar(_ *edwards25519.Scalar, err error) {
	if err != nil {
		panic(err) // only for a wrong length
	}
}

const domPrefix = "SigEd25519 no Ed25519 collisions"

// dom2 is RFC 8032, section 2: empty for pure Ed25519.
func (p Params) dom2(buf *[len(domPrefix) + 2 + maxContext]byte) []byte {
	if p.Variant == Pure {
		return nil
	}
	d := append(buf[:0], domPrefix...)
	flag := byte(0)
	if p.Variant == Ph {
		flag = 1
	}
	d = append(d, flag, byte(len(p.Context)))
	return append(d, p.Context...)
}

// hash writes SHA-512 of the parts to out, and leaves nothing of them behind:
// short inputs are hashed from the stack, and the state that held parts of a
// long one is overwritten.
func hash(out *[sha512.Size]byte, parts ...[]byte) {
	var short [1024]byte
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n <= len(short) {
		b := short[:0]
		for _, p := range parts {
			b = append(b, p...)
		}
		*out = sha512.Sum512(b)
		secmem.Wipe(b)
		return
	}
	h := sha512.New()
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(out[:0])
	h.Reset()
	// Filling the block buffer in two steps makes the hash copy the zeros
	// into it instead of reading them where they are.
	h.Write(short[:1])
	h.Write(short[1:sha512.BlockSize])
	h.Reset()
}

// Verify tells whether sig is a signature of msg under the public key pub.
func Verify(pub, msg, sig []byte, p Params) bool {
	if len(pub) != PublicKeySize || len(sig) != SignatureSize || p.check() != nil {
		return false
	}
	switch p.Variant {
	case Pure:
		return ed25519.Verify(pub, msg, sig)
	case Ctx:
		return ed25519.VerifyWithOptions(pub, msg, sig, &ed25519.Options{Context: string(p.Context)}) == nil
	case Ph:
		digest := sha512.Sum512(msg)
		return ed25519.VerifyWithOptions(pub, digest[:], sig, &ed25519.Options{Hash: crypto.SHA512, Context: string(p.Context)}) == nil
	}
	return false
}

// ValidPublicKey tells whether pub is the canonical encoding of a point.
func ValidPublicKey(pub []byte) bool {
	if len(pub) != PublicKeySize {
		return false
	}
	p, err := new(edwards25519.Point).SetBytes(pub)
	return err == nil && bytes.Equal(p.Bytes(), pub)
}
