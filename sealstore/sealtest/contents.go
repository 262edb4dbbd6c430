package sealtest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// The PINs of a token after it was restored.
var (
	newSOPIN   = []byte("restored-so-pin")
	newUserPIN = []byte("restored-pin")
)

// recoverable makes a token with both PINs, the user logged in.
func (f *fixture) recoverable(t *testing.T, binding *sealstore.BindingSpec) *sealstore.Token {
	t.Helper()
	info, err := f.store.Create(sealstore.InitParams{Label: "recoverable", SOPIN: SOPIN, Recoverable: true, Binding: binding})
	ok(t, err)
	if !info.Recoverable {
		t.Error("a recoverable token does not say so")
	}
	tok, err := f.store.Token(info.Serial)
	ok(t, err)
	ok(t, tok.Login(sealstore.SO, SOPIN))
	ok(t, tok.InitUserPIN(UserPIN))
	tok.Logout()
	ok(t, tok.Login(sealstore.User, UserPIN))
	return tok
}

// furnish puts objects of each kind into a token, and gives their secrets.
func furnish(t *testing.T, tok *sealstore.Token) map[sealstore.ID][]byte {
	t.Helper()
	secrets := map[sealstore.ID][]byte{}
	for _, x := range []struct {
		private       bool
		body          string
		secret, about []byte
	}{
		{true, "a key", seed(), []byte("its public half")},
		{true, "another key", seed(), nil},
		{false, "a public secret", []byte("s"), nil},
		{true, "private data", nil, nil},
		{false, "public data", nil, nil},
		{true, "", bytes.Repeat([]byte("x"), sealstore.MaxSecret), nil},
	} {
		o, err := tok.CreateObject(x.private, []byte(x.body), x.secret, x.about)
		ok(t, err)
		secrets[o.ID] = x.secret
	}
	return secrets
}

// sameObjects compares what a login sees of two tokens.
func sameObjects(t *testing.T, tok *sealstore.Token, want map[sealstore.ID]sealstore.Object, secrets map[sealstore.ID][]byte) {
	t.Helper()
	got := all(t, tok)
	if len(got) != len(want) {
		t.Fatalf("%d objects, want %d", len(got), len(want))
	}
	for id, w := range want {
		g := got[id]
		if g.Private != w.Private || g.Sealed != w.Sealed || !bytes.Equal(g.Body, w.Body) {
			t.Errorf("object %x: %+v, want %+v", id, g, w)
		}
		if secrets[id] == nil {
			continue
		}
		if p, err := unseal(t, tok, id); err != nil || !bytes.Equal(p, secrets[id]) {
			t.Errorf("object %x: another secret: %v", id, err)
		}
	}
}

// tree sums up the files of a directory, but for locks.
func tree(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	m := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == dir {
			return nil
		}
		if err != nil || e.IsDir() || e.Name() == "lock" {
			return err
		}
		p, err := os.ReadFile(path)
		m[path] = sha256.Sum256(p)
		return err
	})
	ok(t, err)
	return m
}

func unchanged(t *testing.T, dir string, before map[string][32]byte) {
	t.Helper()
	if after := tree(t, dir); !maps.Equal(before, after) {
		t.Errorf("the store has changed: %d files, %d before", len(after), len(before))
	}
}

// creation: a seal comes with what the device says of how it was made.
func creation(t *testing.T, f *fixture) {
	tok := f.token(t)
	about := []byte("the public key")
	with, err := tok.CreateObject(true, nil, seed(), about)
	ok(t, err)
	without, err := tok.CreateObject(true, nil, seed(), nil)
	ok(t, err)
	_, err = tok.CreateObject(true, nil, seed(), make([]byte, sealstore.MaxAbout+1))
	fails(t, err, sealstore.ErrTooLarge)
	_, err = tok.CreateObject(true, nil, nil, about)
	fails(t, err, sealstore.ErrTooLarge)
	check := func() {
		t.Helper()
		seals, err := tok.Seals()
		ok(t, err)
		if len(seals) != 2 {
			t.Fatalf("%d seals", len(seals))
		}
		for _, s := range seals {
			c := s.Blob.Creation
			switch s.ID {
			case with.ID:
				if c == nil || !bytes.Equal(c.About, about) || !bytes.Contains(c.Data, about) || len(c.Ticket) == 0 {
					t.Errorf("%+v", c)
				}
			case without.ID:
				if c != nil {
					t.Errorf("%+v", c)
				}
			}
		}
	}
	check()
	// A seal that is made anew has a creation of its own.
	ok(t, tok.Bind(UserPIN, SOPIN, sealstore.BindingSpec{Bank: "sha256", PCRs: []int{7}}, nil))
	check()
	seals, err := tok.Seals()
	ok(t, err)
	for _, s := range seals {
		if s.Blob.Binding == nil {
			t.Error("the seal of a bound token has no binding")
		}
	}
}

