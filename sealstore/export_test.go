package sealstore

import (
	"bytes"
	"crypto/rand"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// WithoutRenameat2 makes every file system one that lacks renameat2.
func WithoutRenameat2(t *testing.T) {
	old := renameat2
	renameat2 = func(int, string, int, string, uint) error { return unix.EINVAL }
	t.Cleanup(func() { renameat2 = old })
}

// RacyWindow sets how old a file has to be before its times are trusted.
func RacyWindow(t *testing.T, d time.Duration) {
	old := racyWindow
	racyWindow = d
	t.Cleanup(func() { racyWindow = old })
}

// Settle has the token file that was read last be old enough for its times to
// tell whether it is another one.
func Settle(t *Token) {
	t.cache.Lock()
	defer t.cache.Unlock()
	t.fileAt = t.fileAt.Add(2 * racyWindow)
}

// BusSecrets gives everything that must never pass in the clear between the
// store and the device: what a login of the SO knows, and what follows from
// PINs.
func BusSecrets(t *Token, soPIN, userPIN []byte) map[string][]byte {
	f, _, err := readToken(t.path, t.serial)
	if err != nil {
		panic(err)
	}
	root, err := t.openRoot(f, SO, soPIN)
	if err != nil {
		panic(err)
	}
	defer root.destroy()
	public, err := t.unsealRing(f, f.Public, nil, false)
	if err != nil {
		panic(err)
	}
	defer public.destroy()
	out := map[string][]byte{
		"root secret": root.secret(), "approver secret": root.approver(), "private seal auth": root.auth(),
		"private body key": root.bodyKey(), "MAC key": root.macKey(),
		"public secret": public.secret(), "public seal auth": public.auth(), "public body key": public.bodyKey(),
	}
	for what, s := range map[string]struct {
		r   Role
		k   kdf
		pin []byte
	}{"SO auth": {SO, f.SO.KDF, soPIN}, "user auth": {User, f.User.KDF, userPIN}} {
		auth, err := pinAuth(s.r, s.k, s.pin)
		if err != nil {
			panic(err)
		}
		defer auth.Destroy()
		out[what] = auth.Bytes()
	}
	for what, v := range out {
		out[what] = bytes.Clone(v)
	}
	return out
}

// SnapshotName is the name of the file, and SnapshotMin how many objects make one.
const (
	SnapshotName = snapshotName
	SnapshotMin  = snapshotMin
)

// Unsaved tells how many objects were read from their files.
func Unsaved(t *Token) int {
	t.cache.Lock()
	defer t.cache.Unlock()
	return t.unsaved
}

// InSnapshot gives the IDs of what is in a token's snapshot.
func InSnapshot(t *Token) (ids []ID) {
	v, err := t.begin(true)
	if err != nil {
		panic(err)
	}
	defer v.end()
	s := v.snapshot()
	if s == nil {
		return nil
	}
	for _, at := range s.at {
		ids = append(ids, ID(s.text[at:]))
	}
	return ids
}

// Keyring is that of public objects, for the tests of snapshots.
type Keyring struct{ k *keyring }

// NewKeyrings makes two.
func NewKeyrings() (a, b Keyring, err error) {
	for _, to := range []*Keyring{&a, &b} {
		if to.k, err = newKeyring(); err == nil {
			rand.Read(to.k.bodyKey())
		}
	}
	return a, b, err
}

func (k Keyring) SealSnapshot(serial [8]byte, text []byte) ([]byte, error) {
	return k.k.sealSnapshot(serial, text)
}

func (k Keyring) OpenSnapshot(serial [8]byte, p []byte) error {
	_, err := k.k.openSnapshot(serial, p)
	return err
}

// WriteLoose writes what can be made again.
func WriteLoose(dir, name string, data []byte) error { return writeLoose(dir, name, data) }
