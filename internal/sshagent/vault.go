package sshagent

import (
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"errors"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// vault keeps a PIN under a passphrase. No TPM limits guessing here, so the
// passphrase goes through Argon2id with the second recommendation of RFC 9106
// (section 4), and what is kept lies in secret memory all the same.
type vault struct {
	buf    *secmem.Buffer // salt, and behind it the sealed PIN
	empty  bool           // there is no PIN; what is sealed tells the passphrase
	memory uint32         // of Argon2, in KiB
}

const (
	saltSize      = 16
	maxPassphrase = 1024 // what ssh-add takes
	vaultPasses   = 3
	vaultMemory   = 64 << 10 // KiB
	vaultLanes    = 4
	vaultLabel    = "icn-p11 agent 1 lock"
)

var errPassphrase = errors.New("wrong passphrase")

// newVault seals a PIN, which may be nil.
func newVault(passphrase, pin []byte, memory uint32) (*vault, error) {
	buf, err := secmem.New(saltSize + len(pin) + chacha20poly1305.Overhead)
	if err != nil {
		return nil, err
	}
	v := &vault{buf, pin == nil, memory}
	if _, err := rand.Read(v.salt()); err != nil {
		v.destroy()
		return nil, err
	}
	err = v.with(passphrase, func(key, nonce []byte) error {
		c, err := chacha20poly1305.New(key)
		if err == nil {
			c.Seal(v.sealed()[:0], nonce, pin, nil)
		}
		return err
	})
	if err != nil {
		v.destroy()
		return nil, err
	}
	return v, nil
}

func (v *vault) salt() []byte   { return v.buf.Bytes()[:saltSize] }
func (v *vault) sealed() []byte { return v.buf.Bytes()[saltSize:] }

// open gives the PIN, which the caller destroys; nil where there is none. The
// comparison is that of Poly1305's tags, in constant time.
func (v *vault) open(passphrase []byte) (*secmem.Buffer, error) {
	out, err := secmem.New(len(v.sealed()))
	if err != nil {
		return nil, err
	}
	defer out.Destroy()
	var pin *secmem.Buffer
	err = v.with(passphrase, func(key, nonce []byte) error {
		c, err := chacha20poly1305.New(key)
		if err != nil {
			return err
		}
		opened, err := c.Open(out.Bytes()[:0], nonce, v.sealed(), nil)
		if err != nil {
			return errPassphrase
		}
		if v.empty {
			return nil
		}
		if pin, err = secmem.New(len(opened)); err == nil {
			secmem.Copy(pin.Bytes(), opened)
		}
		return err
	})
	return pin, err
}

// with derives the key of a passphrase, and the nonce: with a salt for each
// vault no key is used twice.
//
// Argon2 keeps its input in buffers that nobody can wipe, so it gets a SHA-512
// hash of the passphrase, which reads whole blocks in secret memory only.
func (v *vault) with(passphrase []byte, f func(key, nonce []byte) error) error {
	if len(passphrase) > maxPassphrase {
		return errPassphrase
	}
	const head, size = sha512.BlockSize, sha512.BlockSize * 10
	in, err := secmem.New(size + sha512.Size)
	if err != nil {
		return err
	}
	defer in.Destroy()
	var sum []byte
	secmem.Compute(func() {
		b := in.Bytes()
		copy(b, vaultLabel)
		copy(b[head-saltSize:], v.salt())
		binary.BigEndian.PutUint16(b[head:], uint16(len(passphrase)))
		copy(b[head+2:], passphrase)
		h := sha512.New()
		h.Write(b[:size])
		sum = h.Sum(b[size:size])
	})
	secmem.Do(func() {
		key := argon2.IDKey(sum, v.salt(), vaultPasses, v.memory, vaultLanes, chacha20poly1305.KeySize+chacha20poly1305.NonceSize)
		err = f(key[:chacha20poly1305.KeySize], key[chacha20poly1305.KeySize:])
		secmem.Wipe(key)
	})
	return err
}

// destroy wipes the vault; there may be none.
func (v *vault) destroy() {
	if v != nil {
		v.buf.Destroy()
	}
}
