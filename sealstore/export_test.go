package sealstore

import (
	"testing"

	"golang.org/x/sys/unix"
)

// WithoutRenameat2 makes every file system one that lacks renameat2.
func WithoutRenameat2(t *testing.T) {
	old := renameat2
	renameat2 = func(int, string, int, string, uint) error { return unix.EINVAL }
	t.Cleanup(func() { renameat2 = old })
}

// MaskedSecrets gives the root and the public secret that t holds, XORed with
// 0x5a so that a search of the memory does not find the result itself.
func MaskedSecrets(t *Token) (root, public []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	mask := func(k *keyring) []byte {
		var m []byte
		if k != nil {
			for _, b := range k.secret() {
				m = append(m, b^0x5a)
			}
		}
		return m
	}
	return mask(t.root), mask(t.public)
}
