package sealstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/sealtest"
)

// TestManyObjects: of more objects than are looked at together, of all kinds
// and sizes, each is what it was, whatever becomes of its neighbours.
func TestManyObjects(t *testing.T) {
	const n = 200
	dir := t.TempDir()
	_, tok, dev, _ := newToken(t, dir)
	type content struct {
		private bool
		body    string
		secret  []byte
	}
	made := map[sealstore.ID]content{}
	var ids []sealstore.ID
	for i := range n {
		c := content{private: i%3 == 0, body: fmt.Sprint("object ", i)}
		if i%7 == 0 {
			c.body += string(bytes.Repeat([]byte{byte(i)}, 40<<10)) // few of these fill the memory for a batch
		}
		if i%5 == 0 {
			c.secret = fmt.Appendf(nil, "secret %d", i)
		}
		o, err := tok.CreateObject(c.private, []byte(c.body), c.secret, nil)
		must(t, err)
		made[o.ID] = c
		ids = append(ids, o.ID)
	}
	info, err := tok.Info()
	must(t, err)

	st := sealstore.Open(dir, dev, nil)
	defer st.Close()
	tok, err = st.Token(info.Serial)
	must(t, err)
	check := func(what string, private bool) []sealstore.Object {
		t.Helper()
		list, err := tok.Objects()
		must(t, err)
		left := maps.Clone(made)
		maps.DeleteFunc(left, func(_ sealstore.ID, c content) bool { return c.private && !private })
		for i, o := range list {
			c, ok := left[o.ID]
			if !ok || string(o.Body) != c.body || o.Private != c.private || o.Sealed != (c.secret != nil) {
				t.Fatalf("%s: object %x is not what was made", what, o.ID)
			}
			if i > 0 && bytes.Compare(list[i-1].ID[:], o.ID[:]) >= 0 {
				t.Fatalf("%s: not by ID", what)
			}
			delete(left, o.ID)
		}
		if len(left) > 0 {
			t.Fatalf("%s: %d objects are missing", what, len(left))
		}
		return list
	}
	first := check("before the login", false)
	given := map[sealstore.ID]string{}
	for _, o := range first {
		given[o.ID] = string(o.Body)
	}
	must(t, tok.Login(sealstore.User, sealtest.UserPIN))
	all := check("logged in", true)
	check("once more", true)

	secret, err := secmem.New(sealstore.MaxSecret)
	must(t, err)
	defer secret.Destroy()
	for _, o := range all {
		if c := made[o.ID]; c.secret != nil {
			if k, err := tok.Unseal(o.ID, secret.Bytes()); err != nil || !bytes.Equal(secret.Bytes()[:k], c.secret) {
				t.Errorf("object %x: the secret is not what it was (%v)", o.ID, err)
			}
		}
		if o.ID[0]%16 == 0 {
			c := made[o.ID]
			c.body += ", changed"
			_, err := tok.UpdateObject(o.ID, o.Stamp, []byte(c.body))
			must(t, err)
			made[o.ID] = c
		}
	}
	check("changed", true)

	objects := filepath.Join(tokenPath(t, dir, tok), "objects")
	for i, id := range ids {
		path := filepath.Join(objects, fmt.Sprintf("%x", id))
		switch i % 20 {
		case 3, 4: // one that is private, and one that is not
			p, err := os.ReadFile(path)
			must(t, err)
			p[len(p)-1] ^= 1
			must(t, os.WriteFile(path, p, 0o600))
		case 8:
			must(t, os.Truncate(path, 20))
		case 12:
			must(t, os.Remove(path))
		case 16:
			must(t, errors.Join(os.Remove(path), os.Symlink("/dev/zero", path)))
		default:
			continue
		}
		delete(made, id)
	}
	check("after the damage", true)
	tok.Logout()
	check("logged out", false)
	must(t, tok.Login(sealstore.User, sealtest.UserPIN))
	check("logged in again", true)
	for _, o := range first {
		if string(o.Body) != given[o.ID] {
			t.Errorf("the body of object %x, which was given out, has changed", o.ID)
		}
	}
}