// exportRestore takes a token to another machine.
func exportRestore(t *testing.T, f *fixture) {
	for _, binding := range []*sealstore.BindingSpec{nil, {Bank: "sha256", PCRs: []int{7}}} {
		there := f.suite.fixture(t)
		tok := f.recoverable(t, binding)
		secrets := furnish(t, tok)
		want := all(t, tok)
		info, err := tok.Info()
		ok(t, err)

		if binding == nil { // a TPM takes two wrong ones, and no third
			for _, pins := range [][2][]byte{{UserPIN, UserPIN}, {SOPIN, SOPIN}} {
				_, err = tok.Export(pins[0], pins[1], nil)
				fails(t, err, sealstore.ErrAuth)
			}
		}
		steps := 0
		c, err := tok.Export(UserPIN, SOPIN, func(done, total int) {
			if steps++; done != steps || total != len(want) {
				t.Errorf("step %d: %d of %d", steps, done, total)
			}
		})
		ok(t, err)
		defer c.Destroy()
		ok(t, c.Check())
		if steps != len(want) || len(c.Objects) != len(want) || c.Label != "recoverable" || !c.UserPIN || c.NoPIN || !c.Created.Equal(info.Created) {
			t.Errorf("%d steps, %+v", steps, c)
		}

		p := sealstore.RestoreParams{UserPIN: newUserPIN, SOPIN: newSOPIN}
		for _, bad := range []sealstore.RestoreParams{{UserPIN: []byte("abc"), SOPIN: newSOPIN}, {UserPIN: newUserPIN}, {SOPIN: newSOPIN}} {
			_, err := there.store.Restore(c, bad)
			fails(t, err, sealstore.ErrPINLength)
		}
		if len(tree(t, there.dir)) != 0 {
			t.Error("a refused restoration has left files")
		}
		back, err := there.store.Restore(c, p)
		ok(t, err)
		if back.Serial != info.Serial || back.Label != info.Label || back.Slot != info.Slot || !back.Created.Equal(info.Created) || !back.Recoverable || !back.UserPIN {
			t.Errorf("%+v, was %+v", back, info)
		}
		restored, err := there.store.Token(back.Serial)
		ok(t, err)
		fails(t, restored.Login(sealstore.User, UserPIN), sealstore.ErrAuth)
		ok(t, restored.Login(sealstore.User, newUserPIN))
		sameObjects(t, restored, want, secrets)
		b, now, err := restored.Binding()
		ok(t, err)
		if (b != nil) != (binding != nil) || b != nil && !b.Open(now) {
			t.Errorf("bound to %+v", b)
		}
		seals, err := restored.Seals()
		ok(t, err)
		if n := slices.IndexFunc(seals, func(s sealstore.ObjectSeal) bool { return s.Blob.Creation != nil }); n < 0 || string(seals[n].Blob.Creation.About) != "its public half" {
			t.Error("what a seal is about was lost")
		}

		// It is as recoverable as before, and the one it was taken from is untouched.
		again, err := restored.Export(newUserPIN, newSOPIN, nil)
		ok(t, err)
		again.Destroy()
		sameObjects(t, tok, want, secrets)
		ok(t, f.store.Delete(info.Serial, SOPIN))
	}
}

// restoreReplaces: one token takes the place of another only if that is meant.
func restoreReplaces(t *testing.T, f *fixture) {
	tok := f.recoverable(t, nil)
	secrets := furnish(t, tok)
	want := all(t, tok)
	c, err := tok.Export(UserPIN, SOPIN, nil)
	ok(t, err)
	defer c.Destroy()
	late, err := put(tok)
	ok(t, err)
	before := tree(t, f.dir)
	p := sealstore.RestoreParams{UserPIN: newUserPIN, SOPIN: newSOPIN}
	_, err = f.store.Restore(c, p)
	fails(t, err, sealstore.ErrExists)
	unchanged(t, f.dir, before)

	// A login that is open elsewhere is over when the token is another.
	other, err := f.open(t).Token(c.Serial)
	ok(t, err)
	ok(t, other.Login(sealstore.User, UserPIN))
	p.Replace = true
	_, err = f.store.Restore(c, p)
	ok(t, err)
	if _, err := unseal(t, other, late); err == nil {
		t.Error("a key of the token that was replaced opens")
	}
	ok(t, tok.Login(sealstore.User, newUserPIN))
	sameObjects(t, tok, want, secrets)

	// Another token has its slot meanwhile.
	ok(t, f.store.Delete(c.Serial, newSOPIN))
	slot := c.Slot
	taken, err := f.store.Create(sealstore.InitParams{Label: "other", SOPIN: SOPIN, Slot: &slot})
	ok(t, err)
	p.Label, p.Reserved = "new label", []uint32{slot + 1}
	back, err := f.store.Restore(c, p)
	ok(t, err)
	if back.Slot != slot+2 || taken.Slot != slot || back.Label != "new label" {
		t.Errorf("%+v beside %+v", back, taken)
	}

	// A token whose file is damaged is replaced all the same.
	ok(t, os.WriteFile(filepath.Join(f.dir, "tokens", c.Serial, "token"), []byte("damaged"), 0o600))
	_, err = f.store.Restore(c, sealstore.RestoreParams{UserPIN: newUserPIN, SOPIN: newSOPIN})
	fails(t, err, sealstore.ErrExists)
	p.Reserved = nil
	_, err = f.store.Restore(c, p)
	ok(t, err)
	again, err := f.store.Token(c.Serial)
	ok(t, err)
	ok(t, again.Login(sealstore.User, newUserPIN))
	sameObjects(t, again, want, secrets)
}

