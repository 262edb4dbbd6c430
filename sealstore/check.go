package sealstore

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Damage is a file that cannot be used, or not in full. Err is ErrIntegrity or
// ErrBlob if its content is damaged, and ErrNotFound if it is missing; any
// other error, as of permissions, says nothing about the content.
type Damage struct {
	Path string
	Err  error // names the path and the cause
}

// Lost tells whether the file is missing or its content is damaged. Otherwise
// it could not be read, and may be good.
func (d Damage) Lost() bool {
	return errors.Is(d.Err, ErrNotFound) || errors.Is(d.Err, ErrIntegrity) || errors.Is(d.Err, ErrBlob) || errors.Is(d.Err, ErrSlotTaken)
}

// LeftOut is a token that Tokens leaves out. Besides what a Damage can be, its
// error is ErrSlotTaken where another token has the slot.
type LeftOut struct {
	Serial string
	Damage
}

// LeftOut lists the tokens that Tokens leaves out, by serial number.
func (s *Store) LeftOut() ([]LeftOut, error) {
	c, err := s.Scan()
	return c.LeftOut, err
}

// LeftOut reads all files of objects, and lists those that Objects leaves out
// because they cannot be used. Of private objects, only the user's login shows
// whether the content authenticates.
func (t *Token) LeftOut() ([]Damage, error) {
	_, left, err := t.scan(true)
	return left, err
}

// Check looks for all damage that can be found without a PIN: what LeftOut
// lists, and seals that the TPM does not load any more. It finds no change of
// the token file outside its seals; that file's MAC is checked at login.
func (t *Token) Check() ([]Damage, error) {
	f, _, err := readToken(t.path, t.serial)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(t.path, tokenName)
	var all []Damage
	try := func(path, what string, b Blob) error {
		err := t.store.parentDamage(f, t.store.sealer.TryLoad(f.Parent, b))
		if errors.Is(err, ErrBlob) || errors.Is(err, ErrIntegrity) {
			all = append(all, Damage{path, fmt.Errorf("%s: %s: %w", path, what, err)})
			return nil
		}
		return err
	}
	if err := try(path, "the public secret", f.Public); err != nil {
		return nil, err
	}
	public := len(all) == 0
	if err := try(path, "the root secret under the SO PIN", f.SO.Blob); err != nil {
		return nil, err
	}
	if f.User != nil {
		what := "the root secret under the user PIN"
		if f.User.NoPIN {
			what = "the root secret for use without a PIN"
		}
		if err := try(path, what, f.User.Blob); err != nil {
			return nil, err
		}
	}
	known := map[string]bool{}
	if public {
		left, err := t.LeftOut()
		if err != nil {
			return nil, err
		}
		all = append(all, left...)
		for _, d := range left {
			known[d.Path] = true
		}
	}
	seals, err := t.Seals()
	if err != nil {
		return nil, err
	}
	for _, s := range seals {
		if known[s.Path] {
			continue
		}
		if err := try(s.Path, "its secret", s.Blob); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(all, func(a, b Damage) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

// parentDamage finds out what ErrParent means: that the record of the storage
// root key is damaged, since under the key that is there, the seals load; that
// the TPM was cleared; or that it is another one.
func (s *Store) parentDamage(f *tokenFile, err error) error {
	if !errors.Is(err, ErrParent) {
		return err
	}
	if now, e := s.sealer.Parent(); e == nil && s.sealer.TryLoad(now, f.Public) == nil {
		return fmt.Errorf("%w: the Name of the storage root key is not the one that the seals are under: the file was altered, or somebody between this machine and the TPM shows a key of his own", ErrIntegrity)
	}
	if now, e := s.sealer.Device(); e == nil && len(f.Device) > 0 {
		if bytes.Equal(now, f.Device) {
			return fmt.Errorf("%w: this TPM was cleared since", err)
		}
		return fmt.Errorf("%w: this is another TPM", err)
	}
	return err
}

// ObjectSeal is the seal that an object's file carries.
type ObjectSeal struct {
	ID   ID
	Path string // of the file
	Blob Blob   // with its creation, and the token's binding where it is bound
	// Device: it is no seal but a key that the device has made.
	Device bool
}

// Seals collects the seals of the objects, private ones too: a seal stands in
// its file in the clear. They are not authenticated; a device that loads one
// has made it.
func (t *Token) Seals() ([]ObjectSeal, error) {
	f, _, err := readToken(t.path, t.serial)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(t.path, objectsName)
	dir, err := openDir(unix.AT_FDCWD, path, path)
	if err != nil {
		if err = readError(path, err); errors.Is(err, ErrNotFound) {
			err = nil // LeftOut tells it
		}
		return nil, err
	}
	defer dir.Close()
	ids, _, err := listObjects(dir)
	if err != nil {
		return nil, readError(path, err)
	}
	var out []ObjectSeal
	for _, id := range ids {
		p, _, err := readAt(dir, idName(id), maxObjectFile)
		if err != nil {
			continue // LeftOut tells it, or it was removed just now
		}
		if o, err := decodeObject(p); err == nil && o.sealed() {
			s := ObjectSeal{id, filepath.Join(path, idName(id)), o.Seal, o.device()}
			if t.store.sealer.Bound(s.Blob) {
				s.Blob.Binding = f.Binding
			}
			out = append(out, s)
		}
	}
	return out, nil
}
