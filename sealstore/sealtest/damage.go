package sealtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// region is a part of a file.
type region struct {
	name     string
	from, to int
}

// sealRegions finds what a TPM can check in a token file with both PINs
// (docs/format.md): the seals and the Name that they are under.
func sealRegions(file []byte) []region {
	const head, kdf = 7 + 1 + 8 + 4 + 8 + 1 + 32, 16 + 4 + 4 + 1
	at := head
	sized := func() int { return at + 2 + int(binary.BigEndian.Uint16(file[at:])) }
	blob := func(name string) region {
		from := at
		at = sized()
		at = sized()
		return region{name, from, at}
	}
	parent := region{"Name", at, sized()}
	at = parent.to
	at = sized() + kdf // behind the name of the device
	so := blob("SO seal")
	at += 1 + kdf
	return []region{parent, so, blob("user seal"), blob("public seal")}
}

// damaged reports that a check has found damage in a file.
func damaged(found []sealstore.Damage, path string) bool {
	for _, d := range found {
		if d.Path == path && (errors.Is(d.Err, sealstore.ErrBlob) || errors.Is(d.Err, sealstore.ErrIntegrity)) {
			return true
		}
	}
	return false
}

// damage alters files where nobody needs a PIN to notice.
func damage(t *testing.T, f *fixture) {
	tok := f.token(t)
	private, err := tok.CreateObject(true, []byte("private"), []byte("secret"), nil)
	ok(t, err)
	public, err := tok.CreateObject(false, []byte("public"), []byte("secret"), nil)
	ok(t, err)
	dir := filepath.Join(f.dir, "tokens", serial(t, tok))
	before, err := f.store.Sealer().Lockout()
	ok(t, err)
	tok.Logout()

	// check is what another process finds.
	check := func() ([]sealstore.Damage, error) {
		other, err := f.open(t).Token(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		return other.Check()
	}
	try := func(path string, offset int, what string) {
		t.Helper()
		good, err := os.ReadFile(path)
		ok(t, err)
		bad := bytes.Clone(good)
		bad[offset] ^= 1 << (offset % 8)
		ok(t, os.WriteFile(path, bad, 0o600))
		// A file that is malformed is not even opened as a token.
		if found, err := check(); !damaged(found, path) && !errors.Is(err, sealstore.ErrIntegrity) {
			t.Errorf("%s, byte %d: found %v, %v", what, offset, found, err)
		}
		ok(t, os.WriteFile(path, good, 0o600))
	}

	found, err := check()
	if ok(t, err); len(found) != 0 {
		t.Fatal(found)
	}
	tokenFile := filepath.Join(dir, "token")
	data, err := os.ReadFile(tokenFile)
	ok(t, err)
	for _, r := range sealRegions(data) {
		for i := r.from; i < r.to; i += 5 {
			try(tokenFile, i, r.name)
		}
	}
	for _, o := range []sealstore.Object{private, public} {
		path := filepath.Join(dir, "objects", fmt.Sprintf("%x", o.ID[:]))
		data, err := os.ReadFile(path)
		ok(t, err)
		size := len(data) - len(o.Body) - 16 - 24 - 4 // where the seal ends
		if !o.Private {
			size = len(data)
		}
		for i := 0; i < size; i += 5 {
			try(path, i, "object")
		}
	}
	found, err = check()
	if ok(t, err); len(found) != 0 {
		t.Fatal(found)
	}
	after, err := f.store.Sealer().Lockout()
	ok(t, err)
	if after.Counter != before.Counter {
		t.Errorf("looking for damage costs tries: %+v, then %+v", before, after)
	}

	// What Objects leaves out is told by name.
	path := filepath.Join(dir, "objects", fmt.Sprintf("%x", public.ID[:]))
	data, err = os.ReadFile(path)
	ok(t, err)
	data[len(data)-1] ^= 1
	ok(t, os.WriteFile(path, data, 0o600))
	left, err := tok.LeftOut()
	ok(t, err)
	if len(left) != 1 || !damaged(left, path) {
		t.Error(left)
	}
	// A private one by the user's login.
	path = filepath.Join(dir, "objects", fmt.Sprintf("%x", private.ID[:]))
	data, err = os.ReadFile(path)
	ok(t, err)
	data[len(data)-1] ^= 1
	ok(t, os.WriteFile(path, data, 0o600))
	ok(t, tok.Login(sealstore.User, UserPIN))
	if left, err = tok.LeftOut(); err != nil || len(left) != 2 || !damaged(left, path) {
		t.Error(left, err)
	}
	ok(t, os.RemoveAll(filepath.Dir(path)))
	if left, err = tok.LeftOut(); err != nil || len(left) != 1 || !errors.Is(left[0].Err, sealstore.ErrNotFound) {
		t.Error(left, err)
	}

	// A token that cannot be read as one.
	for _, data := range [][]byte{nil, []byte("x\n")} {
		ok(t, os.WriteFile(tokenFile, data, 0o600))
		left, err := f.store.LeftOut()
		ok(t, err)
		if len(left) != 1 || left[0].Serial != filepath.Base(dir) || !errors.Is(left[0].Err, sealstore.ErrIntegrity) {
			t.Errorf("%q: %+v", data, left)
		}
	}
	ok(t, os.Remove(tokenFile))
	if left, err := f.store.LeftOut(); err != nil || len(left) != 1 || !errors.Is(left[0].Err, sealstore.ErrNotFound) {
		t.Error(left, err)
	}
}