// notRecoverable: no PIN gets a secret out of an ordinary token.
func notRecoverable(t *testing.T, f *fixture) {
	tok := f.token(t)
	furnish(t, tok)
	c, err := tok.Export(UserPIN, SOPIN, nil)
	fails(t, err, sealstore.ErrNotRecoverable)
	if c != nil {
		t.Error("something was taken out")
	}
	// What says so is under the token's MAC.
	path := filepath.Join(f.dir, "tokens", serial(t, tok), "token")
	p, err := os.ReadFile(path)
	ok(t, err)
	const flags = 7 + 1 + 8 + 4 + 8
	if p[flags] != 0 {
		t.Fatalf("flags %x", p[flags])
	}
	p[flags] = 1
	ok(t, os.WriteFile(path, p, 0o600))
	_, err = tok.Export(UserPIN, SOPIN, nil)
	fails(t, err, sealstore.ErrIntegrity)
}

// files: what lies on disk serves the machine it was made on.
func files(t *testing.T, f *fixture) {
	tok := f.token(t)
	secrets := furnish(t, tok)
	want := all(t, tok)
	ser := serial(t, tok)
	ok(t, tok.SaveBootLog([]byte("boot log")))
	x, err := tok.Files(UserPIN, SOPIN)
	ok(t, err)
	ok(t, x.Check())
	if x.Serial != ser || len(x.Objects) != len(want) {
		t.Errorf("%d objects of token %s", len(x.Objects), x.Serial)
	}
	ok(t, f.store.Delete(ser, SOPIN))

	p := sealstore.RestoreParams{UserPIN: UserPIN, SOPIN: SOPIN}
	there := f.suite.fixture(t)
	_, err = there.store.RestoreFiles(x, p)
	fails(t, err, sealstore.ErrParent)
	for _, bad := range []sealstore.RestoreParams{{UserPIN: SOPIN, SOPIN: SOPIN}, {UserPIN: UserPIN, SOPIN: UserPIN}} {
		_, err = f.store.RestoreFiles(x, bad)
		fails(t, err, sealstore.ErrAuth)
	}
	for i := range x.Objects {
		bad := *x
		bad.Objects = slices.Clone(x.Objects)
		data := bytes.Clone(x.Objects[i].Data)
		data[len(data)-1] ^= 1
		bad.Objects[i].Data = data
		_, err = f.store.RestoreFiles(&bad, p)
		fails(t, err, sealstore.ErrIntegrity)
		bad.Objects[i].Data = x.Objects[(i+1)%len(x.Objects)].Data
		_, err = f.store.RestoreFiles(&bad, p)
		fails(t, err, sealstore.ErrIntegrity)
	}
	for _, dir := range []string{f.dir, there.dir} {
		if left := tree(t, dir); len(left) != 0 {
			t.Errorf("files are left: %v", left)
		}
	}

	_, err = f.store.Create(sealstore.InitParams{Label: "in its slot", SOPIN: SOPIN})
	ok(t, err)
	p.Label = "another label"
	back, err := f.store.RestoreFiles(x, p)
	ok(t, err)
	if back.Serial != ser || back.Slot != 1 || back.Label != p.Label || back.Recoverable {
		t.Errorf("%+v", back)
	}
	again, err := f.store.Token(ser)
	ok(t, err)
	ok(t, again.Login(sealstore.User, UserPIN))
	sameObjects(t, again, want, secrets)
	if log, err := again.BootLog(); err != nil || string(log) != "boot log" {
		t.Errorf("boot log %q, %v", log, err)
	}
	_, err = f.store.RestoreFiles(x, p)
	fails(t, err, sealstore.ErrExists)
	p.Replace = true
	_, err = f.store.RestoreFiles(x, p)
	ok(t, err)
	ok(t, again.Login(sealstore.User, UserPIN))
	sameObjects(t, again, want, secrets)
}
