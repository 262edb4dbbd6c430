// Package x25519 computes the Diffie-Hellman function of RFC 7748 with private
// keys that stay in secret memory. The library works on the caller's arrays and
// on the stack, so that nothing of a key gets to the Go heap.
package x25519

import (
	"errors"

	"github.com/cloudflare/circl/dh/x25519"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// Size is that of private keys, public keys and shared secrets, in bytes.
const Size = x25519.Size

// ErrLowOrder: the peer's public key is a point of low order, with which every
// private key has the same shared secret, all zeros (RFC 7748, section 6.1).
var ErrLowOrder = errors.New("x25519: the public key is of low order")

// Public computes the public key of a private key, which has 32 bytes.
func Public(private []byte) (public [Size]byte) {
	secmem.Compute(func() { x25519.KeyGen((*x25519.Key)(&public), (*x25519.Key)(private)) })
	return public
}

// Shared writes the shared secret of a private key and a peer's public key to
// dst, which is secret memory. All three have 32 bytes.
func Shared(dst, private, peer []byte) error {
	ok := false
	secmem.Compute(func() {
		ok = x25519.Shared((*x25519.Key)(dst), (*x25519.Key)(private), (*x25519.Key)(peer))
	})
	if !ok {
		secmem.Wipe(dst)
		return ErrLowOrder
	}
	return nil
}
