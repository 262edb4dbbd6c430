package migration

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/cryptobyte"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// MaxParcel is the size of the largest parcel, in bytes.
const MaxParcel = 64 << 20

// Parcel is a token on its way to one offer. What it holds is encrypted under a
// key that follows from two secrets: one that only the target's TPM decrypts,
// holding both its endorsement and its storage root key, and one that follows
// from the private half of the offer's key. Each sealed secret in it is wrapped
// to the storage root key besides.
type Parcel struct {
	Header
	nonce      [chacha20poly1305.NonceSizeX]byte
	ciphertext []byte
}

// Header is what a parcel tells without being opened. It is authenticated.
type Header struct {
	Move       bool // the source is removed when the target has proved possession
	Offer      ID
	Serial     Serial // of the token
	RootName   []byte // of the target's storage root key
	Key        [KeySize]byte
	Credential []byte // TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET
}

const (
	parcelMagic   = "ICNP11M"
	flagMove      = 1
	maxCredential = 2048

	labelParcel   = "icn-p11 1 migration"
	labelContents = "icn-p11 1 migration contents"
	labelSeal     = "icn-p11 1 migration seal"
	authBytes     = 24
	authSize      = 32 // base64url of authBytes
)

func (h *Header) encode() []byte {
	flags := byte(0)
	if h.Move {
		flags = flagMove
	}
	b := append([]byte(parcelMagic), version, flags)
	b = append(b, h.Offer[:]...)
	b = append(b, h.Serial[:]...)
	b = append(b, h.RootName...)
	b = append(b, h.Key[:]...)
	b = append(b, byte(len(h.Credential)>>8), byte(len(h.Credential)))
	return append(b, h.Credential...)
}

// Encode gives the bytes of a parcel.
func (p *Parcel) Encode() []byte {
	return slices.Concat(p.Header.encode(), p.nonce[:], p.ciphertext)
}

// size is the length of what Encode gives.
func (p *Parcel) size() int {
	return len(p.Header.encode()) + len(p.nonce) + len(p.ciphertext)
}

// ParseParcel takes a parcel apart, as far as it is not encrypted.
func ParseParcel(data []byte) (*Parcel, error) {
	p, err := parseParcel(data)
	if err != nil {
		return nil, fmt.Errorf("this is no token that was sent, or it was cut or altered: %w", err)
	}
	return p, nil
}

func parseParcel(data []byte) (*Parcel, error) {
	if len(data) > MaxParcel {
		return nil, fmt.Errorf("it has more than %d MiB", MaxParcel>>20)
	}
	in := cryptobyte.String(data)
	p := new(Parcel)
	var magic, credential cryptobyte.String
	var v, flags uint8
	if !in.ReadBytes((*[]byte)(&magic), len(parcelMagic)) || string(magic) != parcelMagic {
		return nil, fmt.Errorf("it does not start with %s", parcelMagic)
	}
	if !in.ReadUint8(&v) || v != version {
		return nil, fmt.Errorf("its version is %d, but this program knows %d only", v, version)
	}
	if !in.ReadUint8(&flags) || flags&^flagMove != 0 {
		return nil, fmt.Errorf("unknown flags %#x", flags)
	}
	p.Move = flags == flagMove
	if !in.CopyBytes(p.Offer[:]) || !in.CopyBytes(p.Serial[:]) || !in.ReadBytes(&p.RootName, nameSize) ||
		!in.CopyBytes(p.Key[:]) || !in.ReadUint16LengthPrefixed(&credential) || !in.CopyBytes(p.nonce[:]) {
		return nil, errShort
	}
	if len(credential) == 0 || len(credential) > maxCredential {
		return nil, fmt.Errorf("a credential of %d bytes", len(credential))
	}
	p.Credential, p.ciphertext = bytes.Clone(credential), in
	if len(p.ciphertext) < chacha20poly1305.Overhead {
		return nil, errShort
	}
	return p, nil
}

var errShort = errors.New("it ends too early")

// keys are the secrets by which a parcel is closed and opened, in secret
// memory.
type keys struct{ buf *secmem.Buffer }

func newKeys() (keys, error) {
	b, err := secmem.New(tpm.MaxCredential + KeySize + chacha20poly1305.KeySize + authSize)
	return keys{b}, err
}

func (k keys) destroy()          { k.buf.Destroy() }
func (k keys) activated() []byte { return k.buf.Bytes()[:tpm.MaxCredential] }
func (k keys) shared() []byte    { return k.buf.Bytes()[tpm.MaxCredential:][:KeySize] }
func (k keys) input() []byte     { return k.buf.Bytes()[:tpm.MaxCredential+KeySize] }
func (k keys) contents() []byte {
	return k.buf.Bytes()[tpm.MaxCredential+KeySize:][:chacha20poly1305.KeySize]
}
func (k keys) auth() []byte {
	return k.buf.Bytes()[tpm.MaxCredential+KeySize+chacha20poly1305.KeySize:]
}

// agree computes the secret that two keys for X25519 share. A nil private half
// draws one, and gives its public half.
func (k keys) agree(secret []byte, with [KeySize]byte) (public []byte, err error) {
	secmem.Compute(func() {
		curve := ecdh.X25519()
		var private *ecdh.PrivateKey
		if secret == nil {
			private, err = curve.GenerateKey(rand.Reader)
		} else {
			private, err = curve.NewPrivateKey(secret)
		}
		if err != nil {
			return
		}
		var other *ecdh.PublicKey
		if other, err = curve.NewPublicKey(with[:]); err != nil {
			return
		}
		var z []byte
		if z, err = private.ECDH(other); err == nil {
			copy(k.shared(), z)
			secmem.Wipe(z)
			public = private.PublicKey().Bytes()
		}
	})
	return public, err
}

// derive computes what closes a parcel from both secrets. The public halves go
// into it, so that nobody makes another pair serve for the same secret.
func (k keys) derive(source, offer [KeySize]byte) (err error) {
	halves := string(source[:]) + string(offer[:])
	secmem.Compute(func() {
		var prk, key, auth []byte
		if prk, err = hkdf.Extract(sha256.New, k.input(), []byte(labelParcel)); err != nil {
			return
		}
		if key, err = hkdf.Expand(sha256.New, prk, labelContents+halves, chacha20poly1305.KeySize); err != nil {
			return
		}
		if auth, err = hkdf.Expand(sha256.New, prk, labelSeal+halves, authBytes); err != nil {
			return
		}
		copy(k.contents(), key)
		base64.RawURLEncoding.Encode(k.auth(), auth)
		for _, b := range [][]byte{prk, key, auth} {
			secmem.Wipe(b)
		}
	})
	return err
}

// close encrypts what a parcel holds.
func (p *Parcel) close(k keys, contents []byte) (err error) {
	if _, err := rand.Read(p.nonce[:]); err != nil {
		return err
	}
	secmem.Compute(func() {
		c, e := chacha20poly1305.NewX(k.contents())
		if err = e; err == nil {
			p.ciphertext = c.Seal(nil, p.nonce[:], contents, p.Header.encode())
		}
	})
	return err
}

var errAltered = errors.New("it was altered, or made for another offer than the one of its header")

func (p *Parcel) open(k keys) (contents []byte, err error) {
	secmem.Compute(func() {
		c, e := chacha20poly1305.NewX(k.contents())
		if err = e; err == nil {
			contents, err = c.Open(nil, p.nonce[:], p.ciphertext, p.Header.encode())
		}
	})
	if err != nil {
		return nil, errAltered
	}
	return contents, nil
}
