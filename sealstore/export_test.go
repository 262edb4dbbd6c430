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
