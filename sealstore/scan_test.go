package sealstore_test

import (
	"crypto/rand"
	"os"
	"runtime"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/memscantest"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/sealtest"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// Whatever is done with a token, and after the logout, none of its secrets is
// in memory that anybody could read: neither what is sealed, nor a PIN. What
// opens a seal passes through the heap, which only runtime/secret wipes, when
// it is collected.
func TestSecretsAreNotInMemory(t *testing.T) {
	chip := swtpmtest.Start(t)
	d, err := tpm.New(tpm.Config{Device: chip.Device(), KeyHandle: 0x81000001})
	must(t, err)
	defer d.Close()
	rec := &memscantest.Recorder{Sealer: d}
	var pins []memscantest.Needle
	// secret gives random text that is nowhere but in secret memory.
	secret := func(name string, n int) []byte {
		b, err := secmem.New(n)
		must(t, err)
		t.Cleanup(b.Destroy)
		rand.Read(b.Bytes())
		pins = append(pins, memscantest.Mask(name, b.Bytes()))
		return b.Bytes()
	}
	user, so, user2, user3, so2 := secret("user PIN", 24), secret("SO PIN", 24), secret("second user PIN", 24), secret("third user PIN", 24), secret("second SO PIN", 24)
	seed := secret("seed", 32)

	s := sealstore.Open(t.TempDir(), rec, nil)
	defer s.Close()
	var token *sealstore.Token
	var key sealstore.ID
	buf, err := secmem.New(32)
	must(t, err)
	defer buf.Destroy()
	sign := func() error {
		for range 20 {
			if _, err := token.Unseal(key, buf.Bytes()); err != nil {
				return err
			}
		}
		secmem.Wipe(buf.Bytes())
		return nil
	}
	spec := sealstore.BindingSpec{Bank: "sha256", PCRs: []int{7}}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"Create", func() error {
			info, err := s.Create(sealstore.InitParams{Label: "t", SOPIN: so})
			if err == nil {
				token, err = s.Token(info.Serial)
			}
			return err
		}},
		{"Login as SO", func() error { return token.Login(sealstore.SO, so) }},
		{"InitUserPIN", func() error { return token.InitUserPIN(user) }},
		{"Logout", func() error { token.Logout(); return nil }},
		{"Login", func() error { return token.Login(sealstore.User, user) }},
		{"CreateObject", func() error {
			if _, err := token.CreateObject(false, []byte("public"), nil, nil); err != nil {
				return err
			}
			o, err := token.CreateObject(true, []byte("private"), seed, nil)
			key = o.ID
			return err
		}},
		{"Unseal", sign},
		{"SetPIN", func() error { return token.SetPIN(sealstore.User, user, user2) }},
		{"SetPIN of the SO", func() error { return token.SetPIN(sealstore.SO, so, so2) }},
		{"Bind", func() error { return token.Bind(user2, so2, spec, nil) }},
		{"Unseal, bound", sign},
		{"extended", func() error { chip.Extend(7, sealtest.Extension); return nil }},
		{"Rebind", func() error { return token.Rebind(so2, map[int][]byte{7: make([]byte, 32)}) }},
		{"ConfirmBinding", func() error { return token.ConfirmBinding(so2) }},
		{"Unseal, bound again", sign},
		{"Rename", func() error { return token.Rename(so2, "u") }},
		{"Unbind", func() error { return token.Unbind(user2, so2, nil) }},
		{"SO again", func() error { return token.Login(sealstore.SO, so2) }},
		{"InitUserPIN again", func() error { return token.InitUserPIN(user3) }},
		{"Close", func() error { s.Close(); d.Release(); return nil }},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if secmem.WipesHeap {
			runtime.GC()
			runtime.GC()
		}
		hits := memscantest.Scan(t, os.Getpid(), append(rec.Needles(), pins...))
		for _, h := range hits {
			// This process keeps PINs and seed in such pages itself.
			if !h.Locked && (h.Name != memscantest.AuthValue || secmem.WipesHeap) {
				t.Errorf("after %s: %s", step.name, h)
			}
		}
	}
	if n := len(rec.Needles()); n < 10 {
		t.Fatalf("%d secrets have passed", n)
	}

	// The search finds what is there to be found.
	plain := append([]byte("x"), seed...)
	if len(memscantest.Scan(t, os.Getpid(), pins)) == 0 {
		t.Error("the search is blind")
	}
	clear(plain)
}
